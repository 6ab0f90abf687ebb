"""Intervals: around the value, the same every time, none for a single item; paired and exact."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.intervals import (
    mcnemar,
    mean_interval,
    paired_difference,
    ratio_interval,
    share_interval,
    told_from,
)

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


@pytest.mark.parametrize("n", [2, 7, 1049, 2500])
def test_drawing_in_blocks_changes_no_bit(n: int) -> None:
    # 1049 and 2500 items do not fit a block a thousand times.
    over, under = np.random.RandomState(n).rand(2, n) + 0.5
    draws = np.random.RandomState(0).randint(0, n, size=(1000, n))
    ratios = [over[draw].sum() / under[draw].sum() for draw in draws]
    low, high = np.percentile(ratios, (2.5, 97.5))
    assert ratio_interval(over, under) == (over.sum() / under.sum(), low, high)


@pytest.mark.parametrize("n", [1, 4, 104])
def test_wilsons_ends_are_where_the_score_test_turns(n: int) -> None:
    # Its definition: the shares p of which the found one is 1.96 standard errors of p away.
    for right in range(n + 1):
        share = right / n
        for end, side in zip(share_interval(share, n), (-1, 1), strict=True):
            if 0 < end < 1:
                error = math.sqrt(end * (1 - end) / n)
                assert share - end == pytest.approx(-side * 1.959964 * error, abs=1e-6)
            else:
                assert end == share  # 0 of n and n of n end where shares do


@pytest.mark.parametrize(("n", "truth"), [(104, 0.5), (104, 0.365), (40, 0.9), (651, 0.25)])
def test_wilsons_interval_covers_the_truth(n: int, truth: float) -> None:
    chances = [math.comb(n, k) * truth**k * (1 - truth) ** (n - k) for k in range(n + 1)]
    covered = sum(
        chance
        for right, chance in enumerate(chances)
        if not told_from(*share_interval(right / n, n), truth)
    )
    assert 0.92 <= covered <= 0.98


def test_a_difference_on_the_same_items_is_told_better() -> None:
    # Items differ much, checkpoints little: unpaired, the difference would drown.
    random = np.random.RandomState(0)
    items = random.standard_normal(200) * 10
    a, b = items + 1 + random.standard_normal(200), items + random.standard_normal(200)
    value, low, high = paired_difference(a, b)
    assert value == pytest.approx(a.mean() - b.mean())
    assert 0 < low < 1 < high < 2
    assert mean_interval(a)[1] < mean_interval(b)[2]


def test_paired_intervals_cover_the_true_difference() -> None:
    random, covered = np.random.RandomState(2), 0
    for _ in range(200):
        skill = random.rand(80)
        a, b = (random.rand(2, 80) < np.array([skill + 0.1, skill])).astype(float)
        _, low, high = paired_difference(a, b)
        truth = (np.minimum(skill + 0.1, 1) - skill).mean()
        covered += low <= truth <= high
    assert 178 <= covered <= 199


def test_differences_of_ratios_weigh_items() -> None:
    a, b, weights = np.array([4.0, 1.0]), np.array([1.0, 1.0]), np.array([1.0, 9.0])
    assert paired_difference(a, b, weights)[0] == pytest.approx(0.3)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 3))
def test_mcnemar_counts_tosses(only_a: int, only_b: int, both: int) -> None:
    a = np.array([1.0] * only_a + [0.0] * only_b + [1.0] * both + [0.0])
    b = np.array([0.0] * only_a + [1.0] * only_b + [1.0] * both + [0.0])
    n = only_a + only_b
    # All outcomes at least as uneven as this one, of all there are.
    uneven = sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= abs(only_a - only_b))
    assert mcnemar(a, b) == (only_a, only_b, float(Fraction(uneven, 2**n)))


def test_mcnemar_bears_with_many_items() -> None:
    random = np.random.RandomState(0)
    a, b = (random.rand(2, 20_000) < [[0.51], [0.5]]).astype(float)
    only_a, only_b, p = mcnemar(a, b)
    normal = math.erfc((abs(only_a - only_b) - 1) / math.sqrt(2 * (only_a + only_b)))
    assert p == pytest.approx(normal, rel=1e-2)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(0.3, 0.6, False), (0.5, 0.6, False), (0.51, 0.6, True), (0.3, 0.4, True)],
)
def test_told_from_a_level(low: float, high: float, told: bool) -> None:
    assert told_from(low, high, 0.5) == told


def test_nothing_is_told_without_an_interval() -> None:
    assert not told_from(math.nan, math.nan, 0.5)


def test_items_that_are_all_wrong_leave_room_for_doubt() -> None:
    """With no right answer of n the 95 % end of Wilson's interval is z^2 / (n + z^2)."""
    _, low, high = mean_interval(np.zeros(20))
    assert [low, high] == pytest.approx([0.0, 1.959964**2 / (20 + 1.959964**2)])
    _, low, high = mean_interval(np.ones(20))
    assert [low, high] == pytest.approx([20 / (20 + 1.959964**2), 1.0])
