"""Stores read in ranges: cut into shards, which are never merged, or lying on a server.

A batch costs its bytes and its entries of the index, whatever the size of the file. A local index
is mapped and checked as `store.py` does; of a remote one what is touched is checked and named.
Shards are named as the originals' are (pythia, utils): BASE-00000-of-00020.bin to
BASE-00020-of-00020.bin, which are 21, the last of them empty where the others hold everything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from ontogeny.errors import DataError
from ontogeny.ranges import Place, Ranges, is_remote, open_joined, open_ranges, read_all
from ontogeny.tokens.store import HEADER, Header, Store, read_header, require_bytes

SHARD = re.compile(r"(?s:(.*))-(\d{5})-of-(\d{5})(\.bin)?")
HOLE = 2048  # so many bytes of zeros in a row are no text

Check = Callable[[np.ndarray, int], None]


class RangeArray:
    """Numbers in ranges, read where they are indexed: by an integer, a slice, an array of places.

    `check(values, first)` is called with all that is read; `first` is the place of the first value.
    """

    def __init__(
        self,
        ranges: Ranges,
        dtype: np.dtype,
        offset: int,
        shape: tuple[int, ...],
        check: Check | None = None,
    ) -> None:
        self.dtype, self.shape, self.size, self.check = dtype, shape, math.prod(shape), check
        self._ranges, self._offset = ranges, offset
        self._row_bytes = dtype.itemsize * math.prod(shape[1:])

    @property
    def moved(self) -> int:
        """Bytes read so far, of these numbers and of what shares their ranges."""
        return self._ranges.moved

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            first, last, _ = key.indices(len(self))
            return self.pieces([first], [max(last - first, 0)])
        if isinstance(key, np.ndarray):
            return self.pieces(key.tolist(), [1] * len(key))
        place = int(key) + (len(self) if key < 0 else 0)
        return self.pieces([place], [1])[0]

    def pieces(self, starts: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
        """The rows from every one of `starts` on, one piece after another."""
        spans = []
        for start, length in zip(starts, lengths, strict=True):
            if start < 0 or length < 0 or start + length > len(self):
                expected, found = f"at most {len(self)}", f"{length} from {start} on"
                where = self._ranges.name
                raise DataError("has no such entries", where=where, expected=expected, found=found)
            spans.append((self._offset + start * self._row_bytes, length * self._row_bytes))
        read = read_all(self._ranges, spans)
        if self.check is not None:
            for start, data in zip(starts, read, strict=True):
                self.check(self._as_rows(data), start)
        return self._as_rows(b"".join(read))

    def _as_rows(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape[1:])


def below(bound: int | np.ndarray, where: str, what: str) -> Check:
    """A check that what is read is not negative and below a bound."""

    def check(values: np.ndarray, first: int) -> None:
        wrong = (values < 0) | (values >= bound)
        if wrong.any():
            at = int(wrong.reshape(len(values), -1).any(axis=1).argmax())
            raise DataError(
                f"{what} {first + at} is out of range",
                where=where,
                expected=f"0 or more, below {bound}",
                found=values[at],
                fix="fetch the file anew",
            )

    return check


def refuse_holes(values: np.ndarray, first: int, where: Place) -> None:
    """Raise DataError if tokens from place `first` on hold 2 * HOLE bytes of zeros in a row.

    Every such run has a block of HOLE bytes that begins at a multiple of HOLE.
    """
    raw = np.ascontiguousarray(values).view(np.uint8)
    blocks = raw[: len(raw) // HOLE * HOLE].view(np.uint64).reshape(-1, HOLE // 8)
    empty = ~blocks.any(axis=1)
    if empty.any():
        at = int(empty.argmax()) * HOLE
        start = first * values.dtype.itemsize + len(raw[:at].tobytes().rstrip(b"\0"))
        raise DataError(
            f"full of zeros from byte {start} on",
            where=where,
            expected=f"text, which has no {HOLE} bytes of zeros in a row",
            found="a hole, as a download leaves that was broken off",
            fix="fetch the file anew",
        )


class RangedStore(Store):
    """A store of which only what is asked for is read; its arrays are `RangeArray`."""

    def __init__(self, bins: Sequence[Place], idx: Place, name: Place) -> None:
        self.bin, self.idx = name, idx
        self._index = open_ranges(idx)
        self._bins = open_joined(bins, str(name))
        header = read_header(self._index.read(0, min(HEADER.size, self._index.size)), idx)
        if is_remote(idx):
            require_bytes(idx, self._index.size, header.num_bytes, "its own header")
            self._reach_index(header)
        else:
            self._map_index(Path(idx), header)
            self.num_tokens = self._check_items()
        num_bytes = self.num_tokens * self.dtype.itemsize
        require_bytes(name, self._bins.size, num_bytes, Path(str(idx)).name)
        check = partial(refuse_holes, where=str(name))
        self._tokens = RangeArray(self._bins, self.dtype, 0, (self.num_tokens,), check)
        self.flat = cast(np.ndarray, self._tokens)

    @property
    def moved(self) -> int:
        """Bytes read so far."""
        return self._index.moved + self._bins.moved

    def rows(self, start: int, stop: int) -> np.ndarray:
        rows = super().rows(start, stop)
        width, steps = rows.shape[1] * self.dtype.itemsize, np.diff(self.pointers[start:stop])
        if (steps != width).any():
            at = int((steps != width).argmax())
            raise DataError(
                f"place of item {start + 1 + at} does not follow from the last",
                where=self.idx,
                expected=f"{width} bytes further",
                found=steps[at],
                fix="fetch the file anew",
            )
        return rows

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return self._tokens.pieces(starts.tolist(), lengths.tolist()).astype(np.int64)

    def _reach_index(self, header: Header) -> None:
        """Columns that are read from the server, and the number of tokens by the last item."""
        self.dtype, size, itemsize = header.dtype, self._bins.size, header.dtype.itemsize
        checks = (
            below(size // itemsize + 1, self._index.name, "size of item"),
            below(size + 1, self._index.name, "place of item"),
            below(header.num_items + 1, self._index.name, "bound of document"),
        )
        self.sizes, self.pointers, self.documents = (
            cast(np.ndarray, RangeArray(self._index, kind, first, (count,), check))
            for (kind, first, count), check in zip(header.columns, checks, strict=True)
        )
        last = (int(self.pointers[-1]), int(self.sizes[-1])) if header.num_items else (0, 0)
        self.num_tokens = last[0] // itemsize + last[1]


def open_pair(place: Place) -> Store:
    """Open a `.bin`/`.idx` pair: mapped, or in ranges where it is in shards or remote.

    `place` is the name of either file, of any shard, or what they begin with.
    """
    bins, idx, name = located(place)
    if not is_remote(place) and Path(bins[0]) == Path(idx).with_suffix(".bin"):
        return Store(Path(idx))
    return RangedStore(bins, idx, name)


def located(place: Place) -> tuple[list[Place], Place, Place]:
    """The `.bin` files, the `.idx`, and what to call the former together."""
    words, mark, query = str(place).partition("?" if is_remote(place) else "\0")
    base = words.removesuffix(".bin").removesuffix(".idx")
    shard = SHARD.fullmatch(base)
    if shard is not None:
        base = shard[1]
        names = [f"{base}-{number:05}-of-{shard[3]}" for number in range(int(shard[3]) + 1)]
    else:
        names = [base] if is_remote(place) else _local_shards(Path(base)) or [base]
    called = base if names == [base] else f"{base}-*-of-{names[0][-5:]}"
    return (
        [f"{name}.bin{mark}{query}" for name in names],
        f"{base}.idx{mark}{query}",
        f"{called}.bin",
    )


def _local_shards(base: Path) -> list[str]:
    """The shards of a name without suffix that no whole file has; none where there are none.

    An empty last one may be missing; whatever else is, is missed by the index.
    """
    if base.with_name(base.name + ".bin").exists():
        return []
    found = {path.name for path in base.parent.glob("*-of-*.bin")}
    shards = [shard for name in sorted(found) if (shard := SHARD.fullmatch(name))]
    own = [shard for shard in shards if shard[1] == base.name]
    if [int(shard[2]) for shard in own] != list(range(len(own))):
        raise DataError(
            "shards are missing, or of several sets",
            where=base.parent,
            expected=f"{base.name}-00000-of-NNNNN.bin and those that follow it",
            found=", ".join(shard[0] for shard in own[:3]) + (", ..." if len(own) > 3 else ""),
            fix="name a shard of the set that is meant",
        )
    return [str(base.parent / shard[0].removesuffix(".bin")) for shard in own]
