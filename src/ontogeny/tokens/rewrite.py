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

from ontogeny.errors import ConfigError, DataError
from ontogeny.text.shards import bundles
from ontogeny.tokens.store import DocumentStore, Store
from ontogeny.tokens.vocabulary import Vocabulary, byte_lengths
from ontogeny.tokens.writer import StoreWriter

CHUNK_TOKENS = 1 << 18  # decoded and encoded at a time
INT32 = np.dtype("<i4")

# A document's number in its store, its new tokens, and its cuts: int [size + 1].
EditedDocument = tuple[int, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Edit:
    """Documents with other tokens, read in place from scratch files.

    `documents` int64, ascending; the new tokens of `documents[i]` are item i of `store`. Its first
    t old tokens are now as many as number t in item i of `cuts` says.
    """

    documents: np.ndarray
    store: Store
    cuts: Store

    def items(self, documents: np.ndarray) -> np.ndarray:
        """The items of documents, -1 for those that are not edited."""
        found = np.searchsorted(self.documents, documents)
        return np.where(np.append(self.documents, -1)[found] == documents, found, -1)

    def piece(self, item: int, offset: int, length: int) -> np.ndarray:
        """What some old tokens of an item have become."""
        begin, end = self.cuts.tokens(item)[[offset, offset + length]].tolist()
        return self.store.tokens(item, begin, end - begin)


def write_edit(store: Store, edited: Iterable[EditedDocument], folder: Path) -> Edit:
    """Put edited documents of a store, in ascending order, in files of a scratch folder."""
    numbers: list[int] = []
    paths = folder / "edited", folder / "cuts"
    with StoreWriter(paths[0], store.dtype) as tokens, StoreWriter(paths[1], INT32) as places:
        for number, ids, cuts in edited:
            numbers.append(number)
            tokens.add_documents(ids, np.array([len(ids)]))
            places.add_documents(cuts, np.array([len(cuts)]))
    return Edit(np.array(numbers, np.int64), *map(Store, paths))


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
        """Where places of the old text are now; in what was replaced as far in, if that exists."""
        last = np.searchsorted(self.spans[:, 0], places, side="right") - 1
        start, end, new_start, new_end = self.spans[np.maximum(last, 0)].T
        inside = np.minimum(new_start + places - start, new_end)
        moved = np.where(places < end, inside, new_end + places - end)
        return np.where(last < 0, places, moved)


# A text -> what becomes of it, None where nothing matches.
Substitute = Callable[[str], Substitution | None]


def substitute_words(words: Mapping[str, str]) -> Substitute:
    """Replace whole words, found in any case and all at once, so that two can change places.

    The replacement gets a capital first letter, or capitals only, where the word has them; a
    single capital counts as the former.
    """
    table = {word.lower(): other for word, other in words.items()}
    longest_first = sorted(map(re.escape, table), key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)", re.IGNORECASE)

    def other(match: re.Match[str]) -> str:
        found = match.group()
        word = table.get(found.lower(), found)
        if found.isupper() and len(found) > 1:
            return word.upper()
        return word[:1].upper() + word[1:] if found[:1].isupper() else word

    return lambda text: _substituted(text, pattern, other)


def substitute_pattern(pattern: str, replacement: str) -> Substitute:
    """Replace what a regular expression of Python's `re` matches, with its groups as `\\1`.

    Raises ConfigError when either is not valid.
    """
    try:
        compiled = re.compile(pattern)
        compiled.sub(replacement, "")
    except (re.error, IndexError, OverflowError, RecursionError) as error:
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

    Adds to `counts` the `documents` and the `matches`. Raises DataError where tokens do not add up
    to the text: a vocabulary that is not byte-level, or a replacement that normalisation changes.
    """
    sizes = byte_lengths(vocabulary)
    if sizes is None:
        raise DataError("text is only replaced in tokens of a byte-level vocabulary")
    end = store.artifact.facts["eod_id"]
    ending = [] if end is None else [end]
    for chunk in bundles(documents.tolist(), lambda one: int(store.sizes[one]), CHUNK_TOKENS):
        bodies = [store.tokens(one)[: int(store.sizes[one]) - len(ending)] for one in chunk]
        texts = vocabulary.tokenizer.decode_batch(
            [body.tolist() for body in bodies], skip_special_tokens=False
        )
        changes = [
            (number, body, text, change)
            for number, body, text in zip(chunk, bodies, texts, strict=True)
            if (change := substitute(text)) is not None
        ]
        encoded = vocabulary.encode_all([change.text for *_, change in changes])
        for (number, body, text, change), ids in zip(changes, encoded, strict=True):
            counts["documents"] += 1
            counts["matches"] += len(change.spans)
            where = f"document {store.document_id(number)}"
            old_ends = _ends(sizes[body], text, where)
            new_ends = _ends(sizes[ids], change.text, where)
            cuts = np.searchsorted(new_ends[1:], change.moved(old_ends), side="right")
            cuts[0] = 0  # what is put in front of the first token belongs to it
            ids += ending
            yield number, np.array(ids, np.int64), np.append(cuts, [len(ids)] * len(ending))


def _substituted(
    text: str, pattern: re.Pattern[str], other: Callable[[re.Match[str]], str]
) -> Substitution | None:
    parts, spans = [], []
    at = old = new = 0  # characters of the text that are done, and bytes on either side
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


def _ends(sizes: np.ndarray, text: str, where: str) -> np.ndarray:
    """Where tokens of these sizes end in a text, in bytes, after a 0: int64 [tokens + 1]."""
    ends = np.cumsum(np.append(0, sizes))
    if ends[-1] != len(text.encode()):
        raise DataError(
            "tokens do not add up to the text",
            where=where,
            expected=f"{len(text.encode())} bytes",
            found=ends[-1],
            fix="whole characters in the store, replacements in normal form (NFC)",
        )
    return ends
