"""How a model is cut over ranks: the plan is the table below, the engines are torch's.

Tensor-parallel ranks hold a part of every matrix: of the heads, of the MLP's inner width, of the
ids (Shoeybi et al. 2019). Data-parallel ranks hold a range of rows of what is left of each: of the
optimizer's state and the summed gradients always (ZeRO-1), of the parameters too if the layout
says so (ZeRO-3). The model is not told. In a reproducible run gradients are summed over ranks in a
fixed order, pair by pair. Not here: the loss over a part of the ids (`vocabulary.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from ontogeny.model.neox import NeoX
from ontogeny.suite import TrainingSettings
from ontogeny.training import machine
from ontogeny.training.objective import Objective
from ontogeny.training.parts import is_cut, own
from ontogeny.training.ranks import Ranks
from ontogeny.training.tree import sum_pairs
from ontogeny.training.vocabulary import cross_entropy_of_parts

# Column-wise: outputs are cut, nothing is sent going forward. Row-wise: inputs are cut, outputs
# are added over the ranks. What is not here, norms above all, every tensor-parallel rank has whole.
TENSOR_PARALLEL: dict[str, ParallelStyle] = {
    "embed_in": RowwiseParallel(input_layouts=Replicate()),  # each rank knows some of the ids
    "layers.*.attention.query_key_value": ColwiseParallel(),
    "layers.*.attention.dense": RowwiseParallel(),
    "layers.*.mlp.dense_h_to_4h": ColwiseParallel(),
    "layers.*.mlp.dense_4h_to_h": RowwiseParallel(),
    "embed_out": ColwiseParallel(),  # whose outputs, the logits, are never gathered
}


def distribute(objective: Objective, ranks: Ranks, training: TrainingSettings) -> None:
    """Cut a model over the ranks, in place: this one then holds its part."""
    assert ranks.mesh is not None, "nothing is cut for a rank alone"
    if ranks.layout.tensor > 1:
        # Saving gathers a tensor over both kinds of ranks, in two steps, of which torch warns.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        parallelize_module(
            objective.model, ranks.mesh["tensor"], TENSOR_PARALLEL, src_data_rank=None
        )
        objective.loss = partial(cross_entropy_of_parts, mesh=ranks.mesh["tensor"])
    frees, dtype = ranks.layout.shard == "all", machine.require_precision(training.precision)
    if training.compile:
        dtype = torch.float32  # torch's compiler rounds otherwise where the casts are not its own
    # Blocks compute in one dtype, and are gathered in it; the embeddings are float32 (`neox.py`).
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for block in objective.model.layers:
        fully_shard(block, mesh=ranks.mesh["data"], reshard_after_forward=frees, mp_policy=policy)
    fully_shard(objective, mesh=ranks.mesh["data"], reshard_after_forward=frees)
    for module in (*objective.model.layers, objective):
        sharded = cast("FSDPModule", module)
        sharded.set_gradient_divide_factor(1.0)  # `take_update` divides at the end
        sharded.set_force_sum_reduction_for_comms(True)
        if training.reproducible:
            sent = torch.float32 if module is objective else dtype
            sharded.set_custom_reduce_scatter(OrderedReduceScatter(sent))
    root = cast("FSDPModule", objective)
    # Between the passes of an update the parameters do not move, and may stay gathered.
    objective.before_pass = lambda is_last: root.set_reshard_after_backward(is_last or frees)


class OrderedReduceScatter(ReduceScatter):
    """Every rank gets all ranks' parts of its share and sums them in the order of the ranks.

    They are sent in `dtype`, that of the gradients before they were cast to float32: no bit of
    them is lost.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

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
        sent = input_tensor.to(self.dtype)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        output_tensor.copy_(sum_pairs(received.to(output_tensor.dtype).chunk(group.size())))


def norm_of_parts(model: NeoX, gradients: Mapping[str, Tensor], ranks: Ranks) -> float:
    """The norm of the whole gradient where matrices are cut: all parts count, copies once."""
    assert ranks.mesh is not None, "nothing is cut for a rank alone"
    has_copies = ranks.mesh.get_local_rank("tensor") > 0
    squares = [
        own(gradients[name]).double().square().sum()
        for name, parameter in model.named_parameters()
        if is_cut_in_matrices(parameter) or not has_copies
    ]
    part = torch.stack(squares).sum()
    parts = [torch.empty_like(part) for _ in range(ranks.layout.num_ranks)]
    dist.all_gather(parts, part)
    return torch.stack(parts).sum().sqrt().item()


def is_cut_in_matrices(parameter: Tensor) -> bool:
    """Whether tensor-parallel ranks hold different parts of a parameter."""
    if not is_cut(parameter) or "tensor" not in parameter.device_mesh.mesh_dim_names:
        return False
    return not parameter.placements[-1].is_replicate()
