"""How fast a core prepares text, stage by stage, in how much memory, and hours for 825 GB from it.

`python benchmarks/prepare.py [--megabytes 64] [--corpus PATH] [--vocabulary TOKENIZER_JSON]`: the
text is the Python source of the running installation where no corpus is given, and the vocabulary
one of 8192 ids trained on a part of it. Stages of one process and one thread are timed one by one,
best of three; then everything by one worker and by two, which must make the same bytes. What is
decided about all documents at once is timed on random tables, in as many passes as 825 GB take.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import sysconfig
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from ontogeny.artifact import Artifact, writing
from ontogeny.digest import digest_file
from ontogeny.suite import TextSettings, VocabularySettings
from ontogeny.text.corpus import CORPORA, build_text, shard_files
from ontogeny.text.dedup import text_digest
from ontogeny.text.documents import Document, documents_in, json_line, read_lines
from ontogeny.text.near import SIGNATURE, first_alike, signatures
from ontogeny.text.normalise import NORMALISATIONS
from ontogeny.text.places import Tables, decide
from ontogeny.text.shards import COLUMNS, Shard, write_lines, write_shards
from ontogeny.tokens.encode import _StoreFiles, encode, encode_files
from ontogeny.tokens.store import DocumentStore
from ontogeny.tokens.vocabulary import build_vocabulary, open_vocabulary
from ontogeny.workers import Workers

PILE_BYTES = 825e9
PILE_DOCUMENT = 5.91 * 1024  # mean bytes of a document: Gao et al. 2020, table 1
PILE_FILES = 30  # each is read by one task
PASSES = 32  # over the tables of the Pile, whose rows are sorted 2**23 at a time
ROUNDS = 3
ROWS, SIGNED = 2_000_000, 200_000  # of the random tables
SHARD = 1 << 22
NODES = (1, 8, 32)

READ, PARSE, NORMALISE, EXACT = "read", "  of it: parse", "  normalise (clean-1)", "  digests"
NEAR, WRITE, PLAIN, ENCODE = "near-duplicates: sign", "cut and mix, write", "  plain", "encode"
JOIN, HASH, PLACES, CLUSTERS = "join stores", "digest what was made", "places", "clusters"
MOST_TASKS = {READ: PILE_FILES} | dict.fromkeys((JOIN, HASH, PLACES, CLUSTERS), 1)  # at a time


def sources(megabytes: int) -> Iterator[Document]:
    """Python files, each text once."""
    left, seen = megabytes * 1_000_000, set()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if text and text not in seen:
            seen.add(text)
            yield Document(path.as_posix(), text, path.parts[-2])
            left -= len(text.encode())
        if left <= 0:
            return


def best(work: Callable[[Path], object], scratch: Path) -> float:
    """The least seconds of several rounds, each in a new place."""
    seconds = []
    for _ in range(ROUNDS):
        place = Path(tempfile.mkdtemp(dir=scratch)) / "made"
        began = time.perf_counter()
        work(place)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def random_shard(folder: Path, rows: int) -> Shard:
    """A table of documents of random texts, each a work of its own."""
    random = np.random.RandomState(0)
    with writing(folder, "shards", config={}, inputs={}) as draft:
        with (draft.folder / "00000.table").open("wb") as file:
            for name, kind in COLUMNS.items():
                high = {"source": 22, "bytes": 2 * PILE_DOCUMENT}.get(name, 2**64)
                shape = rows if name in ("source", "bytes") else (rows, 2)
                drawn = random.randint(0, int(high), shape, np.uint64)
                file.write(drawn.astype(kind.removeprefix("2")).tobytes())
        names = [f"source {number}" for number in range(22)]
        draft.facts |= {"num_shards": 1, "sources": names}
    return Shard(draft.artifact, 0)


def stage_seconds(file: Path, vocabulary: Artifact, scratch: Path) -> dict[str, float]:
    """Seconds of every stage for the documents of a file, by one process and one thread."""
    read = partial(documents_in, file, file.name, file)
    documents = [document for document, _ in read()]
    lines = scratch / "lines.jsonl.zst"
    write_lines(lines, map(json_line, documents))
    texts, clean = [document.text for document in documents], NORMALISATIONS["clean-1"]
    some = [texts[at : at + 256] for at in range(0, len(texts), 256)]
    known = open_vocabulary(vocabulary.path)
    store = DocumentStore(encode(documents, known, scratch / "store", config={}, inputs={}))
    work: dict[str, Callable[[Path], object]] = {
        PARSE: lambda _: deque(read(), maxlen=0),
        NORMALISE: lambda _: [clean(text) for text in texts],
        EXACT: lambda _: [text_digest(text) for text in texts],
        READ: lambda place: write_shards(
            place, read, normalise="clean-1", seed=0, shard_bytes=1 << 27
        ),
        NEAR: lambda _: [signatures(batch) for batch in some],
        WRITE: lambda place: write_lines(place.with_suffix(".jsonl.zst"), read_lines(lines)),
        PLAIN: lambda place: write_lines(place.with_suffix(".jsonl"), read_lines(lines)),
        ENCODE: lambda place: encode(documents, known, place, config={}, inputs={}),
        JOIN: lambda place: join(store, place),
        HASH: lambda _: [digest_file(path) for path in (lines, Path(store.bin), Path(store.idx))],
    }
    return {name: best(one, scratch) for name, one in work.items()}


def join(store: DocumentStore, place: Path) -> None:
    """Append a store to an empty one."""
    place.mkdir()
    with _StoreFiles(place, store.dtype) as files:
        files.append(store)


def global_seconds(scratch: Path) -> dict[str, float]:
    """Seconds a document of what one process decides about all of them, and its memory."""
    tables = Tables([random_shard(scratch / "table", ROWS)], None, ROWS // PASSES)
    settings = TextSettings(path="x", held_out=0.001)
    table = np.random.RandomState(0).randint(0, 2**32, (SIGNED, SIGNATURE), np.uint32)
    table[1::10] = table[::10]
    return {
        PLACES: best(lambda _: decide(tables, ROWS, settings), scratch) / ROWS,
        CLUSTERS: best(lambda _: first_alike(table, 0.87), scratch) / SIGNED,
    }


def prepare(file: Path, vocabulary: Artifact, folder: Path, workers: Workers) -> list[str]:
    """Text and stores; their digests."""
    settings = TextSettings(
        path=file.name, held_out=0.01, near_duplicates=0.87, shard_bytes=SHARD, compressed=True
    )
    text = build_text(settings, folder / "text", cache=None, base=file.parent, workers=workers)
    made = [text]
    for name in CORPORA:
        files, inputs = shard_files(text, name), {"text": text}
        place = folder / name
        made.append(
            encode_files(files, vocabulary, place, config={}, inputs=inputs, workers=workers)
        )
    return [artifact.digest for artifact in made]


def print_whole(file: Path, vocabulary: Artifact, scratch: Path, megabytes: float) -> None:
    """Everything by one worker and by two, from a process of its own."""
    made = []
    for count in (1, 2):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            work = pool.submit(timed, file, vocabulary, scratch / str(count), Workers(count))
            digests, seconds, peak = work.result()
        made.append(digests)
        told = f"{seconds:.1f} s, {megabytes / seconds:.1f} MB/s, {peak:.0f} MB at most in this one"
        print(f"all of it by {count} process(es): {told}")
    assert made[0] == made[1], "bytes differ with the number of workers"


def timed(
    file: Path, vocabulary: Artifact, folder: Path, workers: Workers
) -> tuple[list[str], float, float]:
    """The digests, the seconds, and the peak memory of this process in MB."""
    began = time.perf_counter()
    digests = prepare(file, vocabulary, folder, workers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return digests, time.perf_counter() - began, peak


def print_plan(seconds: dict[str, float], documents: dict[str, float], megabytes: float) -> None:
    """Hours for 825 GB: both corpora, as if nothing were a duplicate."""
    hours = {name: times * seconds[name] / megabytes * PILE_BYTES / 1e6 / 3600 for name, times in
             ((READ, 1), (NEAR, 1), (WRITE, 2), (ENCODE, 2), (JOIN, 2), (HASH, 2))}  # fmt: skip
    num_documents = PILE_BYTES / PILE_DOCUMENT
    hours |= {name: one * num_documents / 3600 for name, one in documents.items()}
    print(f"\n825 GB, {num_documents / 1e6:.0f} M documents: hours on nodes of 64 cores")
    print(f"{'':28}{'core-hours':>12}" + "".join(f"{f'{nodes} x 64':>9}" for nodes in NODES))
    totals = dict.fromkeys(NODES, 0.0)
    for name, alone in hours.items():
        line = f"{name.strip():28}{alone:12.2f}"
        for nodes in NODES:
            own = alone / min(nodes * 64, MOST_TASKS.get(name, nodes * 64))
            totals[nodes] += own
            line += f"{own:9.2f}"
        most = MOST_TASKS.get(name)
        print(line + (f"  by at most {most}" if most else ""))
    print(f"{'all':40}" + "".join(f"{total:9.2f}" for total in totals.values()))


def corpus_file(given: Path | None, megabytes: int, scratch: Path) -> Path:
    """A file of JSON Lines: the one that is given, or Python files."""
    if given is not None:
        return given.resolve()
    file = scratch / "corpus" / "python.jsonl.zst"
    file.parent.mkdir()
    write_lines(file, map(json_line, sources(megabytes)))
    return file


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--vocabulary", type=Path)
    asked = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of one thread, as in a worker
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        file = corpus_file(asked.corpus, asked.megabytes, scratch)
        texts = [document.text for document, _ in documents_in(file, file.name, file)]
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        settings = VocabularySettings(size=8192)
        if asked.vocabulary is not None:
            settings = VocabularySettings(file=str(asked.vocabulary.resolve()))
        place = scratch / "vocabulary"
        vocabulary = build_vocabulary(settings, iter(texts[::8]), place, inputs={}, base=scratch)
        print(f"{len(texts)} documents, {megabytes:.1f} MB of text")
        print(f"encoder: {open_vocabulary(place).encoder.name}")
        del texts
        print_whole(file, vocabulary, scratch, megabytes)
        seconds = stage_seconds(file, vocabulary, scratch)
        print(f"\n{'one core':28}{'MB/s of text':>12}")
        for stage, own in seconds.items():
            print(f"{stage:28}{megabytes / own:12.1f}")
        documents = global_seconds(scratch)
        for stage, own in documents.items():
            print(f"{stage:28}{1e-6 / own:12.2f} M documents/s")
        print_plan(seconds, documents, megabytes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
