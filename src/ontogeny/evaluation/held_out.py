"""Tasks made from the suite's own held-out store: nothing to download, the same for all members.

*Held-out loss* in bits per byte of text, per source. *Last word* in the form of LAMBADA (Paperno
et al. 2016): a passage without its last word, which the model is to predict; passages are whole
sentences, cut by the rules below. Both are pure functions of the store, the vocabulary and the
settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ontogeny.errors import EvaluationError
from ontogeny.evaluation.score import Request
from ontogeny.tokens.store import DocumentStore
from ontogeny.tokens.vocabulary import Vocabulary

# A passage ends at a sentence whose last word is plain and at least three letters long. What closes
# with the sentence belongs to it, so that the next passage does not begin with a closing quote.
SENTENCE_END = re.compile(r"(?<=[a-z]{3})[.!?][\"')\]]*(?=\s|$)")
LAST_WORD = re.compile(r"^(?P<context>.*\S)\s(?P<word>[A-Za-z]{3,})$", re.DOTALL)
MIN_WORDS, MAX_WORDS = 20, 60


@dataclass(frozen=True, slots=True)
class HeldOutDocument:
    """A held-out document as requests that together score each of its tokens once."""

    id: str
    source: str
    num_bytes: int  # of its decoded text
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class LastWord:
    """A passage of a document and its last word."""

    id: str
    request: Request


def held_out_documents(
    store: DocumentStore, vocabulary: Vocabulary, context_length: int, num_tokens: int
) -> list[HeldOutDocument]:
    """The first documents of each source, up to an equal share of `num_tokens` but at least one.

    A document is read in pieces of `context_length` tokens, the first after the end-of-document
    token and each later one after the last token of the piece before.
    """
    share = num_tokens // len(store.source_names)
    used = dict.fromkeys(store.source_names, 0)
    chosen = []
    for number in range(len(store)):
        source = store.source_names[int(store.sources[number])]
        ids = [token for token in store.tokens(number).tolist() if token != vocabulary.eod]
        if not ids or (used[source] and used[source] + len(ids) > share):
            continue
        used[source] += len(ids)
        read = [vocabulary.eod, *ids]
        requests = tuple(
            Request((read[start],), tuple(read[start + 1 : start + 1 + context_length]))
            for start in range(0, len(ids), context_length)
        )
        size = len(vocabulary.decode(ids).encode())
        chosen.append(HeldOutDocument(store.document_id(number), source, size, requests))
    return chosen


def last_words(
    store: DocumentStore, vocabulary: Vocabulary, context_length: int, num_items: int
) -> list[LastWord]:
    """Up to `num_items` passages, taken from the documents in turn, one each a round.

    Raises EvaluationError when some are wanted and the held-out text holds none.
    """
    documents = [
        _last_words_of(number, store, vocabulary, context_length) for number in range(len(store))
    ]
    chosen = list(islice(_in_turn(documents), num_items))
    if num_items and not chosen:
        raise EvaluationError(
            f"no passage of {MIN_WORDS} to {MAX_WORDS} words ends a sentence",
            where=store.artifact.path,
            fix="hold out more text, or leave the task out: --set evaluation.last_word_items=0",
        )
    return chosen


def _in_turn(documents: list[Iterator[LastWord]]) -> Iterator[LastWord]:
    """One passage of each document, then the next of each, as long as any has one."""
    while documents:
        left = []
        for passages in documents:
            for passage in islice(passages, 1):
                left.append(passages)
                yield passage
        documents = left


def _last_words_of(
    number: int, store: DocumentStore, vocabulary: Vocabulary, context_length: int
) -> Iterator[LastWord]:
    ids = [token for token in store.tokens(number).tolist() if token != vocabulary.eod]
    for count, passage in enumerate(_passages(vocabulary.decode(ids))):
        match = LAST_WORD.match(passage)
        if match is None:
            continue
        context = vocabulary.encode(match["context"])
        target = vocabulary.encode(f" {match['word']}")
        whole = vocabulary.encode(f"{match['context']} {match['word']}")
        if whole == context + target and len(whole) <= context_length:
            request = Request((vocabulary.eod, *context), tuple(target))
            yield LastWord(f"{store.document_id(number)}:{count}", request)


def _passages(text: str) -> Iterator[str]:
    """Stretches of text that end with a sentence (its stop left out), none overlapping."""
    start = 0
    for stop in SENTENCE_END.finditer(text):
        words = text[start : stop.start()].split()
        if len(words) < MIN_WORDS:
            continue
        if len(words) <= MAX_WORDS:
            yield " ".join(words)
        start = stop.end()
