"""The kernels of a block beside torch, forward and backward: attention, and its four linear maps.

Attention stands beside blocks of torch's products and torch's own. All three start from the fused
queries, keys and values, rotate, and end at their gradient; GFLOP/s count the causal half of the
products (2 forward, 5 backward), without rotation and softmax. The maps of a block, GELU included,
stand beside torch's, with weights cast for each pass. All take turns, so that a machine whose speed
drifts treats them alike; figures are medians.

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
from ontogeny.model import linear as linear_module
from ontogeny.model.attention import BlockedAttention, causal_attention, is_for_kernel, rotate
from ontogeny.model.linear import linear
from ontogeny.shape import Activation
from ontogeny.training import machine

# Rows, heads, time, head size: the demo's, then 14M and 70M at 512 and 2048, then larger heads.
SHAPES = (
    (16, 2, 128, 16), (16, 2, 128, 32), (16, 4, 128, 32), (8, 4, 512, 32),
    (2, 4, 2048, 32), (8, 8, 512, 64), (2, 8, 2048, 64), (2, 4, 1024, 128),
)  # fmt: skip
WIDTHS = ((2048, 64), (2048, 128), (4096, 512))  # tokens and width: 600k, 2m, 70m
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


def maps_seconds(tokens: int, width: int, rounds: int) -> list[float]:
    """The median seconds of a block's four maps by the kernel and by torch."""
    sizes: list[tuple[int, int, Activation | None]] = [
        (3, 1, None), (1, 1, None), (4, 1, None), (1, 4, "gelu"),
    ]  # fmt: skip
    with_kernel, without = linear_module.is_for_kernel, lambda x, weight: False
    taken: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for times, choice in zip(taken, (with_kernel, without), strict=True):
            linear_module.is_for_kernel = choice
            times.append(sum(map_seconds(tokens, width, *size) for size in sizes))
    linear_module.is_for_kernel = with_kernel
    return [statistics.median(times[1:]) for times in taken]


def map_seconds(
    tokens: int, width: int, outs: int, ins: int, activation: Activation | None
) -> float:
    x, grad = (torch.randn(tokens, n * width).bfloat16() for n in (ins, outs))
    weight, bias = torch.randn(outs * width, ins * width), torch.randn(outs * width)
    for part in (x, weight, bias):
        part.requires_grad_()
    began = time.perf_counter()
    torch.autograd.grad(linear(x, weight, bias, activation), (x, weight, bias), grad)
    return time.perf_counter() - began


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
    print("tokens, width  threads  ms  GFLOP/s  of torch's time")
    for tokens, width in WIDTHS:
        for number in options.threads:
            with arithmetic.threads(number):
                ours, torchs = maps_seconds(tokens, width, options.rounds)
            speed = 6 * 12 * tokens * width**2 / ours / 1e9
            row = f"{tokens:6}, {width:5} {number:8} {ours * 1e3:7.2f} {speed:5.0f}"
            print(f"{row} {ours / torchs:8.2f}")


if __name__ == "__main__":
    main()
