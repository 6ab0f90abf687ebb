"""A linear map of tokens, of an activation of theirs if asked.

On CPUs that multiply in bfloat16, a kernel (`kernels/linear.c`) that applies the activation as it
reads: only what comes before it is kept for the backward pass. Else torch's.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ontogeny.model.kernels.load import call, has, operator
from ontogeny.shape import Activation

NUMBERS: dict[Activation | None, int] = {None: 0, "gelu": 1, "gelu_tanh": 2}  # as in linear.c


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation | None = None
) -> Tensor:
    """x [..., I], or the activation of it, times weight [O, I], plus bias [O]: [..., O].

    All in the dtype of x, to which weights and biases, and their gradients, are rounded.
    """
    if bias is not None and is_for_kernel(x, weight):
        return KernelLinear.apply(x, weight, bias, NUMBERS[activation])  # type: ignore[no-untyped-call]
    if activation is not None:
        x = F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def is_for_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel computes this: bfloat16 on a CPU that has it, whole, of even sizes."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and weight.dtype in (torch.bfloat16, torch.float32)
        and type(weight) in (Tensor, nn.Parameter)  # not a part of one that is cut over ranks
        and all(size % 16 == 0 for size in weight.shape)
        and has("linear")
    )


class KernelLinear(torch.autograd.Function):
    """Keeps x and the weights for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, activation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.activation = activation
        return torch.ops.ontogeny.linear(x, weight, bias, activation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *torch.ops.ontogeny.linear_backward(*ctx.saved_tensors, grad, ctx.activation), None


def kernel_forward(x: Tensor, weight: Tensor, bias: Tensor, activation: int) -> Tensor:
    """The outputs [..., O]."""
    assert bias.dtype == weight.dtype
    y = empty_outputs(x, weight, bias, activation)
    inputs = [part.contiguous() for part in (x, weight, bias)]
    call("linear_forward", *inputs, y, *sizes(x, weight), activation, is_wide(weight))
    return y


def kernel_backward(
    x: Tensor, weight: Tensor, grad: Tensor, activation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    results = empty_gradients(x, weight, grad, activation)
    inputs = [part.contiguous() for part in (x, weight, grad)]
    call("linear_backward", *inputs, *results, *sizes(x, weight), activation, is_wide(weight))
    return results


def sizes(x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    """N, I and O."""
    num_outs, num_ins = weight.shape
    return x.numel() // num_ins, num_ins, num_outs


def is_wide(weight: Tensor) -> int:
    """1 for float32, 0 for bfloat16."""
    return int(weight.dtype == torch.float32)


def empty_outputs(x: Tensor, weight: Tensor, bias: Tensor, activation: int) -> Tensor:
    """What the forward pass fills."""
    return x.new_empty(*x.shape[:-1], len(bias))


def empty_gradients(
    x: Tensor, weight: Tensor, grad: Tensor, activation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What the backward pass fills."""
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(len(weight))


operator("linear(Tensor x, Tensor weight, Tensor bias, int activation) -> Tensor",
         kernel_forward, empty_outputs)  # fmt: skip
operator("linear_backward(Tensor x, Tensor weight, Tensor grad, int activation)"
         " -> (Tensor, Tensor, Tensor)", kernel_backward, empty_gradients)  # fmt: skip
