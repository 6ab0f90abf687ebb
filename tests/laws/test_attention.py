"""Attention in blocks, as torch alone computes it: its gradients, and no look ahead."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ontogeny.model import attention
from ontogeny.model.attention import BLOCK, BlockedAttention, causal_attention, rotate

TIMES = [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 3]
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-5}


def blocked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return BlockedAttention.apply(q, k, v)  # type: ignore[no-untyped-call]


def inputs(
    batch: int, heads: int, time: int, size: int, dtype: torch.dtype, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, heads, time, size, generator=generator).to(dtype).requires_grad_()
        for _ in range(4)
    ]


def with_gradients(q: Tensor, k: Tensor, v: Tensor, out: Tensor, weights: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad((out * weights).sum(), (q, k, v))]


def assert_equal_to_torchs(q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> None:
    ours = with_gradients(q, k, v, blocked(q, k, v), weights)
    theirs = with_gradients(
        q, k, v, F.scaled_dot_product_attention(q, k, v, is_causal=True), weights
    )
    bound = BOUNDS[q.dtype]
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("time", TIMES)
def test_equal_to_torchs_at_the_edges_of_blocks(time: int, dtype: torch.dtype) -> None:
    assert_equal_to_torchs(*inputs(2, 3, time, 5, dtype))


@settings(max_examples=40)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    time=st.integers(1, 30),
    size=st.integers(1, 9),
    block=st.integers(1, 31),
)
def test_equal_to_torchs_for_any_block(
    batch: int, heads: int, time: int, size: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        assert_equal_to_torchs(*inputs(batch, heads, time, size, torch.float64, seed=time))


@pytest.mark.parametrize("time", [3, 7])
def test_gradients_by_differences(monkeypatch: pytest.MonkeyPatch, time: int) -> None:
    monkeypatch.setattr(attention, "BLOCK", 3)
    q, k, v, _ = inputs(1, 2, time, 4, torch.float64)
    assert torch.autograd.gradcheck(BlockedAttention.apply, (q, k, v))


def test_layout_in_memory_does_not_count() -> None:
    q, k, v, _ = inputs(2, 3, 20, 4, torch.float32)
    moved = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in (q, k, v)]
    assert not moved[0].is_contiguous()
    assert torch.equal(blocked(*moved), blocked(q, k, v))


@pytest.mark.parametrize("changed", [1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_the_future_does_not_count(changed: int) -> None:
    q, k, v, other = inputs(1, 2, BLOCK + 2, 4, torch.float32)
    before = blocked(q, k, v)
    k2, v2 = (torch.cat((part[:, :, :changed], other[:, :, changed:]), 2) for part in (k, v))
    after = blocked(q, k2, v2)
    assert torch.equal(after[:, :, :changed], before[:, :, :changed])
    assert not torch.equal(after[:, :, changed], before[:, :, changed])


def test_large_scores_stay_finite() -> None:
    q, k, v, weights = inputs(1, 1, 10, 4, torch.float32)
    out = blocked(q * 1e4, k * 1e4, v)
    for found in with_gradients(q, k, v, out, weights):
        assert bool(found.isfinite().all())


def test_bfloat16_within_its_rounding() -> None:
    q, k, v, _ = inputs(2, 2, BLOCK + 5, 16, torch.float32)
    halves = [part.to(torch.bfloat16) for part in (q, k, v)]
    exact = blocked(*(half.float() for half in halves))
    assert float((blocked(*halves).float() - exact).abs().max().detach()) < 0.03


def test_turns_queries_and_keys_and_keeps_the_layout() -> None:
    qkv = torch.randn(2, 7, 3, 15, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(7.0)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
    cos, sin = angles.cos(), angles.sin()
    q, k, v = qkv.transpose(1, 2).split(5, dim=-1)
    expected = F.scaled_dot_product_attention(
        rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
    )
    found = causal_attention(qkv, cos, sin)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=2e-5, atol=2e-5)
