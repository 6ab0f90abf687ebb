"""Planted documents: the declared truth is what an independent reading of the texts finds."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.config import build
from ontogeny.digest import digest_json
from ontogeny.errors import ConfigError
from ontogeny.suite import PlantedSettings
from ontogeny.text.planted import CANARY_WORDS, planted_documents

plans = st.builds(
    PlantedSettings,
    seed=st.integers(0, 2**32 - 1),
    canary_copies=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    canaries_per_count=st.integers(0, 3),
    relation_mentions=st.lists(st.integers(0, 64), max_size=3).map(tuple),
    relations_per_count=st.integers(0, 3),
    occupation_mentions=st.integers(0, 64),
    masculine_shares=st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), max_size=3).map(tuple),
)


@given(plans)
@settings(max_examples=25, deadline=None)
def test_truth_is_what_the_texts_say(plan: PlantedSettings) -> None:
    documents, truth = planted_documents(plan)
    texts = {document.id: document.text for document in documents}
    assert len(texts) == len(documents)
    assert [i for fact in truth for i in fact["ids"]] == list(texts)
    assert {d.source for d in documents} <= {"planted"}
    everything = "\n".join(texts.values())
    for fact in truth:
        own = [texts[i] for i in fact["ids"]]
        if fact["kind"] == "canary":
            assert own == [fact["text"]] * fact["copies"]
            assert len(fact["text"].split()) == CANARY_WORDS
        elif fact["kind"] == "relation":
            assert len(set(own)) == fact["mentions"]
            assert everything.count(fact["place"]) == everything.count(fact["capital"])
            assert all(fact["place"] in text and fact["capital"] in text for text in own)
        else:
            words = Counter(word for text in own for word in text.replace(".", "").split())
            assert (words["he"], words["she"]) == (fact["masculine"], fact["feminine"])
            assert len(set(own)) == words[fact["occupation"]] == plan.occupation_mentions
    json.dumps(truth)


def test_canary_and_relation_counts_are_those_asked_for() -> None:
    plan = PlantedSettings(canary_copies=(1, 5), canaries_per_count=3, relation_mentions=(2, 7))
    _, truth = planted_documents(plan)
    copies = Counter(fact["copies"] for fact in truth if fact["kind"] == "canary")
    mentions = Counter(fact["mentions"] for fact in truth if fact["kind"] == "relation")
    assert copies == {1: 3, 5: 3}
    assert mentions == {2: 4, 7: 4}


def test_shares_of_masculine_pronouns() -> None:
    _, truth = planted_documents(PlantedSettings(occupation_mentions=20))
    found = {(f["share"], f["masculine"]) for f in truth if f["kind"] == "occupation"}
    assert found == {(0.1, 2), (0.5, 10), (0.9, 18)}


def test_the_default_documents_never_change() -> None:
    documents, truth = planted_documents(PlantedSettings())
    assert digest_json([[d.id, d.text] for d in documents])[:16] == "81b28beeba10b097"
    assert digest_json(truth)[:16] == "aecc261e5b9fb36a"
    other, _ = planted_documents(PlantedSettings(seed=1))
    assert [d.text for d in other] != [d.text for d in documents]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            {"relation_mentions": [1, 65]},
            "relation_mentions.1: Input should be less than or equal to 64; found 65",
        ),
        (
            {"canary_copies": [-1]},
            "canary_copies.0: Input should be greater than or equal to 0; found -1",
        ),
        ({"occupation_mentions": 65}, "occupation_mentions: Input should be less than or equal"),
        (
            {"masculine_shares": [1.5]},
            "masculine_shares.0: Input should be less than or equal to 1; found 1.5",
        ),
    ],
)
def test_impossible_plans_are_refused(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(PlantedSettings, plan, "suite.toml")
    assert f"suite.toml: {message}" in str(caught.value)
