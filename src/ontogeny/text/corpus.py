"""The text stage: documents in, one `text` artifact out, with the held-out part cut off once.

Payload: numbered shards of JSON Lines of `standard`, of its deduplicated twin `deduped` (the first
of alike documents stays), and of `held-out`, the same for every member. Documents are read into
shards with a table each, their places are decided on the tables, and the corpora are written from
the shards: tasks for any number of workers, with the same bytes for any. Texts are streamed.
Not here: the rules (`places.py`), tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ontogeny.artifact import Artifact, writing
from ontogeny.errors import DataError
from ontogeny.suite import TextSettings
from ontogeny.text.alike import find_alike
from ontogeny.text.components import component_documents, component_facts, digest_components
from ontogeny.text.documents import (
    Document,
    corpus_files,
    digest_documents,
    documents_in,
    json_line,
    read_lines,
)
from ontogeny.text.near import METHOD
from ontogeny.text.places import STANDARD, Place, Tables, decide, repeated_row
from ontogeny.text.planted import planted_documents
from ontogeny.text.shards import Read, bundles, shards_of, write_lines, write_shards
from ontogeny.workers import Task, Workers, work_folder

CorpusName = Literal["standard", "deduped", "held-out"]
PLACES: dict[CorpusName, tuple[Place, ...]] = {
    "standard": STANDARD,
    "deduped": (Place.FIRST,),
    "held-out": (Place.HELD_OUT,),
}
CORPORA = tuple(PLACES)
READ = "read-"
Portion = list[tuple[Path, np.ndarray]]  # files of lines, and how often each line is taken
REMOVED = {
    "duplicate": Place.DUPLICATE,
    "near-duplicate": Place.NEAR_DUPLICATE,
    "also held out": Place.ALSO_HELD_OUT,
    "left out of the mixture": Place.LEFT_OUT,
    "empty": Place.EMPTY,
}


def text_inputs(settings: TextSettings, base: Path) -> dict[str, str]:
    """The digests that, with the settings, determine the text: of the user's files or the pins."""
    if settings.path is not None:
        return {"path": digest_documents(base / settings.path)}
    return {"components": digest_components(settings.components)}


def build_text(
    settings: TextSettings,
    folder: Path,
    *,
    cache: Path | None,
    base: Path,
    workers: Workers | None = None,
) -> Artifact:
    """Build the text artifact at `folder` from pinned components or the files at `base / path`.

    Raises DataError when nothing is left to train on or to hold out, and what the readers raise.
    """
    workers = workers or Workers()
    config, inputs = settings.resolved(), text_inputs(settings, base)
    planted, truth = planted_documents(settings.planted) if settings.planted else ([], [])
    with (
        work_folder(folder, "text", config, inputs) as work,
        writing(folder, "text", config=config, inputs=inputs) as draft,
    ):
        reads: list[Read] = [*_reads(settings, base, cache), partial(_in_order, planted)]
        shards = shards_of(workers.do(_read_tasks(reads, settings, work)))
        first_planted = sum(map(len, shards)) - len(planted)
        _require_text(first_planted > 0, settings, "corpus")
        _require_own_ids(Tables(shards), reads)
        near = None
        if settings.near_duplicates is not None:
            near = find_alike(shards, settings.near_duplicates, work, workers)
            draft.facts["near_duplicates"] = METHOD
        tables = Tables(shards, near)
        places, counts = decide(tables, first_planted, settings)
        for name in ("standard", "held-out"):
            is_there = np.isin(places[:first_planted], PLACES[name])
            _require_text(is_there.any(), settings, f"{name} part")
        for part in workers.do(_write_tasks(tables, places, counts, settings, work)):
            for suffix in part.files:
                (part.path / suffix).rename(draft.folder / f"{part.path.name}{suffix}")
        _note_documents(truth, planted, places[first_planted:])
        draft.facts |= _facts(tables, places, counts) | {
            "components": component_facts(settings.components),
            "planted": truth,
        }
    return draft.artifact


def shard_files(text: Artifact, name: CorpusName) -> list[Path]:
    """The shards of one of a text artifact's corpora, in order."""
    return [text.path / file for file in sorted(text.files) if file.startswith(f"{name}-")]


def read_corpus(text: Artifact, name: CorpusName) -> Iterator[Document]:
    """The documents of one of a text artifact's corpora, streamed."""
    for file in shard_files(text, name):
        for document, _ in documents_in(file, file.name, file):
            yield document


def _reads(settings: TextSettings, base: Path, cache: Path | None) -> list[Read]:
    """What each task reads: all pinned components, or files until they are a shard's size."""
    if settings.path is None:
        return [partial(_in_components, settings.components, cache)]
    root = base / settings.path
    files = bundles(corpus_files(root), lambda one: one[0].stat().st_size, settings.shard_bytes)
    return [partial(_in_files, some, root) for some in files]


def _in_components(shares: Mapping[str, int], cache: Path | None) -> Iterator[tuple[Document, str]]:
    return _in_order(component_documents(shares, cache))


def _in_files(files: list[tuple[Path, str]], root: Path) -> Iterator[tuple[Document, str]]:
    for file, name in files:
        yield from documents_in(file, name, root)


def _in_order(documents: list[Document]) -> Iterator[tuple[Document, str]]:
    return ((document, document.source) for document in documents)


def _read_tasks(reads: list[Read], settings: TextSettings, work: Path) -> list[Task]:
    write = partial(
        write_shards,
        normalise=settings.normalise,
        seed=settings.seed,
        shard_bytes=settings.shard_bytes,
    )
    return [
        Task(work / f"{READ}{number:05d}", partial(write, read=read))
        for number, read in enumerate(reads)
    ]


def _require_text(is_there: bool | np.bool, settings: TextSettings, what: str) -> None:
    """Raise DataError unless there is text to train on and text to hold out."""
    if not is_there:
        raise DataError(
            f"the {what} is empty",
            where=settings.path or "[text.components]",
            expected="at least two works: a file, or a line of JSON Lines, is one",
            fix="add text, split into several files or lines",
        )


def _require_own_ids(tables: Tables, reads: list[Read]) -> None:
    """Raise DataError for the first document that has the id of an earlier one."""
    row = repeated_row(tables)
    if row is None:
        return
    path = tables.shard_of(row).artifact.path
    first = [shard.artifact.path for shard in tables.shards].index(path)  # of its task
    # What the task read is read again: only the readers know places.
    read = reads[int(path.name.removeprefix(READ))]
    document, place = next(islice(read(), row - int(tables.starts[first]), None))
    raise DataError(
        f"duplicate id {document.id!r}",
        where=place,
        expected="an id of its own for every document",
        fix="make the ids unique, or leave them out: file and line are then used",
    )


def _write_tasks(
    tables: Tables, places: np.ndarray, counts: np.ndarray, settings: TextSettings, work: Path
) -> list[Task]:
    """A task for every shard of every corpus; only the standard one has documents repeatedly."""
    suffix = ".jsonl.zst" if settings.compressed else ".jsonl"
    tasks = []
    for name, of in PLACES.items():
        wanted = np.isin(places, of)
        times = counts * wanted if name == "standard" else wanted.astype(np.uint8)
        portions = _portions(tables, times, settings.shard_bytes)
        for number, portion in enumerate(portions):
            make = partial(_write_portion, portion=portion, name=suffix)
            tasks.append(Task(work / f"{name}-{number:05d}", make))
    return tasks


def _portions(tables: Tables, times: np.ndarray, num_bytes: int) -> Iterator[Portion]:
    """How often documents of consecutive shards are wanted, until it is so many bytes of text."""

    def size(shard: int) -> int:
        return int((tables.column("bytes", shard) * times[tables.rows(shard)]).sum())

    wanted = (shard for shard in range(len(tables.shards)) if times[tables.rows(shard)].any())
    for some in bundles(wanted, size, num_bytes):
        yield [(tables.shards[shard].lines, times[tables.rows(shard)]) for shard in some]


def _write_portion(folder: Path, portion: Portion, name: str) -> Artifact:
    """Write the documents of a portion as lines of one file."""
    with writing(folder, "part", config={}, inputs={}) as draft:
        lines = (
            copy
            for file, times in portion
            for line, count in zip(read_lines(file), times.tolist(), strict=True)
            for copy in _repeated(line, count)
        )
        write_lines(draft.folder / name, lines)
    return draft.artifact


def _repeated(line: bytes, count: int) -> Iterator[bytes]:
    """The line of a document so many times, from the second on under an id of its own."""
    if count:
        yield line
    if count > 1:
        document = Document(**json.loads(line))
        for copy in range(2, count + 1):
            yield json_line(replace(document, id=f"{document.id}#copy{copy}"))


def _facts(tables: Tables, places: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """How many documents and bytes went where, source by source."""
    total = np.zeros((len(Place), len(tables.source_names), 2), np.int64)
    for shard in range(len(tables.shards)):
        own, times = places[tables.rows(shard)], counts[tables.rows(shard)]
        source, size = tables.column("source", shard), tables.column("bytes", shard)
        is_first = own == Place.FIRST  # once: what is repeated then is a duplicate
        again = np.full_like(own, Place.DUPLICATE), np.where(is_first, times - 1, 0)
        for place, count in ((own, np.where(is_first, 1, times)), again):
            np.add.at(total, (place, source), np.stack((count, count * size), axis=1))
    return {
        "corpora": {
            name: _rows(tables.source_names, total[[*of]].sum(axis=0))
            for name, of in PLACES.items()
        },
        "removed": {
            reason: _rows(tables.source_names, total[place]) for reason, place in REMOVED.items()
        },
    }


def _rows(names: list[str], counts: np.ndarray) -> dict[str, Any]:
    rows = {
        name: {"documents": documents, "bytes": size}
        for name, (documents, size) in zip(names, counts.tolist(), strict=True)
        if documents
    }
    documents, size = counts.sum(axis=0).tolist()
    return {"documents": documents, "bytes": size, "sources": rows}


def _note_documents(
    truth: list[dict[str, Any]], planted: list[Document], places: np.ndarray
) -> None:
    """Add to the truth about each plant how many documents of it are in the corpora."""
    first = {planted[row].id for row in np.flatnonzero(places == Place.FIRST)}
    for fact in truth:
        num_first = len(first.intersection(fact["ids"]))
        fact["documents"] = {"standard": len(fact["ids"]), "deduped": num_first}
