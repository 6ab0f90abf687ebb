"""Documents with other tokens: text that is rewritten and encoded again, or left out.

In: documents of a store. Out: `Edit`: their new tokens, and for every old token the new one that
stands at its place, so that any piece of a document can be found again. Places in a text are
counted in bytes of its UTF-8, which is what the tokens of a byte-level vocabulary add up to; a
token across the place belongs to what follows. A document without a match keeps its tokens, also
where its text would encode to others. Not here: windows (`ontogeny.order.edits`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import pre_tokenizers

from ontogeny.errors import ConfigError, DataError
from ontogeny.tokens.store import DocumentStore, Store
from ontogeny.tokens.vocabulary import Vocabulary
from ontogeny.tokens.writer import StoreWriter

CHUNK_TOKENS = 1 << 18  # decoded and encoded at a time
TOKENS, CUTS = "edited", "cuts.bin"

# A document's number in its store, its new tokens, and its cuts: int [size + 1].
EditedDocument = tuple[int, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Edit:
    """Documents with other tokens, read in place from scratch files.

    `documents` int64, ascending; the new tokens of `documents[i]` are item i of `store`. The first
    t of its old tokens are now its first `cuts[bases[i] + t]`.
    """

    documents: np.ndarray
    store: Store
    cuts: np.ndarray
    bases: np.ndarray

    def items(self, documents: np.ndarray) -> np.ndarray:
        """The items of documents, -1 for those that are not edited."""
        found = np.searchsorted(self.documents, documents)
        known = np.append(self.documents, -1)[found] == documents
        return np.where(known, found, -1)


def write_edit(store: Store, edited: Iterable[EditedDocument], folder: Path) -> Edit:
    """Put edited documents of a store, in ascending order, in files of a scratch folder."""
    numbers: list[int] = []
    with (
        StoreWriter(folder / TOKENS, store.dtype) as tokens,
        (folder / CUTS).open("xb") as file,
    ):
        for number, ids, cuts in edited:
            numbers.append(number)
            tokens.add_documents(ids, np.array([len(ids)]))
            file.write(cuts.astype("<i4").data)
    documents = np.array(numbers, np.int64)
    lengths = store.sizes[documents].astype(np.int64) + 1
    bases = np.cumsum(lengths) - lengths
    cuts = np.memmap(folder / CUTS, "<i4", "r").view(np.ndarray) if numbers else np.empty(0, "<i4")
    return Edit(documents, Store(folder / TOKENS), cuts, bases)


def emptied(store: Store, documents: np.ndarray) -> Iterator[EditedDocument]:
    """Documents without any token."""
    for number in documents.tolist():
        yield number, np.empty(0, np.int64), np.zeros(int(store.sizes[number]) + 1, np.int64)


@dataclass(frozen=True, slots=True)
class Substitution:
    """A text in which something is replaced, and where.

    `spans` int64 [n, 4], in bytes: start and end of what was replaced, start and end of what is
    there now.
    """

    text: str
    spans: np.ndarray

    def moved(self, places: np.ndarray) -> np.ndarray:
        """Where places of the old text are in the new one: inside of what was replaced as far in,
        at most at its end.
        """
        last = np.searchsorted(self.spans[:, 0], places, side="right") - 1
        start, end, new_start, new_end = self.spans[np.maximum(last, 0)].T
        inside = np.minimum(new_start + places - start, new_end)
        moved = np.where(places < end, inside, new_end + places - end)
        return np.where(last < 0, places, moved)


# A text -> what becomes of it, None where nothing matches.
Substitute = Callable[[str], Substitution | None]


def substitute_words(words: Mapping[str, str], *, follow_case: bool) -> Substitute:
    """Replace whole words, all at once, so that two can change places.

    When it follows case, a word is found in any case, and its replacement gets a capital first
    letter, or all of them, where the word has them (a single capital counts as the former).
    """
    table = {word.lower() if follow_case else word: other for word, other in words.items()}
    longest_first = sorted(map(re.escape, table), key=lambda word: (-len(word), word))
    flags = re.IGNORECASE if follow_case else re.NOFLAG
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)", flags)

    def other(match: re.Match[str]) -> str:
        found = match.group()
        put = table.get(found.lower() if follow_case else found, found)
        return _in_case(put, found) if follow_case else put

    return lambda text: _substituted(text, pattern, other)


def substitute_pattern(pattern: str, replacement: str) -> Substitute:
    """Replace what a regular expression of Python's `re` matches, with its groups as `\\1`.

    Raises ConfigError when either is not valid.
    """
    try:
        compiled = re.compile(pattern)
        compiled.sub(replacement, "")
    except (re.error, IndexError, OverflowError) as error:
        raise ConfigError(
            f"not a regular expression with its replacement ({error})",
            where="splice",
            found=f"{pattern!r} and {replacement!r}",
        ) from error
    return lambda text: _substituted(text, compiled, lambda match: match.expand(replacement))


def rewritten(
    store: DocumentStore,
    documents: np.ndarray,
    vocabulary: Vocabulary,
    substitute: Substitute,
    counts: dict[str, int],
) -> Iterator[EditedDocument]:
    """Those of the documents in which something matches, rewritten.

    Adds to `counts` the documents and the matches. Raises DataError where tokens do not add up to
    the text: a vocabulary that is not byte-level, or a replacement that normalisation changes.
    """
    sizes = _bytes_of_tokens(vocabulary)
    end = store.artifact.facts["eod_id"]
    for chunk in _chunks(store, documents):
        bodies = [store.tokens(number).astype(np.int64) for number in chunk]
        if end is not None:
            bodies = [body[:-1] for body in bodies]
        texts = vocabulary.tokenizer.decode_batch(
            [body.tolist() for body in bodies], skip_special_tokens=False
        )
        changes = [
            (number, body, text, substitution)
            for number, body, text in zip(chunk, bodies, texts, strict=True)
            if (substitution := substitute(text)) is not None
        ]
        encoded = vocabulary.encode_all([change.text for *_, change in changes])
        for (number, body, text, change), ids in zip(changes, encoded, strict=True):
            counts["documents"] += 1
            counts["matches"] += len(change.spans)
            new = np.array(ids, np.int64)
            where = f"document {store.document_id(number)}"
            old_ends = _ends(sizes[body], text, where)
            new_ends = _ends(sizes[new], change.text, where)
            cuts = np.searchsorted(new_ends[1:], change.moved(old_ends), side="right")
            cuts[0], cuts[-1] = 0, len(new)
            if end is not None:
                new, cuts = np.append(new, end), np.append(cuts, len(new) + 1)
            yield number, new, cuts


def _substituted(
    text: str, pattern: re.Pattern[str], other: Callable[[re.Match[str]], str]
) -> Substitution | None:
    parts, spans = [], []
    at = old = new = 0
    for match in pattern.finditer(text):
        found, put = match.group(), other(match)
        if put == found:
            continue
        kept = text[at : match.start()]
        start, new_start = old + len(kept.encode()), new + len(kept.encode())
        old, new = start + len(found.encode()), new_start + len(put.encode())
        parts += [kept, put]
        spans.append((start, old, new_start, new))
        at = match.end()
    if not spans:
        return None
    return Substitution("".join([*parts, text[at:]]), np.array(spans, np.int64))


def _in_case(word: str, found: str) -> str:
    if found.isupper() and len(found) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if found[:1].isupper() else word


def _chunks(store: Store, documents: np.ndarray) -> Iterator[list[int]]:
    ends = np.cumsum(store.sizes[documents], dtype=np.int64)
    for chunk in np.split(documents, np.flatnonzero(np.diff(ends // CHUNK_TOKENS)) + 1):
        if len(chunk):
            yield chunk.tolist()


def _bytes_of_tokens(vocabulary: Vocabulary) -> np.ndarray:
    """How many bytes each id stands for: a letter of the byte alphabet is one."""
    alphabet = frozenset(pre_tokenizers.ByteLevel.alphabet())
    sizes = np.zeros(vocabulary.size, np.int64)
    for token, number in vocabulary.tokenizer.get_vocab(with_added_tokens=True).items():
        sizes[number] = len(token) if alphabet.issuperset(token) else len(token.encode())
    return sizes


def _ends(sizes: np.ndarray, text: str, where: str) -> np.ndarray:
    """Where tokens of these sizes end in a text, in bytes, after a 0: int64 [tokens + 1]."""
    ends = np.concatenate([[0], np.cumsum(sizes)])
    if ends[-1] != len(text.encode()):
        raise DataError(
            "tokens do not add up to the text",
            where=where,
            expected=f"{len(text.encode())} bytes",
            found=f"{ends[-1]}",
            fix="a byte-level vocabulary, whole characters, and replacements in normal form (NFC)",
        )
    return ends
