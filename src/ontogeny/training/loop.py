"""The loop: update, observe, save, and go on where a run was stopped.

Where it stops and goes on again leaves no trace in the weights. Not here: what an update does
(`update.py`), evaluation (a separate reader of the checkpoints).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ontogeny.checkpoints.store import (
    Progress,
    drop_states,
    list_states,
    save_checkpoint,
    save_state,
)
from ontogeny.errors import CheckpointError, Stopped, TrainingError
from ontogeny.model import hf
from ontogeny.order.batches import Batches
from ontogeny.steps import METRICS, list_steps
from ontogeny.training import machine
from ontogeny.training.layout import require_layout
from ontogeny.training.metrics import MetricsFile, Sink
from ontogeny.training.parts import gathered, staged
from ontogeny.training.prefetch import Feed
from ontogeny.training.ranks import ALONE, Ranks
from ontogeny.training.run import Run, locked
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
        start = run.start(batches.start, ranks)
        if not other_bits:
            machine.require_same_bits(
                start.bits, ranks.bits(settings), start.progress.step, run.path,
                "--other-bits to go on all the same (it is recorded)",
            )  # fmt: skip
        state = resumed(run, start, ranks)
        saver = stack.enter_context(Saver(run, state))
        metrics = None
        if ranks.is_first:
            metrics = stack.enter_context(MetricsFile(run.path / METRICS, state.progress.step))
        saver.save()
        feed = stack.enter_context(
            Feed(batches, state.progress, settings.num_updates, machine.device())
        )
        while state.progress.step < settings.num_updates:
            with saver.last_kept_told():
                row = take_update(run, feed, state)
            if metrics is not None:
                metrics.write(row)
                for sink in sinks:
                    sink(row)
            leaving, rolling = saver.agreed(bool(stop.number))
            if saver.is_kept or rolling or leaving:
                if metrics is not None:
                    metrics.sync()
                saver.save(with_state=rolling or leaving)
            if leaving and state.progress.step < settings.num_updates:
                raise Stopped(state.progress.step, stop.number or signal.SIGTERM)
        saver.clean()


class Saver(AbstractContextManager["Saver"]):
    """What is saved when: checkpoints at the run's steps, full states at some, a rolling one.

    The tensors are copied to the CPU's memory; a thread writes them while updates go on. One save
    is under way at most. What fails there is raised on all ranks at the end of the update or of the
    block, whichever comes first.
    """

    def __init__(self, run: Run, state: State) -> None:
        self._run, self._state = run, state
        self._saved_at = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "save")
        self._writing = self._thread.submit(lambda: None)  # nothing yet

    def __exit__(self, *raised: object) -> None:
        self._thread.shutdown()
        self._writing.result()

    @property
    def is_kept(self) -> bool:
        """Whether a checkpoint is kept of the step the run is at."""
        return self._state.progress.step in self._run.settings.steps

    def save(self, with_state: bool = False) -> None:
        """Save what the settings keep of the step; a full state in any case if asked to.

        To be called by all ranks. Each writes its parts of a state, the first writes checkpoints.
        """
        self.settle()
        run, state, step = self._run, self._state, self._state.progress.step
        is_full = step in run.settings.full_state_steps or with_state
        weights = gathered(state.model, state.ranks) if self.is_kept else {}
        parts: tuple[dict[str, Tensor], ...] = ()
        if is_full:
            own_weights = {} if self.is_kept else hf.named_weights(state.model)
            parts = staged(state.named_state()), staged(own_weights)
            self._saved_at = time.monotonic()
        provenance = {
            "bits": state.ranks.bits(run.settings),
            "layout": state.ranks.layout.as_json(),
        }
        self._writing = self._thread.submit(self._write, state.progress, parts, weights, provenance)

    def _write(
        self,
        progress: Progress,
        parts: tuple[dict[str, Tensor], ...],
        weights: dict[str, Tensor],
        provenance: dict[str, Any],
    ) -> None:
        """Write what was copied; the checkpoint last: once it is there, all of the step is."""
        run, ranks = self._run, self._state.ranks
        if parts:
            save_state(
                run.artifact, parts[0], progress,
                weights=parts[1], provenance=provenance, group=ranks.beside,
            )  # fmt: skip
        if not ranks.is_first:
            return
        if weights:
            model = hf.assembled(run.settings.shape, weights, run.path)
            parent = run.parent_of(progress.step)
            save_checkpoint(run.artifact, model, progress, parent=parent, provenance=provenance)
        drop_states(run.path, run.settings.full_state_steps | {max(list_states(run.path))})

    def settle(self) -> None:
        """Wait until all ranks have written. Raises on all of them what kept one from it."""
        failed = self._writing.exception() is not None
        if self._state.ranks.any(failed)[0]:
            self._writing.result()
            raise CheckpointError("another rank could not save", where=self._run.path)

    def agreed(self, leaving: bool) -> tuple[bool, bool]:
        """Whether a rank is to leave, and whether a rolling state is due: the same on all ranks.

        Raises what kept a rank from writing, if that is known already.
        """
        writing, elapsed = self._writing, time.monotonic() - self._saved_at
        failed = writing.done() and writing.exception() is not None
        rolling = elapsed >= self._run.settings.training.rolling_seconds
        leaving, rolling, failed = self._state.ranks.any(leaving, rolling, failed)
        if failed:
            self.settle()
        return leaving, rolling

    @contextmanager
    def last_kept_told(self) -> Iterator[None]:
        """Let a loss that is not finite tell what the run can go back to; all ranks meet it."""
        try:
            yield
        except TrainingError as error:
            self.settle()
            kept, states = list_steps(self._run.path), list_states(self._run.path)
            found = "no checkpoint"
            if kept and states:
                found = f"last good checkpoint step{kept[-1]}, last full state step{states[-1]}"
            raise TrainingError(
                error.problem, where=error.where, found=found, fix=error.fix
            ) from error

    def clean(self) -> None:
        """Remove the rolling state: the run is at its end."""
        self.settle()
        if self._state.ranks.is_first:
            drop_states(self._run.path, self._run.settings.full_state_steps)


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
