"""Cross-entropy of a linear map's outputs without ever holding them all.

The logits of a 50k vocabulary are by far the largest tensor of a small model. Here they exist for
a few rows at a time, in the dtype of the arithmetic, and in float32 only for what stays in cache;
the gradient is formed on the way, so the backward pass has nothing left to multiply. On CPUs that
multiply in bfloat16 that is a kernel of ours (`kernels/loss.c`), else torch's products and softmax.

Shapes: N tokens, W width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ontogeny.model.kernels.load import call, has

CHUNK_BYTES = 104 << 20  # of logits held at once, in the dtype of the arithmetic, on a CPU
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
        for rows in _parts(hidden, matrix):
            logits = hidden[rows] @ matrix.T
            result[rows] = _scores(logits, targets[rows])
        return result


def choices(hidden: Tensor, weight: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of targets [P] after rows [P] of `hidden`: log-likelihoods, and which are the greedy choice.

    `rows` ascend; logits of a row are computed once. No gradient.
    """
    matrix = weight.to(hidden.dtype)
    parts = _parts(hidden, matrix)
    buffer = hidden.new_empty(parts[0].stop if parts else 0, len(matrix))
    found = []
    for part in parts:
        logits = torch.mm(hidden[part], matrix.T, out=buffer[: part.stop - part.start])
        start, stop = (int(torch.searchsorted(rows, edge)) for edge in (part.start, part.stop))
        found.append(choices_of(logits, rows[start:stop] - part.start, targets[start:stop]))
    scores, hits = zip(*found, strict=True)
    return torch.cat(scores), torch.cat(hits)


def choices_of(logits: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same of logits [N, V]; of equal ones the first is greedy."""
    highest, log_sums = _highest_and_log_sums(logits)
    chosen = logits[rows, targets].float()
    hits = chosen == highest[rows]
    equal = hits.nonzero().squeeze(1)  # few, as finding the first is slow
    hits[equal] = logits[rows[equal]].argmax(dim=1) == targets[equal]
    return chosen - highest[rows] - log_sums[rows], hits


class LinearCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one sweep over the tokens."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> Tensor:
        sweep = Sweep(hidden.contiguous(), weight, targets.contiguous(), scale / len(targets))
        if not sweep.by_kernel():
            sweep.by_torch()
        ctx.save_for_backward(sweep.d_hidden, sweep.d_weight)
        return -sweep.scores.mean(dtype=torch.float64).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        # In place, as they are large: going backward a second time is an error of torch's.
        d_hidden, d_weight = (part.mul_(grad.to(part.dtype)) for part in ctx.saved_tensors)
        return d_hidden, d_weight, None, None


class Sweep:
    """The log-likelihoods [N] of targets and the gradients of minus `scale` times their sum."""

    def __init__(self, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> None:
        self.hidden, self.weight, self.targets, self.scale = hidden, weight, targets, scale
        self.scores = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        self.d_hidden = torch.empty_like(hidden)
        self.d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)

    def by_torch(self) -> None:
        """Fill them in by products of torch, some rows at a time."""
        matrix = self.weight.to(self.hidden.dtype)
        self.d_weight.zero_()
        for rows in _parts(self.hidden, matrix):
            logits = self.hidden[rows] @ matrix.T  # [chunk, V]
            self.scores[rows] = _softmax_in_place(logits, self.targets[rows], self.scale)
            torch.mm(logits, matrix, out=self.d_hidden[rows])
            self.d_weight += logits.T @ self.hidden[rows]

    def by_kernel(self) -> bool:
        """The same; False, with nothing to be used, where the kernel is not for these logits."""
        vocab, width = self.weight.shape
        fits = width % 16 == 0 and vocab % 8 == 0 and self.weight.dtype == torch.float32
        if not (fits and len(self.targets) and _is_for_kernel(self.hidden)):
            return False
        _require_targets(self.targets, vocab)
        return not call(
            "loss_sweep",
            *(self.hidden, self.weight.contiguous(), self.targets),
            *(self.scores, self.d_hidden, self.d_weight),
            *(len(self.targets), width, vocab, self.scale),
        )


def _parts(hidden: Tensor, matrix: Tensor) -> list[slice]:
    """Rows whose logits are held at once."""
    limit = CHUNK_BYTES if hidden.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    return chunks(len(hidden), len(matrix) * matrix.itemsize, limit)


def chunks(count: int, row_bytes: int, limit: int) -> list[slice]:
    """Equal slices of `count` rows, as few as keep a slice's bytes under `limit`."""
    size = max(1, limit // row_bytes)
    number = -(-count // size)
    size = -(-count // number) if number else 1
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _softmax_in_place(logits: Tensor, targets: Tensor, scale: float | None) -> Tensor:
    """Log-likelihoods [N] of targets; with a scale, logits become its times (softmax - one-hot)."""
    result = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
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


def _scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-likelihoods [N] of targets."""
    if not _is_for_kernel(logits):
        return _softmax_in_place(logits, targets, scale=None)
    _require_targets(targets, logits.shape[1])
    result = torch.empty(len(targets), dtype=torch.float32)
    call("loss_rows", logits, targets.contiguous(), result, *logits.shape)
    return result


def _highest_and_log_sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The highest logit of every row, and the log of the sum of e^(logit - highest), float32."""
    highest = logits.amax(dim=1).float()
    if _is_for_kernel(logits):
        first = torch.zeros(len(logits), dtype=torch.int64)
        return highest, logits[:, 0].float() - highest - _scores(logits, first)
    log_sums = torch.empty_like(highest)
    limit = STRIP_BYTES if logits.device.type == "cpu" else 2 * ACCELERATOR_CHUNK_BYTES
    for rows in chunks(len(logits), logits.shape[1] * 4, limit):
        log_sums[rows] = -torch.softmax(logits[rows].float(), dim=1).amax(dim=1).log()
    return highest, log_sums


def _is_for_kernel(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype is torch.bfloat16 and has("loss")


def _require_targets(targets: Tensor, vocab: int) -> None:
    """Refuse what torch would refuse; the kernels trust what they are given."""
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < vocab:
        raise IndexError(f"a target is not among the {vocab} columns")
