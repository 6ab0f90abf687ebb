"""Where every document goes: decided about all of them at once, on their tables.

The rule of the cut: whole works (all parts of one play, all releases of one module) are held out
in the order of their keys as long as they fit in the source's share; a source in which none fits
gives its smallest work, and a source with a single work gives none. Of alike documents the first
is kept: in the held-out part, else in the deduplicated corpus. What is like a held-out document is
not trained on, but planted documents are never held out and always trained on.
Memory: 2 bytes a document, 50 a document of one source where sources have weights, and at most
`MOST_ROWS` rows of some columns with their sorting at a time.
Not here: how alike documents are found (`dedup.py`, `near.py`), moving text (`corpus.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np

from ontogeny.suite import TextSettings
from ontogeny.text.dedup import text_digest
from ontogeny.text.mixture import copies, pile_epochs, weighted_epochs
from ontogeny.text.shards import Shard, as_keys, require_few

MOST_ROWS = 1 << 23  # sorted together, in 1.4 GB
SCATTER = np.uint64(0x9E3779B97F4A7C15)  # an odd number spreads small ones, each to its own


class Place(IntEnum):
    """What becomes of a document."""

    FIRST = 0  # in both corpora that are trained on
    DUPLICATE = 1  # in the standard one only, as all that follow
    NEAR_DUPLICATE = 2
    HELD_OUT = 3
    ALSO_HELD_OUT = 4  # nowhere, as all that follow: like a held-out document
    LEFT_OUT = 5  # by the weights of the sources
    EMPTY = 6


STANDARD = (Place.FIRST, Place.DUPLICATE, Place.NEAR_DUPLICATE)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of all tables whose keys fall in one range, sorted by key and then by row.

    `groups` counts the different keys from 0, row by row; `starts` is where each begins.
    """

    rows: np.ndarray
    groups: np.ndarray
    starts: np.ndarray
    columns: dict[str, np.ndarray]


class Tables:
    """The tables of shards as one, row after row.

    `near` says of every row which is the first that it is nearly alike to.
    """

    def __init__(
        self, shards: Sequence[Shard], near: np.ndarray | None = None, most_rows: int = MOST_ROWS
    ) -> None:
        self.shards = list(shards)
        self.starts = np.cumsum([0, *map(len, self.shards)])
        self.source_names = sorted({name for shard in shards for name in shard.sources})
        require_few(self.source_names)
        self._codes = {name: code for code, name in enumerate(self.source_names)}
        self._near, self._most_rows = near, most_rows
        # The columns in which alike documents have the same key, and what the later ones are.
        self.likenesses = {"text": Place.DUPLICATE}
        if near is not None:
            self.likenesses["near"] = Place.NEAR_DUPLICATE

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, shard: int) -> slice:
        """The rows of a shard."""
        return slice(int(self.starts[shard]), int(self.starts[shard + 1]))

    def shard_of(self, row: int) -> Shard:
        return self.shards[int(np.searchsorted(self.starts, row, side="right")) - 1]

    def column(self, name: str, shard: int) -> np.ndarray:
        """A column of one shard; sources are places in `source_names`."""
        if name == "near":
            assert self._near is not None
            first = self._near[self.rows(shard)].astype(np.uint64)
            return np.stack((first * SCATTER, first), axis=1)
        values = self.shards[shard].column(name)
        if name == "source":
            codes = [self._codes[one] for one in self.shards[shard].sources]
            values = np.array(codes, np.int64)[values]
        return values

    def of_source(self, name: str, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The wanted rows of a source, with the keys of their texts and their bytes."""
        pieces = []
        for shard, start in enumerate(self.starts[:-1]):
            is_own = self.column("source", shard) == self._codes[name]
            rows = np.flatnonzero(is_own & wanted[self.rows(shard)])
            columns = (self.column(column, shard)[rows] for column in ("text", "bytes"))
            pieces.append((start + rows, *columns))
        rows, keys, sizes = map(np.concatenate, zip(*pieces, strict=True))
        return rows, keys, sizes

    def parts(self, key: str, *others: str) -> Iterator[Part]:
        """All rows with some columns, in the order of the keys, some of them at a time."""
        bits = max(0, (len(self) - 1) // self._most_rows).bit_length()
        for number in range(1 << bits):
            pieces = []
            for shard, start in enumerate(self.starts[:-1]):
                keys = self.column(key, shard)
                rows = np.flatnonzero(keys[:, 0] >> np.uint64(64 - bits) == number)
                columns = (self.column(name, shard)[rows] for name in others)
                pieces.append((keys[rows], start + rows, *columns))
            keys, rows, *values = map(np.concatenate, zip(*pieces, strict=True))
            yield _sorted(keys, rows, dict(zip(others, values, strict=True)))


def _sorted(keys: np.ndarray, rows: np.ndarray, columns: dict[str, np.ndarray]) -> Part:
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys = keys[order]
    is_new = np.ones(len(keys), bool)
    is_new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    columns = {name: values[order] for name, values in columns.items()}
    return Part(rows[order], np.cumsum(is_new) - 1, np.flatnonzero(is_new), columns)


def repeated_row(tables: Tables) -> int | None:
    """The first row whose document has the id of an earlier one; None where all ids differ."""
    again = (part.rows[_later(part.groups)] for part in tables.parts("id"))
    return min((int(rows.min()) for rows in again if len(rows)), default=None)


def decide(
    tables: Tables, first_planted: int, settings: TextSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The place of every document, and how often it is in the standard corpus if it is there.

    Both are arrays [documents]. Rows from `first_planted` on are the planted documents.
    """
    places = np.full(len(tables), Place.FIRST, np.uint8)
    empty = as_keys(text_digest(""))
    for shard in range(len(tables.shards)):
        is_empty = (tables.column("text", shard) == empty).all(axis=1)
        places[tables.rows(shard)][is_empty] = Place.EMPTY
    _hold_out(tables, places, first_planted, settings.held_out)
    for column in tables.likenesses:
        for part in tables.parts(column):
            _drop_held_out(places, part, first_planted)
    counts = _mix(tables, places, first_planted, settings.weights)
    for column, again in tables.likenesses.items():
        for part in tables.parts(column):
            own = places[part.rows]
            first = np.flatnonzero(own == Place.FIRST)
            own[first[_later(part.groups[first])]] = again
            places[part.rows] = own
    return places, counts


def _hold_out(tables: Tables, places: np.ndarray, first_planted: int, share: float) -> None:
    """Mark the documents of the works that are held out."""
    left = (share * _source_bytes(tables, places, first_planted)).astype(np.int64)
    num_works, num_fitting = np.zeros_like(left), np.zeros_like(left)
    smallest: dict[int, tuple[int, np.ndarray]] = {}  # the size of a source's, and its rows
    for part in tables.parts("work", "source", "bytes"):
        live = (places[part.rows] == Place.FIRST) & (part.rows < first_planted)
        works = np.flatnonzero(np.logical_or.reduceat(live, part.starts))
        sizes = np.add.reduceat(np.where(live, part.columns["bytes"], 0), part.starts)
        sources = part.columns["source"][part.starts]
        chosen = np.zeros(len(part.starts), bool)
        for source in np.unique(sources[works]).tolist():
            own = works[sources[works] == source]
            fitting = own[_fitting(sizes[own], int(left[source]))]
            chosen[fitting] = True
            left[source] -= sizes[fitting].sum()
            num_works[source] += len(own)
            num_fitting[source] += len(fitting)
            least = own[sizes[own].argmin()]
            if source not in smallest or sizes[least] < smallest[source][0]:
                smallest[source] = int(sizes[least]), part.rows[live & (part.groups == least)]
        places[part.rows[live & chosen[part.groups]]] = Place.HELD_OUT
    for source, (_, rows) in smallest.items():
        if num_works[source] > 1 and num_fitting[source] == 0:
            places[rows] = Place.HELD_OUT


def _fitting(sizes: np.ndarray, left: int) -> np.ndarray:
    """The places of what is taken where all that still fits is, in order."""
    taken = [np.empty(0, np.int64)]
    places = np.flatnonzero(sizes <= left)
    while len(places):
        ends = np.cumsum(sizes[places])
        count = int(np.searchsorted(ends, left, side="right"))
        taken.append(places[:count])
        left -= int(ends[count - 1])
        places = places[count:]
        places = places[sizes[places] <= left]
    return np.concatenate(taken)


def _source_bytes(tables: Tables, places: np.ndarray, first_planted: int) -> np.ndarray:
    """The bytes of each source that can be held out."""
    total = np.zeros(len(tables.source_names), np.int64)
    for shard in range(len(tables.shards)):
        rows = tables.rows(shard)
        live = places[rows] == Place.FIRST
        live &= np.arange(rows.start, rows.stop) < first_planted
        sources, sizes = tables.column("source", shard), tables.column("bytes", shard)
        np.add.at(total, sources[live], sizes[live])
    return total


def _mix(
    tables: Tables,
    places: np.ndarray,
    first_planted: int,
    weights: Literal["pile"] | Mapping[str, float] | None,
) -> np.ndarray:
    """How often every document is to be in the standard corpus; marks those that are not to be."""
    if weights is None:
        return np.ones(len(tables), np.uint8)
    sizes = _source_bytes(tables, places, first_planted).tolist()
    present = {name: size for name, size in zip(tables.source_names, sizes, strict=True) if size}
    epochs = pile_epochs(present) if weights == "pile" else weighted_epochs(weights, present)
    is_first = places == Place.FIRST
    is_first[first_planted:] = False
    counts = np.ones(len(tables), np.int32)
    for name, times in epochs.items():
        rows, keys, sizes = tables.of_source(name, is_first)
        counts[rows] = copies(keys, sizes, times)
    places[counts == 0] = Place.LEFT_OUT
    return np.maximum(counts, 1).astype(np.min_scalar_type(counts.max()))


def _drop_held_out(places: np.ndarray, part: Part, first_planted: int) -> None:
    """Of alike documents that are held out one stays, and none is trained on."""
    own = places[part.rows]
    is_held = own == Place.HELD_OUT
    near_held = np.logical_or.reduceat(is_held, part.starts)[part.groups]
    own[near_held & (own == Place.FIRST) & (part.rows < first_planted)] = Place.ALSO_HELD_OUT
    held = np.flatnonzero(is_held)
    own[held[_later(part.groups[held])]] = Place.ALSO_HELD_OUT
    places[part.rows] = own


def _later(groups: np.ndarray) -> np.ndarray:
    """Which of sorted numbers are not the first of their kind."""
    is_later = np.zeros(len(groups), bool)
    is_later[1:] = groups[1:] == groups[:-1]
    return is_later
