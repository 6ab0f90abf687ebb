"""Attention forward and backward: the kernel beside blocks of torch's products and torch's own.

All three start from the fused queries, keys and values, rotate, and end at their gradient. They
take turns, so that a machine whose speed drifts treats them alike; figures are medians, GFLOP/s
count the causal half of the products (2 forward, 5 backward), without rotation and softmax.

    python benchmarks/kernels.py --rounds 15
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ontogeny.model import arithmetic
from ontogeny.model.attention import BlockedAttention, causal_attention, is_for_kernel, rotate
from ontogeny.training import machine

# Rows, heads, time, head size: the demo's, then 14M and 70M at 512 and 2048, then larger heads.
SHAPES = (
    (16, 2, 128, 16), (16, 2, 128, 32), (16, 4, 128, 32), (8, 4, 512, 32),
    (2, 4, 2048, 32), (8, 8, 512, 64), (2, 8, 2048, 64), (2, 4, 1024, 128),
)  # fmt: skip
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def blocked(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return BlockedAttention.apply(*rotated(qkv, cos, sin)).transpose(1, 2)  # type: ignore[no-untyped-call]


def sdpa(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    q, k, v = rotated(qkv, cos, sin)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def rotated(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (part.transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    return rotate(q, cos, sin), rotate(k, cos, sin), v


CONTENDERS: tuple[Attend, ...] = (causal_attention, blocked, sdpa)


def seconds(attend: Attend, given: tuple[Tensor, ...]) -> float:
    """How long one forward and backward pass takes."""
    qkv, cos, sin, grad = given
    began = time.perf_counter()
    torch.autograd.grad(attend(qkv, cos, sin), qkv, grad)
    return time.perf_counter() - began


def measure(shape: tuple[int, int, int, int], rounds: int) -> list[float]:
    """The median seconds of each contender; the first round warms up."""
    batch, heads, length, size = shape
    angles = torch.randn(length, size // 8).repeat(1, 2)
    parts = (torch.randn(batch, length, heads, 3 * size), angles.cos(), angles.sin(),
             torch.randn(batch, length, heads, size))  # fmt: skip
    given = tuple(part.bfloat16() for part in parts)
    given[0].requires_grad_()
    taken = [[seconds(attend, given) for attend in CONTENDERS] for _ in range(rounds + 1)]
    return [statistics.median(times) for times in zip(*taken[1:], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description="attention, ours beside torch's")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    if not is_for_kernel(torch.empty(1, 1, 1, 48, dtype=torch.bfloat16)):
        parser.exit(1, "no kernel here: no compiler when installed, or no AVX512-BF16\n")
    machine.keep_freed_memory()
    print("rows, heads, time, size  threads  ms  GFLOP/s  against blocks  against sdpa")
    for shape in SHAPES:
        flops = 7 * shape[0] * shape[1] * shape[2] ** 2 * shape[3]
        for number in options.threads:
            with arithmetic.threads(number):
                ours, blocks, torchs = measure(shape, options.rounds)
            print(
                f"{shape!s:23} {number:8} {ours * 1e3:7.2f} {flops / ours / 1e9:5.0f}"
                f" {blocks / ours:8.2f} {torchs / ours:8.2f}"
            )


if __name__ == "__main__":
    main()
