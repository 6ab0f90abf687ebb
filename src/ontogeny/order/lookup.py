"""The inverse of the batches: where in some windows a string of tokens lies, or a document.

A string is *seen* where it lies wholly inside one window. Every kind of windows has its lookup:
`OrderLookup` maps what the index of the store finds through the shuffled stream and adds what lies
across joins of documents, `RowsLookup` is for files of windows, `SplicedLookup` asks both stores of
a branch. All are exact; the reference is a search of the windows themselves. T = context length.
Not here: updates (`seen.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from ontogeny.errors import OrderError
from ontogeny.order.joins import Joins
from ontogeny.order.plan import Order
from ontogeny.order.rows import Rows
from ontogeny.order.splice import Spliced
from ontogeny.order.stream import Stream
from ontogeny.order.windows import Windows
from ontogeny.tokens.store import Store
from ontogeny.tokens.suffixes import Suffixes

Indexes = Callable[[Store], Suffixes]


@dataclass(frozen=True, slots=True)
class Hits:
    """Strings in windows: int64 arrays of one length, in no particular order.

    A string begins in column `columns` of the window at place `places`, `offsets` tokens into item
    `items` of the store of index `numbers` of the lookup; -1 where windows are written down.
    """

    places: np.ndarray
    columns: np.ndarray
    items: np.ndarray
    offsets: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def take(self, which: np.ndarray) -> Hits:
        """Those that an array of places or of truth values picks."""
        return Hits(*(getattr(self, name)[which] for name in self.__slots__))


def joined(several: Sequence[Hits]) -> Hits:
    """Hits of several blocks in one."""
    none = np.empty(0, np.int64)
    columns = ([none, *(getattr(one, name) for one in several)] for name in Hits.__slots__)
    return Hits(*map(np.concatenate, columns))


class Lookup(Protocol):
    """Finds strings and documents in windows."""

    @property
    def indexes(self) -> list[Suffixes]:
        """The indexes that are asked; `Hits.numbers` counts them."""

    def hits(self, tokens: Sequence[int]) -> Iterator[Hits]:
        """Every window that a string lies wholly inside of, in blocks."""

    def who(self, places: np.ndarray, columns: np.ndarray) -> Hits:
        """Which items the tokens at these places and columns are of."""

    def pieces(self, number: int, item: int) -> tuple[Hits, np.ndarray]:
        """The stretches of windows that are of a document of store `number`, and their lengths."""


def lookup_in(windows: Windows, indexes: Indexes) -> Lookup:
    """The lookup of any windows; `indexes` opens the index of a store.

    Raises OrderError for windows of a kind that none is made for.
    """
    if isinstance(windows, Order):
        stream = Stream(windows)
        return OrderLookup([indexes(windows.store)], stream, Joins(stream))
    if isinstance(windows, Rows):
        return RowsLookup([indexes(windows.store)], windows)
    if isinstance(windows, Spliced):
        return _spliced_lookup(windows, indexes)
    raise OrderError(
        "cannot be searched", where=type(windows).__name__, expected="an order or rows"
    )


@dataclass(frozen=True)
class OrderLookup:
    """Finds strings in an order."""

    indexes: list[Suffixes]
    stream: Stream
    joins: Joins

    def hits(self, tokens: Sequence[int]) -> Iterator[Hits]:
        length = len(tokens)
        if length > self.stream.order.context_length + 1:
            return
        (index,) = self.indexes
        for found in index.positions(index.find(tokens)):
            positions, items, offsets = self.stream.from_store(found, length)
            yield self._in_windows(positions, items, offsets, length)
        positions = self.joins.find(tokens)
        if len(positions):
            yield self._in_windows(positions, *self.stream.documents_at(positions), length)

    def who(self, places: np.ndarray, columns: np.ndarray) -> Hits:
        items, offsets = self.stream.documents_at(self.stream.positions_of(places, columns))
        return Hits(places, columns, items, offsets, np.zeros_like(places))

    def pieces(self, number: int, item: int) -> tuple[Hits, np.ndarray]:
        places, columns, offsets, lengths = self.stream.pieces_of(item)
        return Hits(places, columns, np.full_like(places, item), offsets, places * 0), lengths

    def _in_windows(
        self, positions: np.ndarray, items: np.ndarray, offsets: np.ndarray, length: int
    ) -> Hits:
        which, places, columns = self.stream.windows_at(positions, length)
        return Hits(places, columns, items[which], offsets[which], np.zeros_like(places))


@dataclass(frozen=True)
class RowsLookup:
    """Finds strings in windows that are written down: an item is a window."""

    indexes: list[Suffixes]
    rows: Rows

    def hits(self, tokens: Sequence[int]) -> Iterator[Hits]:
        width = self.rows.context_length + 1
        if len(tokens) > width:
            return
        (index,) = self.indexes
        for positions in index.positions(index.find(tokens)):
            places, columns = np.divmod(positions, width)
            whole = columns + len(tokens) <= width
            yield self.who(places[whole], columns[whole])

    def who(self, places: np.ndarray, columns: np.ndarray) -> Hits:
        unknown = np.full_like(places, -1)
        return Hits(places, columns, unknown, unknown, np.zeros_like(places))

    def pieces(self, number: int, item: int) -> tuple[Hits, np.ndarray]:
        return joined([]), np.empty(0, np.int64)


@dataclass(frozen=True)
class SplicedLookup:
    """Finds strings in the windows of a branch, by the lookups of what it is made of.

    `sources` are these, by the number that the first index of each has here; `numbers` says which
    of them each part of the branch is of, and at last which its patched windows are.
    """

    windows: Spliced
    sources: Mapping[int, Lookup]
    numbers: Sequence[int]

    @property
    def indexes(self) -> list[Suffixes]:
        return [index for lookup in self.sources.values() for index in lookup.indexes]

    @cached_property
    def _begins(self) -> np.ndarray:
        """Where every part begins, and the last ends."""
        return np.cumsum([0, *(part.count for part in self.windows.parts)])

    def hits(self, tokens: Sequence[int]) -> Iterator[Hits]:
        for number, lookup in self.sources.items():
            for found in lookup.hits(tokens):
                for hits, _ in self._moved(number, found):
                    yield hits

    def who(self, places: np.ndarray, columns: np.ndarray) -> Hits:
        parts = np.searchsorted(self._begins, places, side="right") - 1
        firsts = np.array([part.first for part in self.windows.parts])
        own = places + (firsts - self._begins[:-1])[parts]
        is_patched = _is_among(self.windows.patched, places)
        parts[is_patched] = len(firsts)
        own[is_patched] = np.searchsorted(self.windows.patched, places[is_patched])
        items, offsets, numbers = (np.empty_like(places) for _ in range(3))
        for part, number in enumerate(self.numbers):
            which = np.flatnonzero(parts == part)
            found = self.sources[number].who(own[which], columns[which])
            items[which], offsets[which] = found.items, found.offsets
            numbers[which] = found.numbers + number
        return Hits(places, columns, items, offsets, numbers)

    def pieces(self, number: int, item: int) -> tuple[Hits, np.ndarray]:
        source = max(first for first in self.sources if first <= number)
        found, lengths = self.sources[source].pieces(number - source, item)
        hits, which = zip(*self._moved(source, found), strict=True)
        return joined(hits), lengths[np.concatenate(which)]

    def _moved(self, source: int, found: Hits) -> Iterator[tuple[Hits, np.ndarray]]:
        """What a source has, where it stands in a part of the branch, and which of it that is."""
        for part, number in enumerate(self.numbers):
            if number == source:
                which, places = self._standing(part, found.places)
                own = found.take(which)
                yield replace(own, places=places, numbers=own.numbers + source), which

    def _standing(self, number: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which windows of its source stand in a part, and at which places of the branch."""
        patched = self.windows.patched
        if number == len(self.windows.parts):
            return np.arange(len(places)), patched[places]
        part = self.windows.parts[number]
        which = np.flatnonzero((places >= part.first) & (places < part.first + part.count))
        moved = places[which] + (self._begins[number] - part.first)
        free = ~_is_among(patched, moved)
        return which[free], moved[free]


def _spliced_lookup(windows: Spliced, indexes: Indexes) -> SplicedLookup:
    """The lookup of a branch. Windows that several of its parts are of are asked once."""
    sources, numbers, num_indexes = dict[int, Lookup](), dict[int, int](), 0
    made_of = [*(part.windows for part in windows.parts), windows.patch]
    for sequence in made_of:
        if id(sequence) not in numbers:
            numbers[id(sequence)] = num_indexes
            sources[num_indexes] = lookup = lookup_in(sequence, indexes)
            num_indexes += len(lookup.indexes)
    return SplicedLookup(windows, sources, [numbers[id(sequence)] for sequence in made_of])


def _is_among(some: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Which of `places` are among some ascending ones."""
    if not len(some):
        return np.zeros(len(places), bool)
    found: np.ndarray = some.take(np.searchsorted(some, places), mode="clip") == places
    return found
