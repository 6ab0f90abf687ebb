"""How a model is cut over ranks: the whole plan is the table below, the engine is torch's FSDP2.

Data-parallel ranks hold a range of rows of every tensor: of the optimizer's state and the summed
gradients always (ZeRO-1), of the parameters too if the layout says so (ZeRO-3). The model is not
told. In a reproducible run gradients are summed over ranks in a fixed order, pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

from ontogeny.training.objective import Objective
from ontogeny.training.ranks import Ranks
from ontogeny.training.tree import sum_pairs


def distribute(objective: Objective, ranks: Ranks, *, reproducible: bool) -> None:
    """Cut a model over the ranks, in place: this one then holds its part."""
    assert ranks.mesh is not None, "nothing is cut for a rank alone"
    frees = ranks.layout.shard == "all"
    for block in (*objective.model.layers, objective):
        module = fully_shard(block, mesh=ranks.mesh["data"], reshard_after_forward=frees)
        module.set_gradient_divide_factor(1.0)  # a leaf's gradient is its share of the mean already
        module.set_force_sum_reduction_for_comms(True)
        if reproducible:
            module.set_custom_reduce_scatter(OrderedReduceScatter())
    root = cast("FSDPModule", objective)
    # Between the passes of an update the parameters do not move, and may stay gathered.
    objective.before_pass = lambda is_last: root.set_reshard_after_backward(is_last or frees)


class OrderedReduceScatter(ReduceScatter):
    """Every rank gets all ranks' parts of its share and sums them in the order of the ranks."""

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return torch.empty(*cast("Any", size), dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: object,
        async_op: bool = False,
    ) -> None:
        received = torch.empty_like(input_tensor)
        dist.all_to_all_single(received, input_tensor, group=group)
        output_tensor.copy_(sum_pairs(received.chunk(group.size())))
