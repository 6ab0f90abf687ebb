"""Held-out tasks: each token scored once, bits per byte by definition, last words that are ones."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ontogeny.errors import EvaluationError
from ontogeny.evaluation.held_out import (
    MAX_WORDS,
    MIN_WORDS,
    LastWord,
    held_out_documents,
    last_words,
)
from ontogeny.evaluation.sweep import Place, Rows, score_held_out, score_last_words
from ontogeny.model.init import initial_model
from ontogeny.model.neox import NeoX
from ontogeny.results import Score
from ontogeny.shape import Shape
from ontogeny.text.documents import Document
from ontogeny.tokens.encode import encode
from ontogeny.tokens.store import DocumentStore, open_store
from ontogeny.tokens.vocabulary import END_OF_DOCUMENT, Vocabulary, train_vocabulary

CONTEXT = 96
SENTENCE = "the owl saw how rain fell on old stones and thought of winter élan as ships went by"
WORDS = SENTENCE.split()
ENDS = [". ", "! ", "?\n", '."  ', ".\n\n", ", 1914. ", "; ", ") "]


def prose(seed: int, num_sentences: int) -> str:
    """Sentences of 3 to 50 words, some of which end in what is no word."""
    random = np.random.RandomState(seed)
    return "".join(
        " ".join(random.choice(WORDS, random.randint(3, 50))) + random.choice(ENDS)
        for _ in range(num_sentences)
    )


TEXTS = {f"doc{number}": prose(number, 4 + 2 * number) for number in range(9)}
TEXTS["short"] = "Too short."


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train_vocabulary(iter(TEXTS.values()), 320)


def store_of(texts: dict[str, str], vocabulary: Vocabulary, folder: Path) -> DocumentStore:
    documents = [
        Document(name, text, f"source{number % 3}")
        for number, (name, text) in enumerate(texts.items())
    ]
    encode(documents, vocabulary, folder, config={}, inputs={})
    return open_store(folder)


@pytest.fixture(scope="module")
def store(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> DocumentStore:
    return store_of(TEXTS, vocabulary, tmp_path_factory.mktemp("held") / "store")


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary) -> NeoX:
    shape = Shape(
        num_layers=1, hidden_size=16, num_heads=2, vocab_size=384, context_length=CONTEXT
    )  # fmt: skip
    return initial_model(shape, "small-wang", 0)


def naive_bits(model: NeoX, ids: list[int], eod: int) -> float:
    """Bits of a document read in pieces of CONTEXT tokens, each after the token before it."""
    total, read = 0.0, [eod, *ids]
    for start in range(0, len(ids), CONTEXT):
        piece = torch.tensor([read[start : start + CONTEXT + 1]])
        with torch.no_grad():
            logits = model(piece[:, :-1])[0].double()
        total += float(F.cross_entropy(logits, piece[0, 1:], reduction="sum"))
    return total / math.log(2)


def test_every_token_is_scored_once(store: DocumentStore, vocabulary: Vocabulary) -> None:
    chosen = held_out_documents(store, vocabulary, CONTEXT, 10**9)
    assert [document.id for document in chosen] == list(TEXTS)
    for document in chosen:
        ids = vocabulary.encode(TEXTS[document.id])
        assert [token for one in document.requests for token in one.target] == ids
        before = [one.context for one in document.requests]
        assert before[0] == (vocabulary.eod,)
        assert before[1:] == [(one.target[-1],) for one in document.requests[:-1]]
        assert all(one.num_inputs == CONTEXT for one in document.requests[:-1])
        assert document.num_bytes == len(TEXTS[document.id].encode())
        assert document.source == f"source{list(TEXTS).index(document.id) % 3}"
    assert any(document.num_bytes > len(TEXTS[document.id]) for document in chosen)


@pytest.mark.parametrize("num_tokens", [1, 300, 900, 3000])
def test_each_source_has_its_share(
    store: DocumentStore, vocabulary: Vocabulary, num_tokens: int
) -> None:
    chosen = held_out_documents(store, vocabulary, CONTEXT, num_tokens)
    expected, used = [], {f"source{number}": 0 for number in range(3)}
    for number, (name, text) in enumerate(TEXTS.items()):
        source, size = f"source{number % 3}", len(vocabulary.encode(text))
        if not used[source] or used[source] + size <= num_tokens // 3:
            used[source] += size
            expected.append(name)
    assert [document.id for document in chosen] == expected
    assert {document.source for document in chosen} == used.keys()


def test_bits_per_byte_by_definition(
    store: DocumentStore, vocabulary: Vocabulary, model: NeoX
) -> None:
    rows = Rows()
    documents = held_out_documents(store, vocabulary, CONTEXT, 10**9)
    score_held_out(model, torch.float32, documents, Place("m", 8, 99), rows)
    bits = {
        name: naive_bits(model, vocabulary.encode(text), vocabulary.eod)
        for name, text in TEXTS.items()
    }
    sizes = {name: len(text.encode()) for name, text in TEXTS.items()}
    values = {item.item: item.metrics["bits_per_byte"] for item in rows.items}
    assert values == pytest.approx({name: bits[name] / sizes[name] for name in TEXTS}, rel=1e-5)

    def of(number: int | None) -> float:
        names = list(TEXTS) if number is None else list(TEXTS)[number::3]
        return sum(bits[name] for name in names) / sum(sizes[name] for name in names)

    assert {score.task: score.value for score in rows.scores} == pytest.approx(
        {"held-out": of(None), **{f"held-out/source{number}": of(number) for number in range(3)}},
        rel=1e-5,
    )
    assert {score.task: score.n for score in rows.scores} == {
        "held-out": 10, "held-out/source0": 4, "held-out/source1": 3, "held-out/source2": 3,
    }  # fmt: skip
    check_places(rows.scores)


def check_places(scores: list[Score]) -> None:
    for score in scores:
        assert (score.member, score.step, score.tokens) == ("m", 8, 99)
        assert score.low <= score.value <= score.high


def passage_of(item: LastWord, vocabulary: Vocabulary) -> tuple[str, str]:
    assert item.request.context[0] == vocabulary.eod
    return vocabulary.decode(item.request.context[1:]), vocabulary.decode(item.request.target)


def test_last_words_end_their_sentences(store: DocumentStore, vocabulary: Vocabulary) -> None:
    items = last_words(store, vocabulary, CONTEXT, 10**6)
    assert len(items) > 20
    assert len({item.id for item in items}) == len(items)
    ends: dict[str, list[tuple[int, int]]] = {}
    for item in items:
        context, word = passage_of(item, vocabulary)
        name = item.id.rpartition(":")[0]
        text = " ".join(TEXTS[name].split())
        start = text.find(context + word, ends.setdefault(name, [(0, 0)])[-1][1])
        assert start >= 0, "a passage of the document, after the ones before it"
        stop = start + len(context + word)
        assert text[stop] in ".!?"
        assert start == 0 or text[start - 1] == " "
        assert MIN_WORDS <= len((context + word).split()) <= MAX_WORDS
        assert word.startswith(" ")
        assert word[1:].isascii()
        assert word[1:].isalpha()
        assert len(word) > 3
        ends[name].append((start, stop))
    for places in ends.values():
        assert all(before[1] <= after[0] for before, after in pairwise(places))


def test_last_words_are_what_a_model_would_read(
    store: DocumentStore, vocabulary: Vocabulary
) -> None:
    for item in last_words(store, vocabulary, CONTEXT, 10**6):
        context, word = passage_of(item, vocabulary)
        ids = (vocabulary.eod, *vocabulary.encode(context + word))
        assert ids == item.request.context + item.request.target
        assert item.request.num_inputs <= CONTEXT


def test_words_that_grow_together_with_their_context_are_left_out(tmp_path: Path) -> None:
    """In a vocabulary whose tokens may reach over spaces, a target is not always its own tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS.values(), trainer)
    wide = Vocabulary(tokenizer.to_str())
    store = store_of(TEXTS, wide, tmp_path / "wide")
    items = last_words(store, wide, 400, 10**6)
    for item in items:
        whole = wide.decode(item.request.context[1:] + item.request.target)
        assert (wide.eod, *wide.encode(whole)) == item.request.context + item.request.target
    narrow = train_vocabulary(iter(TEXTS.values()), 320)
    every = last_words(store_of(TEXTS, narrow, tmp_path / "narrow"), narrow, 400, 10**6)
    assert 0 < len(items) < len(every)


def test_documents_take_turns(store: DocumentStore, vocabulary: Vocabulary) -> None:
    every = last_words(store, vocabulary, CONTEXT, 10**6)
    for count in (1, 5, 12):
        assert last_words(store, vocabulary, CONTEXT, count) == every[:count]
    turns: dict[str, int] = {}
    for item in every:
        name = item.id.rpartition(":")[0]
        turns[name] = turns.get(name, 0) + 1
    firsts = [item.id.rpartition(":")[0] for item in every[: len(turns)]]
    assert firsts == [name for name in TEXTS if name in turns]


def test_short_contexts_leave_long_passages_out(
    store: DocumentStore, vocabulary: Vocabulary
) -> None:
    short = last_words(store, vocabulary, 60, 10**6)
    assert 0 < len(short) < len(last_words(store, vocabulary, CONTEXT, 10**6))
    assert all(item.request.num_inputs <= 60 for item in short)


def test_no_last_word(vocabulary: Vocabulary, tmp_path: Path) -> None:
    texts = {"a": "Too short.", "b": " ".join(WORDS * 3) + " 1914.", "c": " ".join(WORDS * 3)}
    bare = store_of(texts, vocabulary, tmp_path / "bare")
    with pytest.raises(EvaluationError) as caught:
        last_words(bare, vocabulary, CONTEXT, 5)
    assert str(caught.value) == (
        f"{tmp_path / 'bare'}: no passage of 20 to 60 words ends a sentence; "
        "try: hold out more text, or leave the task out: --set evaluation.last_word_items=0"
    )


def test_last_word_rows(store: DocumentStore, vocabulary: Vocabulary, model: NeoX) -> None:
    rows, items = Rows(), last_words(store, vocabulary, CONTEXT, 7)
    score_last_words(model, torch.float32, items, Place("m", 8, 99), rows)
    naive = {}
    for item in items:
        whole = torch.tensor([item.request.context + item.request.target])
        with torch.no_grad():
            scores = F.log_softmax(model(whole)[0].double(), dim=-1)
        first = len(item.request.context)
        naive[item.id] = sum(
            float(scores[at - 1, whole[0, at]]) for at in range(first, whole.numel())
        )
    by_metric = {
        metric: {row.item: row.metrics[metric] for row in rows.items if metric in row.metrics}
        for metric in ("log_probability", "accuracy")
    }
    assert by_metric["log_probability"] == pytest.approx(naive, rel=1e-5)
    assert set(by_metric["accuracy"].values()) <= {0.0, 1.0}
    assert [(score.metric, score.n) for score in rows.scores] == [
        ("log_probability", 7), ("accuracy", 7),
    ]  # fmt: skip
    assert rows.scores[0].value == pytest.approx(float(np.mean(list(naive.values()))), rel=1e-5)
    check_places(rows.scores)
