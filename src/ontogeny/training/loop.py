"""The loop: read a batch, forward, backward, update, observe, save.

Everything an update does is a function of the settings, the order and the updates before it; where
it stops and goes on again leaves no trace in the weights. Not here: evaluation (a separate reader
of the checkpoints), ranks.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ontogeny.checkpoints.store import (
    Progress,
    drop_states,
    list_states,
    list_steps,
    save_checkpoint,
    save_state,
)
from ontogeny.errors import CheckpointError, ConfigError, OrderError, TrainingError
from ontogeny.model.loss import linear_cross_entropy
from ontogeny.model.neox import NeoX
from ontogeny.order.batches import Batches, roll
from ontogeny.results import UpdateMetrics
from ontogeny.suite import METRICS, RunSettings
from ontogeny.training import machine
from ontogeny.training.metrics import MetricsFile, Sink
from ontogeny.training.optimizer import AdamW
from ontogeny.training.run import Run, Start, locked
from ontogeny.training.schedule import learning_rate


class Stopped(Exception):  # noqa: N818 (not an error: the run was asked to leave)
    """The run left cleanly at a signal; its state is saved."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped at step {step}; the same command goes on from there")
        self.signal_number = signal_number


def train(
    run: Run, batches: Batches, sinks: Sequence[Sink] = (), *, other_bits: bool = False
) -> None:
    """Take a run from where it stands to its last step.

    `other_bits` lets it go on from a state that was computed with other arithmetic.

    Raises OrderError or ConfigError when run and batches do not fit, TrainingError when the loss is
    not finite, Stopped at SIGINT or SIGTERM once the state is saved, and CheckpointError when the
    arithmetic is another, or a step computed again differs from the one saved.
    """
    settings, training = run.settings, run.settings.training
    require_fit(run, batches)
    machine.keep_freed_memory()
    with locked(run.path), machine.threads(training.threads), stop_signals() as stop:
        start = run.start(batches.start)
        if not other_bits:
            require_same_bits(run, start)
        model = start.model.to(machine.device())
        optimizer = AdamW(model, settings)
        if start.optimizer:
            optimizer.restore(start.optimizer)
        progress = start.progress
        saver = Saver(run, model, optimizer)
        with MetricsFile(run.path / METRICS, progress.step) as metrics:
            saver.save(progress)
            for update in range(progress.step, settings.num_updates):
                began = time.perf_counter()
                rows = batches(update)  # int64 [rows, T + 1], a function of the update alone
                rate = learning_rate(update, settings)
                loss = accumulate(model, torch.from_numpy(rows), settings)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm).item()
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise not_finite(run, update, loss, norm)
                optimizer.set_rate(rate)
                optimizer.step()
                optimizer.zero_grad()
                progress = Progress(
                    update + 1,
                    progress.tokens + settings.tokens_per_update,
                    roll(progress.rows_digest, rows),
                )
                row = UpdateMetrics(
                    update, loss, rate, norm, progress.tokens, progress.rows_digest,
                    time.perf_counter() - began,
                )  # fmt: skip
                metrics.write(row)
                for sink in sinks:
                    sink(row)
                if saver.is_due(progress.step) or stop.number:
                    metrics.sync()
                    saver.save(progress, leaving=bool(stop.number))
                if stop.number and progress.step < settings.num_updates:
                    raise Stopped(progress.step, stop.number)
            saver.clean()


def require_fit(run: Run, batches: Batches) -> None:
    """Refuse, before anything is computed, an order too short or ids the model does not have."""
    settings = run.settings
    if batches.num_updates < settings.num_updates:
        raise OrderError(
            "the order is too short for the run",
            where=run.path,
            expected=f"{settings.num_updates} updates",
            found=f"{batches.num_updates}",
            fix="train for fewer tokens or make a longer order",
        )
    num_ids = batches.order.num_ids
    if num_ids is not None and num_ids > settings.shape.vocab_size:
        raise ConfigError(
            "the vocabulary is larger than the model's",
            where=run.path,
            expected=f"at most {settings.shape.vocab_size} ids",
            found=f"{num_ids}",
            fix="encode with the vocabulary the model was made for",
        )


def require_same_bits(run: Run, start: Start) -> None:
    """Refuse to go on with another torch, processor or number of threads: other bits would come."""
    here = machine.bits()
    for name, before in start.bits.items():
        if here.get(name) != before:
            raise CheckpointError(
                f"step {start.progress.step} was computed with another {name}",
                where=run.path,
                expected=before,
                found=here.get(name),
                fix="that one again, or --other-bits to go on all the same (it is recorded)",
            )


def accumulate(model: NeoX, rows: Tensor, settings: RunSettings) -> float:
    """Add the gradient of the mean loss over int64 rows [N, T + 1]; that loss."""
    training = settings.training
    dtype = machine.require_precision(training.precision)
    micro_batches = rows.to(machine.device()).split(training.micro_batch_rows or len(rows))
    total = 0.0
    for micro in micro_batches:
        hidden = model.hidden(micro[:, :-1], dtype).flatten(0, 1)
        loss = linear_cross_entropy(hidden, model.embed_out.weight, micro[:, 1:].flatten())
        (loss / len(micro_batches)).backward()
        total += loss.item()
    return total / len(micro_batches)


@dataclass(slots=True)
class Saver:
    """What is saved when: checkpoints at the run's steps, full states at some, a rolling one."""

    run: Run
    model: NeoX
    optimizer: AdamW
    saved_at: float = 0.0

    def __post_init__(self) -> None:
        self.saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether there is something to save after `step` updates."""
        return step in self.run.settings.steps or self._rolling_is_due()

    def save(self, progress: Progress, leaving: bool = False) -> None:
        """Save what is due; a full state in any case when the run is leaving.

        The checkpoint comes last: once a run's last checkpoint is there, all of the run is.
        """
        run, step = self.run, progress.step
        is_kept = step in run.settings.steps
        provenance = {"bits": machine.bits()}
        if step in run.settings.full_state_steps or leaving or self._rolling_is_due():
            save_state(
                run.artifact,
                self.model,
                self.optimizer.named_state(),
                progress,
                with_weights=not is_kept,
                provenance=provenance,
            )
            self.saved_at = time.monotonic()
        if is_kept:
            save_checkpoint(
                run.artifact,
                self.model,
                progress,
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


def not_finite(run: Run, update: int, loss: float, norm: float) -> TrainingError:
    """The error that stops a run: which update, which rows, what to go back to."""
    rows = run.settings.training.rows_per_update
    kept, states = list_steps(run.path), list_states(run.path)
    return TrainingError(
        f"loss {loss} and gradient norm {norm} at update {update} "
        f"(rows {update * rows} to {(update + 1) * rows - 1} of the order)",
        where=run.path,
        expected="finite numbers",
        found=f"last good checkpoint step{kept[-1]}, last full state step{states[-1]}"
        if kept and states
        else "no checkpoint",
        fix="a lower learning_rate, or precision = 'fp32'",
    )
