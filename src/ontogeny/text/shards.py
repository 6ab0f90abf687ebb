"""Shards: the documents of an input, a part at a time, each part with a table of its documents.

In: something to read documents from. Out: an artifact of numbered shards, cut where the input and
nothing else says, JSON Lines of the documents beside a table of a few numbers a document. What is
decided about all documents at once (`places.py`) is decided on the tables. Keys are the first 16
bytes of digests, as two numbers. Not here: what becomes of a document (`corpus.py`).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from ontogeny.artifact import Artifact, writing
from ontogeny.errors import DataError
from ontogeny.suite import Normalisation
from ontogeny.text.dedup import text_digest
from ontogeny.text.documents import Document, json_line, work_of
from ontogeny.text.normalise import NORMALISATIONS

TABLE = ".table"
LINES = ".jsonl.zst"
# What a table holds of every document, column by column: the keys of its id, of its text, and of
# its work under the suite's seed; its source, as a place in the shard's list; its bytes of text.
COLUMNS = {"id": "2<u8", "text": "2<u8", "work": "2<u8", "source": "<u2", "bytes": "<i8"}
ROW_BYTES = sum(np.dtype(kind).itemsize for kind in COLUMNS.values())
MOST_SOURCES = 1 << 16  # that tables, and stores after them, can tell apart
BLOCK = 1 << 20  # bytes of lines written together

Item = TypeVar("Item")
Read = Callable[[], Iterable[tuple[Document, str]]]  # documents, each with its place for messages


@dataclass(frozen=True, slots=True)
class Shard:
    """Documents of a `shards` artifact that were written together."""

    artifact: Artifact
    number: int

    @property
    def sources(self) -> list[str]:
        return list(self.artifact.facts["sources"])

    @property
    def lines(self) -> Path:
        return self._file(LINES)

    def __len__(self) -> int:
        return int(self.artifact.files[self._file(TABLE).name]["bytes"]) // ROW_BYTES

    def column(self, name: str) -> np.ndarray:
        """A column of the table, mapped: [documents], or [documents, 2] for keys."""
        kinds = [*COLUMNS.values()][: [*COLUMNS].index(name)]
        before = sum(np.dtype(kind).itemsize for kind in kinds)
        path, shape = self._file(TABLE), (len(self),)
        return np.memmap(path, np.dtype(COLUMNS[name]), "r", before * len(self), shape)

    def _file(self, suffix: str) -> Path:
        return self.artifact.path / f"{self.number:05d}{suffix}"


def bundles(
    items: Iterable[Item], size: Callable[[Item], int], enough: int
) -> Iterator[list[Item]]:
    """Consecutive items together, each time as many as it takes to be large enough."""
    bundle: list[Item] = []
    total = 0
    for item in items:
        bundle.append(item)
        total += size(item)
        if total >= enough:
            yield bundle
            bundle, total = [], 0
    if bundle:
        yield bundle


def shards_of(artifacts: Iterable[Artifact]) -> list[Shard]:
    """The shards of several artifacts, in order."""
    return [
        Shard(artifact, number)
        for artifact in artifacts
        for number in range(artifact.facts["num_shards"])
    ]


def key_of(data: str) -> bytes:
    """The key of a name."""
    return hashlib.sha256(data.encode()).digest()[:16]


def work_key(seed: int, document: Document) -> bytes:
    """The key of a document's work, which says when its turn comes to be held out."""
    return key_of("\0".join((str(seed), document.source, work_of(document.id))))


def as_keys(digests: bytes) -> np.ndarray:
    """Digests one after another as numbers that sort as they do, [n, 2]."""
    return np.frombuffer(digests, ">u8").astype("<u8").reshape(-1, 2)


def write_shards(
    folder: Path, read: Read, *, normalise: Normalisation, seed: int, shard_bytes: int
) -> Artifact:
    """Write what `read` gives, normalised, as shards of about so many bytes of text."""
    config = {"normalise": normalise, "seed": seed, "shard_bytes": shard_bytes}
    clean = NORMALISATIONS[normalise]
    sources: dict[str, int] = {}
    num_shards = 0
    with writing(folder, "shards", config=config, inputs={}) as draft:
        cleaned = (Document(one.id, clean(one.text), one.source) for one, _ in read())
        documents = _numbered(cleaned, shard_bytes)
        for num_shards, (_, run) in enumerate(groupby(documents, itemgetter(0)), start=1):
            stem, table = draft.folder / f"{num_shards - 1:05d}", _Table(seed, sources)
            write_lines(stem.with_suffix(LINES), (table.noted(document) for _, document in run))
            table.write(stem.with_suffix(TABLE))
        draft.facts |= {"num_shards": num_shards, "sources": list(sources)}
    return draft.artifact


def require_few(sources: Collection[str]) -> None:
    """Raise DataError unless there are as few sources as tables can tell apart."""
    if len(sources) > MOST_SOURCES:
        raise DataError(
            "too many sources: they are the kinds of text a corpus is made of",
            where=f"source {max(sources)!r}",
            expected=f"at most {MOST_SOURCES}",
            found=len(sources),
            fix="leave 'source' and 'meta' out, or name what belongs together alike",
        )


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write lines, compressed if the name ends in `.zst`, in blocks: a call a line costs more."""
    with pa.output_stream(path) as stream, io.BufferedWriter(stream, BLOCK) as file:
        file.writelines(lines)


def _numbered(documents: Iterable[Document], num_bytes: int) -> Iterator[tuple[int, Document]]:
    """Documents with the number of the run of so many bytes they begin in."""
    before = 0
    for document in documents:
        yield before // num_bytes, document
        before += len(document.text.encode())


@dataclass(slots=True)
class _Table:
    """The table of a shard while its documents go by."""

    seed: int
    sources: dict[str, int]
    keys: dict[str, bytearray] = field(
        default_factory=lambda: {name: bytearray() for name in ("id", "text", "work")}
    )
    codes: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def noted(self, document: Document) -> bytes:
        """The line of a document, which is now in the table."""
        self.keys["id"] += key_of(document.id)
        self.keys["text"] += text_digest(document.text)
        self.keys["work"] += work_key(self.seed, document)
        self.codes.append(self.sources.setdefault(document.source, len(self.sources)))
        self.sizes.append(len(document.text.encode()))
        return json_line(document)

    def write(self, path: Path) -> None:
        require_few(self.sources)
        with path.open("xb") as file:
            for digests in self.keys.values():
                file.write(as_keys(bytes(digests)).tobytes())
            file.write(np.array(self.codes, COLUMNS["source"]).tobytes())
            file.write(np.array(self.sizes, COLUMNS["bytes"]).tobytes())
