"""Text prepared on a Ray cluster of two processes here: the same bytes, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from grown import documents, write_documents
from ontogeny.artifact import open_artifact
from ontogeny.errors import ConfigError, DataError
from ontogeny.workers import KilledError, Task, Workers
from toil import build, killed_at_first, note, refused

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ontogeny[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default::FutureWarning"),  # Ray's own, about accelerators
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Workers]:
    """The first work starts it."""
    there = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # what its workers import
    yield Workers(2, "local")
    ray.shutdown()
    os.environ.pop("PYTHONPATH")
    if there is not None:
        os.environ["PYTHONPATH"] = there


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for number in range(6):
        some = documents(90)[number * 15 : number * 15 + 15]
        write_documents(tmp_path / "corpus" / f"{number}.jsonl.zst", some)
    return tmp_path


def kill_a_worker(stop: threading.Event) -> None:
    """Kill the first process of the cluster that is seen at a task."""
    while not stop.wait(0.005):
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if b"ray::_outcome" in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
                    stop.set()


def test_the_bytes_are_the_same_though_a_worker_is_killed(base: Path, cluster: Workers) -> None:
    alone = build(base, "alone", 1)
    stop = threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(stop,))
    killer.start()
    try:
        made = build(base, "cluster", cluster)
    finally:
        was_killed = stop.is_set()
        stop.set()
        killer.join()
    assert was_killed
    assert made.digest == alone.digest
    assert not [*base.glob(".*")]


def test_a_job_whose_driver_is_killed_goes_on(base: Path) -> None:
    whole = build(base, "whole", 1)
    script = (
        "import sys; from ontogeny.workers import Workers; from toil import build\n"
        "build(sys.argv[1], 'killed', Workers(2, 'local'))"
    )
    there = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    job = subprocess.Popen(
        [sys.executable, "-c", script, str(base)], env=there, stderr=subprocess.DEVNULL
    )
    while job.poll() is None and len([*base.glob(".killed.work-*/[a-z]*")]) < 3:
        time.sleep(0.002)
    job.kill()
    job.wait()
    assert not (base / "killed").exists()
    assert [*base.glob(".killed.work-*/[a-z]*")]
    time.sleep(2)  # until the cluster has noticed
    build(base, "killed", 2)
    assert open_artifact(base / "killed").digest == whole.digest
    assert not [*base.glob(".*")]


def test_tasks_on_a_cluster_fail_as_they_do_here(tmp_path: Path, cluster: Workers) -> None:
    good = [Task(tmp_path / str(number), partial(note, text="good")) for number in range(3)]
    with pytest.raises(DataError, match="here:3: no good; expected better; try: mend it"):
        cluster.do([*good, Task(tmp_path / "refused", refused)])
    with pytest.raises(KilledError, match="k: 3 workers were killed over one task"):
        cluster.do([*good, Task(tmp_path / "k", partial(killed_at_first, times=9))])
    assert len((tmp_path / "k.log").read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:x", "auto"])
def test_no_cluster_answers(tmp_path: Path, address: str) -> None:
    ray.shutdown()
    tasks = [Task(tmp_path / name, partial(note, text="")) for name in "ab"]
    with pytest.raises(ConfigError, match=f"--ray {address}: no Ray cluster answers.*ray start"):
        Workers(2, address).do(tasks)
