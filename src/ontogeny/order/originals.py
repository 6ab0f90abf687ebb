"""What exists already, read in place: the files that GPT-NeoX trains on and Pythia published.

Not here: runs of our own (`ontogeny.stages.materials`).
"""

from __future__ import annotations

from pathlib import Path

from ontogeny.errors import OrderError
from ontogeny.order.rows import Rows
from ontogeny.ranges import Place
from ontogeny.tokens.store import Store


def open_rows(place: Place) -> Rows:
    """Open a file of windows in training order, such as Pythia's preshuffled ones."""
    store = Store(Path(place))
    if not len(store) or store.sizes[0] < 2:
        raise OrderError("holds no windows", where=store.idx, expected="items of 2 tokens or more")
    return Rows(store, int(store.sizes[0]) - 1)
