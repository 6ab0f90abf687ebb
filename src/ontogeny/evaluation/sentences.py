"""Questions made of plain text by stated rules: last words, next sentences, minimal pairs.

*Last word* has the form of LAMBADA (Paperno et al. 2016): whole sentences without their last word.
*Next sentence* is a multiple choice: which of four sentences of one source and near length follows.
*Agreement* and *word order* are minimal pairs in the form of BLiMP (Warstadt et al. 2020): a whole
sentence of the text against one that a rule made wrong. The rules are for English. What is drawn is
drawn by digests, so a question depends on its own document and what it is drawn from alone. Not
here: how many questions a task has and which fit a model (`pack.py`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import log

from ontogeny.digest import digest_bytes

# A sentence ends after a word of three small letters, so not after most abbreviations. What closes
# with it belongs to it, so that the next one does not begin with a closing quote.
SENTENCE_END = re.compile(r"(?<=[a-z]{3})[.!?][\"')\]]*(?=\s|$)")
PARAGRAPH_END = re.compile(r"\n\s*\n")
PLAIN = re.compile(r"[\"'(]?[A-Z][^<>{}\[\]|\\=+*/_#@^~`]*")  # no code, formula or markup

LAST_WORD = re.compile(r"^(?P<context>.*\S)\s(?P<word>[A-Za-z]{3,})$", re.DOTALL)
PASSAGE_WORDS = range(20, 61)

NUM_OPTIONS = 4
NEXT_WORDS = range(4, 31)
CONTEXT_WORDS = 12  # at least, in whole sentences
NEAR = 1.5  # lengths of one class differ by less than this factor

PAIR_WORDS = range(5, 31)
SMALL_WORD = re.compile(r"[a-z]+")
FORMS = {"is": "are", "was": "were", "has": "have", "does": "do"}
OTHER_FORM = FORMS | {plural: singular for singular, plural in FORMS.items()}
# What a verb's number does not follow: `you` is one or many, the others ask for an infinitive.
MODALS = ("will", "shall", "would", "should", "may", "might", "must", "can", "could")
NO_SUBJECT = frozenset(("you", "to", "not", *MODALS, "do", "does", "did"))
# `were` may be as right as `was` after these, and as an author's own subjunctive after those below.
CONDITIONAL = re.compile(r"\b(?:if|though|unless|whether|lest|wish|suppose)\b", re.IGNORECASE)
SINGULAR = frozenset(("i", "he", "she", "it"))


@dataclass(frozen=True, slots=True)
class Text:
    """A document that questions are made of."""

    id: str
    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A context and what may follow it, of which the option at `gold` does.

    Context and option joined are the text that is read. A single option is no choice.
    """

    id: str
    source: str
    context: str
    options: tuple[str, ...]
    gold: int = 0


def last_words(text: Text) -> Iterator[Question]:
    """Passages without their last word."""
    for count, passage in enumerate(_passages(text.text)):
        match = LAST_WORD.match(passage)
        if match is not None:
            word = f" {match['word']}"
            yield Question(f"{text.id}:{count}", text.source, match["context"], (word,))


def next_sentences(texts: Iterable[Text]) -> Iterator[Question]:
    """The sentences just before one, it, and others of its source and its class of length.

    The others are right in questions of their own, so nothing but the context tells which is right
    here: neither its length nor how it begins.
    """
    rights = [_followers(text) for text in texts]
    alike: dict[tuple[str, int], list[str]] = defaultdict(list)
    for question in chain.from_iterable(rights):
        alike[_class(question)].append(question.options[0])

    def with_others(question: Question) -> Iterator[Question]:
        others = {*alike[_class(question)]} - {question.options[0]}
        others = {other for other in others if other.strip() not in question.context}
        if len(others) >= NUM_OPTIONS - 1:
            drawn = sorted(others, key=lambda other: _draw(question.id, other))
            yield replace(question, options=(*question.options, *drawn[: NUM_OPTIONS - 1]))

    return chain.from_iterable(map(with_others, in_turn(map(iter, rights))))


def agreements(text: Text) -> Iterator[Question]:
    """Sentences against themselves with one verb in the other number.

    The verb is a form of `be`, `have` or `do` after a word that may be its subject, in a sentence
    that asks nothing; forms of `be` in the past only where no conditional can be meant.
    """
    for count, words in _pair_sentences(text):
        for place in range(1, len(words) - 1):
            if not words[-1].rstrip("\"')]").endswith("?") and _agrees(words, place):
                wrong = [*words[:place], OTHER_FORM[words[place]], *words[place + 1 :]]
                yield _pair(text, f"{count}.{place}", words, wrong)


def word_orders(text: Text) -> Iterator[Question]:
    """Sentences against themselves with two neighbours exchanged, neither the first nor last."""
    for count, words in _pair_sentences(text):
        places = [
            place
            for place in range(len(words) - 1)  # the ends of a sentence are no small words
            if SMALL_WORD.fullmatch(words[place])
            and SMALL_WORD.fullmatch(words[place + 1])
            and words[place] != words[place + 1]
        ]
        if places:
            at = min(places, key=lambda place: _draw(f"{text.id}:{count}", str(place)))
            wrong = [*words[:at], words[at + 1], words[at], *words[at + 2 :]]
            yield _pair(text, str(count), words, wrong)


def in_turn(documents: Iterable[Iterator[Question]]) -> Iterator[Question]:
    """One question of each document, then the next of each, as long as any has one."""
    waiting = list(documents)
    while waiting:
        left = []
        for questions in waiting:
            for question in islice(questions, 1):
                left.append(questions)
                yield question
        waiting = left


def balanced(questions: Iterable[Question]) -> Iterator[Question]:
    """Agreements, in twos: for a sentence with one form of a verb, one with the other.

    So a model that prefers a form whatever stands before it is right half the time.
    """
    waiting: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        right, wrong = (option.split() for option in question.options)
        form = next(one for one, other in zip(right, wrong, strict=True) if one != other)
        if waiting[OTHER_FORM[form]]:
            yield from (waiting[OTHER_FORM[form]].pop(0), question)
        else:
            waiting[form].append(question)


def _pair(text: Text, place: str, right: Sequence[str], wrong: Sequence[str]) -> Question:
    return Question(f"{text.id}:{place}", text.source, "", (" ".join(right), " ".join(wrong)))


def _agrees(words: Sequence[str], place: int) -> bool:
    verb, subject = words[place], words[place - 1].lower()
    if verb not in OTHER_FORM or not subject[-1].isalpha():
        return False
    if subject in NO_SUBJECT or subject.endswith("n't"):
        return False
    if verb == "were" and subject in SINGULAR:
        return False
    return verb not in ("was", "were") or not CONDITIONAL.search(" ".join(words[:place]))


def _pair_sentences(text: Text) -> Iterator[tuple[int, list[str]]]:
    for count, sentence in enumerate(chain.from_iterable(_runs(text.text))):
        words = sentence.split()
        if len(words) in PAIR_WORDS:
            yield count, words


def _runs(text: str) -> Iterator[list[str]]:
    """Plain sentences that follow each other in a paragraph, white space made single spaces."""
    for paragraph in PARAGRAPH_END.split(text):
        run: list[str] = []
        start = 0
        for stop in SENTENCE_END.finditer(paragraph):
            sentence = " ".join(paragraph[start : stop.end()].split())
            start = stop.end()
            if PLAIN.fullmatch(sentence):
                run.append(sentence)
            elif run:
                yield run
                run = []
        if run:
            yield run


def _followers(text: Text) -> list[Question]:
    """Every sentence that has enough before it in its paragraph, as the one option."""
    found = []
    for count, run in enumerate(_runs(text.text)):
        for place, sentence in enumerate(run):
            before = " ".join(_context(run[:place]))
            if before and len(sentence.split()) in NEXT_WORDS:
                id_ = f"{text.id}:{count}.{place}"
                found.append(Question(id_, text.source, before, (f" {sentence}",)))
    return found


def _class(question: Question) -> tuple[str, int]:
    return question.source, int(log(len(question.options[0].encode())) / log(NEAR))


def _context(before: Sequence[str]) -> list[str]:
    """The last sentences that together have enough words; none where all have too few."""
    for place in range(len(before) - 1, -1, -1):
        if sum(len(sentence.split()) for sentence in before[place:]) >= CONTEXT_WORDS:
            return list(before[place:])
    return []


def _draw(*names: str) -> str:
    """A number that is as good as drawn, the same wherever the same is drawn."""
    return digest_bytes("\0".join(names).encode())


def _passages(text: str) -> Iterator[str]:
    """Stretches of text that end with a sentence (its stop left out), none overlapping."""
    start = 0
    for stop in SENTENCE_END.finditer(text):
        words = text[start : stop.start()].split()
        if len(words) < PASSAGE_WORDS.start:
            continue
        if len(words) in PASSAGE_WORDS:
            yield " ".join(words)
        start = stop.end()
