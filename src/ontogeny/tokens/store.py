"""The store: documents as token ids, memory-mapped; the `.bin`/`.idx` files of GPT-NeoX.

`.bin` holds the tokens of all items back to back; `.idx` their type, the items' sizes and byte
offsets, and where documents end (an item is what the order shuffles, nearly always one document).
The bytes are those of gpt-neox v1.0, megatron/data/indexed_dataset.py. A store artifact adds each
document's id (in the same format: a store of bytes) and source. Not here: writing
(`writer.py`), making tokens of text (`encode.py`), shards and servers (`ranged.py`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ontogeny.artifact import Artifact, open_artifact
from ontogeny.errors import DataError
from ontogeny.ranges import Place

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")  # magic, version, type of token, items, document bounds
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats
BLOCK = 1 << 20  # items checked together

TOKENS = "tokens"  # the files of a store artifact
IDS = "ids"
SOURCES = "sources.bin"
SOURCE_DTYPE = "<u2"


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of an index say: the type of token, items, document bounds."""

    dtype: np.dtype
    num_items: int
    num_bounds: int

    @property
    def columns(self) -> tuple[tuple[np.dtype, int, int], ...]:
        """Of sizes, pointers and documents the type, where they begin in bytes, how many."""
        small, large, first, count = np.dtype("<i4"), np.dtype("<i8"), HEADER.size, self.num_items
        return (
            (small, first, count),
            (large, first + 4 * count, count),
            (large, first + 12 * count, self.num_bounds),
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole index."""
        return HEADER.size + 12 * self.num_items + 8 * self.num_bounds


def read_header(raw: bytes, where: Place) -> Header:
    """The header of an index from its first bytes. Raises DataError for anything else."""
    if len(raw) < HEADER.size or not raw.startswith(MAGIC):
        raise DataError(
            "not the index of a store",
            where=where,
            expected=f"a file that begins with {MAGIC!r}",
            found=repr(raw[: len(MAGIC)]),
        )
    _, version, code, num_items, num_bounds = HEADER.unpack(raw)
    if version != VERSION:
        raise DataError("unknown version of index", where=where, expected=VERSION, found=version)
    if code not in DTYPES:
        raise DataError(
            "unknown type of token", where=where, expected=f"one of {[*DTYPES]}", found=code
        )
    return Header(np.dtype(DTYPES[code]), num_items, num_bounds)


class Store:
    """The items of one `.bin`/`.idx` pair, read in place.

    `sizes` [n] int32 in tokens, `pointers` [n] int64 in bytes, `documents` [d + 1] int64: document
    j is the items documents[j] to documents[j + 1]. `flat` is all tokens in a row.
    `path` may carry either suffix or none. Opening checks that the two files agree, and raises
    DataError saying what does not and by how much.
    """

    bin: Place
    idx: Place

    def __init__(self, path: Path) -> None:
        self.bin, self.idx = bin_path, idx_path = paired(path)
        for file in (idx_path, bin_path):
            if not file.is_file():
                raise DataError("no such file", where=file, expected="both halves of a store")
        with idx_path.open("rb") as opened:
            self._map_index(idx_path, read_header(opened.read(HEADER.size), idx_path))
        self.num_tokens = self._check_items()
        check_bytes(bin_path, self.num_tokens * self.dtype.itemsize, idx_path.name)
        self.flat = _map(bin_path, self.dtype, 0, self.num_tokens)

    def __len__(self) -> int:
        return len(self.sizes)

    def tokens(self, item: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """`length` tokens (by default the rest) of an item from `offset` on: a read-only view.

        A negative `item` counts from the end. Raises DataError for what the store does not hold.
        """
        if not -len(self) <= item < len(self):
            raise DataError(
                "no such item", where=self.idx, expected=f"less than {len(self)}", found=item
            )
        size = int(self.sizes[item])
        length = size - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > size:
            raise DataError(
                f"item {item} has no such part",
                where=self.idx,
                expected=f"at most {size} tokens",
                found=f"{length} tokens from {offset} on",
            )
        start = int(self.pointers[item]) // self.dtype.itemsize + offset
        return self.flat[start : start + length]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Items `start` to `stop` of one common size W as a read-only view [stop - start, W].

        The preshuffled files of Pythia are read so: their items are the windows in training order.
        """
        widths = np.unique(self.sizes[start:stop] if stop > start else self.sizes[:1])
        if len(widths) != 1:
            raise DataError(
                "items differ in size, so they are no rows",
                where=self.idx,
                found=f"{len(widths)} sizes among items {start} to {stop}",
            )
        width = int(widths[0])
        first = int(self.pointers[start]) // self.dtype.itemsize if stop > start else 0
        return self.flat[first : first + (stop - start) * width].reshape(stop - start, width)

    def starts(self, items: np.ndarray | slice) -> np.ndarray:
        """Where items start in the whole of the tokens, int64 [items]."""
        starts: np.ndarray = self.pointers[items] // self.dtype.itemsize
        return starts

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The pieces of the whole from `starts` on, one after another: int64 [sum of lengths]."""
        ends = np.cumsum(lengths)
        tokens = np.empty(int(ends[-1]) if len(ends) else 0, np.int64)
        pieces = zip(starts.tolist(), lengths.tolist(), ends.tolist(), strict=True)
        flat = self.flat
        for start, length, end in pieces:
            tokens[end - length : end] = flat[start : start + length]
        return tokens

    def _map_index(self, path: Path, header: Header) -> None:
        """Map the three columns of an index and check what one look at the bounds can."""
        check_bytes(path, header.num_bytes, "its own header")
        self.dtype = header.dtype
        self.sizes, self.pointers, self.documents = (_map(path, *one) for one in header.columns)
        self._check_documents()

    def _check_items(self) -> int:
        """Check that the items follow each other without a gap; the number of tokens."""
        total = 0
        for first in range(0, len(self), BLOCK):
            sizes = self.sizes[first : first + BLOCK].astype(np.int64)
            ends = total + np.cumsum(sizes)
            expected = (ends - sizes) * self.dtype.itemsize
            wrong = (sizes < 0) | (self.pointers[first : first + BLOCK] != expected)
            if wrong.any():
                at = int(wrong.argmax())
                raise DataError(
                    f"size and place of item {first + at} do not follow from those before it",
                    where=self.idx,
                    expected=f"byte {expected[at]} and a size of 0 or more",
                    found=f"byte {self.pointers[first + at]} and size {sizes[at]}",
                )
            total = int(ends[-1])
        return total

    def _check_documents(self) -> None:
        bounds = self.documents
        ends = f"0 to {len(self)}"
        if not len(bounds) or bounds[0] != 0 or bounds[-1] != len(self):
            found = f"{bounds[0]} to {bounds[-1]}" if len(bounds) else "no bounds"
            raise DataError(
                "document bounds do not span the items", where=self.idx, expected=ends, found=found
            )
        falls = bounds[1:] < bounds[:-1]
        if falls.any():
            at = int(falls.argmax())
            raise DataError(
                f"document {at} ends before it begins",
                where=self.idx,
                expected=f"item {bounds[at]} or later",
                found=int(bounds[at + 1]),
            )


class DocumentStore(Store):
    """The store of an artifact: one item a document, each with an id and a source."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact.path / TOKENS)
        self.artifact = artifact
        self.digest = artifact.digest
        self.source_names = [str(source["name"]) for source in artifact.facts["sources"]]

    @cached_property
    def document_ids(self) -> Store:
        """The documents' ids: item j holds the UTF-8 bytes of the id of document j."""
        return Store(self.artifact.path / IDS)

    def document_id(self, document: int) -> str:
        return self.document_ids.tokens(document).tobytes().decode()

    def documents_called(self, id_: str) -> list[int]:
        """The numbers of the documents of an id."""
        ids, wanted = self.document_ids, id_.encode()
        alike = np.flatnonzero(ids.sizes == len(wanted)).tolist()
        return [one for one in alike if ids.tokens(one).tobytes() == wanted]

    @cached_property
    def sources(self) -> np.ndarray:
        """For every document the place of its source in `source_names`, uint16."""
        path = self.artifact.path / SOURCES
        dtype = np.dtype(SOURCE_DTYPE)
        check_bytes(path, len(self) * dtype.itemsize, Path(self.idx).name)
        return _map(path, dtype, 0, len(self))


def open_store(path: Path) -> DocumentStore:
    """Open a store artifact; the digests of its files are checked by `verify`, not here."""
    return DocumentStore(open_artifact(path, "store"))


def paired(path: Path) -> tuple[Path, Path]:
    """The `.bin` and `.idx` files of a store named with either suffix or none."""
    stem = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    return stem.with_name(stem.name + ".bin"), stem.with_name(stem.name + ".idx")


def _map(path: Path, dtype: np.dtype, offset: int, length: int) -> np.ndarray:
    """A read-only plain array over a file: slicing an `np.memmap` costs several times as much."""
    if length == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", offset, (length,)).view(np.ndarray)


def check_bytes(path: Path, expected: int, according_to: str) -> None:
    """Raise DataError unless a file (none at all being empty) has `expected` bytes."""
    require_bytes(path, path.stat().st_size if path.is_file() else 0, expected, according_to)


def require_bytes(where: Place, found: int, expected: int, according_to: str) -> None:
    """Raise DataError unless as many bytes were found as expected."""
    if found != expected:
        raise DataError(
            f"disagrees with {according_to} by {abs(found - expected)} bytes",
            where=where,
            expected=f"{expected} bytes",
            found=f"{found} bytes",
            fix="make the store again or fetch both files anew",
        )
