"""Workers: the same artifacts for any number, killed workers, killed jobs, a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from grown import SUITE, documents, write_documents
from ontogeny.artifact import open_artifact
from ontogeny.errors import ConfigError, DataError
from ontogeny.workers import KilledError, Task, Workers, work_folder
from spoken import Type
from toil import broken, build, killed_at_first, note, refused


def notes(folder: Path, count: int) -> list[Task]:
    return [Task(folder / str(number), partial(note, text=f"{number}")) for number in range(count)]


@pytest.mark.parametrize("count", [1, 3])
def test_artifacts_come_in_the_order_of_the_tasks(tmp_path: Path, count: int) -> None:
    made = Workers(count).do(notes(tmp_path, 8))
    assert [(one.path / "text").read_text(encoding="utf-8") for one in made] == [*"01234567"]
    processes = {path.read_text(encoding="utf-8") for path in tmp_path.glob("*.log")}
    assert (f"{os.getpid()}\n" in processes) == (count == 1)
    assert 1 <= len(processes) <= count


def test_workers_work_on_while_the_caller_takes_what_is_made(tmp_path: Path) -> None:
    tasks = notes(tmp_path, 4)
    made = Workers(2).each(tasks)
    next(made)
    deadline = time.monotonic() + 30
    while not all(task.place.is_dir() for task in tasks[:3]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(list(made)) == 3


def test_what_is_there_and_whole_is_not_made_again(tmp_path: Path) -> None:
    tasks = notes(tmp_path, 3)
    first = Workers().do(tasks)
    (tmp_path / "1" / "text").write_text("x", encoding="utf-8")  # as long as it was
    assert [one.digest for one in Workers().do(tasks)] == [one.digest for one in first]
    logs = [Path(f"{task.place}.log").read_text(encoding="utf-8").split() for task in tasks]
    assert [len(lines) for lines in logs] == [1, 2, 1]


def test_a_task_whose_worker_is_killed_is_done_again(tmp_path: Path) -> None:
    tasks = [*notes(tmp_path, 4), Task(tmp_path / "k", partial(killed_at_first, times=2))]
    made = Workers(2).do(tasks)
    assert (made[-1].path / "text").read_text(encoding="utf-8") == "at last"
    assert len(Path(tmp_path / "k.log").read_text(encoding="utf-8").splitlines()) == 3


def test_a_task_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    tasks = [*notes(tmp_path, 2), Task(tmp_path / "k", partial(killed_at_first, times=9))]
    with pytest.raises(KilledError) as caught:
        Workers(2).do(tasks)
    assert str(caught.value) == (
        "k: 3 workers were killed over one task, perhaps for lack of memory; found SIGKILL; try: "
        "the same command with fewer --workers: it goes on from what is finished"
    )


@pytest.mark.parametrize("count", [1, 2])
def test_the_error_of_a_task_is_the_job_s(tmp_path: Path, count: int) -> None:
    tasks = [*notes(tmp_path, 3), Task(tmp_path / "refused", refused)]
    with pytest.raises(DataError) as caught:
        Workers(count).do(tasks)
    assert str(caught.value) == "here:3: no good; expected better; try: mend it"
    assert (caught.value.where, caught.value.fix) == ("here:3", "mend it")


def test_a_bug_is_no_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a worker failed: its traceback is above"):
        Workers(2).do([*notes(tmp_path, 1), Task(tmp_path / "broken", broken)])


def test_refuses_no_process() -> None:
    with pytest.raises(ConfigError, match="--workers: work needs a process; expected 1 or more"):
        Workers(0)


def test_a_work_folder_is_one_process_s(tmp_path: Path) -> None:
    with work_folder(tmp_path / "a", "text", {}, {}) as work:
        (work / "part").touch()
        with pytest.raises(DataError, match="a: another process is making this; try: wait"):
            work_folder(tmp_path / "a", "text", {}, {}).__enter__()
        assert (work / "part").exists()


def test_a_cluster_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError) as caught:
        Workers(1, "local").do(notes(tmp_path, 2))
    assert str(caught.value) == '--ray: Ray is not installed; try: pip install "ontogeny[ray]"'


@pytest.mark.slow
def test_a_broken_line_ends_the_command(base: Path, say: Type) -> None:
    (base / "corpus" / "3.jsonl").write_text('{"text": 1}', encoding="utf-8")
    (base / "suite.toml").write_text(SUITE.replace('"text"', '"corpus"'), encoding="utf-8")
    asked = ("run", base / "suite.toml", "--out", base / "out", "--set", "text.shard_bytes=500")
    for count in (1, 2):
        said = say(*asked, "--workers", count)
        assert said.code == 2
        assert "3.jsonl:1: no text under 'text'; expected a string; found int" in said.err
        assert not [path for path in (base / "out").rglob("*") if path.is_file()]
    assert say(*asked, "--workers", 0).code == 2


def test_a_work_folder_stays_only_for_what_can_go_on(tmp_path: Path) -> None:
    for error, stays in (
        (DataError("bad text"), False),
        (KilledError("too large"), True),
        (OSError("full"), True),
        (KeyboardInterrupt(), True),
    ):
        with suppress(type(error)), work_folder(tmp_path / "a", "text", {}, {}) as work:
            (work / "part").touch()
            raise error
        assert (work / "part").exists() == stays
    with work_folder(tmp_path / "a", "text", {}, {}) as again:
        assert (again / "part").exists()
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Six files of documents, some texts in two of them."""
    (tmp_path / "corpus").mkdir()
    everything = documents(90)
    for number in range(6):
        again = [replace(one, id=f"again-{one.id}") for one in everything[5 : 5 + number]]
        own = everything[number * 15 : number * 15 + 15]
        write_documents(tmp_path / "corpus" / f"{number}.jsonl.zst", [*own, *again[-1:]])
    return tmp_path


@pytest.mark.slow
def test_the_text_is_the_same_for_any_number_of_workers(base: Path) -> None:
    made = [build(base, f"by{count}", count) for count in (1, 2, 3)]
    assert len({artifact.digest for artifact in made}) == 1
    assert len(made[0].files) > 8
    assert not [*base.glob(".*")]


@pytest.mark.slow
def test_a_killed_job_goes_on(base: Path) -> None:
    """Killed at a random moment, again and again, a job makes what one that lives makes."""
    whole = build(base, "whole", 1)
    script = "import sys; from toil import build; build(sys.argv[1], 'killed', 2)"
    command = [sys.executable, "-c", script, str(base)]
    there = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    kept = 0
    for wanted in (2, 9):
        job = subprocess.Popen(command, env=there)
        while job.poll() is None and kept < wanted:
            kept = len([*base.glob(".killed.work-*/[a-z]*")])
            time.sleep(0.002)
        job.kill()
        job.wait()
        assert not (base / "killed").exists()
        assert kept >= wanted
    subprocess.run(command, env=there, check=True)
    assert open_artifact(base / "killed").digest == whole.digest
    assert not [*base.glob(".*")]
