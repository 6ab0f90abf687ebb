"""Encoding: the same bytes for any number of processes, nothing lost, refusals."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ontogeny.tokens.encode as encode_module
from ontogeny.artifact import faults
from ontogeny.errors import ConfigError, DataError
from ontogeny.text.documents import Document
from ontogeny.tokens.encode import encode
from ontogeny.tokens.store import open_store
from ontogeny.tokens.vocabulary import Vocabulary, train_vocabulary

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


def test_same_bytes_for_any_number_of_processes(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_module, "CHUNK_DOCUMENTS", 7)  # many chunks under way
    documents = make_documents(150)
    digests = {
        run(documents, vocabulary, tmp_path / f"by{count}", num_processes=count).digest
        for count in (1, 2, 3)
    }
    monkeypatch.setattr(encode_module, "CHUNK_DOCUMENTS", 64)  # nor does their size show
    digests.add(run(documents, vocabulary, tmp_path / "chunks").digest)
    assert len(digests) == 1


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(max_size=30), max_size=60), limit=st.integers(1, 20))
def test_chunks_keep_order_and_bound(texts: list[str], limit: int) -> None:
    documents = [Document(str(number), text, "s") for number, text in enumerate(texts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_module, "CHUNK_DOCUMENTS", limit)
        chunks = list(encode_module._chunks(documents))
    assert [document for chunk in chunks for document in chunk] == documents
    assert all(1 <= len(chunk) <= limit for chunk in chunks)


def test_documents_are_streamed(vocabulary: Vocabulary) -> None:
    """With workers, only so many chunks are read ahead of what is written."""
    ahead = encode_module.CHUNKS_AHEAD * 2 + 1
    taken = 0

    def chunks() -> Iterator[list[Document]]:
        nonlocal taken
        for number in range(40):
            taken += 1
            yield [Document(str(number), "once upon", "s")]

    for done, _ in enumerate(encode_module._encoded(chunks(), vocabulary, None, 2)):
        assert taken - done <= ahead


def test_refuses_half_a_surrogate_pair(tmp_path: Path, vocabulary: Vocabulary) -> None:
    documents = [Document("good", "owl", "s"), Document("bad", "a\ud800b", "s")]
    for count in (1, 2):
        with pytest.raises(DataError, match=r"document bad: text is not Unicode; .* character 1"):
            run(documents, vocabulary, tmp_path / "store", num_processes=count)
        assert not list(tmp_path.iterdir())


def test_refuses_no_text(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with pytest.raises(DataError, match="no text to encode; expected documents; found 2 empty"):
        run([Document("a", "", "s"), Document("b", "", "s")], vocabulary, tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_refuses_no_process(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with pytest.raises(ConfigError, match="needs a process; expected 1 or more; found 0"):
        run(make_documents(3), vocabulary, tmp_path / "store", num_processes=0)


def test_a_killed_worker_is_one_clear_error(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_module, "_encode_by_file", os_exit)
    with pytest.raises(DataError, match=r"worker that encodes text was killed.*fewer processes"):
        run(make_documents(5), vocabulary, tmp_path / "store", num_processes=2)
    assert not list(tmp_path.iterdir())


def os_exit(*_: Any) -> None:
    os._exit(9)
