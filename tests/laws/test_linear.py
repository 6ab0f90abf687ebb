"""The kernel of linear maps beside torch: as exact, and no token or thread changes another's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ontogeny.model import arithmetic
from ontogeny.model.kernels import load
from ontogeny.model.linear import NUMBERS, is_for_kernel, linear
from ontogeny.shape import Activation

needs_kernel = pytest.mark.skipif(not load.has("linear"), reason="no kernel for this processor")
ACTIVATIONS: list[Activation | None] = list(NUMBERS)
Problem = tuple[Tensor, Tensor, Tensor, Tensor]


def problem(count: int, num_ins: int, num_outs: int) -> Problem:
    """x, weights, biases, and the gradient of the output, in bfloat16."""
    generator = torch.Generator().manual_seed(count + 1000 * num_ins + num_outs)
    shapes = (count, num_ins), (num_outs, num_ins), (num_outs,), (count, num_outs)
    x, weight, bias, grad = (torch.randn(*shape, generator=generator) for shape in shapes)
    return (
        (2 * x).bfloat16(),
        (weight / math.sqrt(num_ins)).bfloat16(),
        bias.bfloat16(),
        grad.bfloat16(),
    )


def solved(given: Problem, activation: Activation | None) -> list[Tensor]:
    """The output, and the gradients of x, weights and biases."""
    inputs = [part.clone().requires_grad_() for part in given[:3]]
    out = linear(inputs[0], inputs[1], inputs[2], activation)
    return [out.detach(), *torch.autograd.grad(out, inputs, given[3])]


def solved_by_torch(given: Problem, activation: Activation | None) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ontogeny.model.linear.is_for_kernel", lambda x, weight: False)
        return solved(given, activation)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def assert_as_exact_as_torch(given: Problem, activation: Activation | None) -> None:
    """Within 1.2 times torch's distance from float64, and what rounding a few numbers may do."""
    assert is_for_kernel(given[0], given[1])
    x, weight, bias, grad = (part.double() for part in given)
    exact = solved((x, weight, bias, grad), activation)
    ours, theirs = solved(given, activation), solved_by_torch(given, activation)
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert error(mine, true) <= 1.2 * error(other, true) + 2**-8 / math.sqrt(true.numel())


@needs_kernel
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(64, 64), (16, 48), (80, 16), (144, 208)])
@pytest.mark.parametrize("count", [1, 7, 128, 129, 300])
def test_as_exact_as_torch(
    count: int, sizes: tuple[int, int], activation: Activation | None
) -> None:
    assert_as_exact_as_torch(problem(count, *sizes), activation)


@needs_kernel
@settings(max_examples=25)
@given(
    count=st.integers(1, 280),
    num_ins=st.integers(1, 20),
    num_outs=st.integers(1, 20),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_of_any_size(
    count: int, num_ins: int, num_outs: int, activation: Activation | None
) -> None:
    assert_as_exact_as_torch(problem(count, 16 * num_ins, 16 * num_outs), activation)


@needs_kernel
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_wide_weights_are_rounded_and_so_are_their_gradients(activation: Activation | None) -> None:
    x, weight, bias, grad = problem(150, 80, 144)
    wide = x, weight.float() * (1 + 2**-10), bias.float() * (1 - 2**-10), grad
    found = solved(wide, activation)
    expected = solved((x, wide[1].bfloat16(), wide[2].bfloat16(), grad), activation)
    assert [part.dtype for part in found] == [part.dtype for part in (x, *wide[:3])]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other.to(one.dtype))


@needs_kernel
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_activations_are_torchs_at_every_number(activation: Activation) -> None:
    # All of bfloat16 between -2^7 and 2^7, through the identity map.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(torch.bfloat16)
    every = every[every.abs() < 128]
    x = F.pad(every, (0, -len(every) % 16)).reshape(-1, 16).requires_grad_()
    weight, bias = torch.eye(16).bfloat16(), torch.zeros(16).bfloat16()
    found = linear(x, weight, bias, activation)
    slope = torch.autograd.grad(found, x, torch.ones_like(found))[0]
    exact = x.detach().double().requires_grad_()
    expected = linear(exact, weight.double(), bias.double(), activation)
    expected_slope = torch.autograd.grad(expected, exact, torch.ones_like(expected))[0]
    for one, other in ((found, expected), (slope, expected_slope)):
        torch.testing.assert_close(one.double(), other.detach(), rtol=2**-8, atol=1e-6)


@needs_kernel
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_threads_do_not_count(activation: Activation | None) -> None:
    given, found = problem(400, 96, 160), []
    for number in (1, 2, 3):
        with arithmetic.threads(number):
            found.append(solved(given, activation))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@needs_kernel
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_other_tokens_do_not_count(activation: Activation | None) -> None:
    x, weight, bias, grad = problem(300, 48, 80)
    out, d_x, *_ = solved((x, weight, bias, grad), activation)
    some, d_some, *_ = solved((x[130:171], weight, bias, grad[130:171]), activation)
    assert torch.equal(some, out[130:171])
    assert torch.equal(d_some, d_x[130:171])


@needs_kernel
def test_the_layout_in_memory_does_not_count() -> None:
    x, weight, bias, grad = problem(60, 32, 48)
    expected = solved((x, weight, bias, grad), "gelu")
    turned = [part.T.contiguous().T for part in (x, weight, grad)]
    assert not any(part.is_contiguous() for part in turned)
    inputs = [part.requires_grad_() for part in (turned[0], turned[1], bias)]
    out = linear(inputs[0].view(3, 20, 32), inputs[1], inputs[2], "gelu")
    found = torch.autograd.grad(out, inputs, turned[2].view(3, 20, 48))
    assert out.shape == (3, 20, 48)
    for one, other in zip((out.flatten(0, 1), *found), expected, strict=True):
        assert torch.equal(one, other)


@needs_kernel
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(activation: Activation | None, value: float) -> None:
    x, weight, bias, grad = problem(140, 32, 48)
    x[135, 3] = value
    out, _, d_weight, _ = solved((x, weight, bias, grad), activation)
    assert not bool(out[135].isfinite().any())
    assert bool(out[:135].isfinite().all())
    assert not bool(d_weight[:, 3].isfinite().any())


@needs_kernel
def test_no_activation_is_kept() -> None:
    x, weight, bias, _ = (part.requires_grad_() for part in problem(64, 256, 64))
    kept: list[Tensor] = []

    def keep(part: Tensor) -> Tensor:
        kept.append(part)
        return part

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda part: part):
        linear(x, weight, bias, "gelu")
    assert {part.data_ptr() for part in kept} == {x.data_ptr(), weight.data_ptr()}


def test_other_numbers_and_sizes_are_left_to_torch() -> None:
    x, weight, *_ = problem(4, 32, 48)
    assert is_for_kernel(x, weight) == load.has("linear")
    assert not is_for_kernel(x.float(), weight.float())
    assert not is_for_kernel(x, weight.half())
    assert not is_for_kernel(x[:, :24], weight[:, :24])
    assert not is_for_kernel(x, weight[:40])
    assert not is_for_kernel(x.to("meta"), weight.to("meta"))


@needs_kernel
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
@pytest.mark.slow
def test_torchs_compiler_takes_it_whole() -> None:
    given = problem(70, 32, 48)
    x, weight, bias, grad = (part.requires_grad_() for part in given)
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    out = compiled(x, weight, bias, "gelu")
    found = [out.detach(), *torch.autograd.grad(out, (x, weight, bias), grad)]
    expected = solved(tuple(part.detach() for part in given), "gelu")  # type: ignore[arg-type]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
