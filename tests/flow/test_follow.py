"""`ontogeny evaluate --follow`: a run is asked while it trains, by a process it knows not of."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from grown import write_suite
from ontogeny.artifact import MANIFEST
from ontogeny.record import read_record
from ontogeny.scores import ScoreStore, stage_digest
from ontogeny.steps import step_folder
from spoken import Type

pytestmark = pytest.mark.slow

LAST = 1536
# Long enough to be followed.
CHANGES = (
    "training.tokens=393216",
    "training.num_linear=8",
    "sizes.one.num_layers=2",
    "sizes.one.hidden_size=32",
    "members=[{size=['one']}]",
)


def wait_until(is_so: Callable[[], object], *processes: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 120
    while not is_so():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < ends
        time.sleep(0.01)


def ontogeny(*words: object) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "ontogeny", *map(str, words)]
    hear = signal.default_int_handler  # also where the tests run in the background
    return subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        preexec_fn=lambda: signal.signal(signal.SIGINT, hear),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite whose member was followed while it trained."""
    file = write_suite(tmp_path_factory.mktemp("follow"))
    home, changes = file.with_name("home"), [f"--set={change}" for change in CHANGES]
    with ontogeny("run", file, "--out", home, *changes) as training:
        wait_until(lambda: list(home.glob("runs/one-*/manifest.json")), training)
        (run,) = home.glob("runs/one-*")
        with ontogeny("evaluate", run, "--follow", "--workers", 1) as following:
            told, failed = following.communicate(timeout=200)
        _, failed_too = training.communicate(timeout=200)
    assert (following.returncode, failed) == (0, b"")
    assert (training.returncode, failed_too) == (0, b"")
    assert told.count(b"ontogeny report") == 1
    return home


def test_checkpoints_are_asked_as_they_appear(home: Path) -> None:
    run = home / read_record(home).stage("runs/one").path
    store = ScoreStore(home / "scores")
    assert store.places()[0] == ("one", 0)
    assert store.places()[-1] == ("one", LAST)
    first = (store.path("one", 0) / MANIFEST).stat().st_mtime
    assert first < (step_folder(run, LAST) / MANIFEST).stat().st_mtime
    record = read_record(home)
    assert all(stage_digest(home, stage) == stage.digest for stage in record.stages)


def test_what_was_followed_is_found_by_the_suite(say: Type, home: Path) -> None:
    said = say("evaluate", home)
    assert f"0 cells computed, {3 * len(ScoreStore(home / 'scores').places())} found" in said.out


def test_a_follower_that_is_stopped_loses_nothing(say: Type, home: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(home, tmp_path / "home", symlinks=True))
    run = copy / read_record(copy).stage("runs/one").path
    last = step_folder(run, LAST).rename(tmp_path / "last")
    shutil.rmtree(copy / "scores")
    store = ScoreStore(copy / "scores")
    following = ontogeny("evaluate", run, "--follow", "--steps", f"0,4,{LAST}")
    wait_until(lambda: store.path("one", 4).is_dir(), following)
    time.sleep(0.5)
    following.send_signal(signal.SIGINT)
    _, told = following.communicate(timeout=30)
    assert following.returncode == 130
    assert told.decode() == "stopped; the same command goes on with what is missing\n"
    assert store.places() == [("one", 0), ("one", 4)]
    last.rename(step_folder(run, LAST))
    said = say("evaluate", run, "--follow", "--steps", f"0,4,{LAST}")
    assert said.code == 0, said.err
    assert store.places() == [("one", 0), ("one", 4), ("one", LAST)]
    assert "no checkpoint of step 5; try: the nearest, 4" in (
        say("evaluate", run, "--follow", "--steps", 5).err
    )
