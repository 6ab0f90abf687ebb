"""Jobs of several ranks as a user types them: what is refused, and how they end and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from grown import SUITE, Ground
from ontogeny.artifact import open_artifact
from ontogeny.record import read_record
from ontogeny.steps import METRICS, step_folder
from spoken import Said, Type

ONTOGENY: list[object] = [sys.executable, "-m", "ontogeny"]
TORCHRUN: list[object] = [sys.executable, "-m", "torch.distributed.run"]
NUM_UPDATES = 120
TINY = """[sizes.one]
num_layers = 1
hidden_size = 16
num_heads = 2
learning_rate = 1e-2
"""
LINES = """
size = "one"
[order]
context_length = 16
[training]
tokens = 15360
rows_per_update = 8
micro_batch_rows = 2
precision = "fp32"
num_linear = 6
"""


@pytest.fixture(scope="module")
def run_file(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("launched") / "run.toml"
    path.write_text(f'store = "{ground.store}"\nvocabulary = "{ground.vocabulary}"{LINES}{TINY}')
    return path


@pytest.fixture(scope="module")
def proof(run_file: Path) -> str:
    """The identity of the last checkpoint of a run that one rank trained undisturbed."""
    run = run_file.parent / "alone"
    said = typed([*ONTOGENY, "train", run_file, "--out", run])
    assert said.returncode == 0, said.stderr
    return last_digest(run)


def last_digest(run: Path) -> str:
    return open_artifact(step_folder(run, NUM_UPDATES), "checkpoint").digest


def refused(said: Said, *parts: str) -> bool:
    return said.code == 2 and said.err.count("\n") == 1 and all(part in said.err for part in parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--ranks", 8], ["4 micro batches", "8 ranks", "1, 2, 4", "micro_batch_rows=1"]),
        (["--ranks", 3], ["4 micro batches", "3 ranks", "data-parallel ranks: 1, 2, 4"]),
        (["--ranks", 2, "--tensor-parallel", 2], ["tensor parallel", "reproducible=false"]),
        (
            ["--ranks", 3, "--tensor-parallel", 3, "--set", "training.reproducible=false"],
            ["2 attention heads cannot be cut in 3", "1, 2"],
        ),
        (["--ranks", 1, "--set", "training.micro_batch_rows=3"], ["micro_batch_rows 3", "8"]),
        (["--set", "training.rows_per_update=6"], ["3 micro batches", "power of two"]),
    ],
)
def test_layouts_that_cannot_be(
    say: Type, run_file: Path, tmp_path: Path, words: list[object], parts: list[str]
) -> None:
    assert refused(say("train", run_file, "--out", tmp_path / "run", *words), *parts)


def typed(command: list[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@contextmanager
def started(command: list[object], run: Path) -> Iterator[subprocess.Popen[str]]:
    """A job under way: some of its updates are done."""
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        try:
            metrics, ends = run / METRICS, time.monotonic() + 90
            while not (metrics.is_file() and metrics.read_bytes().count(b"\n") > 20):
                assert job.poll() is None, job.communicate()
                assert time.monotonic() < ends
                time.sleep(0.05)
            yield job
        finally:
            job.kill()


def process_of_rank(rank: int, run: Path) -> int:
    """The process that is this rank of the job that trains `run`."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            environment = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words and f"RANK={rank}".encode() in environment:
            return int(place.name)
    raise AssertionError(f"no rank {rank} of {run}")


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_is_named(
    run_file: Path, tmp_path: Path, proof: str
) -> None:
    run = tmp_path / "run"
    command: list[object] = [*ONTOGENY, "train", run_file, "--out", run, "--ranks", 2]
    with started(command, run) as job:
        os.kill(process_of_rank(1, run), signal.SIGKILL)
        began = time.monotonic()
        _, said = job.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert job.returncode == 2
    assert said.count("\n") == 1, said
    assert "error: rank 1 of 2 was killed by SIGKILL; try: the same command again" in said
    again = typed(command)
    assert again.returncode == 0, again.stderr
    assert last_digest(run) == proof


@pytest.mark.slow
def test_torchrun_restarts_to_the_same_bits(run_file: Path, tmp_path: Path, proof: str) -> None:
    run = tmp_path / "run"
    ranks = ["--nproc-per-node", 2, "--max-restarts", 1, "-m", "ontogeny"]
    with started([*TORCHRUN, *ranks, "train", run_file, "--out", run], run) as job:
        os.kill(process_of_rank(0, run), signal.SIGKILL)
        _, said = job.communicate(timeout=90)
    assert job.returncode == 0, said
    assert last_digest(run) == proof


@pytest.mark.slow
def test_an_interrupted_job_saves(run_file: Path, tmp_path: Path, proof: str) -> None:
    run = tmp_path / "run"
    command: list[object] = [*ONTOGENY, "train", run_file, "--out", run, "--ranks", 2]
    with started(command, run) as job:
        job.send_signal(signal.SIGINT)
        _, said = job.communicate(timeout=60)
    assert job.returncode == 130
    assert said.count("stopped at step") == 1
    assert said.endswith("stopped; the same command goes on from the last saved state\n")
    saved = max(int(place.name.removeprefix("step")) for place in (run / "states").iterdir())
    assert f"stopped at step {saved};" in said
    again = typed(command)
    assert again.returncode == 0, again.stderr
    assert last_digest(run) == proof


@pytest.mark.slow
def test_ranks_that_fail_alike_speak_once(run_file: Path, tmp_path: Path) -> None:
    command = [*ONTOGENY, "train", run_file, "--out", tmp_path / "run", "--ranks", 2]
    job = typed([*command, "--set", "training.learning_rate=1e30"])
    assert job.returncode == 2
    assert job.stderr.count("error: ") == 1
    assert "finite numbers" in job.stderr


@pytest.mark.slow
def test_a_suite_grows_by_ranks_to_the_same_artifacts(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(8):
        text = f"The river {number} keeps the old stone. A small door finds it. " * 40
        (tmp_path / "text" / f"{number}.txt").write_text(text)
    file, found = tmp_path / "suite.toml", {}
    kinds = ("last_word", "next_sentence", "agreement")  # of which the text has none
    unasked = "".join(f"{kind}_items = 0\n" for kind in kinds)
    file.write_text(f"{SUITE.replace('14m', 'one')}[evaluation]\n{unasked}{TINY}")
    words: list[object] = ["--set", "training.micro_batch_rows=4"]
    for ranks in (1, 2):
        home = tmp_path / str(ranks)
        said = typed([*ONTOGENY, "run", file, "--out", home, "--ranks", ranks, *words])
        assert said.returncode == 0, said.stderr
        stages = read_record(home).stages
        found[ranks] = {stage.name: stage.digest for stage in stages if stage.name != "report"}
    assert found[1] == found[2]
    assert "scores/one" in found[1]
    refusal = typed([*ONTOGENY, "run", file, "--out", tmp_path / "3", "--ranks", 2])
    assert refusal.returncode == 2
    assert "1 micro batches an update cannot be shared among 2 ranks" in refusal.stderr
