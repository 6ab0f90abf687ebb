"""GPT-NeoX's arithmetic around an order: splitting one corpus, blending several, how many to ask.

Method: gpt-neox v1.0, megatron/data/data_utils.py and blendable_dataset.py, bit for bit.
Not here: the order of the windows of one corpus (`shuffle.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ontogeny.errors import ConfigError

ASKED_MARGIN = 1.005  # GPT-NeoX asks every corpus for half a percent more than its share


def split_bounds(split: str, size: int) -> tuple[int, int, int, int]:
    """The bounds of the train, valid and test parts of `size` documents; `split` is "969, 30, 1".

    Up to three shares, separated by "," or "/". Raises ConfigError for what is no share.
    """
    separator = "," if "," in split else "/"
    try:
        shares = [float(share) for share in split.split(separator)][:3]
    except ValueError:
        shares = [math.nan]
    total = sum(shares)
    if not (min(shares) >= 0 and 0 < total < math.inf):
        raise ConfigError(
            "not a split of a corpus",
            expected='up to three shares of a positive sum, as "969, 30, 1"',
            found=repr(split),
        )
    shares += [0.0] * (3 - len(shares))
    bounds = [0]
    for share in shares:
        bounds.append(bounds[-1] + round(share / total * size))  # half to even, as the original
    excess = bounds[3] - size
    return 0, bounds[1] - excess, bounds[2] - excess, size


def windows_asked(num_windows: int, weights: Sequence[float] = (1.0,)) -> list[int]:
    """How many windows GPT-NeoX asks of each weighted corpus for `num_windows` in all."""
    total = sum(weights)
    return [math.ceil(num_windows * (weight / total) * ASKED_MARGIN) for weight in weights]


def blend_indices(weights: Sequence[float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """For every place of a blend its corpus (uint8) and which of that corpus's windows (int64).

    Each place goes to the corpus furthest behind its share, the first among equals. Every choice
    depends on those before it, hence the loop; one corpus alone needs none.
    """
    if not 1 <= len(weights) <= 256 or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise ConfigError(
            "cannot blend by these weights",
            expected="1 to 256 weights, none negative, of a positive sum",
            found=list(weights),
        )
    if len(weights) == 1:
        return np.zeros(size, np.uint8), np.arange(size, dtype=np.int64)
    total = sum(weights)
    shares = [weight / total for weight in weights]
    used = [0] * len(shares)
    corpora, places = np.empty(size, np.uint8), np.empty(size, np.int64)
    for place in range(size):
        target = max(place, 1)
        behind = [share * target - count for share, count in zip(shares, used, strict=True)]
        corpus = behind.index(max(behind))
        corpora[place], places[place] = corpus, used[corpus]
        used[corpus] += 1
    return corpora, places
