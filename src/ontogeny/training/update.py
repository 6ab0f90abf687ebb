"""One update: read a batch, forward, backward, clip, AdamW.

All it does is a function of the settings, the order and the updates before it. Training and replay
both go through it, so that neither can compute what the other does not. Not here: what is kept of
an update (`loop.py`, `replay.py`).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ontogeny.checkpoints.store import Progress, list_states
from ontogeny.errors import ConfigError, OrderError, TrainingError
from ontogeny.model.loss import linear_cross_entropy
from ontogeny.model.neox import NeoX
from ontogeny.order.batches import Batches, roll
from ontogeny.results import UpdateMetrics
from ontogeny.steps import list_steps
from ontogeny.suite import RunSettings
from ontogeny.training import machine
from ontogeny.training.optimizer import AdamW
from ontogeny.training.run import Run, Start
from ontogeny.training.schedule import learning_rate


@dataclass(slots=True)
class State:
    """The full state of a run between two updates."""

    model: NeoX
    optimizer: AdamW
    progress: Progress


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


def resumed(run: Run, start: Start) -> State:
    """The state a run goes on from, on the device it computes on."""
    model = start.model.to(machine.device())
    optimizer = AdamW(model, run.settings)
    if start.optimizer:
        optimizer.restore(start.optimizer)
    return State(model, optimizer, start.progress)


def take_update(run: Run, batches: Batches, state: State) -> UpdateMetrics:
    """Take a state one update further, and tell how it went.

    Raises TrainingError when the loss or the gradient is not finite; the weights have not moved.
    """
    began = time.perf_counter()
    settings, update = run.settings, state.progress.step
    rows = batches(update)  # int64 [rows, T + 1], a function of the update alone
    rate = learning_rate(update, settings)
    loss = accumulate(state.model, torch.from_numpy(rows), settings)
    parameters, clip_norm = state.model.parameters(), settings.training.clip_norm
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise not_finite(run, update, batches.place(update), loss, norm)
    state.optimizer.set_rate(rate)
    state.optimizer.step()
    state.optimizer.zero_grad()
    tokens = state.progress.tokens + settings.tokens_per_update
    digest = roll(state.progress.rows_digest, rows)
    state.progress = Progress(update + 1, tokens, digest)
    return UpdateMetrics(update, loss, rate, norm, tokens, digest, time.perf_counter() - began)


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


def not_finite(run: Run, update: int, place: int, loss: float, norm: float) -> TrainingError:
    """The error that stops a run: which update, which rows, what to go back to."""
    rows = run.settings.training.rows_per_update
    kept, states = list_steps(run.path), list_states(run.path)
    return TrainingError(
        f"loss {loss} and gradient norm {norm} at update {update} "
        f"(rows {place} to {place + rows - 1} of the order)",
        where=run.path,
        expected="finite numbers",
        found=f"last good checkpoint step{kept[-1]}, last full state step{states[-1]}"
        if kept and states
        else "no checkpoint",
        fix="a lower learning_rate, or precision = 'fp32'",
    )
