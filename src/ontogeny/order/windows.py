"""What a run goes through, wherever it comes from: windows of tokens in a sequence.

An order of a store (`plan.py`) is one; files of rows that are shuffled already and the spliced
windows of a branch are others. Not here: how many windows an update takes (`batches.py`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ontogeny.errors import OrderError


class Windows(Protocol):
    """A sequence of windows of `context_length` + 1 tokens, each at a place counted from 0."""

    @property
    def context_length(self) -> int:
        """Tokens a window teaches: one less than it holds."""

    @property
    def num_windows(self) -> int:
        """How many places there are."""

    @property
    def num_ids(self) -> int | None:
        """Ids the vocabulary has, None where nothing says so."""

    @property
    def start(self) -> str:
        """What the rolling digest of the rows begins from: the identity of the sequence."""

    def rows(self, first: int, count: int) -> np.ndarray:
        """The windows at `count` places from `first` on: int64 [count, context_length + 1].

        Raises OrderError when there are no such places.
        """


def require_places(windows: Windows, first: int, count: int) -> None:
    """Raise OrderError unless the windows have `count` places from `first` on."""
    if first < 0 or count < 0 or first + count > windows.num_windows:
        raise OrderError(
            "the order has no such windows",
            expected=f"places 0 to {windows.num_windows - 1}",
            found=f"{first} to {first + count - 1}",
        )
