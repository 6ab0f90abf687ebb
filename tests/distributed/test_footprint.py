"""That ranks hold what the plan says: tensors are counted while real processes take an update."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from ranked import on_ranks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ontogeny.config import build
from ontogeny.model.neox import NeoX
from ontogeny.stages.footprint import (
    HALF,
    Share,
    activations,
    block_activations,
    memory,
    traffic,
)
from ontogeny.suite import RunSettings
from ontogeny.training.layout import Layout
from ontogeny.training.objective import Objective
from ontogeny.training.optimizer import AdamW
from ontogeny.training.parts import is_cut, own
from ontogeny.training.ranks import Ranks
from ontogeny.training.update import accumulate


def kept_on_cpu(share: Share) -> tuple[int, int]:
    """Bytes that are kept in all and by one block: fewer than on a GPU.

    Queries and keys are turned as they are read, and nothing is copied behind attention. Where
    matrices are whole, activations are not kept either; nor, by a rank alone, rounded matrices.
    """
    kept_cut = 12 if share.layout.tensor > 1 else 8
    matrices = HALF * share.block() if share.layout.num_ranks == 1 else 0
    blocks = activations(share, kept_cut) - share.settings.shape.num_layers * matrices
    return blocks, block_activations(share, kept_cut) - matrices


# Where the whole of what two ranks exchange is among an operator's arguments, and how often half
# of it is sent.
SENT = {"_allgather_base_": (0, 1), "alltoall_base_": (1, 1), "_reduce_scatter_base_": (1, 1),
        "allreduce_": (0, 2), "all_reduce": (0, 2)}  # fmt: skip


class Counting(TorchDispatchMode):
    """The most bytes that tensors held at once, among those that any operator has touched.

    And how many bytes one of two ranks sent.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = weakref.WeakValueDictionary[int, Any]()
        self.most = self.sent = 0
        self._see(list(held))

    def _see(self, tensors: object) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = storage
        self.most = max(self.most, sum(storage.nbytes() for storage in self.alive.values()))

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any("DTensor" in one.__name__ for one in types):
            return NotImplemented  # its part comes by here too
        self._see((args, kwargs))
        name = operator._schema.name.split("::")[1]
        if name in SENT:
            place, times = SENT[name]
            self.sent += sum(one.nbytes for one in tree_leaves(args[place])) * times // 2
        result = operator(*args, **(kwargs or {}))
        self._see(result)
        return result


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory, shared memory once."""
    storages = [own(tensor.detach()).untyped_storage() for tensor in tensors]
    return sum({one._cdata: one.nbytes() for one in storages}.values())


def kept_by(objective: Objective, rows: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, the parameters themselves left out."""
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = own(tensor).untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective(rows, torch.bfloat16)
    parameters = {own(one.detach()).untyped_storage()._cdata for one in objective.parameters()}
    found = sum(one.nbytes() for place, one in kept.items() if place not in parameters)
    kept.clear()
    loss.backward()
    return found


def count(ranks: Ranks, settings: RunSettings) -> dict[str, int]:
    """What the first rank holds, by what it is for."""
    model = NeoX(settings.shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    objective = Objective(model, recompute=ranks.layout.recompute)
    if ranks.mesh is not None:
        from ontogeny.training.parallel import distribute

        distribute(objective, ranks, settings.training)
    optimizer = AdamW(model, settings)
    moments = optimizer.named_state()
    del moments["updates"]
    width = settings.shape.context_length + 1
    rows = torch.randint(settings.shape.vocab_size, (settings.training.rows_per_update, width))
    counted = {"parameters": size(model.parameters()), "moments": size(moments.values())}
    objective.before_pass(True)
    counted["kept"] = kept_by(objective, rows[: settings.training.micro_batch_rows])
    for parameter in model.parameters():
        parameter.grad = None
    held = [own(one.detach()) for one in (*model.parameters(), *moments.values())]
    with Counting(held) as counting:
        _, gradients = accumulate(objective, rows, settings, ranks)
        optimizer.step(gradients, rate=1e-3)
    assert ranks.mesh is None or all(map(is_cut, model.parameters()))
    return counted | {
        "gradient": size(gradients.values()),
        "most": counting.most,
        "sent": counting.sent,
    }


def settings(*, num_leaves: int, reproducible: bool = True, **sizes: int) -> RunSettings:
    shape = {"num_layers": 4, "hidden_size": 128, "num_heads": 4, "vocab_size": 1024}
    training = {"tokens": 1024, "rows_per_update": 16, "micro_batch_rows": 16 // num_leaves}
    values = {
        "member": "tiny",
        "recipe": "sound",
        "shape": shape | {"context_length": 64} | sizes,
        "init": "normal",
        "init_seed": 0,
        "training": {**training, "precision": "bf16", "reproducible": reproducible},
    }
    return build(RunSettings, values, "test")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "run"),
    [
        (Layout(1), settings(num_leaves=2)),
        (Layout(2), settings(num_leaves=4)),
        # The fullest moment is not in the loss, but when gradients are sent: of the embeddings ...
        (Layout(2), settings(num_leaves=8, reproducible=False, vocab_size=16384)),
        # ... or of a block.
        (Layout(2, recompute=True), settings(num_leaves=8, hidden_size=512, num_layers=1)),
        (Layout(2, shard="all"), settings(num_leaves=4)),
        (Layout(2, shard="all", recompute=True), settings(num_leaves=2)),
        (Layout(1, 2), settings(num_leaves=2, reproducible=False)),
        (Layout(1, 2, recompute=True), settings(num_leaves=1, reproducible=False)),
    ],
    ids=lambda one: str(one) if isinstance(one, Layout) else "",
)
def test_a_rank_holds_what_is_planned(layout: Layout, run: RunSettings) -> None:
    share = Share(run, layout)
    counted, planned = on_ranks(layout, count, run), memory(share)
    assert counted["parameters"] == planned.parameters
    assert counted["moments"] == planned.moments
    assert counted["gradient"] * share.micro_steps.bit_length() == planned.gradients
    kept, one_block = kept_on_cpu(share)
    assert counted["kept"] == pytest.approx(kept - layout.recompute * one_block, rel=0.02)
    # In place of what the loss makes on a GPU: one chunk of logits, matrix and its gradient.
    logits = HALF * share.num_ids * (share.tokens + 2 * run.shape.hidden_size)
    total = replace(planned, activations=kept, logits=logits).total
    assert counted["most"] == pytest.approx(total, rel=0.1)
    if layout.num_ranks > 1:
        assert counted["sent"] == pytest.approx(traffic(share).total, rel=0.01)
