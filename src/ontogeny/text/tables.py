"""Tables of documents: Parquet and Arrow files, as folders of Hugging Face datasets hold them.

In: a file. Out: its rows as far as a document needs them (`text`, and `id`, `source`, `meta` where
there are such columns), one record batch in memory at a time; of Parquet, one row group. Files are
not trusted: every batch is checked whole before a value is taken from it. An `.arrow` file is a
stream, as `save_to_disk` writes, or has the random-access form. `state.json` beside it lists the
files of a data set; others there are caches. Not here: what a row must hold (`documents.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from ontogeny.errors import DataError

TABLES = (".parquet", ".arrow")
COLUMNS = ("id", "text", "source", "meta")
BATCH_ROWS = 1024

_FILE_MAGIC = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table, counted from 1. Raises DataError for what is no table or damaged."""
    row = 0
    try:
        for batch in _batches(file):
            batch.validate(full=True)
            names = batch.schema.names
            for values in zip(*batch.columns, strict=True):
                row += 1
                cells = (value.as_py() for value in values)
                yield row, dict(zip(names, cells, strict=True))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"cannot be read after row {row} ({error})",
            where=file,
            fix="copy the file again, or write it again by another program",
        ) from error


def listed_files(folder: Path) -> frozenset[str] | None:
    """The files of a data set that was saved in this folder; None where none was.

    Raises DataError when one of them is not there.
    """
    state = folder / "state.json"
    if not state.is_file():
        return None
    try:
        listed = json.loads(state.read_bytes())["_data_files"]
        names = frozenset(str(entry["filename"]) for entry in listed)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # some other program's state
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise DataError(
            "a file of the data set is missing",
            where=folder,
            expected=f"{len(names)} files that state.json lists",
            found=f"{len(names) - len(missing)}, without {missing[0]}",
            fix="copy the folder again",
        )
    return names


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    if file.name.lower().endswith(".parquet"):
        with pa.parquet.ParquetFile(file, page_checksum_verification=True) as table:
            wanted = _wanted(table.schema_arrow, file)
            yield from table.iter_batches(BATCH_ROWS, columns=wanted)
        return
    with pa.memory_map(str(file)) as source:
        if source.read(len(_FILE_MAGIC)) == _FILE_MAGIC:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(place) for place in range(reader.num_record_batches))
        else:
            _require_end(source)
            batches = reader = pa.ipc.open_stream(source)
        wanted = _wanted(reader.schema, file)
        for batch in batches:
            batch = batch.select(wanted)
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)


def _require_end(source: pa.NativeFile) -> None:
    """Raise unless a stream says that it ends: what is cut between batches looks whole."""
    size = source.size()
    source.seek(max(size - len(_STREAM_END), 0))
    if source.read() != _STREAM_END:
        raise pa.ArrowInvalid("the end of the stream is missing")
    source.seek(0)


def _wanted(schema: pa.Schema, file: Path) -> list[str]:
    """The columns to read. Raises DataError where there is no text, or two of a name."""
    if schema.names.count("text") != 1:
        raise DataError(
            "no column 'text'",
            where=file,
            expected="one column of that name",
            found=", ".join(map(str, schema.names)) or "no column",
            fix="rename the column that holds the text",
        )
    return [name for name in COLUMNS if schema.names.count(name) == 1]
