"""Documents: a text with an id and a source, read from JSON Lines or folders of text files.

In: a file or a folder, read in the order of its relative paths, one document at a time. Out: the
same documents as JSON Lines. The keys `meta.pile_set_name` and `meta.source` are those of the
Pile and of its successors. Not here: which documents a suite takes (`corpus.py`).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from ontogeny.digest import digest_file, digest_json
from ontogeny.errors import DataError

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_TEXT_SUFFIXES = (
    ".txt .text .md .rst .tex .org .py .c .h .cc .cpp .hpp .go .rs .java .js .ts .rb .sh .sql .r "
    ".jl .lean .html .css .toml .yaml .yml .ini .cfg .csv .tsv"
)
PLAIN_TEXT = frozenset(_TEXT_SUFFIXES.split())
COMPRESSION_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Document:
    """A text, its id (unique in its corpus) and the source component it belongs to."""

    id: str
    text: str
    source: str


def work_of(document_id: str) -> str:
    """The work a document is a part of: its id up to the first `#`."""
    return document_id.partition("#")[0]


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a file or of all readable files under a folder, in fixed order, streamed.

    A line of JSON Lines needs `text`; `id` defaults to `<file>:<line>`, the source to the first
    folder below `path` or the file's name. A text file is one document, its id the relative path.
    Raises DataError at the first thing that cannot be read, and when there is no document at all.
    """
    seen: set[bytes] = set()
    for file, name in document_files(path):
        for document, place in _documents_in(file, name, path):
            key = hashlib.sha256(document.id.encode()).digest()[:16]
            if key in seen:
                raise DataError(
                    f"duplicate id {document.id!r}",
                    where=place,
                    expected="an id of its own for every document",
                    fix="make the ids unique, or leave them out: file and line are then used",
                )
            seen.add(key)
            yield document
    if not seen:
        raise DataError("the corpus is empty", where=path, expected="at least one document")


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write documents to a `.jsonl` or `.jsonl.zst` file and return their number."""
    with DocumentWriter(path) as writer:
        for document in documents:
            writer.write(document)
        return writer.num_documents


class DocumentWriter:
    """A `.jsonl` file being written, one document at a time; compressed if its name ends in `.zst`.

    Artifacts hold plain files: their identity must not depend on a compressor's release.
    """

    def __init__(self, path: Path) -> None:
        self.num_documents = 0
        self._file = path.open("wb")
        self._stream: Any = self._file
        if path.suffix == ".zst":
            compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
            self._stream = compressor.stream_writer(self._file)

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file, self._stream:
            pass  # ends the frame if there is one, then closes the file

    def write(self, document: Document) -> None:
        """Append one document."""
        row = {"id": document.id, "source": document.source, "text": document.text}
        self._stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.num_documents += 1


def document_files(path: Path) -> list[tuple[Path, str]]:
    """The readable files at or under `path` with their relative names, sorted by name.

    Hidden files and folders and unknown file types are passed over. Raises DataError when `path`
    is missing or nothing in it is readable.
    """
    if not path.exists():
        raise DataError("no such file or folder", where=path, expected="a corpus")
    if path.is_file():
        found = [(path, path.name)]
    else:
        under = (file for file in path.rglob("*") if file.is_file())
        named = [(file, file.relative_to(path).as_posix()) for file in under]
        found = [pair for pair in named if not any(p.startswith(".") for p in pair[1].split("/"))]
    readable = [(file, name) for file, name in found if _suffix(name)]
    if found and not readable:
        raise DataError(
            "unknown file type",
            where=found[0][0],
            expected=f"{', '.join(JSON_LINES)} or a text file such as .txt, .md or .py",
            found=found[0][0].suffix or "no suffix",
            fix="rename the file, or convert it to .jsonl with a 'text' key",
        )
    if not readable:
        raise DataError("the corpus is empty", where=path, expected="at least one document")
    return sorted(readable, key=lambda pair: pair[1])


def digest_documents(path: Path) -> str:
    """The digest of a corpus on disk: the relative names and contents of its readable files."""
    return digest_json({name: digest_file(file) for file, name in document_files(path)})


def _suffix(name: str) -> str | None:
    lower = name.lower()
    for suffix in JSON_LINES:
        if lower.endswith(suffix):
            return suffix
    suffix = Path(lower).suffix
    return suffix if suffix in PLAIN_TEXT else None


def _documents_in(file: Path, name: str, root: Path) -> Iterator[tuple[Document, str]]:
    """The documents of one file, each with its place for messages."""
    folder, _, _ = name.rpartition("/")
    suffix = _suffix(name) or ""
    stem = file.name[: -len(suffix)]
    if suffix not in JSON_LINES:
        source = folder.split("/")[0] or (stem if root.is_file() else root.resolve().name)
        yield (
            Document(name, _decode(file.read_bytes(), file, 0).removeprefix("\ufeff"), source),
            (str(file)),
        )
        return
    source = folder.split("/")[0] or stem
    offset = 0
    for number, line in enumerate(_lines(file, suffix), start=1):
        text = _decode(line, file, offset).removeprefix("\ufeff")
        offset += len(line)
        text = text.rstrip("\r\n")
        if text.strip():
            place = f"{file}:{number}"
            yield _parse(text, place, f"{name}:{number}", source), place


def _lines(file: Path, suffix: str) -> Iterator[bytes]:
    try:
        with file.open("rb") as raw, _decompressed(raw, suffix) as stream:
            yield from stream
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"cannot decompress ({error})", where=file, fix="copy or compress the file again"
        ) from error


def _decompressed(raw: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == ".jsonl.gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 20)
    if suffix == ".jsonl.zst":
        return io.BufferedReader(_ZstandardFrames(raw), 1 << 20)
    return raw


class _ZstandardFrames(io.RawIOBase):
    """Zstandard frames in a row; unlike the library's own reader, refuses one that is cut off."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain and (self._packed or self._read()):
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._plain, self._packed = self._frame.decompress(self._packed), b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._plain))
        buffer[:count], self._plain = self._plain[:count], self._plain[count:]
        return count

    def _read(self) -> bool:
        self._packed = self._file.read(1 << 14)
        if not self._packed and self._frame is not None:
            raise EOFError("the file ends inside a frame")
        return bool(self._packed)


def _decode(data: bytes, file: Path, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "not UTF-8 text",
            where=file,
            expected="UTF-8",
            found=f"byte 0x{data[error.start]:02x} at offset {offset + error.start}",
            fix=f"iconv -f LATIN1 -t UTF-8 {file.name}, with the encoding it really has",
        ) from error


def _parse(line: str, place: str, default_id: str, default_source: str) -> Document:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"broken JSON ({error.msg})", where=f"{place}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise DataError("JSON nested too deeply", where=place) from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"broken JSON ({error})", where=place) from error
    if not isinstance(row, dict):
        raise DataError(
            "not a JSON object", where=place, expected="{...}", found=type(row).__name__
        )
    meta = row.get("meta")
    labels = meta if isinstance(meta, dict) else {}
    source = row.get("source") or labels.get("pile_set_name") or labels.get("source")
    name = row.get("id")
    return Document(
        _text(default_id if name is None else _identifier(name, place), "id", place),
        _text(row.get("text"), "text", place),
        _text(source or default_source, "source", place),
    )


def _identifier(value: Any, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise DataError("'id' is not a name", where=place, expected="a string or a whole number")
    return str(value)


def _text(value: Any, key: str, place: str) -> str:
    """`value` as text that UTF-8 can hold."""
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise DataError(f"no text under {key!r}", where=place, expected="a string", found=found)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{key!r} holds half a surrogate pair",
                where=place,
                found=f"character {error.start}",
            ) from error
    return value
