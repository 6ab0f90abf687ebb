"""The loop: update, observe, save, and go on where a run was stopped.

Where it stops and goes on again leaves no trace in the weights. Not here: what an update does
(`update.py`), evaluation (a separate reader of the checkpoints), ranks.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ontogeny.checkpoints.store import drop_states, list_states, save_checkpoint, save_state
from ontogeny.errors import CheckpointError, Stopped
from ontogeny.order.batches import Batches
from ontogeny.steps import METRICS
from ontogeny.training import machine
from ontogeny.training.metrics import MetricsFile, Sink
from ontogeny.training.run import Run, Start, locked
from ontogeny.training.update import State, require_fit, resumed, take_update


def train(
    run: Run, batches: Batches, sinks: Sequence[Sink] = (), *, other_bits: bool = False
) -> None:
    """Take a run from where it stands to its last step.

    `other_bits` lets it go on from a state that was computed with other arithmetic.

    Raises OrderError or ConfigError when run and batches do not fit, TrainingError when the loss is
    not finite, Stopped at SIGINT or SIGTERM once the state is saved, and CheckpointError when the
    arithmetic is another, or a step computed again differs from the one saved.
    """
    settings = run.settings
    require_fit(run, batches)
    machine.keep_freed_memory()
    with locked(run.path), machine.threads(settings.training.threads), stop_signals() as stop:
        start = run.start(batches.start)
        if not other_bits:
            require_same_bits(run, start)
        state = resumed(run, start)
        saver = Saver(run, state)
        with MetricsFile(run.path / METRICS, state.progress.step) as metrics:
            saver.save()
            while state.progress.step < settings.num_updates:
                row = take_update(run, batches, state)
                metrics.write(row)
                for sink in sinks:
                    sink(row)
                if saver.is_due() or stop.number:
                    metrics.sync()
                    saver.save(leaving=bool(stop.number))
                if stop.number and state.progress.step < settings.num_updates:
                    raise Stopped(state.progress.step, stop.number)
            saver.clean()


def require_same_bits(run: Run, start: Start) -> None:
    """Refuse to go on with another torch, processor or number of threads: other bits would come."""
    name = machine.differing(start.bits)
    if name is not None:
        raise CheckpointError(
            f"step {start.progress.step} was computed with another {name}",
            where=run.path,
            expected=start.bits[name],
            found=machine.bits().get(name),
            fix="that one again, or --other-bits to go on all the same (it is recorded)",
        )


@dataclass(slots=True)
class Saver:
    """What is saved when: checkpoints at the run's steps, full states at some, a rolling one."""

    run: Run
    state: State
    saved_at: float = 0.0

    def __post_init__(self) -> None:
        self.saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether there is something to save after the updates done."""
        return self.state.progress.step in self.run.settings.steps or self._rolling_is_due()

    def save(self, leaving: bool = False) -> None:
        """Save what is due; a full state in any case when the run is leaving.

        The checkpoint comes last: once a run's last checkpoint is there, all of the run is.
        """
        run, state, step = self.run, self.state, self.state.progress.step
        is_kept = step in run.settings.steps
        provenance = {"bits": machine.bits()}
        if step in run.settings.full_state_steps or leaving or self._rolling_is_due():
            save_state(
                run.artifact,
                state.model,
                state.optimizer.named_state(),
                state.progress,
                with_weights=not is_kept,
                provenance=provenance,
            )
            self.saved_at = time.monotonic()
        if is_kept:
            save_checkpoint(
                run.artifact,
                state.model,
                state.progress,
                parent=run.parent_of(step),
                provenance=provenance,
            )
        drop_states(run.path, run.settings.full_state_steps | {max(list_states(run.path))})

    def clean(self) -> None:
        """Remove the rolling state: the run is at its end."""
        drop_states(self.run.path, self.run.settings.full_state_steps)

    def _rolling_is_due(self) -> bool:
        elapsed = time.monotonic() - self.saved_at
        return elapsed >= self.run.settings.training.rolling_seconds


@dataclass(slots=True)
class StopRequest:
    """The signal that asked the run to leave, or 0."""

    number: int = 0


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the loop looks at between updates."""
    request = StopRequest()

    def ask(number: int, frame: object) -> None:
        request.number = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
