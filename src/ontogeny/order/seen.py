"""When a run saw a string of tokens, and how often before a step.

*Seen* is what lies wholly inside one window of an update that was done: repeated epochs count each
time, strings cut by the edges of windows do not, and those across joins of documents do. Counting
asks the index; strings too frequent to list that way are read off the windows from the first on.
Not here: how a string is found (`lookup.py`), text (`ontogeny.tokens.forms`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from ontogeny.errors import OrderError
from ontogeny.order.batches import Batches
from ontogeny.order.lookup import Hits, Lookup, joined

READ = 1 << 18  # tokens of windows read together
MAP_COST = 16  # tokens that are read in the time that one hit of the index takes
NUM_BINS = 256  # stretches of the order that a tally counts
TALLIED = 1 << 16  # ids below this are tallied
FREQUENT = 1 << 14  # hits that are worth a tally


@dataclass(frozen=True, slots=True)
class Sighting:
    """How often a string was seen, and the updates that saw it first and last: -1 for never."""

    count: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Seen:
    """Where strings are, sorted by update, row and column."""

    updates: np.ndarray
    rows: np.ndarray
    hits: Hits


class History:
    """What the first `num_updates` updates of some batches saw."""

    def __init__(self, batches: Batches, num_updates: int, lookup: Lookup) -> None:
        self.batches, self.num_updates, self.lookup = batches, num_updates, lookup
        self._width = batches.order.context_length + 1
        self._num_tokens = batches.order.num_windows * self._width
        self._mapped = 0  # hits of single tokens that were looked up one by one

    def count(self, tokens: Sequence[int], before: int | None = None) -> int:
        """How often a string was seen before a step; by default, in all."""
        return self.counts(tokens, [self.num_updates if before is None else before])[0]

    def counts(self, tokens: Sequence[int], steps: Sequence[int]) -> list[int]:
        """How often a string was seen before each of some steps."""
        bounds = [self._places_before(step) for step in steps]
        if self._is_tallied(tokens):
            return [self._tallied(tokens[0], bound) for bound in bounds]
        counts = np.zeros(len(bounds), np.int64)
        for hits in self.lookup.hits(tokens):
            counts += [np.count_nonzero(hits.places < bound) for bound in bounds]
        return [int(count) for count in counts]

    def has(self, tokens: Sequence[int], before: int | None = None) -> bool:
        """Whether a string was seen before a step."""
        bound = self._places_before(before)
        return any((hits.places < bound).any() for hits in self.lookup.hits(tokens))

    def sighting(self, tokens: Sequence[int], before: int | None = None) -> Sighting:
        """How often a string was seen before a step, and when first and last."""
        bound, count, ends = self._places_before(before), 0, []
        for hits in self.lookup.hits(tokens):
            places = hits.places[hits.places < bound]
            if len(places):
                count += len(places)
                ends += [places.min(), places.max()]
        if not count:
            return Sighting(0, -1, -1)
        updates, _ = self.batches.updates_and_rows(np.array([min(ends), max(ends)]))
        return Sighting(count, int(updates[0]), int(updates[1]))

    def places(
        self, tokens: Sequence[int], before: int | None = None, first: int = 0, limit: int = 1000
    ) -> Seen:
        """Where a string was seen before a step: `limit` places from the `first` on, in order."""
        bound, wanted = self._places_before(before), first + limit
        if wanted * self._num_tokens < MAP_COST * self._num_hits(tokens) ** 2:
            found = self._read(tokens, bound, wanted)
        else:
            found = joined([hits.take(hits.places < bound) for hits in self.lookup.hits(tokens)])
        keys = self._keys(found)
        if len(keys) > wanted:
            found = found.take(np.argpartition(keys, wanted)[:wanted])
            keys = self._keys(found)
        return self._dated(found.take(np.argsort(keys, kind="stable")[first:]))

    def document(
        self, number: int, item: int, before: int | None = None
    ) -> tuple[Seen, np.ndarray]:
        """Where any of an item of store `number` of the lookup was seen, and how many tokens."""
        found, lengths = self.lookup.pieces(number, item)
        order = np.argsort(self._keys(found))
        order = order[found.places[order] < self._places_before(before)]
        return self._dated(found.take(order)), lengths[order]

    def _places_before(self, step: int | None) -> int:
        """How many places of the order come before a step. Raises OrderError for no step of it."""
        step = self.num_updates if step is None else step
        if not 0 <= step <= self.num_updates:
            raise OrderError(
                f"there is no step {step}", expected=f"0 to {self.num_updates}", fix="another step"
            )
        return min(self.batches.place(step), self.batches.order.num_windows)

    def _num_hits(self, tokens: Sequence[int]) -> int:
        """How often a string is in the stores, whether or not a window holds it."""
        ranges = (one for index in self.lookup.indexes for one in index.find(tokens))
        return sum(one.high - one.low for one in ranges)

    def _keys(self, hits: Hits) -> np.ndarray:
        """Numbers that sort hits by place and column."""
        return hits.places * self._width + hits.columns

    def _dated(self, hits: Hits) -> Seen:
        return Seen(*self.batches.updates_and_rows(hits.places), hits)

    def _read(self, tokens: Sequence[int], bound: int, wanted: int) -> Hits:
        """The first `wanted` strings before a place, found by reading the windows."""
        found, count, first, length = [], 0, 0, len(tokens)
        for rows in self._rows(0, bound):
            begins = rows[:, : max(self._width - length + 1, 0)]
            places, columns = np.nonzero(begins == tokens[0])
            for further in range(1, length):
                same = rows[places, columns + further] == tokens[further]
                places, columns = places[same], columns[same]
            found.append(np.stack([places + first, columns]))
            count, first = count + len(places), first + len(rows)
            if count >= wanted:
                break
        rows = np.concatenate(found, axis=1) if found else np.empty((2, 0), np.int64)
        return self.lookup.who(*rows)

    def _is_tallied(self, tokens: Sequence[int]) -> bool:
        """Whether a string is a frequent token, and a tally of all of them pays by now.

        It does when frequent tokens have been looked up for as long as it takes to count them all.
        """
        if len(tokens) != 1 or not 0 <= tokens[0] < TALLIED:
            return False
        num_hits = self._num_hits(tokens)
        self._mapped += num_hits
        return num_hits >= FREQUENT and self._mapped * MAP_COST > self._num_tokens

    @cached_property
    def _tally(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of the order, and how often every token lies before each of them."""
        edges = np.linspace(0, self.batches.order.num_windows, NUM_BINS + 1).astype(np.int64)
        tally = np.zeros((NUM_BINS + 1, TALLIED), np.min_scalar_type(self._num_tokens))
        for place, (first, last) in enumerate(pairwise(edges.tolist())):
            for rows in self._rows(first, last):
                counts = np.bincount(rows.ravel(), minlength=TALLIED)[:TALLIED]
                tally[place + 1] += counts.astype(tally.dtype)
        return edges, np.cumsum(tally, axis=0, dtype=tally.dtype)

    def _tallied(self, token: int, bound: int) -> int:
        """How often a token lies before a place."""
        edges, tally = self._tally
        known = int(np.searchsorted(edges, bound, side="right")) - 1
        rest = self._rows(int(edges[known]), bound)
        return int(tally[known, token]) + sum(int((rows == token).sum()) for rows in rest)

    def _rows(self, first: int, last: int) -> Iterator[np.ndarray]:
        """The windows from one place to another, some at a time."""
        step = max(1, READ // self._width)
        for place in range(first, last, step):
            yield self.batches.order.rows(place, min(step, last - place))
