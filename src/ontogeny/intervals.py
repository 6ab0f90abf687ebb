"""Intervals by resampling items: 95 %, percentile bootstrap, the same resamples every time.

Source: Efron and Tibshirani 1993, chapter 13.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
TAILS = (2.5, 97.5)  # percentiles


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float, float]:
    """Value, low and high of sum(numerators) / sum(denominators), resampling their pairs [n].

    With a single item there is nothing to resample: low and high are NaN.
    """
    value = float(numerators.sum() / denominators.sum())
    if len(numerators) < 2:
        return value, float("nan"), float("nan")
    random = np.random.RandomState(0)
    draws = random.randint(0, len(numerators), size=(RESAMPLES, len(numerators)))
    ratios = numerators[draws].sum(axis=1) / denominators[draws].sum(axis=1)
    low, high = np.percentile(ratios, TAILS)
    return value, float(low), float(high)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Value, low and high of the mean of values [n]."""
    return ratio_interval(values, np.ones_like(values))
