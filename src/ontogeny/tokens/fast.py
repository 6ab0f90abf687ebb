"""Texts to token ids, many at a time: by a faster library where it is known to be exact.

The reference is `tokenizers`. gigatoken encodes the same ids 20 to 40 times as fast where three
things hold: the vocabulary has the one form that was measured (byte-level BPE with GPT-2's
pre-tokenisation, as Pythia's and our own); the text is in normal form already, since the
libraries' tables of Unicode are of different years (other texts go to the reference); and both
agree on odd texts and on the first documents. Otherwise the reference encodes everything. `name`
says what encodes and why, for a store's provenance; the ids are the same. Who wants no choice
sets ONTOGENY_ENCODER to `tokenizers`, or to `gigatoken`, which is refused where it cannot be used.
Not here: the vocabulary (`vocabulary.py`).
"""

from __future__ import annotations

import importlib
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ontogeny.errors import ConfigError

CHOICE = "ONTOGENY_ENCODER"
REFERENCE, FAST = "tokenizers", "gigatoken"
SAMPLE_CHARACTERS = 1 << 17  # of the first documents: 0.05 s

# Ends, runs, marks, what looks like special tokens, and code points of recent years.
ODD_TEXTS = (
    "",
    " ",
    "\t\t\n",
    "a" + 24 * " " + "b" + 26 * " ",
    "<|endoftext|>",
    "x<|endoftext|> <|padding|>y <|endoftext <|endoftext|",
    "\x00\x01\x1f\x7f\x80\x85\xa0\xad\u200b\u2028\u2029\ufeff\ufffd",
    "I'm you'll WE'LL 's ' s 'S 'tis don''t",
    "1234567 12.5 \u00bd \u00b2 \u0663 \u2168 1a2b",
    "\u6f22\u5b57\u304b\u306a\u4ea4\u3058\u308a\u6587 \ud55c\uad6d\uc5b4 \u0e01\u0e33 \u0937\u093f",
    "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f3f3\ufe0f \U0001fae8 \U00016ff0",
    "a\r\nb\r\n\r\n  c \n \n  x\u3000\u2001y ",
    "\u01c5 \u00df \u1e9e \u0130 \u0131 \u0378 \ue000 \U0010ffff \U0001d49c \U00010400",
    "x" * 5000,
    "-" * 4097,
    "=\n" * 300,
    " " * 3001,
    "\n" * 3001,
    "ab" * 2000 + "_" * 65 + "#" * 127,
)


class Encoder:
    """Encodes texts as `tokenizers` does. `definition` is the text of the `tokenizer.json`."""

    def __init__(self, definition: str, reference: Tokenizer) -> None:
        self._reference = reference
        self._fast: Any = None
        self._is_checked = False
        form = json.loads(definition)
        self._normalises = form.get("normalizer") is not None
        wanted = os.environ.get(CHOICE, "")
        if wanted not in ("", REFERENCE, FAST):
            raise ConfigError(
                "no such encoder", where=CHOICE, expected=f"{FAST} or {REFERENCE}", found=wanted
            )
        self._must_be_fast = wanted == FAST
        if wanted == REFERENCE:
            self._give_up("chosen")
        else:
            self._load(form)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, one text after another, int32, and how many each has, int64.

        On all cores unless TOKENIZERS_PARALLELISM is `false`.
        """
        if self._fast is not None and not self._is_checked:
            self._check(_beginning(texts))
            self._is_checked = True
        if self._fast is None:
            return self._by_reference(texts)
        tokens, sizes = self._by_fast(texts)
        others = [place for place, text in enumerate(texts) if not self._is_settled(text)]
        if not others:
            return tokens, sizes
        pieces = np.split(tokens, np.cumsum(sizes)[:-1])
        for place in others:
            pieces[place], sizes[place : place + 1] = self._by_reference([texts[place]])
        return np.concatenate(pieces), sizes

    def _load(self, form: Mapping[str, Any]) -> None:
        if not _is_known(form):
            self._give_up(f"{FAST} is not used for this form of vocabulary")
            return
        # Normal form is seen to here, and nothing is to be added or cut.
        plain = {**form, "normalizer": None, "truncation": None, "padding": None}
        try:
            self._fast = importlib.import_module(FAST).Tokenizer.from_json(json.dumps(plain))
        except ImportError:
            self._give_up(f"{FAST} is not installed")
        except RuntimeError as error:
            self._give_up(f"{FAST} does not read the vocabulary: {error}")
        else:
            self.name = f"{FAST} {version(FAST)}"
            self._check(ODD_TEXTS)

    def _check(self, texts: Sequence[str]) -> None:
        """Compare both libraries on texts; a difference is the end of the faster one."""
        settled = [text for text in texts if self._is_settled(text)]
        pairs = zip(self._by_fast(settled), self._by_reference(settled), strict=True)
        if not all(np.array_equal(ours, theirs) for ours, theirs in pairs):
            self._give_up(f"{FAST} {version(FAST)} gives other ids")

    def _give_up(self, reason: str) -> None:
        if self._must_be_fast:
            raise ConfigError(
                f"cannot encode with {FAST}: {reason}",
                where=CHOICE,
                fix=f"{CHOICE}={REFERENCE}, or pip install 'ontogeny[fast]'",
            )
        self._fast = None
        self.name = f"{REFERENCE} {version(REFERENCE)} ({reason})"

    def _is_settled(self, text: str) -> bool:
        """Whether normalisation changes nothing, by any library's tables.

        Python's are of Unicode 14 or later, the reference's of an earlier year; what is in normal
        form by the later tables is so by the earlier ones, to which new characters are inert.
        """
        return not self._normalises or text.isascii() or unicodedata.is_normalized("NFC", text)

    def _by_reference(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = self._reference.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        sizes = np.array([len(document) for document in ids], np.int64)
        return np.fromiter(chain.from_iterable(ids), np.int32, int(sizes.sum())), sizes

    def _by_fast(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        # The same word as for the reference forbids a worker process threads of its own.
        parallel = False if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else None
        rows = self._fast.encode_batch(list(texts), parallel=parallel).layout
        tokens = np.asarray(rows.content.data).astype(np.int32)
        return tokens, np.diff(np.asarray(rows.offsets.data)).astype(np.int64)


def _is_known(form: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer.json` says what the faster library was compared on, and no more."""
    model, splits = form["model"], form.get("pre_tokenizer") or {}
    normalizer = (form.get("normalizer") or {"type": "NFC"})["type"]
    extras = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    flags = ("fuse_unk", "byte_fallback", "ignore_merges")
    is_plain = not any(model.get(key) for key in (*extras, *flags))
    tokens = form.get("added_tokens") or []
    takes_more = any(token[key] for token in tokens for key in ("single_word", "lstrip", "rstrip"))
    return (
        (model.get("type"), splits.get("type"), normalizer) == ("BPE", "ByteLevel", "NFC")
        and (splits.get("add_prefix_space"), splits.get("use_regex", True)) == (False, True)
        and is_plain
        and not takes_more
    )


def _beginning(texts: Sequence[str]) -> list[str]:
    """The first texts, as many as make up a sample; the last of them may be cut."""
    taken: list[str] = []
    left = SAMPLE_CHARACTERS
    for text in texts:
        if left <= 0:
            break
        taken.append(text[:left])
        left -= len(text)
    return taken
