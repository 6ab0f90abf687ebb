"""Members side by side: each is trained and scored in a process of its own, a few at a time.

The parent follows each in the metrics that its run writes. A process answers to its parent: it
tells how far its scores are, leaves cleanly (its state saved) when asked to, and also when the
parent is gone. Not here: what a member is made from (`graph.py`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from ontogeny.artifact import Input, open_artifact
from ontogeny.errors import EvaluationError, OntogenyError, Stopped, TrainingError
from ontogeny.evaluation.catalog import TaskRef
from ontogeny.evaluation.sweep import Answers, Asked, fill
from ontogeny.evaluation.weights import own_checkpoint
from ontogeny.questions.materials import open_materials
from ontogeny.results import parse_metrics
from ontogeny.scores import ScoreStore
from ontogeny.stages.evaluate import unasked
from ontogeny.steps import METRICS
from ontogeny.suite import Member, RunSettings
from ontogeny.training.launch import launch
from ontogeny.training.loop import train
from ontogeny.training.run import open_run
from ontogeny.workers import Workers, leave_with_parent, signal_name

POLL_SECONDS = 0.1
LEFT = 128 + signal.SIGINT  # the exit code of a process that was asked to leave, and did


@dataclass(frozen=True, slots=True)
class Job:
    """One member: its run, what that is made from, what it is asked, and where scores go."""

    row: Member
    settings: RunSettings
    run: Path
    run_inputs: Mapping[str, Input]
    tasks: tuple[TaskRef, ...]
    scores: ScoreStore
    other_bits: bool
    num_ranks: int = 1

    @property
    def member(self) -> str:
        return self.row.name

    @property
    def flops(self) -> float:
        return self.settings.training.tokens * self.settings.shape.flops_per_token


@dataclass(frozen=True, slots=True)
class Report:
    """How far a job is: updates trained or checkpoints scored, of how many.

    `tokens` were trained on since the job started.
    """

    member: str
    phase: Literal["train", "score"]
    done: int
    total: int
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: the seconds of both phases, or what went wrong."""

    member: str
    train_seconds: float = 0.0
    score_seconds: float = 0.0
    failure: OntogenyError | OSError | None = None


def run_jobs(
    jobs: Sequence[Job],
    num_lanes: int,
    observe: Callable[[Report], None],
    finished: Callable[[Outcome], None],
) -> None:
    """Run all jobs, the costliest first. At a failure or an interrupt the others save and leave.

    Raises the failure of the first job that failed, or KeyboardInterrupt.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(sorted(jobs, key=lambda job: -job.flops))
    running: dict[Connection, tuple[BaseProcess, _Followed]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_lanes:
                job = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=work, args=(job, sender), name=job.member)
                followed = _Followed(job)
                with interrupts_ignored():
                    process.start()
                sender.close()
                running[receiver] = process, followed
            ready = wait(list(running), POLL_SECONDS)
            for _, followed in running.values():
                followed.tell(observe)
            for receiver in [one for one in running if one in ready]:
                message = _received(receiver, *running[receiver])
                if isinstance(message, Report):
                    observe(message)
                    continue
                del running[receiver]
                if message.failure is not None:
                    raise message.failure
                finished(message)
    finally:
        left = [process for process, _ in running.values()]
        for one in left:  # all are asked to leave before any is waited for
            one.terminate()
        for one in left:
            one.join()


class _Followed:
    """The training of a job, as it is seen in the metrics: by its process, or by ranks of it."""

    def __init__(self, job: Job) -> None:
        self.job, self._metrics = job, job.run / METRICS
        self._place = self._metrics.stat().st_size if self._metrics.exists() else 0
        self._tokens = 0

    def tell(self, observe: Callable[[Report], None]) -> None:
        """Report the updates written since the last look, if there are any."""
        if not self._metrics.exists():
            return
        with self._metrics.open("rb") as file:
            # Where a run goes on, its metrics are cut to there first.
            self._place = file.seek(min(self._place, file.seek(0, os.SEEK_END)))
            lines = [line for line in file if line.endswith(b"\n")]
        self._place += sum(map(len, lines))
        row = parse_metrics(lines[-1].decode(errors="replace")) if lines else None
        if row is not None:
            settings = self.job.settings
            self._tokens += len(lines) * settings.tokens_per_update
            done, total = row.update + 1, settings.num_updates
            observe(Report(self.job.member, "train", done, total, self._tokens))


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Start processes in the block so that Ctrl-C is the parent's to pass on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def work(job: Job, sender: Connection) -> None:
    """What a lane's process does."""
    leave_with_parent(signal.SIGTERM)
    try:
        sender.send(_train_and_score(job, sender))
    except (OntogenyError, OSError) as failure:
        sender.send(Outcome(job.member, failure=failure))
    except (Stopped, KeyboardInterrupt):
        raise SystemExit(LEFT) from None


def _train_and_score(job: Job, sender: Connection) -> Outcome:
    began = time.monotonic()
    if not open_run(job.run).is_finished:
        _train(job)
    trained = time.monotonic()
    _score(job, sender)
    return Outcome(job.member, trained - began, time.monotonic() - trained)


def _train(job: Job) -> None:
    if job.num_ranks == 1:
        materials = open_materials(job.run)
        train(materials.run, materials.batches, other_bits=job.other_bits)
        return
    words = ["train", str(job.run), "--ranks", str(job.num_ranks), "--quiet"]
    if launch([*words, "--other-bits"] if job.other_bits else words, job.num_ranks):
        raise TrainingError(f"the ranks of member {job.member} ended early", where=job.run)


def still_to_ask(job: Job) -> list[Asked]:
    """What is missing of a finished run's scores, by what is on record of its checkpoints."""
    run, size, corpus = open_artifact(job.run, "run"), job.row.size, job.row.corpus
    steps = job.settings.steps
    checkpoints = [own_checkpoint(run, step, size, corpus, rehash=False) for step in steps]
    return unasked(job.scores, checkpoints, job.tasks, job.settings.training.threads)


def _score(job: Job, sender: Connection) -> None:
    """Ask every checkpoint of a finished run what it was not asked yet."""
    total, done, failures = len(job.settings.steps), 0, list[str]()

    def observe(answers: Answers) -> None:
        nonlocal done
        done += 1
        failures.extend(answers.problems)
        sender.send(Report(job.member, "score", done, total))

    with job.scores.locked(job.member, patiently=True):
        asked = still_to_ask(job)
        done = total - len(asked)
        fill(job.scores, asked, Workers(), observe)
    if failures:
        raise EvaluationError(failures[0], found=f"{len(failures)} such tasks")


def _received(receiver: Connection, process: BaseProcess, followed: _Followed) -> Report | Outcome:
    job = followed.job
    try:
        message: Report | Outcome = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode == LEFT:
            raise KeyboardInterrupt from None
        failure = TrainingError(
            f"the process of member {job.member} ended with {_how(process.exitcode)}",
            where=job.run,
            fix="run the same command again: it goes on from the last saved state",
        )
        return Outcome(job.member, failure=failure)
    return message


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"signal {-exit_code} ({signal_name(-exit_code)})"
    return f"exit code {exit_code}"
