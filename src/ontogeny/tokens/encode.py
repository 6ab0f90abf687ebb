"""Documents to a store of tokens: file by file, by any number of workers, with the same bytes.

Empty texts are dropped and an end-of-document token is put after each document, both as in
GPT-NeoX (tools/preprocess_data.py); the latter can be left out, as Pythia's deduplicated Pile has
it. A worker makes a store of a file; the stores are then joined. Texts are encoded in chunks, so
memory does not grow with them.
Not here: reading documents (`ontogeny.text`), the format (`store.py`, `writer.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ontogeny.artifact import Artifact, Draft, Input, writing
from ontogeny.errors import DataError
from ontogeny.text.documents import Document, documents_in
from ontogeny.text.shards import bundles
from ontogeny.tokens.store import IDS, SOURCE_DTYPE, SOURCES, TOKENS, DocumentStore
from ontogeny.tokens.vocabulary import TOKENIZER, Vocabulary, load_vocabulary
from ontogeny.tokens.writer import StoreWriter, token_dtype
from ontogeny.workers import Task, Workers, work_folder

Eod = Literal["end", "none"]

CHUNK_CHARACTERS = 1 << 20  # encoded at a time
LEAST_CHARACTERS = 1 << 10  # that a document counts as: so 1024 at a time are the most


class _StoreFiles(ExitStack):
    """The files of a store artifact while they are written, and what is counted meanwhile."""

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        super().__init__()
        self.tokens = self.enter_context(StoreWriter(folder / TOKENS, dtype))
        self.ids = self.enter_context(StoreWriter(folder / IDS, np.dtype("<u1")))
        self.sources: BinaryIO = self.enter_context((folder / SOURCES).open("xb"))
        self.counts: dict[str, tuple[int, dict[str, Any]]] = {}  # of a source, after its code
        self.num_empty = 0
        self.encoders: set[str] = set()

    def with_text(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents that are not empty; the others are counted."""
        for document in documents:
            if document.text:
                yield document
            else:
                self.num_empty += 1

    def add(self, documents: list[Document], tokens: np.ndarray, sizes: np.ndarray) -> None:
        """Append documents as their tokens, one after another."""
        self.tokens.add_documents(tokens, sizes)
        ids = [document.id.encode() for document in documents]
        self.ids.add_documents(
            np.frombuffer(b"".join(ids), np.uint8), np.array([len(id_) for id_ in ids])
        )
        codes = [
            self._count(one.source, 1, size, len(one.text.encode()))
            for one, size in zip(documents, sizes.tolist(), strict=True)
        ]
        self.sources.write(np.array(codes, SOURCE_DTYPE).data)

    def append(self, store: DocumentStore) -> None:
        """Append a whole store."""
        self.tokens.add_documents(store.flat, store.sizes)
        self.ids.add_documents(store.document_ids.flat, store.document_ids.sizes)
        codes = [
            self._count(source["name"], source["documents"], source["tokens"], source["bytes"])
            for source in store.artifact.facts["sources"]
        ]
        self.sources.write(np.array(codes, SOURCE_DTYPE)[store.sources].data)
        self.num_empty += store.artifact.facts["num_empty_dropped"]
        self.encoders |= {*store.artifact.provenance["encoders"]}

    def _count(self, name: str, documents: int, tokens: int, num_bytes: int) -> int:
        """Add to what is counted of a source; its code."""
        new = {"name": name, "documents": 0, "tokens": 0, "bytes": 0}
        code, counted = self.counts.setdefault(name, (len(self.counts), new))
        counted["documents"] += documents
        counted["tokens"] += tokens
        counted["bytes"] += num_bytes
        return code


def encode(
    documents: Iterable[Document],
    vocabulary: Vocabulary,
    folder: Path,
    *,
    eod: Eod = "end",
    config: Mapping[str, Any],
    inputs: Mapping[str, Input],
) -> Artifact:
    """Encode documents, in their order and in this process, into a store artifact.

    `config` is recorded together with `eod`. Sources are listed in the order first met. Of no
    documents comes an empty store.
    """
    ending = [vocabulary.eod] if eod == "end" else []
    with _store(folder, vocabulary, eod, config, inputs) as (draft, files):
        for chunk in bundles(files.with_text(documents), _weight, CHUNK_CHARACTERS):
            tokens, sizes = vocabulary.encoder.encode([document.text for document in chunk])
            for token in ending:
                tokens, sizes = np.insert(tokens, np.cumsum(sizes), token), sizes + 1
            files.add(chunk, tokens, sizes)
        files.encoders.add(vocabulary.encoder.name)
    return draft.artifact


def encode_files(
    paths: Sequence[Path],
    vocabulary: Artifact,
    folder: Path,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, Input],
    workers: Workers,
) -> Artifact:
    """Encode the documents of files, as `encode` would one file after another.

    Raises DataError for no documents.
    """
    tokenizer = vocabulary.path / TOKENIZER
    with (
        work_folder(folder, "store", {**config, "eod": "end"}, inputs) as work,
        _store(folder, _loaded(tokenizer), "end", config, inputs) as (draft, files),
    ):
        tasks = [
            Task(work / f"{number:05d}", partial(_encode_file, path=path, tokenizer=tokenizer))
            for number, path in enumerate(paths)
        ]
        for artifact in workers.do(tasks):
            files.append(DocumentStore(artifact))
        if not files.tokens.num_documents:
            found = f"{files.num_empty} empty ones"
            raise DataError("no text to encode", expected="documents", found=found)
    return draft.artifact


def _encode_file(folder: Path, path: Path, tokenizer: Path) -> Artifact:
    """The store of one file."""
    documents = (document for document, _ in documents_in(path, path.name, path))
    return encode(documents, _loaded(tokenizer), folder, config={}, inputs={})


@contextmanager
def _store(
    folder: Path,
    vocabulary: Vocabulary,
    eod: Eod,
    config: Mapping[str, Any],
    inputs: Mapping[str, Input],
) -> Iterator[tuple[Draft, _StoreFiles]]:
    """A store artifact being written."""
    by: dict[str, list[str]] = {}
    whole, dtype = {**config, "eod": eod}, token_dtype(vocabulary.size)
    end = vocabulary.eod if eod == "end" else None
    with writing(folder, "store", config=whole, inputs=inputs, provenance=by) as draft:
        with _StoreFiles(draft.folder, dtype) as files:
            yield draft, files
        by["encoders"] = sorted(files.encoders)
        draft.facts |= {
            "num_documents": files.tokens.num_documents,
            "num_tokens": files.tokens.num_tokens,
            "num_empty_dropped": files.num_empty,
            "dtype": dtype.name,
            "sources": [counted for _, counted in files.counts.values()],
            "eod_id": end,
            "vocabulary": vocabulary.digest,
            "vocabulary_size": vocabulary.size,
        }


def _weight(document: Document) -> int:
    """The characters a document counts as."""
    return max(len(document.text), LEAST_CHARACTERS)


_loaded = lru_cache(maxsize=1)(load_vocabulary)  # a worker loads its vocabulary once
