"""Vocabularies: exact round trips, training that depends on the texts alone, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from ontogeny.config import build
from ontogeny.digest import digest_file, digest_json
from ontogeny.errors import ConfigError, DataError
from ontogeny.shape import padded
from ontogeny.suite import VocabularySettings
from ontogeny.tokens.vocabulary import (
    END_OF_DOCUMENT,
    TOKENIZER,
    Vocabulary,
    build_vocabulary,
    load_vocabulary,
    open_vocabulary,
    train_vocabulary,
    vocabulary_inputs,
)

TEXTS = [
    f"the {word} said {word}ly: it rains, {word}\n" for word in ("owl", "cat", "fox", "hen")
] * 9


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train_vocabulary(iter(TEXTS), 280)


@pytest.fixture(scope="module")
def pythias(reference: Path) -> Vocabulary:
    return load_vocabulary(reference / "pythia" / "utils" / "20B_tokenizer.json")


def test_pythias_vocabulary(pythias: Vocabulary) -> None:
    assert (pythias.size, pythias.eod) == (50277, 0)
    assert pythias.encode("Hello world") == [12092, 1533]
    assert pythias.encode("a" + 24 * " " + "b")[1] == 50254
    assert [padded(pythias.size, multiple) for multiple in (128, 256, 512)] == [50304, 50432, 50688]


def test_trained_sizes_and_special_tokens(vocabulary: Vocabulary) -> None:
    assert vocabulary.size == 280
    assert vocabulary.eod == 0
    assert vocabulary.tokenizer.token_to_id("<|padding|>") == 1
    assert len(vocabulary.encode("the owl said")) < len("the owl said")
    assert vocabulary.encode(END_OF_DOCUMENT) == [0]


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8")))
def test_round_trip_up_to_nfc(text: str) -> None:
    vocabulary = small_vocabulary()
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == unicodedata.normalize("NFC", text)
    assert all(0 <= token < vocabulary.size for token in ids)


def small_vocabulary() -> Vocabulary:
    return train_vocabulary(iter(TEXTS), 262)


def test_training_depends_on_the_texts_alone() -> None:
    """Equal bytes for any number of threads, in processes of their own (hashing differs too)."""
    program = (
        "import sys, pathlib; from ontogeny.tokens.vocabulary import train_vocabulary;"
        "from ontogeny.digest import digest_bytes;"
        "texts = pathlib.Path(sys.argv[1]).read_text().splitlines(True);"
        "print(digest_bytes(train_vocabulary(iter(texts), 900).definition.encode()))"
    )
    source = next(Path(json.__file__).parent.glob("decoder.py"))
    digests = {
        subprocess.run(
            [sys.executable, "-c", program, str(source)],
            env={**os.environ, "RAYON_NUM_THREADS": threads},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "2", "5")
    }
    assert len(digests) == 1


def test_digest_ignores_layout(vocabulary: Vocabulary) -> None:
    values = json.loads(vocabulary.definition)
    assert Vocabulary(json.dumps(values)).digest == vocabulary.digest == digest_json(values)
    values["model"]["merges"].pop()
    assert Vocabulary(json.dumps(values)).digest != vocabulary.digest


@pytest.mark.slow
def test_artifact_opens_here_and_in_transformers(tmp_path: Path, vocabulary: Vocabulary) -> None:
    chosen = VocabularySettings(size=280)
    from transformers import AutoTokenizer  # here, as it brings torch with it

    artifact = build_vocabulary(chosen, iter(TEXTS), tmp_path / "a", inputs={}, base=tmp_path)
    assert artifact.facts == {"size": 280, "vocabulary": vocabulary.digest}
    assert open_vocabulary(artifact.path).digest == vocabulary.digest
    theirs = AutoTokenizer.from_pretrained(artifact.path)
    text = " ".join(TEXTS[:4]) + "  é\t"
    assert theirs(text)["input_ids"] == vocabulary.encode(text)
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (0, 1, 280)


def test_a_loaded_file_makes_the_same_artifact(tmp_path: Path, vocabulary: Vocabulary) -> None:
    (tmp_path / "mine.json").write_text(vocabulary.definition)
    chosen = VocabularySettings(file="mine.json")
    inputs = vocabulary_inputs(chosen, tmp_path)
    assert inputs == {"file": digest_file(tmp_path / "mine.json")}
    artifact = build_vocabulary(chosen, iter([]), tmp_path / "a", inputs=inputs, base=tmp_path)
    assert (artifact.path / TOKENIZER).read_text() == vocabulary.definition


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json", "not a tokenizer"),
        (b'{"a": 1}', "not a tokenizer"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "no such file; expected a Hugging Face tokenizer.json"),
    ],
)
def test_refuses_other_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_vocabulary(path)
    assert str(path) in str(caught.value)


def test_refuses_a_missing_file_before_building(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        vocabulary_inputs(VocabularySettings(file="none.json"), tmp_path)


def test_refuses_a_tokenizer_without_tokens(tmp_path: Path) -> None:
    (tmp_path / TOKENIZER).write_text(Tokenizer(models.BPE()).to_str())
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer \(it has no tokens\)"):
        load_vocabulary(tmp_path / TOKENIZER)


def test_refuses_too_small_a_vocabulary() -> None:
    """One that cannot hold every byte and the special tokens."""
    with pytest.raises(ConfigError, match=r"size: .* greater than or equal to 258; found 257"):
        build(VocabularySettings, {"size": 257}, "suite.toml")


def test_refuses_too_little_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 4000 tokens; found \d+; try: add text"):
        build_vocabulary(
            VocabularySettings(size=4000), iter(TEXTS), tmp_path / "a", inputs={}, base=tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_refuses_a_vocabulary_without_ends(vocabulary: Vocabulary) -> None:
    values = json.loads(vocabulary.definition)
    values["added_tokens"] = []
    del values["model"]["vocab"][END_OF_DOCUMENT]
    with pytest.raises(DataError, match=r"has no <\|endoftext\|>"):
        _ = Vocabulary(json.dumps(values)).eod
