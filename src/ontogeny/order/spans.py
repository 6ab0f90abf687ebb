"""Where the tokens of a window are from: its spans, each of one document.

A span's bytes count in the text of its document: the UTF-8 bytes that the vocabulary makes of the
document's tokens, which is the text as it was normalised and encoded. Every token of a byte-level
vocabulary stands for bytes of its own, so that spans meet without gap or overlap also where one
ends within a character. The token that ends a document is no text.
Not here: which windows hold a given text (`lookup.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ontogeny.order.plan import Order
from ontogeny.order.splice import beneath
from ontogeny.order.windows import Windows
from ontogeny.tokens.store import DocumentStore, Store
from ontogeny.tokens.vocabulary import END_OF_DOCUMENT, Vocabulary, byte_lengths

BLOCK = 1 << 20  # tokens of a document whose bytes are counted together


@dataclass(frozen=True, slots=True)
class Span:
    """`length` tokens of a window from `column` on.

    `document` is the item of the store they are of and `offset` where in it they begin, in tokens;
    `id` and `source` are known for stores of ours. All four are None in windows that are written
    down as they are. `bytes` are the first and one after the last in the document's text; None
    without a document or a byte-level vocabulary.
    """

    column: int
    length: int
    document: int | None = None
    offset: int | None = None
    id: str | None = None
    source: str | None = None
    bytes: tuple[int, int] | None = None


class Spans:
    """The spans of windows, whose bytes are told where a byte-level vocabulary is known."""

    def __init__(self, windows: Windows, vocabulary: Vocabulary | None) -> None:
        self._windows = windows
        self._byte_lengths, self._eod = None, -1  # no token is a negative one
        if vocabulary is not None:
            self._byte_lengths = byte_lengths(vocabulary)
            self._eod = vocabulary.tokenizer.get_vocab().get(END_OF_DOCUMENT, -1)

    def __call__(self, place: int, row: np.ndarray) -> tuple[list[Span], bool]:
        """The spans of the window `row` at a place, and whether a splice replaced it.

        Windows that are written down are cut after the ends of documents, several together.
        """
        windows, place = beneath(self._windows, place, 1) or (None, place)
        if isinstance(windows, Order):
            return list(self._of_order(windows, place, row)), False
        return list(self._between_ends(row)), windows is None

    def _of_order(self, order: Order, place: int, row: np.ndarray) -> Iterator[Span]:
        pieces, store, column = order.pieces(place, 1), order.store, 0
        columns = (pieces.documents, pieces.offsets, pieces.lengths)
        for item, offset, length in zip(*(one.tolist() for one in columns), strict=True):
            if not length:
                continue  # an empty document
            of_text = self._bytes(store, item, offset, row[column : column + length])
            yield Span(column, length, item, offset, *named(store, item), of_text)
            column += length

    def _between_ends(self, row: np.ndarray) -> Iterator[Span]:
        is_end = row == self._eod
        cuts = np.flatnonzero(is_end[:-1] & ~is_end[1:]) + 1
        column = 0
        for end in [*cuts.tolist(), len(row)]:
            yield Span(column, end - column)
            column = end

    def _bytes(
        self, store: Store, item: int, offset: int, tokens: np.ndarray
    ) -> tuple[int, int] | None:
        lengths = self._byte_lengths
        if lengths is None:
            return None
        first = 0
        for begin in range(0, offset, BLOCK):
            before = store.tokens(item, begin, min(BLOCK, offset - begin))
            first += int(lengths.take(before, mode="clip").sum())
        count = int(lengths.take(tokens, mode="clip").sum())
        if offset + len(tokens) == store.sizes[item] and tokens[-1] == self._eod:
            count -= int(lengths[tokens[-1]])
        return first, first + count


def named(store: Store, item: int) -> tuple[str | None, str | None]:
    """The id and the source of a document, where the store knows them."""
    if not isinstance(store, DocumentStore):
        return None, None
    return store.document_id(item), store.source_names[int(store.sources[item])]
