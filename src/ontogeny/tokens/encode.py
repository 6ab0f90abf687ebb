"""Documents to a store of tokens: in order, by several processes, the same bytes for any number.

Empty texts are dropped and an end-of-document token is put after each document, both as in
GPT-NeoX (tools/preprocess_data.py); the latter can be left out, as Pythia's deduplicated Pile has
it. Texts go to the workers in chunks, a few at a time, so memory does not grow with the corpus.
Not here: reading documents (`ontogeny.text`), the format (`store.py`, `writer.py`).
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ontogeny.artifact import Artifact, Input, writing
from ontogeny.errors import ConfigError, DataError
from ontogeny.text.documents import Document
from ontogeny.tokens.store import IDS, SOURCE_DTYPE, SOURCES, TOKENS
from ontogeny.tokens.vocabulary import TOKENIZER, Vocabulary, load_vocabulary
from ontogeny.tokens.writer import StoreWriter, token_dtype

Eod = Literal["end", "none"]

CHUNK_DOCUMENTS = 1024  # a chunk is what a worker is given at a time
CHUNK_CHARACTERS = 1 << 20
CHUNKS_AHEAD = 3  # a worker, so that none waits


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A chunk as tokens, its documents one after another."""

    tokens: np.ndarray
    sizes: np.ndarray


@dataclass(slots=True)
class _Tally:
    """What is counted of one source."""

    code: int
    documents: int = 0
    tokens: int = 0
    bytes: int = 0


class _StoreFiles(ExitStack):
    """The files of a store artifact while they are written, and what is counted meanwhile."""

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        super().__init__()
        self.tokens = self.enter_context(StoreWriter(folder / TOKENS, dtype))
        self.ids = self.enter_context(StoreWriter(folder / IDS, np.dtype("<u1")))
        self.sources: BinaryIO = self.enter_context((folder / SOURCES).open("xb"))
        self.dtype = dtype
        self.tallies: dict[str, _Tally] = {}

    def add(self, documents: list[Document], encoded: _Encoded) -> None:
        self.tokens.add_documents(encoded.tokens, encoded.sizes)
        ids = [document.id.encode() for document in documents]
        self.ids.add_documents(
            np.frombuffer(b"".join(ids), np.uint8), np.array([len(id_) for id_ in ids])
        )
        codes = []
        for document, size in zip(documents, encoded.sizes.tolist(), strict=True):
            tally = self.tallies.setdefault(document.source, _Tally(len(self.tallies)))
            tally.documents += 1
            tally.tokens += size
            tally.bytes += len(document.text.encode())
            codes.append(tally.code)
        self.sources.write(np.array(codes, SOURCE_DTYPE).data)

    def facts(self) -> dict[str, Any]:
        return {
            "num_documents": self.tokens.num_documents,
            "num_tokens": self.tokens.num_tokens,
            "dtype": self.dtype.name,
            "sources": [
                {
                    "name": name,
                    "documents": tally.documents,
                    "tokens": tally.tokens,
                    "bytes": tally.bytes,
                }
                for name, tally in self.tallies.items()
            ],
        }


def encode(
    documents: Iterable[Document],
    vocabulary: Vocabulary,
    folder: Path,
    *,
    eod: Eod = "end",
    num_processes: int = 1,
    config: Mapping[str, Any],
    inputs: Mapping[str, Input],
) -> Artifact:
    """Encode documents, in their order, into a store artifact.

    `config` is recorded together with `eod`. A single process is this one and uses the tokenizer's
    own threads; several are spawned and use none. Sources are listed in the order first met.
    Raises ConfigError for no process; DataError for no documents, text that is not Unicode, or a
    worker that was killed.
    """
    if num_processes < 1:
        raise ConfigError("encoding needs a process", expected="1 or more", found=num_processes)
    end = vocabulary.eod if eod == "end" else None
    num_empty = 0

    def kept() -> Iterator[Document]:
        nonlocal num_empty
        for document in documents:
            if document.text:
                yield document
            else:
                num_empty += 1

    with writing(folder, "store", config={**config, "eod": eod}, inputs=inputs) as draft:
        with _StoreFiles(draft.folder, token_dtype(vocabulary.size)) as files:
            chunks = _chunks(kept())
            for chunk, encoded in _encoded(chunks, vocabulary, end, num_processes):
                files.add(chunk, encoded)
        if not files.tokens.num_documents:
            raise DataError(
                "no text to encode", expected="documents", found=f"{num_empty} empty ones"
            )
        draft.facts |= files.facts() | {"num_empty_dropped": num_empty, "eod_id": end}
        draft.facts |= {"vocabulary": vocabulary.digest, "vocabulary_size": vocabulary.size}
    return draft.artifact


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(_checked(document))
        characters += len(document.text)
        if len(chunk) == CHUNK_DOCUMENTS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _checked(document: Document) -> Document:
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "text is not Unicode",
            where=f"document {document.id}",
            found=f"half a surrogate pair at character {error.start}",
            fix="repair or remove the document",
        ) from error
    return document


def _encoded(
    chunks: Iterable[list[Document]], vocabulary: Vocabulary, end: int | None, num_processes: int
) -> Iterator[tuple[list[Document], _Encoded]]:
    """Every chunk with its tokens, in order, at most a few of them under way at a time."""
    if num_processes == 1:
        for chunk in chunks:
            yield chunk, _encode_chunk(vocabulary, end, [document.text for document in chunk])
        return
    under_way: deque[tuple[list[Document], Future[_Encoded]]] = deque()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, TOKENIZER)
        file.write_text(vocabulary.definition, encoding="utf-8")
        with _workers(num_processes) as pool:
            for chunk in chunks:
                texts = [document.text for document in chunk]
                under_way.append((chunk, pool.submit(_encode_by_file, file, end, texts)))
                if len(under_way) > CHUNKS_AHEAD * num_processes:
                    first, future = under_way.popleft()
                    yield first, future.result()
            while under_way:
                first, future = under_way.popleft()
                yield first, future.result()


@contextmanager
def _workers(num_processes: int) -> Iterator[ProcessPoolExecutor]:
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, spawn, _use_one_thread)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise DataError(
            "a worker that encodes text was killed, perhaps for lack of memory",
            fix="use fewer processes",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _use_one_thread() -> None:
    """Forbid a worker process the tokenizer's threads: the processes already share the cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


_loaded = lru_cache(maxsize=1)(load_vocabulary)  # a worker loads its vocabulary once


def _encode_by_file(file: Path, end: int | None, texts: list[str]) -> _Encoded:
    return _encode_chunk(_loaded(file), end, texts)


def _encode_chunk(vocabulary: Vocabulary, end: int | None, texts: list[str]) -> _Encoded:
    ids = vocabulary.encode_all(texts)
    if end is not None:
        for document in ids:
            document.append(end)
    sizes = np.array([len(document) for document in ids], np.int64)
    tokens = np.fromiter(chain.from_iterable(ids), np.int32, int(sizes.sum()))
    return _Encoded(tokens, sizes)
