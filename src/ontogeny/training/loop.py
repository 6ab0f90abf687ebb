"""The loop: update, observe, save, and go on where a run was stopped.

Where it stops and goes on again leaves no trace in the weights. Not here: what an update does
(`update.py`), evaluation (a separate reader of the checkpoints).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ontogeny.checkpoints.store import drop_states, list_states, save_checkpoint, save_state
from ontogeny.errors import CheckpointError, Stopped
from ontogeny.order.batches import Batches
from ontogeny.steps import METRICS
from ontogeny.training import machine
from ontogeny.training.layout import require_layout
from ontogeny.training.metrics import MetricsFile, Sink
from ontogeny.training.parts import whole, whole_model
from ontogeny.training.prefetch import Feed
from ontogeny.training.ranks import ALONE, Ranks
from ontogeny.training.run import Run, Start, locked
from ontogeny.training.update import State, require_fit, resumed, take_update


def train(
    run: Run,
    batches: Batches,
    sinks: Sequence[Sink] = (),
    *,
    ranks: Ranks = ALONE,
    other_bits: bool = False,
) -> None:
    """Take a run from where it stands to its last step; to be called by all ranks.

    The first of them alone writes and feeds the sinks. `other_bits` lets the run go on from a
    state that was computed with other arithmetic.

    Raises OrderError or ConfigError when run and batches do not fit, TrainingError when the loss is
    not finite, Stopped at SIGINT or SIGTERM once the state is saved, and CheckpointError when the
    arithmetic is another, or a step computed again differs from the one saved.
    """
    settings = run.settings
    require_fit(run, batches)
    require_layout(ranks.layout, settings)
    machine.keep_freed_memory()
    with ExitStack() as stack:
        if ranks.is_first:
            stack.enter_context(locked(run.path))
        stack.enter_context(machine.arithmetic(settings.training))
        stop = stack.enter_context(stop_signals())
        start = run.start(batches.start)
        if not other_bits:
            require_same_bits(run, start, ranks)
        state = resumed(run, start, ranks)
        saver = Saver(run, state)
        metrics = None
        if ranks.is_first:
            metrics = stack.enter_context(MetricsFile(run.path / METRICS, state.progress.step))
        saver.save()
        feed = stack.enter_context(
            Feed(batches, state.progress, settings.num_updates, machine.device())
        )
        while state.progress.step < settings.num_updates:
            row = take_update(run, feed, state)
            if metrics is not None:
                metrics.write(row)
                for sink in sinks:
                    sink(row)
            leaving, rolling = ranks.any(bool(stop.number), saver.rolling_is_due())
            if saver.is_kept or rolling or leaving:
                if metrics is not None:
                    metrics.sync()
                saver.save(with_state=rolling or leaving)
            if leaving and state.progress.step < settings.num_updates:
                raise Stopped(state.progress.step, stop.number or signal.SIGTERM)
        saver.clean()


def require_same_bits(run: Run, start: Start, ranks: Ranks) -> None:
    """Refuse to go on with another torch, processor or number of threads: other bits would come."""
    here = ranks.bits(run.settings)
    name = machine.differing(start.bits, here)
    if name is not None:
        raise CheckpointError(
            f"step {start.progress.step} was computed with another {name}",
            where=run.path,
            expected=start.bits[name],
            found=here.get(name),
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

    @property
    def is_kept(self) -> bool:
        """Whether a checkpoint is kept of the step the run is at."""
        return self.state.progress.step in self.run.settings.steps

    def save(self, with_state: bool = False) -> None:
        """Save what the settings keep of the step; a full state in any case if asked to.

        The checkpoint comes last: once a run's last checkpoint is there, all of the run is. To be
        called by all ranks, of which the first writes.
        """
        run, state, step = self.run, self.state, self.state.progress.step
        provenance = {
            "bits": state.ranks.bits(run.settings),
            "layout": state.ranks.layout.as_json(),
        }
        is_full = step in run.settings.full_state_steps or with_state
        model, moments = whole_model(state.model), {}
        if is_full:
            moments = {name: whole(one) for name, one in state.named_state().items()}
            self.saved_at = time.monotonic()
        if not state.ranks.is_first:
            return
        if is_full:
            save_state(
                run.artifact,
                model,
                moments,
                state.progress,
                with_weights=not self.is_kept,
                provenance=provenance,
            )
        if self.is_kept:
            save_checkpoint(
                run.artifact,
                model,
                state.progress,
                parent=run.parent_of(step),
                provenance=provenance,
            )
        drop_states(run.path, run.settings.full_state_steps | {max(list_states(run.path))})

    def clean(self) -> None:
        """Remove the rolling state: the run is at its end."""
        if self.state.ranks.is_first:
            drop_states(self.run.path, self.run.settings.full_state_steps)

    def rolling_is_due(self) -> bool:
        """Whether it is time for another full state, to go on from after a kill."""
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
