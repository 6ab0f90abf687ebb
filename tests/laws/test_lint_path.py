"""The geometry behind `lint`, against brute force and against paths whose law is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ontogeny.checkpoints.lint_folders import missing_steps
from ontogeny.checkpoints.lint_path import (
    SIDE,
    place_of,
    sample_places,
    sharper_than_usual,
    squared_distances,
    to_stretches,
    turns,
)
from ontogeny.steps import checkpoint_steps

PYTHIA = checkpoint_steps(143000, 143)
Path = NDArray[np.float64]


def walk(seed: int, *shape: int) -> Path:
    return np.random.default_rng(seed).standard_normal(shape).cumsum(axis=0)


def smooth_walk(seed: int, steps: int, rows: int, columns: int, rank: int) -> Path:
    """A path whose moves keep to few directions and turn slowly, as those of training do."""
    draw = np.random.default_rng(seed)
    left, right = draw.standard_normal((rows, rank)), draw.standard_normal((rank, columns))
    inner = draw.standard_normal((steps + 4, rank, rank))
    moves = sum(inner[by : steps + by] for by in range(4))
    return np.cumsum(left @ moves @ right, axis=0)


@given(seed=st.integers(0, 99), number=st.integers(2, 9))
def test_distances_are_those_between_the_points(seed: int, number: int) -> None:
    path = walk(seed, number, 3, 4)
    naive = [[((one - other) ** 2).sum() for other in path] for one in path]
    np.testing.assert_allclose(squared_distances(path), naive, atol=1e-9)


@given(seed=st.integers(0, 99), at=st.integers(1, 5))
def test_stretches_are_as_far_as_their_nearest_point(seed: int, at: int) -> None:
    points = walk(seed, 7, 3)
    distances = np.sqrt(squared_distances(points))
    others = np.delete(points, at, axis=0)
    share = np.linspace(0, 1, 2001)[:, None]
    naive = [
        np.linalg.norm(one + share * (two - one) - points[at], axis=1).min()
        for one, two in itertools.pairwise(others)
    ]
    np.testing.assert_allclose(to_stretches(distances, at), naive, atol=2e-3)


@given(rows=st.integers(1, 300), columns=st.integers(1, 5000))
def test_places_of_the_sample_lie_within(rows: int, columns: int) -> None:
    down, across = sample_places(rows, columns)
    assert (down[0], across[0]) == (0, 0)
    assert (down[-1], across[-1]) == (rows - 1, columns - 1)
    assert len(np.unique(down)) == len(down) == min(rows, SIDE)
    assert len(np.unique(across)) == len(across) <= SIDE * SIDE


@pytest.mark.parametrize("seed", range(5))
def test_noise_turns_a_path_as_was_foretold(seed: int) -> None:
    path = smooth_walk(seed, 20, 16, 24, 4)
    at, draw = 10, np.random.default_rng(seed)
    cosine, noisy = turns(path, np.zeros(20))
    moves = np.sqrt((np.diff(path, axis=0) ** 2).sum((1, 2)))
    noise = draw.standard_normal(path[at].shape)
    path[at] += noise * 0.5 * min(moves[at - 1], moves[at]) / np.linalg.norm(noise)
    found = turns(path, np.zeros(20))[0]
    assert found[at - 1] == pytest.approx(noisy[at - 1], abs=0.05)
    assert found[at - 1] < -0.9 < 0 < cosine[at - 1]
    assert sharper_than_usual(found[None])[0].argmax() == at - 1


def test_rounding_is_not_magnified() -> None:
    path = smooth_walk(0, 20, 16, 24, 4)
    error = 0.1 * np.random.default_rng(0).standard_normal(path.shape)
    known = turns(path + error, (error**2).sum((1, 2)))[0]
    unknown = turns(path + error, np.zeros(20))[0]
    assert np.median(unknown) < 0 < np.median(known)


def test_a_turn_that_all_tensors_share_is_not_sharper_than_usual() -> None:
    cosines = np.full((5, 20), 0.8)
    cosines[:, 7] = -0.9
    cosines[2, 13] = -0.9
    found = sharper_than_usual(cosines)
    assert np.abs(found[:, 7]).max() < 1e-9
    assert found[2, 13] == pytest.approx(1.7)


def law(steps: list[int], power: float) -> Path:
    """Distances of a run that slows down slowly."""
    when = np.array(steps) + 1.0
    pace = np.sqrt(when[:, None] * when[None]) ** -0.2
    return pace * np.abs(when[:, None] - when[None]) ** power


@pytest.mark.parametrize("power", [0.5, 0.7])
@pytest.mark.parametrize(("label", "truth"), [(32, 32), (32, 64), (64, 32), (64, 64)])
def test_a_step_lies_where_its_distances_say(power: float, label: int, truth: int) -> None:
    held = [1, 2, 4, 8, 16, truth, 128, 256, 512]
    labels = [*held[:5], label, *held[6:]]
    place = place_of(labels, law(held, power), 5)
    assert place is not None
    assert place.step == pytest.approx(truth, rel=0.15)
    assert place.contradicts(label) == (label != truth)


def test_a_place_takes_neighbours_that_differ() -> None:
    assert place_of([0, 1, 2], law([0, 1, 2], 0.5), 1) is None
    assert place_of([1, 2, 4, 8, 16], np.zeros((5, 5)), 2) is None


@given(absent=st.sets(st.sampled_from(PYTHIA[:-1]), max_size=40))
def test_what_is_missing_of_a_schedule_is_known_from_the_rest(absent: set[int]) -> None:
    there = [step for step in PYTHIA if step not in absent]
    assert missing_steps(there, PYTHIA)[0] == sorted(absent)
    powers = set(PYTHIA[:11])
    if len(absent & powers) <= 5 and min(set(PYTHIA[11:]) - absent) == 1000:
        assert missing_steps(there, None)[0] == sorted(absent)


@pytest.mark.parametrize("steps", [[7], [3, 7], [0, 5, 6, 17, 40, 41, 90]])
def test_steps_without_a_rule_miss_nothing(steps: list[int]) -> None:
    assert missing_steps(steps, None)[0] == []
