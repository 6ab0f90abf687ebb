"""`verify` of what grows, of branches, servers and suites, and the words it says."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from grown import Enough, Ground, begin, grow, settings, stop_after, write_suite
from ontogeny.artifact import MANIFEST, open_artifact
from ontogeny.checkpoints.store import drop_states
from ontogeny.config import build
from ontogeny.errors import DataError
from ontogeny.questions.subjects import Subject
from ontogeny.questions.verify import verify
from ontogeny.steps import METRICS, step_folder
from ontogeny.suite import RunSettings
from ontogeny.training.loop import train
from served import serving
from spoiled import (
    EMBEDDING,
    WEIGHTS,
    faults,
    flip,
    forge,
    notes,
    payload_files,
)
from spoken import Type


@pytest.fixture
def run(site: Path) -> Path:
    return site / "run"


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
        train(unborn, ground.batches(4), [stop_after(14)])
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
    endless = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}'
    for wrong in (b"\xff" * 9, len(endless).to_bytes(8, "little") + endless):
        (folder / WEIGHTS).write_bytes(wrong)
        said = say("verify", folder, "--tensor", EMBEDDING)
        assert said.code == 2
        assert "not a safetensors file" in said.err
    assert "knows of no such weights" in say("verify", run / "x.safetensors", "--tensor", "a").err


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite from text to page."""
    folder = write_suite(tmp_path_factory.mktemp("suite")).parent
    grow(folder, folder / "home", ["members=[{size=['one'], corpus=['standard', 'deduped']}]"])
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
    shutil.copytree(home / "scores" / scores, copy / "scores" / scores)
    assert len(faults(copy)) == 1
    shutil.rmtree(copy / "scores" / scores / "step=2")
    assert "not the scores/one of the suite" in "".join(f.problem for f in faults(copy))
    shutil.copytree(home / "vocabulary", copy / "spare")
    unlisted: list[Subject] = [one for one in verify(copy) if one.name == "spare"]
    assert "not in suite.json" in unlisted[0].notes[0]
    flip(copy / "suite.json", 100)
    assert faults(copy)[0].place in (str(copy), str(copy / "suite.json"))
