"""The shuffled stream of an order: where its tokens come from, and which windows they lie in.

All of an order's documents, one after another as it shuffled them, are its stream; a window is
T + 1 consecutive tokens of it. Takes about 50 bytes of memory a document of the stream and 30 a
window.
Not here: where a string occurs (`joins.py`, `ontogeny.tokens.suffixes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ontogeny.errors import OrderError
from ontogeny.order.plan import Order


class Ascending:
    """Finds the last of some ascending numbers that is not above a given one.

    A table of equal buckets tells where to begin, so that a step is nearly always enough.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.append(values, np.iinfo(np.int64).max)
        last = int(values[-1]) if len(values) else 0
        self._shift = max((last // max(len(values), 1)).bit_length() - 2, 0)
        firsts = np.arange((last >> self._shift) + 1, dtype=np.int64) << self._shift
        self._table = np.searchsorted(values, firsts, side="right") - 1

    def __call__(self, wanted: np.ndarray) -> np.ndarray:
        """The place of the last value not above each of those wanted, -1 where there is none."""
        if not len(self._table):
            return np.full(len(wanted), -1)
        found: np.ndarray = self._table.take(wanted >> self._shift, mode="clip")
        found += self.values.take(found + 1) <= wanted
        left = np.flatnonzero(self.values.take(found + 1) <= wanted)
        found[left] = np.searchsorted(self.values, wanted[left], side="right") - 1
        return found


@dataclass(frozen=True)
class Stream:
    """The stream of an order. Positions count its tokens; T = context length."""

    order: Order

    @cached_property
    def _item_starts(self) -> np.ndarray:
        """Where items begin in the store, in tokens."""
        return self.order.store.starts(slice(None))

    @cached_property
    def _items(self) -> Ascending:
        return Ascending(self._item_starts)

    @cached_property
    def bounds(self) -> np.ndarray:
        """Where every place of the documents begins, and the last ends: int64 [D + 1]."""
        sizes = self.order.store.sizes[:][self.order.indices.documents]
        bounds = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=bounds[1:])
        return bounds

    @cached_property
    def _places(self) -> Ascending:
        return Ascending(self.bounds[:-1])

    @cached_property
    def _windows(self) -> Ascending:
        """Where windows begin. Raises OrderError where they share more than a token."""
        samples = self.order.indices.samples
        starts = self.bounds[samples[:-1, 0]] + samples[:-1, 1]
        if (np.diff(starts) < self.order.context_length).any():
            raise OrderError(
                "windows share more than a token, which no lookup is made for",
                expected=f"starts {self.order.context_length} tokens apart or more",
                found=int(np.diff(starts).min()),
            )
        return Ascending(starts)

    @cached_property
    def _window_places(self) -> np.ndarray:
        """The place in the order of every window: the inverse of `windows`."""
        windows = self.order.indices.windows
        places = np.empty(len(windows), np.int64)
        places[windows] = np.arange(len(windows))
        return places

    @cached_property
    def _copies(self) -> tuple[np.ndarray, np.ndarray]:
        """Where copies of items begin in the stream, item by item, and where each item's begin."""
        documents, num_items = self.order.indices.documents, len(self.order.store)
        counts = np.bincount(documents, minlength=num_items)
        starts = self.bounds[np.argsort(documents, kind="stable")]
        return starts, np.append(0, np.cumsum(counts))

    def from_store(self, positions: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
        """Where in the stream the strings are that lie in the store at `positions`.

        Every copy of each, as `[positions, items, offsets]`; those that end in another item than
        they begin in are left out.
        """
        items = self._items(positions)
        offsets = positions - self._item_starts.take(items)
        whole = offsets + length <= self.order.store.sizes.take(items)
        if not whole.all():
            items, offsets = items[whole], offsets[whole]
        starts, bounds = self._copies
        firsts = bounds.take(items)
        counts = bounds.take(items + 1) - firsts
        if len(counts) and (counts != 1).any():
            items, offsets, firsts = (np.repeat(one, counts) for one in (items, offsets, firsts))
            firsts += np.arange(len(firsts)) - np.repeat(np.cumsum(counts) - counts, counts)
        return starts.take(firsts) + offsets, items, offsets

    def documents_at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The items that tokens of the stream are of, and their offsets in them."""
        places = self._places(positions)
        return self.order.indices.documents.take(places), positions - self.bounds.take(places)

    def tokens_at(self, positions: np.ndarray) -> np.ndarray:
        """The tokens at positions of the stream."""
        items, offsets = self.documents_at(positions)
        tokens: np.ndarray = self.order.store.flat[self._item_starts.take(items) + offsets]
        return tokens

    def windows_at(
        self, positions: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The windows that hold the strings of `length` tokens at `positions` whole.

        As `[which of the positions, place in the order, column]`. A single token that two windows
        share is in both.
        """
        starts = self._windows.values
        last = self.order.context_length
        windows = self._windows(positions)
        columns = positions - starts.take(windows, mode="clip")
        whole = (columns + length <= last + 1) & (windows >= 0)
        which = np.flatnonzero(whole)
        if len(which) < len(positions):
            windows, columns = windows[which], columns[which]
        if length == 1:
            shared = np.flatnonzero((columns == 0) & (windows > 0))
            shared = shared[starts[windows[shared] - 1] + last == starts[windows[shared]]]
            which = np.append(which, which[shared])
            windows = np.append(windows, windows[shared] - 1)
            columns = np.append(columns, np.full(len(shared), last))
        return which, self._window_places.take(windows), columns

    def positions_of(self, places: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Where in the stream the tokens at places of the order and columns of the window are."""
        windows = self.order.indices.windows[places].astype(np.int64)
        positions: np.ndarray = self._windows.values[windows] + columns
        return positions

    def pieces_of(self, item: int) -> tuple[np.ndarray, ...]:
        """The stretches of windows of an item, as `[places, columns, offsets, lengths]`."""
        starts, bounds = self._copies
        begun, width = self._windows.values[:-1], self.order.context_length + 1
        found = []
        for start in starts[bounds[item] : bounds[item + 1]].tolist():
            stop = start + int(self.order.store.sizes[item])
            first = int(np.searchsorted(begun, start - width, side="right"))
            windows = np.arange(first, int(np.searchsorted(begun, stop)))
            lows = np.maximum(begun[windows], start)
            lengths = np.minimum(begun[windows] + width, stop) - lows
            places = self._window_places[windows]
            found.append([places, lows - begun[windows], lows - start, lengths])
        rows = np.concatenate(found, axis=1) if found else np.empty((4, 0), np.int64)
        return tuple(rows[:, rows[3] > 0])
