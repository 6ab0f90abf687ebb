"""Shapes: closed-form counts against real models and the published numbers, heads that fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ontogeny.config import build
from ontogeny.errors import ConfigError
from ontogeny.model.neox import NeoX
from ontogeny.shape import SIZES, Shape, Size, num_non_embedding

# Layers, width, heads, padded vocabulary, total and non-embedding parameters, as published.
PUBLISHED = {
    "14m": (6, 128, 4, 50304, 14_067_712, 1_189_888),
    "31m": (6, 256, 8, 50304, 30_494_720, 4_739_072),
    "70m": (6, 512, 8, 50304, 70_426_624, 18_915_328),
    "160m": (12, 768, 12, 50304, 162_322_944, 85_056_000),
    "410m": (24, 1024, 16, 50304, 405_334_016, 302_311_424),
    "1b": (16, 2048, 8, 50304, 1_011_781_632, 805_736_448),
    "1.4b": (24, 2048, 16, 50304, 1_414_647_808, 1_208_602_624),
    "2.8b": (32, 2560, 32, 50304, 2_775_208_960, 2_517_652_480),
    "6.9b": (32, 4096, 32, 50432, 6_857_302_016, 6_444_163_072),
    "12b": (36, 5120, 40, 50688, 11_846_072_320, 11_327_027_200),
}


def shape_with(**changes: Any) -> Shape:
    values = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_heads": 4,
        "vocab_size": 64,
        "context_length": 16,
    }
    return Shape(**(values | changes))


def count(shape: Shape) -> tuple[int, int]:
    """All parameters of an instantiated model, and those outside the embeddings."""
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in NeoX(shape).named_parameters()}
    return sum(sizes.values()), sum(n for name, n in sizes.items() if not name.startswith("embed"))


def test_all_sizes_are_there() -> None:
    assert list(SIZES) == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    layers, width, heads, vocab_size, total, non_embedding = PUBLISHED[name]
    size = SIZES[name]
    assert (size.num_layers, size.hidden_size, size.num_heads) == (layers, width, heads)
    shape = shape_with(
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        vocab_size=vocab_size,
        context_length=2048,
    )
    assert (shape.num_parameters, shape.num_non_embedding) == (total, non_embedding)
    assert count(shape) == (total, non_embedding)


@given(
    num_layers=st.integers(1, 3),
    head_size=st.sampled_from([8, 16, 24]),
    num_heads=st.integers(1, 5),
    vocab_size=st.integers(1, 99),
)
def test_counts_in_closed_form(
    num_layers: int, head_size: int, num_heads: int, vocab_size: int
) -> None:
    shape = shape_with(
        num_layers=num_layers,
        hidden_size=head_size * num_heads,
        num_heads=num_heads,
        vocab_size=vocab_size,
    )
    assert count(shape) == (shape.num_parameters, shape.num_non_embedding)


def test_flops_by_hand() -> None:
    # 2 layers of 12 w^2 weights and 13 w others, final norm, output; 6 a weight, attention halved.
    shape = shape_with(hidden_size=8, num_heads=1, vocab_size=10, context_length=4)
    weights = 2 * (12 * 64 + 13 * 8) + 2 * 8 + 10 * 8
    scores_and_sums = (
        2 * (2 * 4 * 8) / 2 * 2
    )  # layers, two products of T by w, causal, multiply-add
    assert shape.flops_per_token == 3 * (2 * weights + scores_and_sums)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_heads": 5}, "hidden_size 32 is not divisible by num_heads 5"),
        ({"num_layers": 0}, "num_layers: Input should be greater than or equal to 1; found 0"),
        ({"rotary_fraction": 0.375}, "rotary dimensions must be even .* gives 3"),
        ({"rotary_fraction": 0.125}, "rotary dimensions must be even .* gives 1"),
        ({"rotary_fraction": 1.5}, "rotary_fraction"),
        ({"activation": "relu"}, "activation: Input should be 'gelu' or 'gelu_tanh'; found 'relu'"),
        ({"layers": 3}, "unknown key 'layers'.*did you mean 'num_layers'"),
    ],
)
def test_shapes_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    values = shape_with().resolved() | changes
    with pytest.raises(ConfigError, match=said):
        build(Shape, values, "shape")


def test_swapped_layers_and_heads_are_named() -> None:
    # A released configuration of the largest size has the two exchanged.
    with pytest.raises(
        ValidationError, match=r"by num_heads 36 \(are num_layers 40 and num_heads swapped"
    ):
        shape_with(num_layers=40, hidden_size=5120, num_heads=36)
    with pytest.raises(ValidationError) as caught:
        shape_with(num_layers=3, hidden_size=32, num_heads=5)
    assert "swapped" not in str(caught.value)


def test_a_row_must_have_its_published_count() -> None:
    wrong = num_non_embedding(6, 512) + 1
    with pytest.raises(ValueError, match=f"size new: 18915328 non-embedding .* published {wrong}"):
        Size("new", 6, 512, 8, 1e-3, wrong)
    with pytest.raises(ValueError, match="heads must divide the width"):
        Size("new", 6, 512, 7, 1e-3, 18_915_328)
