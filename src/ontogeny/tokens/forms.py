"""The forms a text can have in a store: every string of tokens that spells it.

How a text is cut into tokens depends on what is around it: a space before it joins its first word,
and letters or signs after it may join its last token. So a text is looked for wherever it begins
with a token, or right after the space a token begins with, whatever follows it: by the bytes that
tokens stand for, along the index, which knows which of the many strings there are.
Not here: where they were seen (`ontogeny.order.seen`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ontogeny.errors import ConfigError
from ontogeny.tokens.suffixes import Range, Suffixes
from ontogeny.tokens.vocabulary import Vocabulary, spellings

SPACE = b" "


def require_unicode(text: str) -> None:
    """Raise ConfigError for a text no tokens spell, as a command in bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            "the text is not Unicode", found=f"half a surrogate pair at character {error.start}"
        ) from error


@dataclass(frozen=True, slots=True)
class _Path:
    """Tokens that spell the begin of a text, where each index has them, and the bytes left."""

    tokens: tuple[int, ...]
    ranges: list[list[Range]]
    rest: bytes


class Forms:
    """Finds the forms of texts in some indexes."""

    def __init__(self, vocabulary: Vocabulary, indexes: Sequence[Suffixes]) -> None:
        self._vocabulary, self._indexes = vocabulary, indexes
        spelled_by = spellings(vocabulary)
        if spelled_by is None:
            raise ConfigError(
                "its tokens have no bytes of their own, so that a text cannot be searched",
                where=vocabulary.where,
                expected="a byte-level vocabulary",
                fix="--tokens 12,34",
            )
        self.spellings = spelled_by
        self._ids = defaultdict(list)
        for number, spelled in self.spellings.items():
            self._ids[spelled].append(number)
        added = vocabulary.tokenizer.get_added_tokens_decoder().items()
        special = {number for number, token in added if token.special}
        self._sorted = sorted(
            (spelled, number) for number, spelled in self.spellings.items() if number not in special
        )
        self._longest = max(map(len, self._ids))

    def __call__(self, text: str) -> list[tuple[int, ...]]:
        """Every string of tokens in the indexes that spells a text; and the tokenizer's own.

        No two begin at the same token of a store, so their counts add up.
        """
        require_unicode(text)
        normalizer = self._vocabulary.tokenizer.normalizer
        text = text if normalizer is None else normalizer.normalize_str(text)
        if not text:
            raise ConfigError("nothing to look for", expected="a text")
        found = dict.fromkeys(self._spelled(text.encode(), 0))
        found[tuple(self._vocabulary.encode(text))] = None
        if not text.startswith(" "):
            found |= dict.fromkeys(self._spelled(SPACE + text.encode(), 1))
            spaced = tuple(self._vocabulary.encode(" " + text))
            if self.spellings[spaced[0]] != SPACE:  # else the text begins with a token: see above
                found[spaced] = None
        return list(found)

    def _spelled(self, text: bytes, space: int) -> Iterator[tuple[int, ...]]:
        """The strings that spell a text, the first token being longer than its space."""
        paths = [_Path((), [index.everything() for index in self._indexes], text)]
        while paths:
            path = paths.pop()
            for number in self._next(path, 0 if path.tokens else space):
                ranges = [
                    index.narrow(own, len(path.tokens), number)
                    for index, own in zip(self._indexes, path.ranges, strict=True)
                ]
                if not any(ranges):
                    continue
                tokens, size = (*path.tokens, number), len(self.spellings[number])
                if size >= len(path.rest):
                    yield tokens
                else:
                    paths.append(_Path(tokens, ranges, path.rest[size:]))

    def _next(self, path: _Path, space: int) -> Iterator[int]:
        """The ids that may go on: they spell what is left, or its begin, or go on beyond it."""
        rest = path.rest
        for size in range(space + 1, min(len(rest), self._longest) + 1):
            yield from self._ids.get(rest[:size], ())
        at = bisect_right(self._sorted, (rest, len(self.spellings)))
        while at < len(self._sorted) and self._sorted[at][0].startswith(rest):
            yield self._sorted[at][1]
            at += 1
