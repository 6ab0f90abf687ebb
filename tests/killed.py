"""Processes that train a run and are killed -9 at a chosen moment, and what is left of the run."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from grown import Ground, begin
from ontogeny.artifact import faults, open_artifact
from ontogeny.checkpoints.store import list_states, load_checkpoint
from ontogeny.results import read_metrics
from ontogeny.steps import METRICS, STATES, STEPS, list_steps, step_folder
from ontogeny.suite import RunSettings
from ontogeny.training.loop import train
from ontogeny.training.run import Run

# Children are forked from a process that has imported torch: they start in milliseconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "torch._dynamo",
        "ontogeny.training.loop",
        "ontogeny.training.parallel",
        "ontogeny.tokens.encode",
    ]
)
WRITING = ".step*.writing-*"
PLACES = {"checkpoint": STEPS, "state": STATES}  # what can be aimed at while it is written


@dataclass(frozen=True)
class Site:
    """A run that other processes may train: where, on what, and with which settings."""

    ground: Ground
    folder: Path
    settings: RunSettings

    def open(self) -> Run:
        return begin(self.ground, self.folder, self.settings)

    def finish(self) -> Run:
        """Train the run to its end, here."""
        run = self.open()
        train(run, self.ground.batches(self.settings.training.rows_per_update))
        return run

    @contextmanager
    def training(self) -> Iterator[BaseProcess]:
        """Another process trains the run; it is killed -9 when the block ends."""
        process = FORKS.Process(target=self.finish)
        process.start()
        try:
            yield process
        finally:
            process.kill()
            process.join()

    def kill(self, aim: str, moments: random.Random) -> str:
        """Train in another process and kill it; what it was doing then.

        It dies at a random update or before the first, or while it writes (or removes) a
        checkpoint or a state, whichever `aim` says.
        """
        with self.training() as process:
            if aim in PLACES:
                self._catch(process, self.folder / PLACES[aim], moments)
            else:
                self._await(process, moments.randrange(-1, self.settings.num_updates))
                process.join(moments.uniform(0, 0.01))
            if not process.is_alive():
                return "finished"
        return self._left()

    def _await(self, process: BaseProcess, update: int) -> None:
        """Wait until the line of an update is in the metrics; of update -1, for nothing."""
        path, num_lines = self.folder / METRICS, 0
        while process.is_alive() and num_lines <= update:
            num_lines = path.read_bytes().count(b"\n") if path.exists() else 0

    def _catch(self, process: BaseProcess, place: Path, moments: random.Random) -> None:
        """Halt the process while something is half written in `place`."""
        assert process.pid is not None
        num_passed, delay, before = moments.randrange(6), moments.uniform(0, 0.003), None
        while process.is_alive():
            writing = next(place.glob(WRITING), None)
            if writing is not None and num_passed:
                num_passed -= writing != before
            elif writing is not None:
                time.sleep(delay)
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(0.001)
                if any(place.glob(WRITING)):
                    return
                os.kill(process.pid, signal.SIGCONT)  # it was quicker
            before = writing

    def _left(self) -> str:
        """What was being done when the process died, as its leftovers tell."""
        for what, place in PLACES.items():
            for leftover in (self.folder / place).glob(WRITING):
                is_going = leftover.name.endswith("no-more")
                return f"{'freeing' if is_going else 'writing'} a {what}"
        return "between writes" if (self.folder / METRICS).exists() else "starting"


def proof(run: Run) -> tuple[list[str], list[tuple[float, float, str]]]:
    """The identity of every checkpoint of a run, and its metrics but for the wall time."""
    rows = read_metrics(run.path / METRICS)
    return (
        [open_artifact(step_folder(run.path, step)).digest for step in list_steps(run.path)],
        [(row.loss, row.gradient_norm, row.rows_digest) for row in rows],
    )


def is_clean(run: Run) -> bool:
    """Whether every checkpoint loads and is undamaged, and nothing else was left behind."""
    for step in list_steps(run.path):
        load_checkpoint(run.path, step)
        assert not faults(open_artifact(step_folder(run.path, step)))
    assert set(list_states(run.path)) == run.settings.full_state_steps
    return not [*run.path.rglob(".*writing*"), *run.path.parent.glob(".*writing*")]
