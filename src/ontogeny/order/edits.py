"""Changes to windows, which keep their length: what is too long is cut, what is short is padded.

Each is a `Change` of `splice.py`: the rows from a place on as they are -> as they are to be.
T = context length. Not here: where other tokens come from (`ontogeny.tokens.rewrite`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from ontogeny.errors import ConfigError
from ontogeny.order.plan import Pieces
from ontogeny.order.shuffle import named_stream
from ontogeny.order.splice import Stretch
from ontogeny.tokens.rewrite import Edit


class Edited:
    """Windows of a stretch in which documents have other tokens; short ones end in `padding`."""

    def __init__(self, stretch: Stretch, edit: Edit, padding: int, counts: dict[str, int]) -> None:
        self._order, at = stretch.order
        self._shift = at - stretch.first
        self._edit, self._padding, self._counts = edit, padding, counts
        for name in ("cut", "padded"):
            counts |= {f"windows_{name}": 0, f"tokens_{name}": 0}

    def __call__(self, first: int, rows: np.ndarray) -> np.ndarray:
        """The rows with every piece of an edited document exchanged."""
        pieces = self._order.pieces(first + self._shift, len(rows))
        items = self._edit.items(pieces.documents)
        bounds = [*pieces.firsts.tolist(), len(items)]
        for row, (begin, end) in enumerate(pairwise(bounds)):
            if (items[begin:end] >= 0).any():
                exchanged = [self._piece(pieces, items, at) for at in range(begin, end)]
                rows[row] = self._fitted(np.concatenate(exchanged), rows.shape[1])
        return rows

    def _piece(self, pieces: Pieces, items: np.ndarray, at: int) -> np.ndarray:
        document, item = int(pieces.documents[at]), int(items[at])
        offset, length = int(pieces.offsets[at]), int(pieces.lengths[at])
        if item < 0:
            return self._order.store.tokens(document, offset, length)
        return self._edit.piece(item, offset, length)

    def _fitted(self, tokens: np.ndarray, length: int) -> np.ndarray:
        excess = len(tokens) - length
        name = "cut" if excess > 0 else "padded"
        self._counts[f"windows_{name}"] += excess != 0
        self._counts[f"tokens_{name}"] += abs(excess)
        fitted = np.full(length, self._padding, np.int64)
        fitted[: len(tokens)] = tokens[:length]
        return fitted


class Inserted:
    """Windows of a stretch into which pieces of tokens are put, one piece each at a drawn place.

    A piece goes behind the end of a document in its window, a drawn one of those that leave room,
    else to the window's start; what it pushes over the window's end is cut. Raises ConfigError
    when there are more pieces than windows.
    """

    def __init__(
        self,
        stretch: Stretch,
        num_pieces: int,
        piece: Callable[[int], np.ndarray],
        *,
        end: int,
        seed: int,
        counts: dict[str, int],
    ) -> None:
        if num_pieces > stretch.count:
            raise ConfigError(
                "there are more pieces to put in than windows to put them in",
                where="splice",
                expected=f"at most {stretch.count}",
                found=num_pieces,
                fix="fewer times, or a later until",
            )
        self._stream = named_stream(f"splice/places/{seed}")
        places = stretch.first + self._stream.permutation(stretch.count)[:num_pieces]
        self._numbers = np.argsort(places)  # of the pieces, as their places ascend
        self._places = places[self._numbers]
        self._piece, self._end, self._counts = piece, end, counts
        counts |= {"pieces": num_pieces, "tokens_cut": 0}

    def __call__(self, first: int, rows: np.ndarray) -> np.ndarray:
        """The rows with what goes into them. To be called for ascending places."""
        low, high = np.searchsorted(self._places, [first, first + len(rows)]).tolist()
        for number, place in zip(self._numbers[low:high], self._places[low:high], strict=True):
            row, piece = rows[place - first], self._piece(int(number))
            joins = np.flatnonzero(row == self._end) + 1
            joins = joins[joins + len(piece) <= len(row)]
            at = int(joins[self._stream.randint(len(joins))]) if len(joins) else 0
            row[:] = np.concatenate([row[:at], piece, row[at:]])[: len(row)]
            self._counts["tokens_cut"] += len(piece)
        return rows


def documents_in(stretch: Stretch) -> np.ndarray:
    """Whether each document of the stretch's store has a token there: bool [documents]."""
    order, at = stretch.order
    found = np.zeros(len(order.store), bool)
    for first, count in stretch.blocks():
        pieces = order.pieces(first - stretch.first + at, count)
        found[pieces.documents[pieces.lengths > 0]] = True
    return found


def pieces_of(sizes: np.ndarray, context_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents cut into pieces of at most T + 1 tokens, which share one as windows do.

    For every piece the document's place in `sizes`, its offset and its length, int64.
    """
    sizes = sizes.astype(np.int64)
    counts = np.maximum(1, -(-(sizes - 1) // context_length))
    documents = np.repeat(np.arange(len(sizes)), counts)
    offsets = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets *= context_length
    return documents, offsets, np.minimum(context_length + 1, sizes[documents] - offsets)
