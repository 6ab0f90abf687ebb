"""One update: rows, forward, backward, clip, AdamW.

All it does is a function of the settings, the order and the updates before it. Training and replay
both go through it, so that neither can compute what the other does not. Not here: what is kept of
an update (`loop.py`, `replay.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ontogeny.checkpoints.store import Progress
from ontogeny.errors import ConfigError, OrderError, TrainingError
from ontogeny.model import hf
from ontogeny.model.neox import NeoX
from ontogeny.order.batches import Batches, rows_of_rank
from ontogeny.results import UpdateMetrics
from ontogeny.suite import RECIPES, RunSettings
from ontogeny.training import machine
from ontogeny.training.objective import Objective
from ontogeny.training.optimizer import AdamW
from ontogeny.training.parts import own
from ontogeny.training.prefetch import Feed
from ontogeny.training.ranks import Ranks
from ontogeny.training.run import Run, Start
from ontogeny.training.scaling import LossScale, loss_scale
from ontogeny.training.schedule import learning_rate
from ontogeny.training.tree import Tree


@dataclass(slots=True)
class State:
    """The full state of a run between two updates; of several ranks, each holds its part."""

    model: NeoX
    objective: Objective
    optimizer: AdamW
    progress: Progress
    ranks: Ranks
    scale: LossScale

    def named_state(self) -> dict[str, Tensor]:
        """All of it but weights and progress, as a flat table of tensors."""
        return self.optimizer.named_state() | self.scale.named_state()


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


def resumed(run: Run, start: Start, ranks: Ranks) -> State:
    """The state a run goes on from, on the device it computes on, compiled where it asks for it.

    To be called by all ranks, each of which only ever holds its part. Raises ConfigError where
    there is nothing to compile with.
    """
    settings = run.settings
    if settings.training.compile:
        machine.compiler()
    with torch.device("meta"):
        model = NeoX(settings.shape)
    objective = Objective(
        model, recompute=ranks.layout.recompute, compiles=settings.training.compile
    )
    if ranks.mesh is not None:
        from ontogeny.training.parallel import distribute  # takes half a second to import

        distribute(objective, ranks, settings.training)
    objective.to_empty(device=machine.device())
    start.weights(hf.named_weights(model))
    optimizer, scale = AdamW(model, settings), loss_scale(settings, start.progress.step, {})
    if start.moments is not None:
        tensors = optimizer.named_state() | scale.named_state()
        start.moments(tensors)
        optimizer.restore(tensors)
        scale = loss_scale(settings, start.progress.step, tensors)
    return State(model, objective, optimizer, start.progress, ranks, scale)


def take_update(run: Run, feed: Feed, state: State) -> UpdateMetrics:
    """Take a state one update further, and tell how it went.

    In fp16 an update whose gradient overflows is skipped: its rows are consumed, no weight moves.
    Raises TrainingError when loss or gradient is not finite otherwise; nothing has moved then.
    """
    began, settings, recipe = time.perf_counter(), run.settings, RECIPES[run.settings.recipe]
    update, scale, rows = state.progress.step, state.scale, feed.take()
    rate = learning_rate(update - scale.num_skipped * recipe.rate_waits, settings)
    loss, gradients = accumulate(state.objective, rows.tokens, settings, state.ranks, scale.value)
    norm = gradient_norm(state.model, gradients, state.ranks)  # of leaves added up and scaled
    skipped = scale.can_fall and not math.isfinite(norm)
    if not (math.isfinite(loss) and (math.isfinite(norm) or skipped)):
        raise not_finite(run, update, rows.place, scale, f"loss {loss} and gradient norm {norm}")
    state.scale = scale.after(update, overflows=skipped)
    divisor = settings.num_leaves * (state.scale if recipe.unscales_by_next else scale).value
    norm = 0.0 if skipped else norm / divisor
    if not skipped:
        share = min(1.0, settings.training.clip_norm / (norm + 1e-6))
        torch._foreach_mul_(list(gradients.values()), share / divisor)
        state.optimizer.step(gradients, rate)
    tokens = state.progress.tokens + settings.tokens_per_update
    state.progress = Progress(update + 1, tokens, rows.digest)
    seconds = time.perf_counter() - began
    return UpdateMetrics(
        update, loss, rate, norm, tokens, rows.digest, seconds, scale.value, skipped
    )


def accumulate(
    objective: Objective, rows: Tensor, settings: RunSettings, ranks: Ranks, scale: float = 1.0
) -> tuple[float, dict[str, Tensor]]:
    """The mean loss over int64 rows [N, T + 1], and a gradient, this rank's part of it by name.

    The gradient is that of the micro batches' mean losses added up, times `scale`: so what half
    precision rounds does not depend on how many there are. A micro batch is a leaf of a tree;
    which of them a rank takes when is `rows_of_rank`'s to say.
    """
    dtype = machine.require_precision(settings.training.precision)
    num_leaves, tree, losses = settings.num_leaves, Tree(), []
    num_micro_steps = num_leaves // ranks.layout.data
    parameters = dict(objective.model.named_parameters())
    for micro_step in range(num_micro_steps):
        objective.before_pass(micro_step + 1 == num_micro_steps)
        places = rows_of_rank(
            0,  # of this update alone
            micro_batch=len(rows) // num_leaves,
            num_ranks=ranks.layout.data,
            num_micro_steps=num_micro_steps,
            rank=ranks.place,
            micro_step=micro_step,
        )
        loss = objective(rows[places.start : places.stop].to(machine.device()), dtype, scale)
        loss.backward()
        losses.append(loss.detach())
        tree.add([own(taken(parameter)) for parameter in parameters.values()])
    in_order = ranks.gathered(torch.stack(losses)).T.flatten()  # [leaves]
    return math.fsum(in_order.tolist()) / num_leaves, dict(
        zip(parameters, tree.total(), strict=True)
    )


def taken(parameter: Tensor) -> Tensor:
    """A parameter's gradient, which it then has no more."""
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None
    return gradient


def gradient_norm(model: NeoX, gradients: Mapping[str, Tensor], ranks: Ranks) -> float:
    """The norm of the whole gradient, from the norms of its rows.

    No row is cut by data-parallel ranks, and all are added in one order, so its bits are the same
    for any number of them.
    """
    if ranks.layout.tensor > 1:
        from ontogeny.training.parallel import norm_of_parts

        return norm_of_parts(model, gradients, ranks)
    norms = [row_norms(gradient) for gradient in gradients.values()]
    if ranks.layout.data > 1:
        rows = [len(parameter) for parameter in model.parameters()]
        most = [-(-number // ranks.layout.data) for number in rows]  # of a rank
        padded = [
            F.pad(part, (0, number - len(part))) for part, number in zip(norms, most, strict=True)
        ]
        parts = ranks.gathered(torch.cat(padded)).split(most, dim=1)
        norms = [part.flatten()[:number] for part, number in zip(parts, rows, strict=True)]
    return torch.cat(norms).double().square().sum().sqrt().item()


def row_norms(gradient: Tensor) -> Tensor:
    """The norm of each row of a matrix, of each number of a vector."""
    return gradient.abs() if gradient.ndim == 1 else torch.linalg.vector_norm(gradient, dim=1)


def not_finite(run: Run, update: int, place: int, scale: LossScale, what: str) -> TrainingError:
    """The error that stops a run: at which update, with which rows."""
    rows = run.settings.training.rows_per_update
    return TrainingError(
        f"{what} at update {update} (rows {place} to {place + rows - 1} of the order)"
        + ("" if scale.rule is None else f", at loss scale {scale.value:g}"),
        where=run.path,
        expected="finite numbers",
        fix="a lower learning_rate, or precision = 'fp32'",
    )
