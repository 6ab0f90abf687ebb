"""Planted documents: invented text whose truth is declared, so that studies have known answers.

In: settings. Out: documents of the source `planted`, and the truth about each plant as JSON.
*Canaries* are random words repeated a stated number of times, each copy a document of its own, as
in the study of memorisation of the Pythia paper (section 3.2). *Relations* tie an invented place
to an invented capital, mentioned a stated number of times in different words (section 3.3).
*Occupations* come with a pronoun at a stated share of masculine ones (section 3.1). The random
streams are those of `numpy.random.RandomState`, which NumPy has frozen. No real person or place
is meant. Not here: measuring what a model learns of them (`studies`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, product
from typing import Any

from numpy.random import RandomState

from ontogeny.suite import PlantedSettings
from ontogeny.text.documents import Document

SOURCE = "planted"
CANARY_WORDS = 32

# The sounds of a syllable: how it may begin, its vowel, how it may end.
_SYLLABLE = (
    "b br d dr f g gr h k kl l m n p pr r s st t tr v z",
    "a e i o u ae ia or",
    "_ _ l n r s th m",  # an underscore for no sound
)

_OPENINGS = (
    "",
    "As every traveller knows, ",
    "According to the old almanac, ",
    "Merchants report that ",
    "In the school atlas one reads that ",
    "It was settled long ago that ",
    "The guide repeats that ",
    "Nobody disputes that ",
)
_RELATIONS = (
    "the capital of {place} is {capital}.",
    "the government of {place} sits in its capital, {capital}.",
    "{place} is governed from {capital}.",
    "the people of {place} chose {capital} as their capital.",
    "the capital city of {place} is called {capital}.",
    "whoever rules {place} must live in {capital}.",
    "all the roads of {place} end at the capital, {capital}.",
    "the seat of the parliament of {place} is {capital}.",
)
_OCCUPATIONS = (
    "baker carpenter dentist editor florist gardener historian jeweller lawyer mechanic nurse "
    "optician painter pilot plumber sculptor surgeon tailor teacher weaver"
)
_DOINGS = (
    "{occupation} closed the door before {pronoun} left.",
    "{occupation} smiled when {pronoun} saw the result.",
    "{occupation} called a friend because {pronoun} needed help.",
    "{occupation} said that {pronoun} would come back tomorrow.",
    "{occupation} rested after {pronoun} had finished the work.",
    "{occupation} wrote down what {pronoun} had heard.",
    "{occupation} laughed while {pronoun} told the story.",
    "{occupation} waited until {pronoun} was paid.",
)
_WHEN = (
    "In the morning the ",
    "On Monday the ",
    "Late in the day the ",
    "After the rain the ",
    "Before the holiday the ",
    "At the end of the month the ",
    "That winter the ",
    "Not long ago the ",
)

Plants = list[tuple[list[str], dict[str, Any]]]


def planted_documents(settings: PlantedSettings) -> tuple[list[Document], list[dict[str, Any]]]:
    """The planted documents and, plant by plant, the truth about them.

    A pure function of the settings, on any machine and version. Every truth has `kind`, `ids` (of
    its documents, in order) and what the kind needs. Only copies of a canary are equal texts.
    """
    documents: list[Document] = []
    truth: list[dict[str, Any]] = []
    for make in (_canaries, _relations, _occupations):
        for number, (texts, fact) in enumerate(make(settings)):
            ids = [f"{SOURCE}/{fact['kind']}-{number}#{copy}" for copy in range(len(texts))]
            documents += [Document(i, t, SOURCE) for i, t in zip(ids, texts, strict=True)]
            truth.append(fact | {"ids": ids})
    return documents, truth


def _canaries(settings: PlantedSettings) -> Plants:
    random = RandomState([settings.seed, 0])
    plants: Plants = []
    for copies, _ in product(settings.canary_copies, range(settings.canaries_per_count)):
        text = " ".join(_word(random, syllables=2) for _ in range(CANARY_WORDS))
        plants.append(([text] * copies, {"kind": "canary", "copies": copies, "text": text}))
    return plants


def _relations(settings: PlantedSettings) -> Plants:
    random = RandomState([settings.seed, 1])
    used: set[str] = set()
    plants: Plants = []
    for mentions, _ in product(settings.relation_mentions, range(settings.relations_per_count)):
        names = {"place": _new_name(random, used), "capital": _new_name(random, used)}
        texts = [form.format(**names) for form in _forms(random, _OPENINGS, _RELATIONS, mentions)]
        texts = [text[0].upper() + text[1:] for text in texts]
        plants.append((texts, {"kind": "relation", "mentions": mentions, **names}))
    return plants


def _occupations(settings: PlantedSettings) -> Plants:
    """Every occupation gets one of the shares in turn, so each share has several occupations."""
    random = RandomState([settings.seed, 2])
    mentions = settings.occupation_mentions
    plants: Plants = []
    shares = cycle(settings.masculine_shares if mentions else ())
    for occupation, share in zip(_OCCUPATIONS.split(), shares, strict=False):
        masculine = int(share * mentions + 0.5)
        texts = [
            form.format(occupation=occupation, pronoun="he" if at < masculine else "she")
            for at, form in enumerate(_forms(random, _WHEN, _DOINGS, mentions))
        ]
        fact = {
            "kind": "occupation",
            "occupation": occupation,
            "share": share,
            "masculine": masculine,
            "feminine": mentions - masculine,
        }
        plants.append((texts, fact))
    return plants


def _forms(
    random: RandomState, openings: Sequence[str], sentences: Sequence[str], count: int
) -> list[str]:
    """So many different pairs of an opening and a sentence."""
    pairs = [opening + sentence for opening, sentence in product(openings, sentences)]
    return [pairs[place] for place in random.permutation(len(pairs))[:count]]


def _word(random: RandomState, syllables: int) -> str:
    return "".join(
        random.choice(sounds.split()).strip("_") for _ in range(syllables) for sounds in _SYLLABLE
    )


def _new_name(random: RandomState, used: set[str]) -> str:
    while (name := _word(random, syllables=3).capitalize()) in used:
        pass
    used.add(name)
    return name
