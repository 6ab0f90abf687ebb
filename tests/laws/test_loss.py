"""The fused loss: torch's own value and gradients, whatever it is cut into."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ontogeny.model import arithmetic
from ontogeny.model import loss as loss_module
from ontogeny.model.kernels import load
from ontogeny.model.loss import chunks, linear_cross_entropy, log_likelihoods

needs_kernel = pytest.mark.skipif(not load.has("loss"), reason="no kernel for this processor")


def problem(
    count: int, width: int, vocab: int, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count * 1000 + vocab)
    hidden = torch.randn(count, width, generator=generator)
    weight = torch.randn(vocab, width, generator=generator) * scale
    return hidden, weight, torch.randint(vocab, (count,), generator=generator)


def ours(hidden: Tensor, weight: Tensor, targets: Tensor, scale: float = 1.0) -> list[Tensor]:
    hidden, weight = (part.clone().requires_grad_() for part in (hidden, weight))
    value = linear_cross_entropy(hidden, weight, targets, scale)
    return [value.detach(), *torch.autograd.grad(value * 3, (hidden, weight))]


def torchs(hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    """The same in float64 arithmetic, of the same numbers."""
    hidden, weight = (part.double().requires_grad_() for part in (hidden, weight))
    value = F.cross_entropy(hidden @ weight.T, targets)
    return [value.detach(), *torch.autograd.grad(value * 3, (hidden, weight))]


def assert_close(found: list[Tensor], expected: list[Tensor], bound: float) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=bound, atol=bound)


@settings(max_examples=60)
@given(
    count=st.integers(1, 40),
    width=st.integers(1, 12),
    vocab=st.integers(1, 50),
    chunk_rows=st.integers(1, 41),
    strip_rows=st.integers(1, 41),
)
def test_equal_to_torchs_however_cut(
    count: int, width: int, vocab: int, chunk_rows: int, strip_rows: int
) -> None:
    hidden, weight, targets = problem(count, width, vocab)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK_BYTES", chunk_rows * vocab * 4)
        patch.setattr(loss_module, "STRIP_BYTES", strip_rows * vocab * 4)
        assert_close(ours(hidden, weight, targets), torchs(hidden, weight, targets), 2e-5)


def test_equal_to_torchs_at_its_own_limits() -> None:
    # 1,100 rows of 1,000 columns are two strips of the default size.
    assert loss_module.STRIP_BYTES < 1100 * 1000 * 4
    found, expected = (form(*problem(1100, 8, 1000)) for form in (ours, torchs))
    assert_close(found, expected, 2e-5)


@given(st.integers(0, 300), st.integers(1, 50), st.integers(1, 2000))
def test_chunks_cover_every_row_once(count: int, row_bytes: int, limit: int) -> None:
    found = chunks(count, row_bytes, limit)
    assert [row for rows in found for row in range(rows.start, rows.stop)] == list(range(count))
    largest = max((rows.stop - rows.start for rows in found), default=0)
    assert largest * row_bytes <= max(limit, row_bytes)


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_large_logits_stay_finite_and_right(scale: float) -> None:
    hidden, weight, targets = problem(20, 4, 30, scale)
    found, expected = ours(hidden, weight, targets), torchs(hidden, weight, targets)
    assert all(bool(part.isfinite().all()) for part in found)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    scores = log_likelihoods(hidden, weight, targets)
    assert bool(scores.isfinite().all())
    assert bool((scores <= 0).all())


def test_a_sure_model_and_a_blind_one() -> None:
    weight, targets = torch.eye(5), torch.arange(5)
    assert float(linear_cross_entropy(torch.eye(5) * 1e4, weight, targets)) == 0.0
    assert float(linear_cross_entropy(torch.zeros(5, 5), weight, targets)) == pytest.approx(
        math.log(5)
    )


def test_with_and_without_gradient_alike() -> None:
    hidden, weight, targets = problem(33, 6, 17)
    scores = log_likelihoods(hidden, weight, targets)
    expected = F.log_softmax(hidden @ weight.T, dim=-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        value = linear_cross_entropy(hidden, weight, targets)
    assert not value.requires_grad
    torch.testing.assert_close(value, ours(hidden, weight, targets)[0])
    torch.testing.assert_close(value, -scores.mean())


def test_bfloat16_within_its_rounding() -> None:
    hidden, weight, targets = problem(64, 16, 100)
    half = hidden.to(torch.bfloat16)
    value, d_hidden, d_weight = ours(half, weight, targets)
    exact = torchs(half.float(), weight.to(torch.bfloat16).float(), targets)
    assert (value.dtype, d_hidden.dtype, d_weight.dtype) == (
        torch.float32, torch.bfloat16, torch.float32,
    )  # fmt: skip
    # Logits of size about 12 carry eight bits: 0.05 each way, less in the mean.
    assert abs(float(value) - float(exact[0])) < 0.02
    for found, expected in zip((d_hidden, d_weight), exact[1:], strict=True):
        error = (found.double() - expected).norm() / expected.norm()
        assert float(error) < 0.02


def test_gradients_are_scaled_before_they_are_rounded() -> None:
    hidden, weight, targets = problem(64, 16, 3000, 0.1)
    half = hidden.to(torch.float16)
    plain, scaled = ours(half, weight, targets), ours(half, weight, targets, 2.0**12)
    assert torch.equal(plain[0], scaled[0])
    exact = torchs(half.float(), weight.to(torch.float16).float(), targets)
    # One part in 64 * 3000 is a denormal number of float16, with two bits fewer.
    for bad, found, expected in zip(plain[1:], scaled[1:], exact[1:], strict=True):
        errors = [(one.double() - expected).norm() for one in (bad, found.double() / 2**12)]
        assert float(errors[1]) < 1e-3 * float(expected.norm())
        assert float(errors[1]) <= float(errors[0])


def by_torch(*arguments: Any) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "has", lambda name: False)
        return ours(*arguments)


@needs_kernel
@settings(max_examples=40)
@given(
    count=st.integers(1, 300),
    width=st.integers(1, 3).map(lambda n: 16 * n),
    vocab=st.integers(1, 60).map(lambda n: 8 * n),
    scale=st.sampled_from([0.05, 0.5, 1.5]),
)
def test_the_kernel_is_nearer_than_torch(count: int, width: int, vocab: int, scale: float) -> None:
    hidden, weight, targets = problem(count, width, vocab, scale)
    half = hidden.to(torch.bfloat16)
    exact = torchs(half.float(), weight.to(torch.bfloat16).float(), targets)
    found, plain = ours(half, weight, targets), by_torch(half, weight, targets)
    assert any(not torch.equal(*pair) for pair in zip(found, plain, strict=True))
    for kernel, torchs_own, expected in zip(found, plain, exact, strict=True):
        error, its_error = (float((one - expected).norm()) for one in (kernel, torchs_own))
        # Torch rounds logits and their gradients to bfloat16, the kernel terms of the softmax.
        assert error <= 1.1 * its_error + 3e-3 * float(expected.norm()) + 1e-7


@needs_kernel
def test_rows_of_logits_are_scored_as_by_torch() -> None:
    hidden, weight, targets = problem(37, 16, 1003, 2.0)
    half = hidden.to(torch.bfloat16)
    found = log_likelihoods(half, weight, targets)
    logits = (half @ weight.to(torch.bfloat16).T).double()
    expected = F.log_softmax(logits, dim=1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@needs_kernel
def test_logits_too_far_apart_for_the_kernel_take_the_other_way() -> None:
    hidden, weight, targets = problem(40, 16, 1000)
    weight[700] *= 200  # hundreds above all of the first tile
    half = hidden.to(torch.bfloat16)
    found, plain = ours(half, weight, targets), by_torch(half, weight, targets)
    assert all(torch.equal(*pair) for pair in zip(found, plain, strict=True))
    assert all(bool(part.isfinite().all()) for part in found)


@needs_kernel
def test_the_kernel_gives_the_same_bits_on_any_number_of_threads() -> None:
    hidden, weight, targets = problem(403, 32, 1000)
    results = []
    for number in (1, 2, 3):
        with arithmetic.threads(number):
            results.append(ours(hidden.to(torch.bfloat16), weight, targets))
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


@needs_kernel
def test_the_kernel_gives_the_same_bits_however_tokens_are_cut() -> None:
    # One thread takes 512 tokens at a time, four take all of these; the last block is not whole.
    hidden, weight, targets = problem(1000, 16, 200)
    targets[::3] = 7  # of many blocks
    results = []
    for number in (1, 4):
        with arithmetic.threads(number):
            results.append(ours(hidden.to(torch.bfloat16), weight, targets))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    exact = torchs(hidden.to(torch.bfloat16).float(), weight.bfloat16().float(), targets)
    for found, expected in zip(results[0], exact, strict=True):
        assert float((found - expected).norm()) < 3e-3 * float(expected.norm())


@needs_kernel
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_kernel_hides_nothing_that_is_not_finite(value: float) -> None:
    hidden, weight, targets = problem(20, 16, 104)
    hidden[7, 2] = value
    half = hidden.to(torch.bfloat16)
    scores = log_likelihoods(half, weight, targets)
    assert scores.isnan().nonzero().flatten().tolist() == [7]
    assert bool(ours(half, weight, targets)[0].isnan())


@pytest.mark.parametrize("target", [-1, 11])
def test_a_target_outside_the_vocabulary_is_refused(target: int) -> None:
    hidden, weight, targets = problem(9, 4, 11)
    targets[3] = target
    with pytest.raises((IndexError, RuntimeError), match=r"column|index"):
        ours(hidden.to(torch.bfloat16), weight, targets)


def test_inputs_are_left_as_they_were() -> None:
    hidden, weight, targets = problem(9, 4, 11)
    copies = hidden.clone(), weight.clone(), targets.clone()
    ours(hidden, weight, targets)
    log_likelihoods(hidden, weight, targets)
    assert all(torch.equal(*pair) for pair in zip((hidden, weight, targets), copies, strict=True))
