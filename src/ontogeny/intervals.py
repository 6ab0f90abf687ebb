"""Statistics on items, steps and seeds: what a number is worth, in plain functions of arrays.

Intervals are of 95 %. Over items they are percentile bootstraps (Efron and Tibshirani 1993, chapter
13), the same resamples every time; of a share of items Wilson's (1927); over seeds Student's t.
Paired answers are compared by McNemar's exact test (1947). Not here: which numbers are compared
(`questions/scores.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
TAILS = (2.5, 97.5)  # percentiles
BLOCK = 1 << 20  # numbers drawn at a time: memory does not grow with the items


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float, float]:
    """Value, low and high of sum(numerators) / sum(denominators), resampling their pairs [n].

    With a single item there is nothing to resample: low and high are NaN.
    """
    value = float(numerators.sum() / denominators.sum())
    if len(numerators) < 2:
        return value, math.nan, math.nan
    ratios = [
        numerators[draws].sum(axis=1) / denominators[draws].sum(axis=1)
        for draws in _resamples(len(numerators))
    ]
    low, high = np.percentile(np.concatenate(ratios), TAILS)
    return value, float(low), float(high)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Value, low and high of the mean of values [n]; Wilson's where all of them are 0 or 1.

    Resampled, a handful of items that are all wrong would look like a certain zero.
    """
    if len(values) > 1 and _are_shares(values):
        share = float(values.mean())
        return share, *share_interval(share, len(values))
    return ratio_interval(values, np.ones_like(values))


def share_interval(share: float, n: int) -> tuple[float, float]:
    """Low and high of a share of `n` items (Wilson's interval)."""
    z = NormalDist().inv_cdf(TAILS[1] / 100)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half if share > 0 else 0.0, middle + half if share < 1 else 1.0


def paired_difference(
    a: np.ndarray, b: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Value, low and high of a's mean less b's on the same items [n], which are resampled together.

    `weights` make it a difference of sum(a) / sum(weights), such as bits a byte.
    """
    return ratio_interval(a - b, np.ones(len(a)) if weights is None else weights)


def mcnemar(a: np.ndarray, b: np.ndarray) -> tuple[int, int, float]:
    """How many items only `a` and only `b` got right [n, 0 or 1], and the two-sided p of that.

    Exact: were both equally good, each such item would be a toss of a fair coin.
    """
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    tosses, term, total = only_a + only_b, 1, 0
    for heads in range(min(only_a, only_b) + 1):
        total += term
        term = term * (tosses - heads) // (heads + 1)
    return only_a, only_b, min(1.0, 2 * total / 2**tosses)


def told_from(low: float, high: float, level: float) -> bool:
    """Whether an interval excludes a level; one that is not known (NaN) does not."""
    return high < level or level < low


class SeedBand(NamedTuple):
    """Runs that differ in their seed alone: their mean, extremes, and the interval of the mean."""

    num_seeds: int
    mean: float
    lowest: float
    highest: float
    low: float
    high: float


def seed_band(values: np.ndarray) -> SeedBand | None:
    """The band of one value a seed [seeds]; None of a single seed, which shows no spread.

    By Student's t: resampling a handful of runs would give too narrow an interval.
    """
    n = len(values)
    if n < 2:
        return None
    mean = float(values.mean())
    half = _t_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return SeedBand(n, mean, float(values.min()), float(values.max()), mean - half, mean + half)


class Emergence(NamedTuple):
    """The place of the checkpoint from which on a score stays above a level, and its interval.

    `last` is None where the interval has no end: it may come later than all that was measured.
    """

    place: int
    first: int
    last: int | None


def emergence(values: np.ndarray, level: float) -> Emergence | None:
    """When a score emerges, of what each item gave at each checkpoint [checkpoints, n].

    At the first checkpoint from which on the low end of its interval is always above `level`; None
    where the last one's is not, or of a single item. The interval is of where as many other items
    would put it: in each resample of the items, the same at all checkpoints, the ends lie as far
    below the means as they do in the sample.
    """
    if values.shape[1] < 2:
        return None
    means = np.concatenate(
        [_means(values, draws) for draws in _resamples(values.shape[1])], axis=1
    )  # [checkpoints, RESAMPLES]
    if _are_shares(values):
        lows = np.array([mean_interval(row)[1] for row in values])
    else:
        lows = np.percentile(means, TAILS[0], axis=1)
    place = int(stays_above(lows[:, None], level)[0])
    if place == len(values):
        return None
    below = values.mean(axis=1) - lows
    places = stays_above(means - below[:, None], level)
    first, last = np.percentile(places, TAILS, method="inverted_cdf").astype(int).tolist()
    return Emergence(place, min(first, place), None if last == len(values) else max(last, place))


def _are_shares(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def stays_above(lows: np.ndarray, level: float) -> np.ndarray:
    """From which checkpoint on each column of lows [checkpoints, columns] is above a level.

    As many as there are checkpoints where the last is not above it.
    """
    not_above = ~(lows > level)
    return np.where(not_above.any(axis=0), len(lows) - not_above[::-1].argmax(axis=0), 0)


def _means(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Means [checkpoints, resamples] of resampled items [resamples, n], by how often each came."""
    resamples, n = draws.shape
    places = draws + n * np.arange(resamples)[:, None]
    counts = np.bincount(places.ravel(), minlength=resamples * n).reshape(resamples, n)
    # Not by BLAS, whose last bits follow the number of threads.
    return np.einsum("cn,rn->cr", values, counts.astype(np.float64)) / n


def _resamples(n: int) -> Iterator[np.ndarray]:
    """Places of resampled items [resamples, n], in blocks of bounded size."""
    random, step = np.random.RandomState(0), max(1, BLOCK // n)
    for begin in range(0, RESAMPLES, step):
        yield random.randint(0, n, size=(min(step, RESAMPLES - begin), n))


def _t_quantile(freedom: int) -> float:
    """The t that 95 % lie within on both sides, by bisection."""
    low, high = 0.0, 13.0  # 12.7 at one degree of freedom
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return low


def _within(t: float, freedom: int) -> float:
    """P(|T| < t). Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd, coefficient, total = freedom % 2, 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += coefficient * math.cos(angle) ** power
        coefficient *= (power + 1) / (power + 2)
    series = math.sin(angle) * total
    return (angle + series) * 2 / math.pi if odd else series
