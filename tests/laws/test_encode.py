"""Encoding: the same bytes for any number of workers, nothing lost, refusals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ontogeny.tokens.encode as encode_module
from grown import write_documents
from ontogeny.artifact import Artifact, Input, faults
from ontogeny.errors import DataError
from ontogeny.suite import VocabularySettings
from ontogeny.text.documents import Document
from ontogeny.text.shards import bundles
from ontogeny.tokens.encode import encode, encode_files
from ontogeny.tokens.store import open_store
from ontogeny.tokens.vocabulary import (
    TOKENIZER,
    Vocabulary,
    build_vocabulary,
    train_vocabulary,
)
from ontogeny.workers import Workers

WORDS = [
    "once",
    "upon",
    "a",
    "time",
    "was",
    "an",
    "owl",
    "who",
    "counted",
    "é",
    "漢字",
    "\n",
    "",
    "",
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train_vocabulary(iter([" ".join(WORDS)] * 3), 280)


def make_documents(count: int) -> list[Document]:
    random = np.random.RandomState(count)
    documents = []
    for number in range(count):
        text = " ".join(random.choice(WORDS, random.randint(0, 40)))
        documents.append(Document(f"works/é{number}", text, f"source{number % 3}"))
    return documents


def run(documents: list[Document], vocabulary: Vocabulary, folder: Path, **options: Any) -> Any:
    return encode(documents, vocabulary, folder, config={}, inputs={"text": "t"}, **options)


@pytest.mark.parametrize("eod", ["end", "none"])
def test_every_document_is_there(tmp_path: Path, vocabulary: Vocabulary, eod: Any) -> None:
    documents = make_documents(200)
    artifact = run(documents, vocabulary, tmp_path / "store", eod=eod)
    kept = [document for document in documents if document.text]
    ending = [vocabulary.eod] if eod == "end" else []
    store = open_store(artifact.path)
    assert len(store) == len(kept) < len(documents)
    for number, document in enumerate(kept):
        assert store.tokens(number).tolist() == vocabulary.encode(document.text) + ending
        assert store.document_id(number) == document.id
        assert store.source_names[store.sources[number]] == document.source
    np.testing.assert_array_equal(store.documents, np.arange(len(kept) + 1))
    check_facts(artifact.facts, documents, vocabulary, len(ending))
    assert faults(artifact) == []


def check_facts(facts: Any, documents: list[Document], vocabulary: Vocabulary, ending: int) -> None:
    kept = [document for document in documents if document.text]
    assert facts["num_empty_dropped"] == len(documents) - len(kept)
    assert facts["num_documents"] == len(kept)
    assert facts["vocabulary"] == vocabulary.digest
    assert facts["dtype"] == "uint16"
    assert facts["num_tokens"] == sum(source["tokens"] for source in facts["sources"])
    for source in facts["sources"]:
        own = [document.text for document in kept if document.source == source["name"]]
        assert source["documents"] == len(own)
        assert source["bytes"] == sum(len(text.encode()) for text in own)
        assert source["tokens"] == sum(len(vocabulary.encode(text)) + ending for text in own)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Artifact:
    """The vocabulary as an artifact, for other processes to load."""
    folder = tmp_path_factory.mktemp("vocabulary") / "vocabulary"
    (folder.parent / TOKENIZER).write_text(vocabulary.definition, encoding="utf-8")
    settings = VocabularySettings(file=TOKENIZER)
    return build_vocabulary(settings, iter(()), folder, inputs={}, base=folder.parent)


def run_files(paths: list[Path], built: Artifact, folder: Path, num_processes: int) -> Artifact:
    workers = Workers(num_processes)
    inputs: dict[str, Input] = {"text": "t"}
    return encode_files(paths, built, folder, config={}, inputs=inputs, workers=workers)


def test_files_make_the_store_of_their_documents(
    tmp_path: Path, vocabulary: Vocabulary, built: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any number of workers, cuts between files, and documents encoded at a time."""
    documents = make_documents(150)
    digests = {run(documents, vocabulary, tmp_path / "whole").digest}
    for count, cuts in ((1, (0, 150)), (2, (0, 9, 10, 80, 150)), (3, (0, 50, 100, 150))):
        paths = [tmp_path / f"{count}-{number}.jsonl.zst" for number in range(len(cuts) - 1)]
        for path, first, last in zip(paths, cuts, cuts[1:], strict=False):
            write_documents(path, documents[first:last])
        digests.add(run_files(paths, built, tmp_path / f"by{count}", count).digest)
    monkeypatch.setattr(encode_module, "CHUNK_CHARACTERS", 7 * encode_module.LEAST_CHARACTERS)
    digests.add(run(documents, vocabulary, tmp_path / "chunks").digest)
    assert len(digests) == 1
    assert not [*tmp_path.glob(".*")]  # the work folders are gone


def test_a_file_without_text_adds_nothing(
    tmp_path: Path, vocabulary: Vocabulary, built: Artifact
) -> None:
    documents = [Document("a", "owl", "s"), Document("b", "", "t"), Document("c", "time", "u")]
    paths = [tmp_path / f"{document.id}.jsonl" for document in documents]
    for path, document in zip(paths, documents, strict=True):
        write_documents(path, [document])
    store = run_files(paths, built, tmp_path / "store", 1)
    assert store.digest == run(documents, vocabulary, tmp_path / "whole").digest
    with pytest.raises(DataError, match="no text to encode; expected documents; found 1 empty"):
        run_files(paths[1:2], built, tmp_path / "none", 1)
    assert not [*tmp_path.glob(".*"), *tmp_path.glob("none")]


def chunks_of(documents: Iterable[Document]) -> Iterator[list[Document]]:
    return bundles(documents, encode_module._weight, encode_module.CHUNK_CHARACTERS)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(max_size=30), max_size=60), limit=st.integers(1, 20))
def test_chunks_keep_order_and_bound(texts: list[str], limit: int) -> None:
    documents = [Document(str(number), text, "s") for number, text in enumerate(texts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_module, "CHUNK_CHARACTERS", limit * encode_module.LEAST_CHARACTERS)
        chunks = list(chunks_of(documents))
    assert [document for chunk in chunks for document in chunk] == documents
    assert all(1 <= len(chunk) <= limit for chunk in chunks)


def test_documents_are_streamed(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """No more of them are read than are encoded at a time."""
    taken = 0

    def documents() -> Iterator[Document]:
        nonlocal taken
        for number in range(3000):
            taken += 1
            yield Document(str(number), "once upon", "s")

    chunks = chunks_of(documents())
    for number, chunk in enumerate(chunks, start=1):
        assert taken <= number * 1024
        del chunk
