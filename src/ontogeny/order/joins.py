"""Strings that begin in one document of the shuffled stream and end in a later one.

The suffixes of a store know nothing of them: which documents meet is the order's doing. So every
join of two documents is kept by the tokens on its two sides, sorted: for each way to divide a
string, the joins with the right pair of tokens are looked up and the rest of it is compared with
the stream. 24 bytes of memory a document of the stream. Not here: windows (`stream.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ontogeny.order.stream import Stream


class Joins:
    """Where documents meet in a stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The joins as positions of the stream and the pairs around them, both sorted by pair."""
        cuts = np.unique(self._stream.bounds)[1:-1]  # empty documents make no join
        pairs = _pairs(self._stream.tokens_at(cuts - 1), self._stream.tokens_at(cuts))
        by_pair = np.argsort(pairs, kind="stable")
        return cuts[by_pair], pairs[by_pair]

    def find(self, tokens: Sequence[int]) -> np.ndarray:
        """Where in the stream `tokens` begin in another document than they end in."""
        string = np.array(tokens, np.int64)
        cuts, pairs = self._sorted
        wanted = _pairs(string[:-1], string[1:])
        lows, highs = (np.searchsorted(pairs, wanted, side) for side in ("left", "right"))
        found = [
            self._continued(cuts[lows[place] : highs[place]], string, int(place) + 1)
            for place in np.flatnonzero(lows < highs)
        ]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _continued(self, cuts: np.ndarray, string: np.ndarray, head: int) -> np.ndarray:
        """The strings whose first join is one of `cuts`, `head` tokens after they begin."""
        stream = self._stream
        _, offsets = stream.documents_at(cuts - 1)
        starts = cuts[offsets + 1 >= head] - head
        starts = starts[starts + len(string) <= stream.bounds[-1]]
        for place in (*range(head + 1, len(string)), *range(head - 2, -1, -1)):
            if not len(starts):
                break
            starts = starts[stream.tokens_at(starts + place) == string[place]]
        return starts


def _pairs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """One number for each pair of tokens."""
    pairs: np.ndarray = left.astype(np.int64) << 32 | right.astype(np.int64) & 0xFFFFFFFF
    return pairs
