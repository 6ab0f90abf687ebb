"""Intervals: around the value, the same every time, none for a single item."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.intervals import mean_interval, ratio_interval

numbers = st.floats(-1e3, 1e3)
pairs = st.lists(st.tuples(numbers, st.floats(0.5, 1e3)), min_size=2, max_size=40)


@given(pairs)
def test_bounded_by_the_items(rows: list[tuple[float, float]]) -> None:
    over, under = np.array(rows).T
    value, low, high = ratio_interval(over, under)
    assert value == pytest.approx(over.sum() / under.sum())
    ratios = over / under
    slack = 1e-9 * (1 + np.abs(ratios).max())
    assert ratios.min() - slack <= low <= high <= ratios.max() + slack
    assert ratio_interval(over, under) == (value, low, high)


def test_the_value_lies_inside() -> None:
    for seed in range(20):
        values = np.random.RandomState(seed).standard_normal(50) + seed
        value, low, high = mean_interval(values)
        assert low < value < high
        assert value == pytest.approx(values.mean())


def test_as_wide_as_theory_says() -> None:
    # Of a mean: 2 times 1.96 standard errors, here within a tenth.
    values = np.random.RandomState(0).standard_normal(400)
    _, low, high = mean_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.RandomState(1)
    covered = sum(
        low <= 0 <= high
        for _, low, high in (mean_interval(random.standard_normal(60)) for _ in range(200))
    )
    assert 180 <= covered <= 199


def test_constants_have_no_width() -> None:
    assert mean_interval(np.full(7, 0.25)) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_a_single_item_has_no_interval(value: float) -> None:
    found, low, high = mean_interval(np.array([value]))
    assert found == value
    assert math.isnan(low)
    assert math.isnan(high)


def test_weights_are_resampled_with_their_values() -> None:
    # All items have one ratio, whatever their weight: resampling cannot change it.
    weights = np.array([1.0, 10.0, 100.0, 1000.0])
    value, low, high = ratio_interval(weights * 3, weights)
    assert (value, low, high) == pytest.approx((3.0, 3.0, 3.0))


def test_numpys_own_random_state_does_not_count() -> None:
    values = np.arange(9.0)
    np.random.seed(1)
    first = mean_interval(values)
    np.random.seed(2)
    assert mean_interval(values) == first
