"""Cross-entropy where every tensor-parallel rank has the output embedding of a part of the ids.

As `model/loss.py`, with two numbers a token sent between the ranks: the log-sum-exp over their own
logits, and the target's logit on the one that has it. Logits are never gathered (Shoeybi et al.
2019, section 3). The gradient of the hidden states is added over the ranks once, at the end.

Shapes: N tokens, W width, P ids of a part.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ontogeny.model.loss import ACCELERATOR_CHUNK_BYTES, CHUNK_BYTES, STRIP_BYTES, chunks
from ontogeny.training.parts import own


def cross_entropy_of_parts(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: float = 1.0, *, mesh: DeviceMesh
) -> Tensor:
    """What `linear_cross_entropy` gives for the whole weight, of which ranks have [P, W] each."""
    return CrossEntropyOfParts.apply(hidden, own(weight), targets, scale, mesh)  # type: ignore[no-untyped-call]


class CrossEntropyOfParts(torch.autograd.Function):
    """Loss and both gradients in one sweep over the tokens."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, mesh: DeviceMesh
    ) -> Tensor:
        matrix, group = weight.to(hidden.dtype), mesh.get_group()
        ids = targets - mesh.get_local_rank() * len(matrix)  # their places in this part
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        limit = CHUNK_BYTES if hidden.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
        for rows in chunks(len(ids), matrix.shape[0] * matrix.itemsize, limit):
            logits = hidden[rows] @ matrix.T  # [chunk, P]
            parts = torch.stack(sums_and_chosen(logits, ids[rows]))  # [2, chunk]
            gathered = [torch.empty_like(parts) for _ in range(mesh.size())]
            dist.all_gather(gathered, parts, group)
            sums, chosen = torch.stack(gathered, dim=1)  # [ranks, chunk] each
            log_sum = sums.logsumexp(dim=0)
            total += (log_sum - chosen.sum(dim=0)).sum(dtype=torch.float64)
            to_gradient(logits, ids[rows], log_sum, scale / len(ids))
            torch.mm(logits, matrix, out=d_hidden[rows])
            d_weight += logits.T @ hidden[rows]
        dist.all_reduce(d_hidden, group=group)
        ctx.save_for_backward(d_hidden, d_weight)
        return (total / len(ids)).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        grads = (one * grad.to(one.dtype) for one in (d_hidden, d_weight))
        return *grads, None, None, None


def sums_and_chosen(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of a part: log-sum-exp, and the target's logit, 0 if it is elsewhere; [N]."""
    sums = torch.cat([logits[rows].float().logsumexp(dim=1) for rows in strips(logits)])
    chosen = logits.gather(1, ids.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1).float()
    return sums, torch.where(is_inside(ids, logits), chosen, 0.0)


def to_gradient(logits: Tensor, ids: Tensor, log_sum: Tensor, scale: float) -> None:
    """Turn logits, in place, into `scale` times (softmax - one-hot)."""
    for rows in strips(logits):
        p = logits[rows].float().sub_(log_sum[rows, None]).exp_()
        (hits,) = is_inside(ids[rows], logits).nonzero(as_tuple=True)
        p[hits, ids[rows][hits]] -= 1.0
        logits[rows] = p.mul_(scale)


def is_inside(ids: Tensor, logits: Tensor) -> Tensor:
    """Which targets are ids of this part."""
    return (ids >= 0) & (ids < logits.shape[1])


def strips(logits: Tensor) -> list[slice]:
    """Rows whose logits are held in float32 at a time: on a CPU, what stays in its cache."""
    limit = STRIP_BYTES if logits.device.type == "cpu" else 2 * ACCELERATOR_CHUNK_BYTES
    return chunks(len(logits), logits.shape[1] * 4, limit)
