"""Causal scaled-dot-product attention.

On accelerators torch's flash attention. On CPUs, whose kernel for it is several times slower than
their matrix products, blocks of queries against the keys they may see, as plain products, with
the probabilities recomputed in the backward pass (Dao et al. 2022 without the online softmax,
which only matters when a block's scores do not fit in cache).

Shapes: B batch, H heads, T time, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # queries at a time: small wastes little above the diagonal, large multiplies faster


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax of q k^T / sqrt(D) over the past and present, times v; all [B, H, T, D]."""
    if q.device.type == "cpu":
        return BlockedAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class BlockedAttention(torch.autograd.Function):
    """Keeps only q, k and v for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, time, size = q.shape
        q, k, v = (part.reshape(batch * heads, time, size) for part in (q, k, v))
        out = torch.empty_like(q)
        for rows, past, mask in blocks(time, q):
            torch.bmm(probabilities(q[:, rows], k[:, past], mask), v[:, past], out=out[:, rows])
        ctx.save_for_backward(q, k, v)
        ctx.shape = (batch, heads, time, size)
        return out.view(ctx.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        grad = grad.reshape(q.shape)
        scale = 1 / math.sqrt(q.shape[-1])
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows, past, mask in blocks(q.shape[1], q):
            p = probabilities(q[:, rows], k[:, past], mask)
            dp = grad[:, rows] @ v[:, past].transpose(1, 2)
            dv[:, past] += p.transpose(1, 2) @ grad[:, rows]
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(scale)
            torch.bmm(ds, k[:, past], out=dq[:, rows])
            dk[:, past] += ds.transpose(1, 2) @ q[:, rows]
        return dq.view(ctx.shape), dk.view(ctx.shape), dv.view(ctx.shape)


def blocks(time: int, like: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of queries, the keys they may see, and what hides the future in the last keys."""
    for start in range(0, time, BLOCK):
        stop = min(start + BLOCK, time)
        size = stop - start
        mask = torch.full((size, size), -math.inf, dtype=like.dtype, device=like.device).triu_(1)
        yield slice(start, stop), slice(0, stop), mask


def probabilities(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """The weights [BH, queries, keys] of a block of queries at the end of its keys."""
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(1 / math.sqrt(q.shape[-1]))
    scores[..., -mask.shape[0] :] += mask
    return torch.softmax(scores, dim=-1)
