"""Documents: a text with an id and a source, read from JSON Lines, tables or text files.

In: a file or a folder, read in the order of its relative paths, one document at a time. Out: the
same documents as JSON Lines. The keys `meta.pile_set_name` and `meta.source` are those of the
Pile and of its successors. Not here: the form of tables (`tables.py`), which documents a suite
takes (`corpus.py`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ontogeny.digest import digest_file, digest_json
from ontogeny.errors import DataError
from ontogeny.text.tables import TABLES, listed_files, read_rows

JSON_LINES = {".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}  # and their compression
_TEXT_SUFFIXES = (
    ".txt .text .md .rst .tex .org .py .c .h .cc .cpp .hpp .go .rs .java .js .ts .rb .sh .sql .r "
    ".jl .lean .html .css .toml .yaml .yml .ini .cfg .csv .tsv"
)
SUFFIXES = (*JSON_LINES, *TABLES, *_TEXT_SUFFIXES.split())


@dataclass(frozen=True, slots=True)
class Document:
    """A text, its id (unique in its corpus) and the source component it belongs to."""

    id: str
    text: str
    source: str


def work_of(document_id: str) -> str:
    """The work a document is a part of: its id up to the first `#`."""
    return document_id.partition("#")[0]


def json_line(document: Document) -> bytes:
    """A document as a line of JSON Lines."""
    row = {"id": document.id, "source": document.source, "text": document.text}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def digest_documents(path: Path) -> str:
    """The digest of a corpus on disk: the relative names and contents of its readable files."""
    return digest_json({name: digest_file(file) for file, name in corpus_files(path)})


def corpus_files(path: Path) -> list[tuple[Path, str]]:
    """The readable files at or under `path` with their relative names, sorted by name.

    Hidden files and folders, unknown file types and the caches of a saved data set are passed
    over. Raises DataError when `path` is missing or nothing in it is readable.
    """
    if not path.exists():
        raise DataError("no such file or folder", where=path, expected="a corpus")
    if path.is_file():
        found = [(path, path.name)]
    else:
        under = (file for file in path.rglob("*") if file.is_file())
        named = [(file, file.relative_to(path).as_posix()) for file in under]
        found = [(file, name) for file, name in named if "/." not in f"/{name}"]
    readable = [(file, name) for file, name in found if name.lower().endswith(SUFFIXES)]
    if found and not readable:
        raise DataError(
            "unknown file type",
            where=found[0][0],
            expected=f"{', '.join((*JSON_LINES, *TABLES))} or a text file such as .txt, .md or .py",
            found=found[0][0].suffix or "no suffix",
            fix="rename the file, or convert it to .jsonl with a 'text' key",
        )
    if not path.is_file():
        readable = _without_caches(readable)
    return sorted(readable, key=lambda pair: pair[1])


def documents_in(file: Path, name: str, root: Path) -> Iterator[tuple[Document, str]]:
    """The documents of one file of the corpus at `root`, each with its place for messages.

    A line of JSON Lines or a row of a table needs `text`; `id` defaults to `<name>:<line>`, the
    source to the first folder below `root`, else to the name of the file of JSON Lines, else to
    that of `root`. A text file is one document, its id the name. A function of the file, its
    relative name and that of the corpus alone. Raises DataError at what cannot be read.
    """
    suffix = next(suffix for suffix in SUFFIXES if name.lower().endswith(suffix))
    source, slash, _ = name.partition("/")
    if not slash:
        is_whole = root.is_file() or suffix in JSON_LINES
        source = name[: -len(suffix)] if is_whole else root.resolve().name
    if suffix in JSON_LINES:
        rows = _lines_of(file, suffix)
    elif suffix in TABLES:
        rows = ((number, f"{file}, row {number}", row) for number, row in read_rows(file))
    else:
        yield Document(name, _decode(file.read_bytes(), file, 0), source), str(file)
        return
    for number, place, row in rows:
        yield _document(row, place, f"{name}:{number}", source), place


def read_lines(file: Path, compression: str | None = "detect") -> Iterator[bytes]:
    """The lines of a file, decompressed as its name says or as told.

    Raises DataError for a damaged one.
    """
    try:
        with pa.input_stream(file, compression) as stream:
            yield from io.BufferedReader(stream, 1 << 20)
    except OSError as error:
        raise DataError(
            f"cannot be read ({error})", where=file, fix="copy or compress the file again"
        ) from error


def _without_caches(files: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Of the Arrow files in the folder of a saved data set, those it consists of."""
    tables = {file for file, _ in files if file.name.lower().endswith(".arrow")}
    listed = {folder: listed_files(folder) for folder in {file.parent for file in tables}}
    return [
        (file, name)
        for file, name in files
        if file not in tables or (names := listed[file.parent]) is None or file.name in names
    ]


def _lines_of(file: Path, suffix: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The rows of a file of JSON Lines, with their number and place; empty lines are none."""
    offset = 0
    for number, line in enumerate(read_lines(file, JSON_LINES[suffix]), start=1):
        text = _decode(line, file, offset).rstrip()
        offset += len(line)
        if text:
            place = f"{file}:{number}"
            yield number, place, _parse(text, place)


def _decode(data: bytes, file: Path, offset: int) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            "not UTF-8 text",
            where=file,
            expected="UTF-8",
            found=f"byte 0x{data[error.start]:02x} at offset {offset + error.start}",
            fix=f"iconv -f LATIN1 -t UTF-8 {file.name}, with the encoding it really has",
        ) from error


def _parse(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"broken JSON ({error.msg})", where=f"{place}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or too deep
        raise DataError(f"broken JSON ({error})", where=place) from error
    if not isinstance(row, dict):
        raise DataError(
            "not a JSON object", where=place, expected="{...}", found=type(row).__name__
        )
    return row


def _document(row: Mapping[str, Any], place: str, default_id: str, default_source: str) -> Document:
    meta = row.get("meta")
    labels = meta if isinstance(meta, dict) else {}
    source = row.get("source") or labels.get("pile_set_name") or labels.get("source")
    name = row.get("id")
    if name is None:
        name = default_id
    elif type(name) is int:  # and no bool
        name = str(name)
    return Document(
        _text(name, "id", place),
        _text(row.get("text"), "text", place),
        _text(source or default_source, "source", place),
    )


def _text(value: Any, key: str, place: str) -> str:
    """`value` as text that UTF-8 can hold."""
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise DataError(f"no text under {key!r}", where=place, expected="a string", found=found)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{key!r} holds half a surrogate pair", where=place, found=f"character {error.start}"
        ) from error
    return value
