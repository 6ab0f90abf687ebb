"""Strings that begin in one document of the shuffled stream and end in a later one.

The suffixes of a store know nothing of them: which documents meet is the order's doing. So every
join of two documents is kept by the tokens on its two sides, sorted: for each way to divide a
string, the joins with the right pair of tokens are looked up and the rest of it is compared with
the stream. 24 bytes of memory a document of the stream. Not here: windows (`stream.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ontogeny.order.stream import Stream

LARGEST = 2**32 - 1  # of the tokens that make a pair


@dataclass(frozen=True)
class Joins:
    """Where documents meet in a stream."""

    stream: Stream

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The joins as positions of the stream and the pairs around them, both sorted by pair."""
        cuts = np.unique(self.stream.bounds)[1:-1]  # empty documents make no join
        pairs = _pairs(self.stream.tokens_at(cuts - 1), self.stream.tokens_at(cuts))
        by_pair = np.argsort(pairs, kind="stable")
        return cuts[by_pair], pairs[by_pair]

    def find(self, tokens: Sequence[int]) -> np.ndarray:
        """Where in the stream `tokens` begin in another document than they end in."""
        string = np.array(tokens, np.int64)
        cuts, pairs = self._sorted
        if string.max() > LARGEST:
            return cuts[:0]
        wanted = _pairs(string[:-1], string[1:])
        lows, highs = (np.searchsorted(pairs, wanted, side) for side in ("left", "right"))
        heads = np.repeat(np.arange(1, len(string)), highs - lows)  # tokens before the join
        several = [cuts[lows[place] : highs[place]] for place in np.flatnonzero(lows < highs)]
        return self._alike(np.concatenate(several), heads, string) if several else cuts[:0]

    def _alike(self, cuts: np.ndarray, heads: np.ndarray, string: np.ndarray) -> np.ndarray:
        """Where a string begins of which `cuts` are the first joins, if they are, after `heads`."""
        stream, length = self.stream, len(string)
        _, offsets = stream.documents_at(cuts - 1)
        keep = (offsets + 1 >= heads) & (cuts - heads + length <= stream.bounds[-1])
        cuts, heads = cuts[keep], heads[keep]
        for step in range(1, length):
            if not len(cuts):
                break
            keep = np.ones(len(cuts), bool)
            for moved in (step, -1 - step):  # on both sides of the join
                inside = np.flatnonzero((heads + moved >= 0) & (heads + moved < length))
                found = stream.tokens_at(cuts[inside] + moved)
                keep[inside] &= found == string[heads[inside] + moved]
            cuts, heads = cuts[keep], heads[keep]
        return cuts - heads


def _pairs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """One number for each pair of tokens."""
    pairs: np.ndarray = left.astype(np.int64) << 32 | right.astype(np.int64) & LARGEST
    return pairs
