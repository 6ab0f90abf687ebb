"""The vocabulary: a byte-level BPE, loaded from a Hugging Face `tokenizer.json` or trained.

Trained ones are made like Pythia's (NFC, GPT-2's pre-tokenisation, no prefix space); training
depends on the texts alone, not on threads. As in GPT-NeoX, a special token spelled out in a text
becomes that token. Not here: documents and their ends (`encode.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from ontogeny.artifact import Artifact, Input, open_artifact, writing
from ontogeny.digest import digest_file, digest_json
from ontogeny.errors import ConfigError, DataError
from ontogeny.suite import VocabularySettings
from ontogeny.tokens.fast import Encoder

END_OF_DOCUMENT = "<|endoftext|>"
PADDING = "<|padding|>"
SPECIAL = [END_OF_DOCUMENT, PADDING]  # ids 0 and 1 of a trained vocabulary
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
PRINTED = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes written as themselves


@dataclass(frozen=True)
class Vocabulary:
    """Text to token ids and back. `definition` is the text of its `tokenizer.json`."""

    definition: str
    where: Path | None = None
    tokenizer: Tokenizer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            # `from_str` would do, but its errors are of no type of their own.
            tokenizer = Tokenizer.from_buffer(self.definition.encode())
        except ValueError as error:
            raise _not_a_tokenizer(self.where, str(error)) from error
        if not tokenizer.get_vocab_size():
            raise _not_a_tokenizer(self.where, "it has no tokens")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        object.__setattr__(self, "tokenizer", tokenizer)

    @cached_property
    def size(self) -> int:
        """Ids there are, those of added tokens included: one more than the largest."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def eod(self) -> int:
        """The id that ends a document. Raises DataError if the vocabulary has none."""
        found = self.tokenizer.token_to_id(END_OF_DOCUMENT)
        if found is None:
            raise DataError(
                f"the vocabulary has no {END_OF_DOCUMENT}",
                where=self.where,
                fix="choose another tokenizer.json",
            )
        return int(found)

    @cached_property
    def digest(self) -> str:
        """The identity of the vocabulary, whatever the layout of its file."""
        return digest_json(json.loads(self.definition))

    def encode(self, text: str) -> list[int]:
        """The ids of a text; nothing is added at its ends."""
        return self.encode_all([text])[0]

    @cached_property
    def encoder(self) -> Encoder:
        """What encodes many texts; its `name` says which library that is, and why."""
        return Encoder(self.definition, self.tokenizer)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of a few texts each, by the reference library."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out; broken UTF-8 becomes U+FFFD."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def load_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a Hugging Face `tokenizer.json`. Raises DataError for any other file."""
    try:
        return Vocabulary(path.read_text(encoding="utf-8"), path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(
            "no such file", where=path, expected="a Hugging Face tokenizer.json"
        ) from error
    except UnicodeDecodeError as error:
        raise _not_a_tokenizer(path, "not UTF-8 text") from error


def spellings(vocabulary: Vocabulary) -> dict[int, bytes] | None:
    """The bytes of text that every id stands for, None where tokens have no bytes of their own.

    Tokens of a byte-level vocabulary are written in 256 letters, one a byte: those that can be
    printed stand for themselves, the others are counted on from U+0100.
    """
    if (json.loads(vocabulary.definition).get("decoder") or {}).get("type") != "ByteLevel":
        return None
    others = (byte for byte in range(256) if byte not in PRINTED)
    letters = {chr(byte): byte for byte in PRINTED}
    letters |= {chr(256 + place): byte for place, byte in enumerate(others)}
    return {  # as the decoder has it: what is not written so stands for itself
        number: bytes(letters[letter] for letter in token)
        if letters.keys() >= set(token)
        else token.encode()
        for token, number in vocabulary.tokenizer.get_vocab(with_added_tokens=True).items()
    }


def byte_lengths(vocabulary: Vocabulary) -> np.ndarray | None:
    """How many bytes of text every id stands for; one more entry, of 0, for ids of no text."""
    spelled = spellings(vocabulary)
    if spelled is None:
        return None
    lengths = np.zeros(vocabulary.size + 1, np.int64)
    lengths[list(spelled)] = list(map(len, spelled.values()))
    return lengths


def train_vocabulary(texts: Iterator[str], size: int) -> Vocabulary:
    """A byte-level BPE of exactly `size` ids, learned from texts.

    Raises DataError when the texts are too few to learn so many tokens from.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = Vocabulary(tokenizer.to_str(pretty=True))
    if vocabulary.size < size:
        raise DataError(
            "the texts are too few to learn so large a vocabulary from",
            expected=f"{size} tokens",
            found=f"{vocabulary.size}",
            fix=f"add text, or --set vocabulary.size={vocabulary.size}",
        )
    return vocabulary


def vocabulary_inputs(settings: VocabularySettings, base: Path) -> dict[str, str]:
    """What a loaded vocabulary is made of: its file, which lies relative to `base`."""
    if settings.file is None:
        return {}
    path = base / settings.file
    if not path.is_file():
        raise DataError("no such file", where=path, expected="a Hugging Face tokenizer.json")
    return {"file": digest_file(path)}


def build_vocabulary(
    settings: VocabularySettings,
    texts: Iterator[str],
    folder: Path,
    *,
    inputs: Mapping[str, Input],
    base: Path,
) -> Artifact:
    """Train or load as `settings` say and write the artifact, which `transformers` also reads.

    `texts` are read only to train; `settings.file` lies relative to `base`.
    """
    with writing(folder, "vocabulary", config=settings.resolved(), inputs=inputs) as draft:
        vocabulary = _made_or_loaded(settings, texts, base)
        (draft.folder / TOKENIZER).write_text(vocabulary.definition, encoding="utf-8")
        config = json.dumps(_transformers_config(vocabulary), indent=1) + "\n"
        (draft.folder / TOKENIZER_CONFIG).write_text(config, encoding="utf-8")
        draft.facts |= {"size": vocabulary.size, "vocabulary": vocabulary.digest}
    return draft.artifact


def _made_or_loaded(settings: VocabularySettings, texts: Iterator[str], base: Path) -> Vocabulary:
    if settings.file is None:
        assert settings.size is not None
        return train_vocabulary(texts, settings.size)
    vocabulary = load_vocabulary(base / settings.file)
    if settings.size not in (None, vocabulary.size):
        raise ConfigError(
            "the vocabulary has another size than stated",
            where=vocabulary.where,
            expected=f"{settings.size} ids",
            found=f"{vocabulary.size}",
            fix=f"--set vocabulary.size={vocabulary.size}",
        )
    return vocabulary


def open_vocabulary(path: Path) -> Vocabulary:
    """Open a vocabulary artifact."""
    return load_vocabulary(open_artifact(path, "vocabulary").path / TOKENIZER)


def _transformers_config(vocabulary: Vocabulary) -> dict[str, object]:
    known = [token for token in SPECIAL if vocabulary.tokenizer.token_to_id(token) is not None]
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if END_OF_DOCUMENT in known:
        config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_DOCUMENT)
    if PADDING in known:
        config["pad_token"] = PADDING
    return config


def _not_a_tokenizer(path: Path | None, reason: str) -> DataError:
    return DataError(
        f"not a tokenizer ({reason})", where=path, expected="a Hugging Face tokenizer.json"
    )
