"""`verify`: what is whole is said to be, and every way of not being so is found and named."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from grown import CONTEXT, Ground, begin, documents, settings
from ontogeny.artifact import MANIFEST, open_artifact
from ontogeny.checkpoints.store import drop_states, step_folder
from ontogeny.cli.app import app
from ontogeny.config import build
from ontogeny.digest import digest_bytes, digest_file, digest_json
from ontogeny.errors import DataError, Fault
from ontogeny.results import UpdateMetrics, read_metrics
from ontogeny.stages.subjects import Subject
from ontogeny.stages.verify import verify
from ontogeny.suite import METRICS, RunSettings
from ontogeny.training.loop import train
from served import serving
from spoken import Type

STEPS = [0, 1, 2, 4, 8, 12, 16, 20, 24]
STATES = [0, 8, 16, 24]
WEIGHTS = "model.safetensors"
EMBEDDING = "gpt_neox.embed_in.weight"


class Enough(Exception):  # noqa: N818
    """Raised by a sink: the run stops here."""


def stop_at_update_13(row: UpdateMetrics) -> None:
    if row.update == 13:
        raise Enough


@pytest.fixture(scope="module")
def grown_site(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ground and a finished run on it, with which it may be moved; never written to."""
    home = tmp_path_factory.mktemp("verify") / "site"
    shutil.copytree(ground.home, home)
    site = Ground(home)
    train(begin(site, home / "run", settings()), site.batches(4))
    return home


@pytest.fixture
def site(grown_site: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grown_site, tmp_path / "site"))


@pytest.fixture
def run(site: Path) -> Path:
    return site / "run"


def faults(path: Path) -> list[Fault]:
    return [fault for subject in verify(path) for fault in subject.faults]


def notes(path: Path) -> str:
    return "; ".join(note for subject in verify(path) for note in subject.notes)


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(bytes(data))


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a manifest so that it is true to itself again: its files and its own digest."""
    written = json.loads((folder / MANIFEST).read_text())
    content = written["content"]
    for name, entry in content["files"].items():
        entry |= {"bytes": (folder / name).stat().st_size, "sha256": digest_file(folder / name)}
    if (folder / WEIGHTS).is_file() and "tensors" in content["facts"]:
        for name, tensor in load_file(folder / WEIGHTS).items():
            data = tensor.contiguous().numpy().tobytes()
            content["facts"]["tensors"][name]["sha256"] = digest_bytes(data)
    change(content)
    written["digest"] = digest_json(content)
    (folder / MANIFEST).write_text(json.dumps(written))


def no_change(content: dict[str, Any]) -> None:
    """Only what follows from the files."""


def test_what_is_whole(site: Path) -> None:
    subjects = {subject.name: subject for subject in verify(site)}
    assert all(not subject.faults for subject in subjects.values())
    assert list(subjects) == [
        "held-out", "order", "run", "run/steps", "run/states", "run/rows", "store", "vocabulary",
    ]  # fmt: skip
    steps = subjects["run/steps"]
    per_step = len(load_file(step_folder(site / "run", 0) / WEIGHTS))
    assert steps.num_files == 3 * len(STEPS)
    assert steps.num_tensors == per_step * len(STEPS)
    files = [path for path in payload_files(site / "run/steps") if path.name != MANIFEST]
    assert steps.num_bytes == sum(path.stat().st_size for path in files)
    assert len(subjects["run/rows"].jobs) == len(STEPS)
    kinds = [one.kind for one in verify(step_folder(site / "run", 16))]
    assert kinds == ["checkpoint", "rows of 4 updates"]
    for path in (site / "store", site / "run", *(step_folder(site / "run", s) for s in STEPS)):
        assert faults(path) == []


def test_checkpoints_name_their_settings(run: Path) -> None:
    config = digest_json(json.loads((run / MANIFEST).read_text())["content"]["config"])
    found = {step: open_artifact(step_folder(run, step)).facts for step in STEPS}
    assert all(facts["config"] == config for facts in found.values())
    assert [step for step, facts in found.items() if facts["full_state"]] == STATES


def payload_files(home: Path) -> list[Path]:
    return sorted(
        path
        for path in home.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size
    )


def require_every_flip_found(home: Path, files: list[Path], seed: int) -> None:
    """Flip a bit of each file and ask `verify`; the file is whole again afterwards."""
    places = random.Random(seed)
    for path in files:
        data = path.read_bytes()
        flip(path, places.randrange(len(data)), places.randrange(8))
        first = faults(home)[0]
        named = path.parent if path.name == MANIFEST else path
        assert str(named) in first.place or first.place == str(home), path
        path.write_bytes(data)


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_bit_in_any_file_of_a_run(run: Path, seed: int) -> None:
    require_every_flip_found(run, payload_files(run), seed)


@pytest.mark.parametrize("name", ["store", "order", "vocabulary", "held-out"])
def test_a_flipped_bit_in_any_file_of_the_data(site: Path, name: str) -> None:
    require_every_flip_found(site / name, payload_files(site / name), 0)


def test_a_flipped_bit_names_its_tensor(run: Path) -> None:
    path = step_folder(run, 12) / WEIGHTS
    header = int.from_bytes(path.read_bytes()[:8], "little")
    places = json.loads(path.read_bytes()[8 : 8 + header])
    for name in (EMBEDDING, "embed_out.weight", "gpt_neox.final_layer_norm.bias"):
        flip(path, 8 + header + places[name]["data_offsets"][0] + 3)
        first = faults(run)[0]
        assert first.place == str(path)
        assert first.problem.startswith(f"tensor {name} is not the one recorded; expected sha256")
        assert "flipped bits" in first.cause
        flip(path, 8 + header + places[name]["data_offsets"][0] + 3)
    assert faults(run) == []


def test_a_tensor_of_another_dtype_or_shape(run: Path) -> None:
    path = step_folder(run, 12) / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"shape":[384,16]', b'"shape":[16,384]', 1))
    assert "expected ['float32', [384, 16]]; found" in faults(run)[0].problem
    path.write_bytes(data.replace(b'"F32"', b'"I32"', 1))
    assert "found ['I32'" in faults(run)[0].problem


def test_a_truncated_and_a_missing_file(run: Path) -> None:
    path = step_folder(run, 16) / WEIGHTS
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    first = faults(run)[0]
    assert first.place == str(path)
    assert f"expected {size} bytes; found {size - 5} bytes" in first.problem
    assert "cut short" in first.cause
    path.unlink()
    assert faults(step_folder(run, 16))[0].problem == "missing file"


def test_a_file_that_nobody_knows(run: Path) -> None:
    (run / "notes.txt").write_text("x")
    (step_folder(run, 4) / "old.bin").write_text("x")
    assert [Path(fault.place).name for fault in faults(run)] == ["notes.txt", "old.bin"]


def test_the_weights_of_another_step(run: Path) -> None:
    shutil.copyfile(step_folder(run, 8) / WEIGHTS, step_folder(run, 12) / WEIGHTS)
    first = faults(run)[0]
    assert first.place == str(step_folder(run, 12) / WEIGHTS)
    assert "other tensors" not in first.cause
    assert first.cause == "it is the tensor of step8: that step's file was put here"
    assert "more of its tensors" in first.problem


def test_the_folder_of_another_step(run: Path) -> None:
    shutil.rmtree(step_folder(run, 12))
    shutil.copytree(step_folder(run, 8), step_folder(run, 12))
    for path in (run, step_folder(run, 12)):
        first = faults(path)[0]
        assert first.place == str(step_folder(run, 12))
        assert first.problem == "not the step it must have; expected 12; found 8"
        assert first.cause == "the folder of step8 was copied or renamed"
        assert f"ontogeny replay {run} --step 12 --out DIR" in first.fix


@pytest.mark.parametrize("step", [12, 24])
def test_a_relabelled_checkpoint_that_is_true_to_itself(run: Path, step: int) -> None:
    shutil.copyfile(step_folder(run, 8) / WEIGHTS, step_folder(run, step) / WEIGHTS)
    forge(step_folder(run, step), no_change)
    open_artifact(step_folder(run, step), "checkpoint")
    first, *others = faults(run)
    assert first.place == str(step_folder(run, step))
    assert first.problem == "has the very weights of step8"
    descends = [fault for fault in others if fault.problem.startswith("not the parent")]
    assert [fault.place for fault in descends] == [str(step_folder(run, 16))] * (step == 12)


def test_a_whole_checkpoint_relabelled(run: Path) -> None:
    def relabel(content: dict[str, Any]) -> None:
        content["config"]["step"] = content["facts"]["step"] = 24
        content["facts"]["tokens"] = 24 * 4 * CONTEXT
        content["facts"]["full_state"] = True
        content["inputs"]["parent"] = open_artifact(step_folder(run, 20)).digest

    weights = load_file(step_folder(run, 16) / WEIGHTS)
    weights[EMBEDDING] += 1e-3  # not even the weights of another step
    shutil.rmtree(step_folder(run, 24))
    shutil.copytree(step_folder(run, 16), step_folder(run, 24))
    save_file(weights, step_folder(run, 24) / WEIGHTS, metadata={"format": "pt"})
    forge(step_folder(run, 24), relabel)
    first = faults(run)[0]
    assert first.place == str(step_folder(run, 24))
    assert first.problem.startswith("has not seen the rows before it")
    assert first.cause == "these are the rows of step16: it was relabelled"


def test_a_checkpoint_of_another_run(run: Path, site: Path) -> None:
    other = begin(Ground(site), site / "other", settings(learning_rate=0.02))
    train(other, Ground(site).batches(4))
    shutil.rmtree(step_folder(run, 4))
    shutil.copytree(step_folder(other.path, 4), step_folder(run, 4))
    first = faults(run)[0]
    assert first.place == str(step_folder(run, 4))
    assert first.problem.startswith("not the run it must have")
    assert "of another run" in first.cause

    def claim(content: dict[str, Any]) -> None:
        content["inputs"] |= {
            "run": open_artifact(run).digest,
            "parent": open_artifact(step_folder(run, 2)).digest,
        }

    forge(step_folder(run, 4), claim)
    assert faults(run)[0].problem.startswith("not the config it must have")
    config = open_artifact(step_folder(run, 2)).facts["config"]
    forge(step_folder(run, 4), lambda content: content["facts"].update(config=config))
    first = faults(run)[0]
    assert first.place == str(step_folder(run, 8))
    assert "not the parent it must have" in first.problem


def test_a_missing_and_a_surplus_checkpoint(run: Path) -> None:
    shutil.copytree(step_folder(run, 12), step_folder(run, 13))
    first = faults(run)[0]
    assert first.place == str(step_folder(run, 13))
    assert first.problem == "a step that the settings of its run do not keep"
    shutil.rmtree(step_folder(run, 13))
    shutil.rmtree(step_folder(run, 12))
    first = faults(run)[0]
    assert (first.place, first.problem) == (str(step_folder(run, 12)), "missing checkpoint")


def test_a_damaged_manifest_is_one_fault(run: Path) -> None:
    (step_folder(run, 12) / MANIFEST).write_text("{")
    found = faults(run)
    assert [Path(fault.place).parent.name for fault in found] == ["step12"]
    assert "unreadable manifest" in found[0].problem
    (run / MANIFEST).write_text("{")
    assert "unreadable manifest" in faults(run)[0].problem


@pytest.mark.parametrize(
    "facts",
    [
        {"rows_digest": "not a digest"},
        {"rows_digest": None},
        {"tensors": [1]},
        {"tensors": {EMBEDDING: {"sha256": "0", "dtype": "float32", "shape": ["a"]}}},
        {"tensors": {}},
        {"step": "12"},
        {"tokens": []},
    ],
)
def test_a_forged_manifest_never_breaks_verify(run: Path, facts: dict[str, Any]) -> None:
    forge(step_folder(run, 12), lambda content: content["facts"].update(facts))
    for path in (run, step_folder(run, 12)):
        assert any("step12" in fault.place for fault in faults(path))


GHOST = {"dtype": "float32", "shape": [1], "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"member": "other"}, "not the member it must have; expected tiny; found other"),
        ({"full_state": False}, "not the full state it must have; expected True; found False"),
        ({"tensors": {"ghost": GHOST}}, "no file holds the tensor ghost"),
    ],
)
def test_the_last_checkpoint_forged(run: Path, change: dict[str, Any], problem: str) -> None:
    def forged(content: dict[str, Any]) -> None:
        tensors = content["facts"]["tensors"] | change.get("tensors", {})
        content["facts"] |= change | {"tensors": tensors}

    forge(step_folder(run, 24), forged)
    for path in (run, step_folder(run, 24)):
        assert [(fault.place, fault.problem) for fault in faults(path)] == [
            (str(step_folder(run, 24)), problem)
        ]


def test_a_header_that_reaches_beyond_its_file(run: Path) -> None:
    path = step_folder(run, 12) / WEIGHTS
    data = path.read_bytes()
    end = str(max(one["data_offsets"][1] for one in json.loads(
        data[8 : 8 + int.from_bytes(data[:8], "little")]
    ).values() if "data_offsets" in one))  # fmt: skip
    path.write_bytes(data.replace(f"{end}]".encode(), b"9" * len(end) + b"]", 1))
    first = faults(run)[0]
    assert "lies outside the file" in first.problem
    assert "its header was damaged" in first.cause


def test_metrics_that_are_not_the_runs(run: Path, site: Path) -> None:
    path = run / METRICS
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert faults(run)[0].problem == "not one line an update; expected 24; found 23"
    path.write_text(whole.rstrip("\n"))
    assert faults(run)[0].problem == "line 24 is not what was written for update 23"
    path.write_text(whole)
    path.write_text(whole + replace(list(read_metrics(path))[-1], update=24).line())
    assert faults(run)[0].problem == "not one line an update; expected 24; found 25"
    path.write_text("".join([*lines[:5], *lines[6:]]))
    assert faults(run)[0].problem == "line 6 is not what was written for update 5"
    path.write_text(whole)
    rows = list(read_metrics(path))
    rows[9] = replace(rows[9], rows_digest="0" * 64)
    path.write_text("".join(row.line() for row in rows))
    first = faults(run)[0]
    assert first.place == str(path)
    assert first.problem.startswith("update 9 is on record with other rows")


def test_a_state_of_another_step(run: Path) -> None:
    shutil.rmtree(run / "states/step16")
    shutil.copytree(run / "states/step8", run / "states/step16")
    first = faults(run)[0]
    assert first.place == str(run / "states/step16")
    assert first.problem == "not the step it must have; expected 16; found 8"


def test_rows_of_another_order(run: Path, site: Path) -> None:
    flip(site / "store/tokens.bin", 1001)
    found = faults(run)
    assert {fault.problem.partition(" ")[0] for fault in found} <= {"update", "has"}
    assert "the order or the store is another" in found[0].cause
    assert "ontogeny verify" in found[0].fix
    assert Path(faults(site)[0].place).name != "tokens.bin"  # the run comes first by name
    (site / "store/tokens.bin").write_bytes(b"")
    assert "the order or the store is damaged" in faults(run)[0].cause


def test_another_order_in_its_place(run: Path, site: Path) -> None:
    forge(site / "order", lambda content: content["config"].update(seed=1))
    first = faults(run)[0]
    assert first.place == str(site / "order")
    assert first.problem.startswith(f"not the order that {run} was made from")


def test_a_run_without_what_it_was_made_from(run: Path, tmp_path: Path) -> None:
    alone = Path(shutil.move(run, tmp_path / "elsewhere" / "run"))
    assert faults(alone) == []
    assert "its order is not there any more" in notes(alone)
    assert "rows were not read again" in notes(alone)
    shutil.copyfile(step_folder(alone, 1) / WEIGHTS, step_folder(alone, 2) / WEIGHTS)
    assert len(faults(alone)) == 1


def test_a_run_in_progress(site: Path) -> None:
    ground = Ground(site)
    unborn = begin(ground, site / "later", settings())
    assert faults(unborn.path) == []
    assert "in progress: step 0 of 24" in notes(unborn.path)
    with pytest.raises(Enough):
        train(unborn, ground.batches(4), [stop_at_update_13])
    assert faults(unborn.path) == []
    assert "in progress: step 14 of 24" in notes(unborn.path)
    with (unborn.path / METRICS).open("a") as file:
        file.write('{"update": 14, "lo')  # torn by a kill
    assert faults(unborn.path) == []
    lines = (unborn.path / METRICS).read_text().splitlines(keepends=True)
    (unborn.path / METRICS).write_text("".join([*lines[:13], lines[13].replace("1", "2", 1)]))
    assert "line 14 is not what" in faults(unborn.path)[0].problem
    (unborn.path / METRICS).write_text("".join(lines[:10]))
    assert faults(unborn.path)[0].problem == "not one line an update; expected 12; found 10"


def test_a_pruned_run_is_whole(run: Path) -> None:
    drop_states(run, frozenset())
    assert faults(run) == []


def test_the_first_update_of_the_pythia_recipe_moves_nothing(ground: Ground, site: Path) -> None:
    values = settings().resolved() | {"recipe": "pythia"}
    faithful = begin(Ground(site), site / "faithful", build(RunSettings, values, "test"))
    train(faithful, Ground(site).batches(4))
    first, second = (open_artifact(step_folder(faithful.path, step)).facts for step in (0, 1))
    assert first["tensors"] == second["tensors"]
    assert faults(faithful.path) == []


def test_how_far_it_is_can_be_watched(run: Path) -> None:
    calls: list[tuple[int, int]] = []
    verify(run, lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] == len(calls)


def test_the_words_of_verify(say: Type, run: Path, site: Path) -> None:
    said = say("verify", run)
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[0].split() == [
        "what", "kind", "files", "tensors", "bytes", "verdict",
    ]  # fmt: skip
    assert "\nwhole: " in said.out
    flip(step_folder(run, 12) / "config.json", 9)
    said = say("verify", run)
    assert said.code == 1
    told = said.out.partition("first fault: ")[2].splitlines()
    assert told[0] == str(step_folder(run, 12) / "config.json")
    assert [line.split()[0] for line in told[1:4]] == ["what", "cause", "try"]
    answer = json.loads(say("verify", run, "--json").out)
    assert answer["whole"] is False
    (fault,) = [fault for subject in answer["checked"] for fault in subject["faults"]]
    assert fault["place"] == told[0]
    assert set(fault) == {"place", "problem", "cause", "fix"}
    assert json.loads(say("verify", site / "store", "--json").out)["whole"] is True


def test_verify_of_nothing(say: Type, tmp_path: Path, grown_site: Path) -> None:
    assert "try: the folder it is in" in say("verify", grown_site / "run" / METRICS).err
    said = say("verify", tmp_path / "none")
    assert said.code == 2
    assert f"error: {tmp_path / 'none'}: no such folder; expected a folder with" in said.err
    (tmp_path / "step0").mkdir()
    said = say("verify", tmp_path)
    assert said.code == 2
    assert "nothing to verify" in said.err
    assert "ontogeny lint" in said.err
    with pytest.raises(DataError, match="nothing to verify"):
        verify(tmp_path)


@pytest.mark.parametrize("as_file", [False, True])
def test_one_tensor_of_a_server(say: Type, run: Path, as_file: bool) -> None:
    name = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"
    folder = step_folder(run, 12)
    with serving(run) as served:
        place = f"{served.url}/steps/step12" + (f"/{WEIGHTS}" if as_file else "")
        said = say("verify", place, "--tensor", name)
        assert said.code == 0
        assert said.out.splitlines()[1].split()[-1] == "whole"
        moved = sum(
            int(to) - int(begin) + 1
            for _, span, _ in served.asked
            for begin, to in [span.removeprefix("bytes=").split("-")]
        )
        header = int.from_bytes((folder / WEIGHTS).read_bytes()[:8], "little")
        manifest = (folder / MANIFEST).stat().st_size
        assert moved <= manifest + 8 + header + 4 * 16 * 64 + 2
        assert f"{moved:,} bytes read" in said.out
        data = (folder / WEIGHTS).read_bytes()
        places = json.loads(data[8 : 8 + header])
        flip(folder / WEIGHTS, 8 + header + places[name]["data_offsets"][0])
        said = say("verify", place, "--tensor", name)
        assert said.code == 1
        assert f"tensor {name} is not the one recorded" in said.out
        assert say("verify", place, "--tensor", EMBEDDING).code == 0
        said = say("verify", place, "--tensor", "gpt_neox.embed_in")
        assert said.code == 2
        assert f"did you mean '{EMBEDDING}'" in said.err
        said = say("verify", place)
        assert said.code == 2
        assert "--tensor NAME" in said.err
        said = say("verify", f"{served.url}/steps/step13", "--tensor", name)
        assert said.code == 2
        assert "no such file" in said.err


def test_one_tensor_of_a_folder(say: Type, run: Path) -> None:
    folder = step_folder(run, 12)
    assert say("verify", folder, "--tensor", EMBEDDING).code == 0
    (folder / WEIGHTS).write_bytes(b"\xff" * 9)
    said = say("verify", folder, "--tensor", EMBEDDING)
    assert said.code == 2
    assert "not a safetensors file" in said.err
    assert "knows of no such weights" in say("verify", run / "x.safetensors", "--tensor", "a").err


SUITE = """
name = "tiny"
[text]
path = "text"
held_out = 0.1
[vocabulary]
size = 300
[order]
context_length = 32
[training]
tokens = 8192
rows_per_update = 8
num_linear = 4
precision = "fp32"
[evaluation]
last_word_items = 10
[sizes.one]
num_layers = 1
hidden_size = 16
num_heads = 2
learning_rate = 1e-2
[[members]]
size = ["one"]
corpus = ["standard", "deduped"]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite from text to page, by the command line."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "text").mkdir()
    for document in documents(40):
        (folder / "text" / f"{document.id}.txt").write_text(document.text)
    (folder / "suite.toml").write_text(SUITE)
    words = ["run", str(folder / "suite.toml"), "--out", str(folder / "home")]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder / "home"


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_of_a_suite(say: Type, home: Path) -> None:
    said = say("verify", home)
    assert said.code == 0, said.out
    files = [path for path in payload_files(home) if not any(p.is_symlink() for p in path.parents)]
    kinds = {open_artifact(path.parent).kind for path in home.rglob(MANIFEST)}
    assert kinds >= {"text", "vocabulary", "store", "order", "run", "checkpoint", "state",
                     "scores", "report"}  # fmt: skip
    places = random.Random(3)
    for path in files:
        data = path.read_bytes()
        flip(path, places.randrange(len(data)), places.randrange(8))
        found = faults(home)
        assert any(path.parent.name in fault.place for fault in found), path
        path.write_bytes(data)
    assert faults(home) == []


@pytest.mark.slow
def test_a_suite_that_is_not_what_its_record_says(home: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(home, tmp_path / "home", symlinks=True))
    assert faults(copy) == []
    (copy / "stores/standard").unlink()
    first = faults(copy)[0]
    assert first.place == str(copy / "stores/standard")
    assert first.fix == f"ln -sfn {(home / 'stores/standard').resolve().name} {first.place}"
    scores = (home / "scores/one").resolve().name
    shutil.rmtree(copy / "scores" / scores)
    problems = [(Path(fault.place).name, fault.problem) for fault in faults(copy)]
    assert (scores, "not an artifact; expected a folder with manifest.json") in problems
    shutil.copytree(home / "scores/one-deduped", copy / "scores" / scores)
    assert "not the scores/one of the suite" in "".join(f.problem for f in faults(copy))
    shutil.copytree(home / "vocabulary", copy / "spare")
    unlisted: list[Subject] = [one for one in verify(copy) if one.name == "spare"]
    assert "not in suite.json" in unlisted[0].notes[0]
    flip(copy / "suite.json", 100)
    assert faults(copy)[0].place in (str(copy), str(copy / "suite.json"))


def test_a_branch(say: Type, run: Path, site: Path) -> None:
    branch = site / "branch"
    assert say("branch", run, "--at", 10, "--splice", "identity", "--out", branch).code == 0
    assert faults(branch) == []
    rows = [subject for subject in verify(branch) if subject.name == "branch/rows"]
    assert rows[0].kind == "rows of 24 updates"
    assert len(rows[0].jobs) == 5  # to where it begins, and between its steps 10, 12, 16, 20, 24
    assert faults(step_folder(branch, 10)) == []
    forge(step_folder(branch, 10), lambda content: content["facts"].update(tokens=640 + 64))
    assert faults(branch)[0].problem.startswith("not the number of tokens it must have")
