"""Layouts: which can be, which rows their ranks read, and blocks that forget their activations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

import grown
from grown import Ground
from ontogeny.errors import ConfigError
from ontogeny.model.init import initial_model
from ontogeny.order.batches import roll, rows_of_rank
from ontogeny.suite import RunSettings
from ontogeny.training.layout import Layout, require_layout
from ontogeny.training.objective import Objective


@pytest.mark.parametrize(("data", "tensor", "micro_steps"), [*product((1, 2, 4), repeat=3)])
def test_every_layout_reads_the_rows_of_the_update(
    ground: Ground, data: int, tensor: int, micro_steps: int
) -> None:
    batches = ground.batches(3 * data * micro_steps)

    def digest(which: int) -> str:
        """Of what is read by the ranks that hold one and the same part of every matrix."""
        digest = batches.start
        for micro_step, number in product(range(micro_steps), range(which, data * tensor, tensor)):
            rows = rows_of_rank(
                0, micro_batch=3, num_ranks=data, num_micro_steps=micro_steps,
                rank=number // tensor, micro_step=micro_step,
            )  # fmt: skip
            digest = roll(digest, batches(2)[rows.start : rows.stop])
        return digest

    assert {digest(which) for which in range(tensor)} == {roll(batches.start, batches(2))}


def fitting(**training: object) -> RunSettings:
    """Settings of a run with 2 heads, 384 ids and 8 rows an update."""
    return grown.settings(rows_per_update=8, tokens=8 * grown.CONTEXT, **training)


@pytest.mark.parametrize(
    ("layout", "training", "told"),
    [
        (Layout(3), {"micro_batch_rows": 2}, "4 micro batches .* 3 ranks; expected data-parallel "
         "ranks: 1, 2, 4; found 3"),
        (Layout(2), {}, "1 micro batches .* 2 ranks; expected data-parallel ranks: 1; found 2; "
         "try: training.micro_batch_rows=4 or less"),
        (Layout(1, 4), {"reproducible": False}, "2 attention heads cannot be cut in 4; expected "
         "tensor-parallel ranks: 1, 2; found 4; try: --tensor-parallel 2"),
        (Layout(1, 2), {}, "tensor parallel adds in another order .* --set "
         "training.reproducible=false, which is recorded"),
    ],
)  # fmt: skip
def test_a_layout_that_cannot_be_is_refused(
    layout: Layout, training: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        require_layout(layout, fitting(**training))


def test_micro_batches_no_power_of_two_are_only_for_runs_that_say_so() -> None:
    odd = {"rows_per_update": 9, "micro_batch_rows": 3}
    with pytest.raises(ConfigError, match="3 micro batches an update are no power of two"):
        grown.settings(**odd)
    require_layout(Layout(3), grown.settings(reproducible=False, **odd))


def passed(recompute: bool, precision: torch.dtype) -> tuple[list[Tensor], int, list[str]]:
    """Loss and gradients of a pass, the bytes saved for the backward pass, parameters' names."""
    wanted = fitting()
    model = initial_model(wanted.shape, "small-wang", 0)
    objective = Objective(model, recompute=recompute)
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    held = {one.untyped_storage().data_ptr() for one in model.parameters()}
    same: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    rows = torch.randint(384, (8, grown.CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, same):
        loss = objective(rows, precision)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert None not in gradients
    names = [name for name, _ in model.named_parameters()]
    kept = sum(number for place, number in saved.items() if place not in held)
    return [loss, *(one for one in gradients if one is not None)], kept, names


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_recomputing_changes_no_bit_and_keeps_less(precision: torch.dtype) -> None:
    kept, bytes_kept, names = passed(False, precision)
    again, bytes_again, same_names = passed(True, precision)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert names == same_names
    assert bytes_again < bytes_kept / 2
