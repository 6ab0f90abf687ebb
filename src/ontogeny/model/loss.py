"""Cross-entropy of a linear map's outputs without ever holding them all.

The logits of a 50k vocabulary are by far the largest tensor of a small model. Here they exist for
a few rows at a time, in the dtype of the arithmetic, and in float32 only for what stays in cache;
the gradient is formed on the way, so the backward pass has nothing left to multiply. On CPUs that
multiply in bfloat16 the softmax is a kernel of ours (`kernels/loss.c`), else torch's in strips.

Shapes: N tokens, W width, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ontogeny.model.kernels import load

CHUNK_BYTES = 64 << 20  # of logits held at once, in the dtype of the arithmetic, on a CPU
ACCELERATOR_CHUNK_BYTES = 512 << 20  # and elsewhere, which is only fast with much to do at once
STRIP_BYTES = 4 << 20  # of float32 logits held at once on a CPU: what stays in its cache


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: float = 1.0
) -> Tensor:
    """Mean negative log-likelihood of int64 targets [N] under hidden [N, W] times weight [V, W].

    A scalar in float32, over all V columns. Gradients flow to `hidden` and `weight`, in their own
    dtypes; they are multiplied by `scale` before they are rounded, the loss is not.
    Source: the loss of GPT-NeoX (float32 softmax, mean over the tokens).
    """
    if torch.is_grad_enabled():
        return LinearCrossEntropy.apply(hidden, weight, targets, scale)  # type: ignore[no-untyped-call]
    return -log_likelihoods(hidden, weight, targets).mean()


def log_likelihoods(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The log-likelihood [N], float32, of each target; no gradient."""
    with torch.no_grad():
        matrix = weight.to(hidden.dtype)
        result = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for rows, logits in _in_chunks(hidden, matrix):
            result[rows] = _softmax_in_place(logits, targets[rows], scale=None)
        return result


class LinearCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one sweep over the tokens."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> Tensor:
        matrix = weight.to(hidden.dtype)
        count = len(targets)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight)
        for rows, logits in _in_chunks(hidden, matrix):
            found = _softmax_in_place(logits, targets[rows], scale / count)
            total -= found.sum(dtype=torch.float64)
            torch.mm(logits, matrix, out=d_hidden[rows])
            d_weight += logits.T @ hidden[rows]
        ctx.save_for_backward(d_hidden, d_weight)
        return (total / count).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grad.to(d_hidden.dtype), d_weight * grad.to(d_weight.dtype), None, None


def _in_chunks(hidden: Tensor, matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their logits [chunk, V], which the next ones replace."""
    limit = CHUNK_BYTES if hidden.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    parts = chunks(len(hidden), len(matrix) * matrix.itemsize, limit)
    buffer = hidden.new_empty(
        max((part.stop - part.start for part in parts), default=0), len(matrix)
    )
    for rows in parts:
        logits = buffer[: rows.stop - rows.start]
        yield rows, torch.mm(hidden[rows], matrix.T, out=logits)


def chunks(count: int, row_bytes: int, limit: int) -> list[slice]:
    """Equal slices of `count` rows, as few as keep a slice's bytes under `limit`."""
    size = max(1, limit // row_bytes)
    number = -(-count // size)
    size = -(-count // number) if number else 1
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _softmax_in_place(logits: Tensor, targets: Tensor, scale: float | None) -> Tensor:
    """Log-likelihoods [N] of targets; with a scale, logits become its times (softmax - one-hot)."""
    result = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
    if logits.device.type == "cpu" and logits.dtype is torch.bfloat16 and load.has("loss"):
        _kernel(logits, targets, result, scale)
        return result
    limit = STRIP_BYTES if logits.device.type == "cpu" else 2 * ACCELERATOR_CHUNK_BYTES
    for rows in chunks(len(targets), logits.shape[1] * 4, limit):
        strip, target = logits[rows].float(), targets[rows, None]
        chosen, highest = strip.gather(1, target), strip.amax(dim=1, keepdim=True)
        p = torch.softmax(strip, dim=1)
        # log-sum-exp, through the largest probability: that one never underflows.
        result[rows] = (chosen - highest + p.amax(dim=1, keepdim=True).log()).squeeze(1)
        if scale is not None:
            p.scatter_add_(1, target, torch.full_like(chosen, -1.0))
            logits[rows] = p.mul_(scale)
    return result


def _kernel(logits: Tensor, targets: Tensor, result: Tensor, scale: float | None) -> None:
    """The same by the kernel, which trusts what it is given."""
    count, vocab = logits.shape
    if count and not 0 <= int(targets.min()) <= int(targets.max()) < vocab:
        raise IndexError(f"a target is not among the {vocab} columns")
    targets, kernels = targets.contiguous(), load.library()
    assert kernels is not None
    failed = kernels.loss_rows(
        *(ctypes.c_void_p(part.data_ptr()) for part in (logits, targets, result)),
        *(ctypes.c_long(number) for number in (count, vocab)),
        ctypes.c_float(0.0 if scale is None else scale),
        ctypes.c_int(torch.get_num_threads()),
    )
    if failed:
        raise MemoryError("no memory for a row of logits in float32")
