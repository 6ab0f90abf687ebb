"""Seeds and emergence: against tables and naive loops, and by how often the truth is covered."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.intervals import Emergence, emergence, mean_interval, seed_band, stays_above

# Two-sided 95 % points of Student's t, from the tables, by number of seeds.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 10: 2.262, 31: 2.042, 121: 1.980}


@pytest.mark.parametrize("num_seeds", STUDENT)
def test_bands_are_students(num_seeds: int) -> None:
    values = np.random.RandomState(num_seeds).standard_normal(num_seeds)
    band = seed_band(values)
    assert band is not None
    half = STUDENT[num_seeds] * values.std(ddof=1) / np.sqrt(num_seeds)
    assert (band.low, band.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), rel=1e-3, abs=1e-3
    )
    assert (band.lowest, band.highest) == (values.min(), values.max())
    assert (band.num_seeds, band.mean) == (num_seeds, values.mean())


def test_a_single_seed_has_no_band() -> None:
    assert seed_band(np.array([0.5])) is None


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8))
def test_staying_above_is_by_all_later(above: list[list[bool]]) -> None:
    lows = np.where(above, 0.6, 0.5)
    expected = [
        next(place for place in range(len(above) + 1) if all(row[column] for row in above[place:]))
        for column in range(3)
    ]
    assert stays_above(lows, 0.5).tolist() == expected


def answers(num_steps: int, n: int, seed: int, ease: float = 0.5) -> np.ndarray:
    """What n items give while guessing one of four turns into knowing; alike from step to step."""
    random = np.random.RandomState(seed)
    skill = 0.25 + 0.35 / (1 + np.exp(-10 * (np.linspace(0, 1, num_steps) - 0.5)))
    noise = random.rand(num_steps, n)
    keeps = random.rand(num_steps, n) < ease
    for step in range(1, num_steps):
        noise[step] = np.where(keeps[step], noise[step - 1], noise[step])
    return (noise < skill[:, None]).astype(float)


@pytest.mark.parametrize("seed", range(3))
def test_emergence_by_naive_loops(seed: int) -> None:
    values = answers(8, 60, seed)
    draws = np.random.RandomState(0).randint(0, 60, size=(1000, 60))
    intervals = [mean_interval(row) for row in values]

    def naive(lows: list[float]) -> int:
        above = [low > 0.25 for low in lows]
        return next(place for place in range(9) if all(above[place:]))

    place = naive([low for _, low, _ in intervals])
    places = sorted(
        naive(
            [
                row[draw].mean() - value + low
                for row, (value, low, _) in zip(values, intervals, strict=True)
            ]
        )
        for draw in draws
    )
    first, last = places[24], places[974]
    expected = Emergence(place, min(place, first), None if last == 8 else max(place, last))
    assert emergence(values, 0.25) == (expected if place < 8 else None)


def test_a_curve_that_does_not_end_above_never_emerges() -> None:
    values = answers(20, 400, 0)
    assert emergence(values, 0.25) is not None
    assert emergence(np.concatenate([values, values[:1]]), 0.25) is None
    assert emergence(values, 0.9) is None


def test_a_curve_always_above_emerges_at_once() -> None:
    assert emergence(np.tile([1.0, 1.0, 0.0, 1.0], (3, 50)), 0.5) == Emergence(0, 0, 0)


def test_the_interval_holds_the_step() -> None:
    # Items that are tossed anew at every step put it later in 97.5 % of the resamples.
    found = emergence(answers(100, 60, 9, ease=0.0), 0.25)
    assert found is not None
    assert found.first == found.place


def test_a_single_item_shows_no_emergence() -> None:
    assert emergence(np.ones((3, 1)), 0.5) is None


def test_a_late_emergence_has_no_end() -> None:
    # Only the last step is above, and just so: as many other items might not show it at all.
    values = np.zeros((6, 100))
    values[:5, :25], values[5, :36] = 1, 1
    found = emergence(values, 0.25)
    assert found is not None
    assert (found.place, found.last) == (5, None)


@pytest.mark.parametrize(
    ("num_steps", "n", "ease"), [(25, 200, 0.0), (25, 200, 0.9), (50, 200, 0.5)]
)
def test_emergence_covers_where_other_items_put_it(num_steps: int, n: int, ease: float) -> None:
    found = [emergence(answers(num_steps, n, seed, ease), 0.25) for seed in range(60)]
    there = [one for one in found if one is not None]
    usual = np.median([one.place for one in there])
    covered = sum(one.first <= usual <= (one.last or num_steps) for one in there)
    assert covered >= 0.9 * len(there)
    assert np.median([(one.last or num_steps) - one.first for one in there]) < num_steps / 2


def test_emergence_is_quick_and_small() -> None:
    values = answers(159, 1000, 0)
    emergence(values[:2], 0.25)
    tracemalloc.start()
    begin = time.perf_counter()
    found = emergence(values, 0.25)
    seconds = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert seconds < 5  # 0.1 s where nothing else runs
    assert peak < 64e6
