"""The fast encoder: the ids of the reference, or the reference itself."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.errors import ConfigError
from ontogeny.tokens.fast import CHOICE, ODD_TEXTS, Encoder
from ontogeny.tokens.vocabulary import Vocabulary, load_vocabulary, train_vocabulary

pytest.importorskip("gigatoken", reason="needs the extra 'fast'")
WORDS = "the owl's feather was found, in 1999; by (two) friends -- who'd seen\n\n  café\t漢字 "
PIECES = [
    *"aeinst 0123 \n\t'<>|_.,-é漢\u0301\u0300\u200d\x00\x85\xa0\u3000\r½",
    *("<|endoftext|>", "<|padding|>", "    ", "the", "owl", "'s", "\u1161", "\u11a8", "\U00016ff0"),
]
mixed = st.text() | st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train_vocabulary(iter([WORDS * 3, WORDS.upper()]), 300)


@pytest.fixture(scope="module")
def pythias(reference: Path) -> Vocabulary:
    return load_vocabulary(reference / "pythia" / "utils" / "20B_tokenizer.json")


def encoded(vocabulary: Vocabulary, texts: list[str]) -> list[list[int]]:
    """The ids of each text by the fast encoder, which must be the one in use."""
    tokens, sizes = vocabulary.encoder.encode(texts)
    assert [tokens.dtype.name, sizes.dtype.name] == ["int32", "int64"]
    assert vocabulary.encoder.name.startswith("gigatoken ")
    assert sizes.sum() == len(tokens)
    return [part.tolist() for part in np.split(tokens, np.cumsum(sizes)[:-1])] if texts else []


@given(st.lists(mixed, max_size=6))
@settings(max_examples=100)
def test_ids_are_those_of_the_reference(vocabulary: Vocabulary, texts: list[str]) -> None:
    assert encoded(vocabulary, texts) == vocabulary.encode_all(texts)


@given(st.lists(mixed, max_size=6))
@settings(max_examples=100)
def test_ids_of_pythias_vocabulary(pythias: Vocabulary, texts: list[str]) -> None:
    assert encoded(pythias, texts) == pythias.encode_all(texts)


def test_every_character_is_encoded_alike(pythias: Vocabulary) -> None:
    points = [p for p in range(0x20000) if unicodedata.category(chr(p)) not in ("Cn", "Co", "Cs")]
    lines = [
        "".join(f"a{chr(point)} {chr(point)}1" for point in points[at : at + 64])
        for at in range(0, len(points), 64)
    ]
    texts = [*lines, "ab" * 20_000, *ODD_TEXTS]
    assert encoded(pythias, texts) == pythias.encode_all(texts)


def test_text_in_normal_form_stays_so_by_the_references_tables(vocabulary: Vocabulary) -> None:
    """Its tables of Unicode are older than Python's; should that change, this fails."""
    normalise = vocabulary.tokenizer.normalizer.normalize_str
    points = [p for p in range(0x80, 0x32400) if not 0xD800 <= p < 0xF900]
    texts = (f"a{chr(point)}{chr(point)}\u0323\u0301" for point in points)
    settled = [text for text in texts if unicodedata.is_normalized("NFC", text)]
    assert len(settled) > 150_000
    for at in range(0, len(settled), 4096):
        joined = "".join(settled[at : at + 4096])
        assert normalise(joined) == joined


def without_last_merge(vocabulary: Vocabulary) -> Vocabulary:
    form = json.loads(vocabulary.definition)
    form["model"]["merges"].pop()
    return Vocabulary(json.dumps(form))


def test_other_ids_are_noticed_on_the_first_documents(vocabulary: Vocabulary) -> None:
    """A library that reads the vocabulary wrongly: here it is given another one."""
    merged = "".join(json.loads(vocabulary.definition)["model"]["merges"][-1]).replace("Ġ", " ")
    encoder = Encoder(without_last_merge(vocabulary).definition, vocabulary.tokenizer)
    assert encoder.name.startswith("gigatoken ")  # odd texts do not hold what is merged last
    tokens, _ = encoder.encode(["x", merged])
    assert tokens.tolist() == [*vocabulary.encode("x"), *vocabulary.encode(merged)]
    assert encoder.name.startswith("tokenizers ")
    assert encoder.name.endswith("gives other ids)")


def test_another_vocabulary_is_noticed_at_once(vocabulary: Vocabulary) -> None:
    other = train_vocabulary(iter(["xxx --- === " * 9]), 262)
    assert "gives other ids" in Encoder(other.definition, vocabulary.tokenizer).name


def test_without_the_library_the_reference_encodes(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    encoder = Encoder(vocabulary.definition, vocabulary.tokenizer)
    assert "(gigatoken is not installed)" in encoder.name
    for ours, fast in zip(
        encoder.encode(ODD_TEXTS), vocabulary.encoder.encode(ODD_TEXTS), strict=True
    ):
        np.testing.assert_array_equal(ours, fast)
    monkeypatch.setenv(CHOICE, "gigatoken")
    with pytest.raises(
        ConfigError,
        match=r"ONTOGENY_ENCODER: cannot encode with gigatoken: gigatoken is not installed; "
        r"try: ONTOGENY_ENCODER=tokenizers, or pip install 'ontogeny\[fast\]'",
    ):
        Encoder(vocabulary.definition, vocabulary.tokenizer)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalizer", {"type": "Lowercase"}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer", None),
    ],
)
def test_other_forms_of_vocabulary_are_left_to_the_reference(
    vocabulary: Vocabulary, key: str, value: object
) -> None:
    other = Vocabulary(json.dumps({**json.loads(vocabulary.definition), key: value}))
    assert other.encoder.name.endswith("(gigatoken is not used for this form of vocabulary)")
    tokens, sizes = other.encoder.encode(["The OWL's feather", ""])
    assert (tokens.tolist(), sizes[1]) == (other.encode("The OWL's feather"), 0)


def test_the_encoder_can_be_chosen(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, "tokenizers")
    assert Encoder(vocabulary.definition, vocabulary.tokenizer).name.endswith("(chosen)")
    monkeypatch.setenv(CHOICE, "gigatoken")
    assert Encoder(vocabulary.definition, vocabulary.tokenizer).name.startswith("gigatoken ")
    monkeypatch.setenv(CHOICE, "fastest")
    with pytest.raises(ConfigError, match=r"ONTOGENY_ENCODER: no such encoder; .* found fastest"):
        Encoder(vocabulary.definition, vocabulary.tokenizer)
