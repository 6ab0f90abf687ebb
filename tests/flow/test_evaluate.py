"""`ontogeny evaluate`: the same table however it is made, and never answers of other weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch

from grown import grow, settings, write_suite
from ontogeny.artifact import open_artifact
from ontogeny.checkpoints.store import Progress, load_checkpoint, save_checkpoint
from ontogeny.errors import CheckpointError, ConfigError
from ontogeny.evaluation import sweep
from ontogeny.evaluation.catalog import TaskRef, load_task
from ontogeny.evaluation.sweep import Asked, ask, cell_of
from ontogeny.evaluation.weights import Checkpoint, own_checkpoint
from ontogeny.questions.verify import verify
from ontogeny.record import read_record, write_record
from ontogeny.results import ITEMS, SCORES
from ontogeny.scores import ScoreStore, stage_digest
from ontogeny.stages.evaluate import chosen_steps
from ontogeny.steps import step_folder
from ontogeny.tokens.vocabulary import TOKENIZER
from spoken import Type

MEMBERS = ("one", "one-seed1")
KEPT = [0, 1, 2, 4, 8, 12, 16]
NUM_CELLS = len(MEMBERS) * len(KEPT) * 3


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of two members, never written to."""
    folder = write_suite(tmp_path_factory.mktemp("evaluate")).parent
    grow(folder, folder / "home")
    return folder / "home"


@pytest.fixture
def home(grown: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(grown, tmp_path / "home", symlinks=True))


def table(store: Path) -> dict[str, bytes]:
    """Every byte of the rows in a store, by place."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for name in (SCORES, ITEMS)
        for path in sorted(store.glob(f"member=*/step=*/{name}"))
    }


def count(words: str) -> int:
    """The cells that a command said it computed."""
    return int(words.split(" cells computed")[0].split()[-1].replace(",", ""))


@pytest.mark.slow
@pytest.mark.parametrize(
    "by", [("--workers", 1), ("--workers", 2), ("--workers", 3, "--threads", 1)]
)
def test_the_table_is_the_same_for_any_number_of_workers(
    say: Type, grown: Path, tmp_path: Path, by: tuple[object, ...]
) -> None:
    said = say("evaluate", grown, "--out", tmp_path / "out", *by)
    assert said.code == 0, said.err
    assert count(said.out) == NUM_CELLS
    assert {"held-out", "word-order", "0.500", "!"} <= set(said.out.split())
    assert f"next: ontogeny report {tmp_path / 'out'}" in said.out
    expected = table(grown / "scores")
    assert len(expected) == 2 * len(MEMBERS) * len(KEPT)
    assert table(tmp_path / "out") == expected
    for member in MEMBERS:
        assert ScoreStore(tmp_path / "out").digest(member) == ScoreStore(grown / "scores").digest(
            member
        )
    assert not list((tmp_path / "out").rglob(".work"))
    again = say("evaluate", grown, "--out", tmp_path / "out")
    assert f"0 cells computed, {NUM_CELLS} found" in again.out


@pytest.fixture
def cluster() -> Iterator[None]:
    """A place for Ray, of two processes, to import from."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ontogeny[ray]'")
    there = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    yield
    ray.shutdown()
    os.environ.pop("PYTHONPATH")
    if there is not None:
        os.environ["PYTHONPATH"] = there


@pytest.mark.slow
@pytest.mark.filterwarnings("default::FutureWarning")  # Ray's own, about accelerators
def test_the_table_is_the_same_by_a_cluster(
    say: Type, grown: Path, tmp_path: Path, cluster: None
) -> None:
    out = tmp_path / "out"
    said = say("evaluate", grown, "--out", out, "--workers", 2, "--ray", "local")
    assert said.code == 0, said.err
    assert table(out) == table(grown / "scores")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_sweep_goes_on(say: Type, grown: Path, tmp_path: Path, workers: str) -> None:
    out = tmp_path / "out"
    words = ["evaluate", str(grown), "--out", str(out), "--workers", workers]
    job = subprocess.Popen([sys.executable, "-m", "ontogeny", *words], stdout=subprocess.DEVNULL)
    ends = time.monotonic() + 60
    while len(list(out.glob("member=*/step=*/manifest.json"))) < 3 and job.poll() is None:
        assert time.monotonic() < ends
        time.sleep(0.001)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    done = sum(len(ScoreStore(out).cells(*place)) for place in ScoreStore(out).places())
    time.sleep(0.5)  # until workers have noticed
    said = say(*words)
    assert said.code == 0, said.err
    assert done >= 9
    assert count(said.out) in (NUM_CELLS - done, NUM_CELLS - done - 3)  # killed while exchanging
    assert table(out) == table(grown / "scores")


@pytest.mark.slow
def test_what_is_asked_of_part_of_a_suite_goes_into_its_store(say: Type, home: Path) -> None:
    store = ScoreStore(home / "scores")
    before, expected = read_record(home), table(store.folder)
    shutil.rmtree(store.path("one", 8))
    shutil.rmtree(store.path("one", 16))
    run = home / before.stage("runs/one").path
    said = say("evaluate", step_folder(run, 8))
    assert said.code == 0, said.err
    assert count(said.out) == 3
    assert say("evaluate", home / "runs" / "one", "--steps", "last").code == 0
    assert table(store.folder) == expected
    assert read_record(home) == before
    said = say("evaluate", run, "--tasks", "held-out", "--dtype", "bf16", "--steps", "0,16")
    assert count(said.out) == 2
    record = read_record(home)
    changed = {
        one.name for one, old in zip(record.stages, before.stages, strict=True) if one != old
    }
    assert changed == {"scores/one"}
    assert all(stage_digest(home, stage) == stage.digest for stage in record.stages)
    left_by_a_kill = record.stage("scores/one").model_copy(update={"digest": "0" * 64})
    write_record(home, record.with_stages(left_by_a_kill))
    assert count(say("evaluate", run, "--tasks", "held-out", "--steps", "1").out) == 0
    assert read_record(home) == record
    assert [cell.dtype for cell in store.cells("one", 16)] == ["bf16", "fp32", "fp32"]
    assert not [fault for subject in verify(home) for fault in subject.faults]


@pytest.mark.slow
def test_the_next_checkpoint_is_read_while_one_is_asked(home: Path) -> None:
    run = open_artifact(home / read_record(home).stage("runs/one").path, "run")
    first, second = (own_checkpoint(run, step, "one", "standard") for step in (4, 8))
    task = TaskRef("last-word", 0, home / read_record(home).stage("tasks").path, (), None)

    def asked(one: Checkpoint, then: Checkpoint | None) -> list[float]:
        work = Asked(one, {task: cell_of(one, load_task(task).spec)}, 1, "cpu", then)
        return [item.log_likelihood for item in ask(work).items]

    expected = asked(second, None)
    asked(first, second)
    wait([sweep._opening(second, "cpu")])
    shutil.rmtree(second.path)
    assert asked(second, first) == expected  # it was there already
    with pytest.raises(CheckpointError, match="no checkpoint of step 8"):
        asked(second, None)


@pytest.mark.slow
def test_benchmarks_become_part_of_a_suite(say: Type, home: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'ontogeny[eval]'")
    rows = [{"goal": "a", "sol1": "the old", "sol2": "a door", "label": n % 2} for n in range(6)]
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa/validation.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    before = read_record(home)
    words = ("evaluate", home, "--tasks", "piqa", "--data", tmp_path, "--steps", "last")
    said = say(*words, "--shots", "0", "--workers", 2)
    assert said.code == 0, said.err
    assert count(said.out) == 2
    assert ScoreStore(home / "scores").cells("one", 16)[-2].harness.startswith("lm-eval ")
    assert f"2 cells computed, 0 found, 0 without an answer: {home / 'scores'}" in said.out
    assert "0 cells computed, 2 found" in say(*words).out
    assert read_record(home).stage("report") == before.stage("report")
    assert say("report", home).code == 0
    assert read_record(home).stage("report") != before.stage("report")
    assert "piqa" in (home / "report/index.html").read_text()
    assert not [fault for subject in verify(home) for fault in subject.faults]


@pytest.mark.slow
def test_a_cluster_without_ray(
    say: Type, grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = say("evaluate", grown, "--out", tmp_path / "out", "--ray", "local")
    assert said.code == 2
    assert '--ray: Ray is not installed; try: pip install "ontogeny[ray]"' in said.err


@pytest.mark.slow
def test_other_weights_never_get_the_answers_of_those_before(
    say: Type, home: Path, tmp_path: Path
) -> None:
    run = home / read_record(home).stage("runs/one").path
    weights = step_folder(run, 4) / "model.safetensors"
    kept = weights.read_bytes()
    shutil.copyfile(step_folder(run, 8) / "model.safetensors", weights)
    assert say("evaluate", home).refused(f"{weights}: other bytes; expected sha256")
    weights.write_bytes(kept)
    shutil.rmtree(step_folder(run, 4))
    shutil.copytree(step_folder(run, 8), step_folder(run, 4))
    said = say("evaluate", home)
    assert said.refused("step4: the checkpoint of another step; expected step 4; found step 8")
    shutil.rmtree(step_folder(run, 4))
    other = home / read_record(home).stage("runs/one-seed1").path
    shutil.copytree(step_folder(other, 4), step_folder(run, 4))
    assert "step4: the checkpoint of another run; expected" in say("evaluate", home).err


@pytest.mark.slow
def test_foreign_weights_are_known_by_what_they_are(say: Type, home: Path, tmp_path: Path) -> None:
    run = home / read_record(home).stage("runs/one").path
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(step_folder(run, 16) / name, model / name)
    shutil.copyfile(run / TOKENIZER, model / TOKENIZER)
    words = ("evaluate", run, model, "--steps", "last", "--out", out, "--workers", 1)
    assert "no checkpoint of step 16; try: the nearest, 0" in say(*words[:3], "--steps", 16).err
    assert count(say(*words).out) == 6
    store = ScoreStore(out)
    own, foreign = ([row.value for row in store.scores(name)] for name in ("one", "model"))
    assert own == pytest.approx(foreign, rel=1e-5)
    assert store.place("model", 0).num_parameters == store.place("one", 16).num_parameters
    shutil.copyfile(step_folder(run, 0) / "model.safetensors", model / "model.safetensors")
    assert count(say(*words, "--tasks", "last-word").out) == 1
    assert [cell.task for cell in store.cells("model", 0)] == ["last-word"]  # the others went
    assert count(say(*words).out) == 2
    untrained = [row.value for row in ScoreStore(home / "scores").scores("one") if row.step == 0]
    assert [row.value for row in store.scores("model")] == pytest.approx(untrained, rel=1e-5)
    vocabulary = json.loads((model / TOKENIZER).read_text())
    vocabulary["model"]["vocab"]["zzz"] = 999
    (model / TOKENIZER).write_text(json.dumps(vocabulary))
    said = say(*words)
    assert said.refused(
        f"{model}: the tokenizer does not match the model; expected at most 384 ids"
    )


@pytest.mark.slow
def test_a_step_folder_is_a_step_of_the_member_above(say: Type, home: Path, tmp_path: Path) -> None:
    run = home / read_record(home).stage("runs/one").path
    for step in (0, 16):
        folder = tmp_path / "theirs" / f"step{step}"
        folder.mkdir(parents=True)
        for path in (step_folder(run, step) / "config.json", run / TOKENIZER,
                     step_folder(run, step) / "model.safetensors"):  # fmt: skip
            shutil.copyfile(path, folder / path.name)
    said = say("evaluate", *(tmp_path / "theirs").iterdir())
    assert "which tasks? Only a suite has some of its own; try: --tasks" in said.err
    said = say("evaluate", home / "runs" / "one", *(tmp_path / "theirs").iterdir(),
               "--out", tmp_path / "out", "--tasks", "last-word")  # fmt: skip
    assert said.code == 0, said.err
    steps = [("one", step) for step in KEPT]
    assert ScoreStore(tmp_path / "out").places() == [*steps, ("theirs", 0), ("theirs", 16)]


@pytest.mark.slow
def test_weights_that_give_no_numbers(say: Type, home: Path, tmp_path: Path) -> None:
    run = open_artifact(home / read_record(home).stage("runs/one").path, "run")
    before, facts = table(home / "scores"), open_artifact(step_folder(run.path, 8)).facts
    model = load_checkpoint(run.path, 8)
    with torch.no_grad():
        model.embed_out.weight[7] = float("nan")
    progress = Progress(8, facts["tokens"], facts["rows_digest"])
    parent = open_artifact(step_folder(run.path, 4))
    shutil.rmtree(step_folder(run.path, 8))
    save_checkpoint(run, model, progress, parent=parent, provenance={})
    for workers in (1, 2):
        shutil.rmtree(home / "scores" / "member=one" / "step=12")
        said = say("evaluate", home, "--workers", workers)
        assert said.code == 1
        told = [line for line in said.err.splitlines() if line.startswith("no answer: ")]
        assert [line.split(" of ")[1].split(":")[0].split("/")[0] for line in told] == [
            "held-out", "last-word", "word-order",
        ]  # fmt: skip
        assert all(f"{step_folder(run.path, 8)}: item " in line for line in told)
        assert count(said.out) == 3
        assert f"{NUM_CELLS - 6} found, 3 without an answer" in said.out
        left = {name: data for name, data in before.items() if "=one/step=8/" not in name}
        assert table(home / "scores") == left


@pytest.mark.slow
def test_another_tokenizer_is_refused(say: Type, home: Path) -> None:
    path = home / read_record(home).stage("runs/one").path / TOKENIZER
    path.write_text(path.read_text().replace("Ġa", "Ġb", 1))
    said = say("evaluate", path.parent, "--steps", "0")
    assert said.refused(f"{TOKENIZER}: not the tokenizer that the run was trained with; expected")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--steps", "7"], "no checkpoint of step 7; try: the nearest, 8"),
        (
            ["--steps", "soon"],
            "--steps: not steps; expected all, log, last, or 0,512,1000; found soon",
        ),
        (["--shots", "few"], "--shots: not numbers; expected 0 or 0,5; found few"),
        (["--shots", "5"], "--shots: held-out takes no worked examples"),
        (["--workers", "0"], "--workers: work needs a process; expected 1 or more; found 0"),
        (["--tasks", "last-wrd"], "last-wrd: no such task;"),
        (["--tasks", "agreement"], "the pack has no task 'agreement'"),
    ],
)
def test_a_wish_that_cannot_be(say: Type, grown: Path, words: list[str], told: str) -> None:
    before = table(grown / "scores")
    said = say("evaluate", grown, *words)
    assert said.code == 2
    assert told in said.err
    assert table(grown / "scores") == before


@pytest.mark.slow
def test_places_that_cannot_be_asked(say: Type, grown: Path, tmp_path: Path) -> None:
    asked = [(tmp_path / "x", "x: no such folder"), (tmp_path, "nothing that can be asked")]
    asked += [(grown / "tasks", "nothing that can be asked; expected the folder of a suite, a run")]
    for path, told in asked:
        said = say("evaluate", path)
        assert said.code == 2
        assert told in said.err
    assert "evaluate whom?" in say("evaluate").err
    run = Path(shutil.copytree((grown / "runs/one").resolve(), tmp_path / "run"))
    assert "which tasks?" in say("evaluate", run).err
    shutil.rmtree(run / "steps")
    assert f"{run}: no checkpoints; try: ontogeny evaluate RUN --follow" in say("evaluate", run).err
    for words in ((grown / "runs/one", run), (step_folder(grown / "runs/one", 8),)):
        assert "--follow: one run can be followed" in say("evaluate", *words, "--follow").err


@pytest.mark.slow
def test_two_of_one_name(say: Type, grown: Path, tmp_path: Path) -> None:
    run = shutil.copytree((grown / "runs/one").resolve(), tmp_path / "run")
    said = say("evaluate", grown, run, "--out", tmp_path / "out")
    assert said.refused("two checkpoints are called one at step 0; found")
    said = say(
        "evaluate", grown, grown / "runs/one", step_folder((grown / "runs/one").resolve(), 8)
    )
    assert f"0 cells computed, {NUM_CELLS} found" in said.out  # one is one, by any name


@pytest.mark.slow
def test_a_store_that_is_held(say: Type, home: Path) -> None:
    with ScoreStore(home / "scores").locked("one"):
        said = say("evaluate", home)
        assert said.refused("member=one: another process is adding scores; try: wait for it")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(say: Type, grown: Path, small_disk: Path, workers: int) -> None:
    (small_disk / "rest").write_bytes(bytes(300_000))
    words = ("evaluate", grown, "--out", small_disk / "out", "--workers", workers)
    assert say(*words).refused("no space is left; try: free some")
    (small_disk / "rest").unlink()
    assert say(*words[:3], small_disk / "out", "--steps", "log").code == 0
    assert ScoreStore(small_disk / "out").members() == list(MEMBERS)


@pytest.mark.slow
def test_what_can_be_asked_is_listed(say: Type, tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa/validation.jsonl").write_text("{}")
    said = say("evaluate", "--list", "--data", tmp_path)
    assert said.code == 0, said.err
    lines = {line.split()[0]: line for line in said.out.splitlines()}
    assert "held-out text" in lines["word-order"]
    assert "missing, such as " in lines["sciq"]
    assert str(tmp_path / "piqa/validation.jsonl") in lines["piqa"]


def test_the_steps_that_are_meant(tmp_path: Path) -> None:
    there = [*settings().steps, 1000, 1024, 1500]
    assert chosen_steps("all", there, tmp_path) == there
    assert chosen_steps("last", there, tmp_path) == [1500]
    assert chosen_steps("8,0,8", there, tmp_path) == [0, 8]
    assert chosen_steps("log", there, tmp_path) == [0, 1, 2, 4, 8, 16, 1000, 1024, 1500]
    pythia = [0, *(2**power for power in range(10)), *range(1000, 143001, 1000)]
    assert chosen_steps("log", pythia, tmp_path)[-8:] == [
        2000, 3000, 5000, 9000, 17000, 33000, 66000, 132000, 143000,
    ][-8:]  # fmt: skip
    with pytest.raises(CheckpointError, match="no checkpoint of step 900; try: the nearest, 1000"):
        chosen_steps("0,900", there, tmp_path)
    with pytest.raises(ConfigError, match="not steps"):
        chosen_steps("1,", there, tmp_path)
