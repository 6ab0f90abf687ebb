"""Windows that are written down one by one: a store whose every item is a window.

Pythia's preshuffled files are such, with their windows in training order, and so are the windows a
branch changes. Not here: which update takes which (`batches.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ontogeny.digest import digest_json
from ontogeny.errors import OrderError
from ontogeny.order.windows import require_places
from ontogeny.tokens.store import Store


@dataclass(frozen=True, slots=True)
class Rows:
    """The items of a store, in its order, as windows."""

    store: Store
    context_length: int

    @property
    def num_windows(self) -> int:
        return len(self.store)

    @property
    def num_ids(self) -> int | None:
        """None: rows say nothing about their vocabulary."""
        return None

    @property
    def start(self) -> str:
        """Known by their number and length; what they hold is not read."""
        return digest_json({"rows": self.num_windows, "context_length": self.context_length})

    def rows(self, first: int, count: int) -> np.ndarray:
        """The windows at `count` places from `first` on: int64 [count, T + 1].

        Raises OrderError for places or lengths that are not these rows'.
        """
        require_places(self, first, count)
        if not count:
            return np.empty((0, self.context_length + 1), np.int64)
        rows = self.store.rows(first, first + count)
        if rows.shape[1] != self.context_length + 1:
            raise OrderError(
                "rows of another length",
                where=self.store.idx,
                expected=f"{self.context_length + 1} tokens",
                found=rows.shape[1],
            )
        return rows.astype(np.int64)
