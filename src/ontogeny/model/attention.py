"""Causal scaled-dot-product attention of queries and keys that are rotated by their place.

On CPUs that multiply in bfloat16, a kernel (`kernels/attention.c`) that rotates as it reads. On
other CPUs and in other dtypes, as torch's own is several times slower there than its matrix
products: blocks of queries against the keys they may see, as plain products, with the
probabilities recomputed in the backward pass (Dao et al. 2022 without the online softmax, which
only matters when a block's scores do not fit in cache). On accelerators torch's flash attention.

Shapes: B batch, T time, H heads, D head size, R rotary size.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ontogeny.model.kernels.load import call, has, operator

BLOCK = 128  # queries at a time: small wastes little above the diagonal, large multiplies faster
KERNEL_HEADS = range(16, 257, 16)  # the head sizes the kernel takes


def causal_attention(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Softmax of q k^T / sqrt(D) over the past and present, times v: [B, T, H, D].

    qkv is [B, T, H, 3D], a head's query, key and value side by side; the tables are [T, R], in
    the same dtype.
    """
    if is_for_kernel(qkv):
        return KernelAttention.apply(qkv, cos, sin)  # type: ignore[no-untyped-call]
    q, k, v = (part.transpose(1, 2) for part in qkv.chunk(3, dim=-1))  # [B, H, T, D] each
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if qkv.device.type == "cpu":
        out = BlockedAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
    else:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Trees:
    """Rows of tokens that form trees, parents before children, behind a past that all of them see.

    The N tokens lie one row after another; `spread` [B, T] has the number of each, and any number
    behind the end of a row, `kept` [N] their places in that. `depths` [B, T] are places in the
    text. `mask` [B, T, T] is 0 where a token (row) sees another (column), else minus infinity,
    in the dtype of the arithmetic. The first `stem` tokens of every row are a chain. `past`:
    rotated keys and values [H, P, D] of the layer, if any.
    """

    spread: Tensor
    kept: Tensor
    depths: Tensor
    mask: Tensor
    stem: int
    past: tuple[Tensor, Tensor] | None = None


def tree_attention(packed: Tensor, cos: Tensor, sin: Tensor, trees: Trees) -> Tensor:
    """What tokens [N, H, 3D] see, [N, H, D]; the tables are [B, T, R]. No gradient."""
    qkv = packed[trees.spread]  # [B, T, H, 3D]
    time, stem = qkv.shape[1], 0 if trees.past else trees.stem
    out = qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)
    if stem:
        out[:, :stem] = causal_attention(qkv[:, :stem], cos[0, :stem], sin[0, :stem])
    if stem < time:
        q, k, v = (part.permute(2, 0, 1, 3) for part in qkv.chunk(3, dim=-1))  # [H, B, T, D] each
        q = rotate(q[:, :, stem:], cos[:, stem:], sin[:, stem:]).mul_(1 / math.sqrt(q.shape[-1]))
        k = rotate(k, cos, sin)
        for start in range(stem, time, BLOCK):
            rows = slice(start, min(start + BLOCK, time))
            block = q[:, :, start - stem : rows.stop - stem]
            out[:, rows] = _see(block, k, v, rows, trees).permute(1, 2, 0, 3)
    return out.flatten(0, 1)[trees.kept]


def _see(q: Tensor, k: Tensor, v: Tensor, rows: slice, trees: Trees) -> Tensor:
    """What a block of scaled queries [H, B, rows, D] sees of the rows up to its end, and the past.

    All rows meet the keys of the past in one product.
    """
    k, v, mask = k[:, :, : rows.stop], v[:, :, : rows.stop], trees.mask[:, rows, : rows.stop]
    scores = (q @ k.transpose(2, 3)).add_(mask)
    if trees.past is None:
        return torch.softmax(scores, dim=-1) @ v
    old_k, old_v = trees.past
    old_scores = (q.flatten(1, 2) @ old_k.transpose(1, 2)).unflatten(1, q.shape[1:3])
    weights = torch.softmax(torch.cat((old_scores, scores), dim=-1), dim=-1)
    old, new = weights.split((old_k.shape[1], rows.stop), dim=-1)
    return (old.flatten(1, 2) @ old_v).unflatten(1, q.shape[1:3]) + new @ v


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R of the last dimension of x [..., T, D] in planes (j, j + R/2)."""
    size = cos.shape[-1]
    first, second = x[..., : size // 2], x[..., size // 2 : size]
    turned = torch.cat((-second, first), dim=-1)
    return torch.cat((x[..., :size] * cos + turned * sin, x[..., size:]), dim=-1)


def is_for_kernel(qkv: Tensor) -> bool:
    """Whether the kernel computes this: bfloat16 on a CPU that has it, and a head size it knows."""
    return (
        qkv.device.type == "cpu"
        and qkv.dtype == torch.bfloat16
        and qkv.shape[-1] // 3 in KERNEL_HEADS
        and has("attention")
    )


class KernelAttention(torch.autograd.Function):
    """Keeps qkv, the output and two numbers a query for the backward pass."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        out, statistics = torch.ops.ontogeny.attention(qkv, cos, sin)
        ctx.save_for_backward(qkv, cos, sin, out, statistics)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return torch.ops.ontogeny.attention_backward(*ctx.saved_tensors, grad), None, None


def kernel_forward(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The output [B, T, H, D], and the highest score and log of the sum of each query's weights."""
    out, statistics = empty_results(qkv, cos, sin)
    call("attention_forward", *parts_of(qkv, cos, sin), out, statistics)
    return out, statistics


def kernel_backward(
    qkv: Tensor, cos: Tensor, sin: Tensor, out: Tensor, statistics: Tensor, grad: Tensor
) -> Tensor:
    """The gradient of qkv, from what the forward pass read and made."""
    d_qkv = empty_gradient(qkv)
    read = parts_of(qkv, cos, sin)
    call("attention_backward", *read, out, statistics, grad.contiguous(), d_qkv)
    return d_qkv


def empty_results(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """What the forward pass fills: its output, and float32 [B, H, 2, T]."""
    batch, time, heads, size = qkv.shape
    statistics = qkv.new_empty(batch, heads, 2, time, dtype=torch.float32)
    return qkv.new_empty(batch, time, heads, size // 3), statistics


def parts_of(
    qkv: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor, ctypes.Array[ctypes.c_long]]:
    """What both passes read, as the kernel takes it, and its sizes."""
    batch, time, heads, size = qkv.shape
    assert cos.shape == sin.shape == (time, cos.shape[1])
    assert qkv.dtype == cos.dtype == sin.dtype == torch.bfloat16
    sizes = (ctypes.c_long * 5)(batch, time, heads, size // 3, cos.shape[1])
    return qkv.contiguous(), cos.contiguous(), sin.contiguous(), sizes


def empty_gradient(qkv: Tensor, *others: Tensor) -> Tensor:
    """What the backward pass fills."""
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


operator("attention(Tensor qkv, Tensor cos, Tensor sin) -> (Tensor, Tensor)",
         kernel_forward, empty_results)  # fmt: skip
operator("attention_backward(Tensor qkv, Tensor cos, Tensor sin, Tensor out, Tensor statistics,"
         " Tensor grad) -> Tensor", kernel_backward, empty_gradient)  # fmt: skip


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
