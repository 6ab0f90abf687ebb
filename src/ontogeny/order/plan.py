"""The order artifact: a store's windows in the one sequence every run on it goes through.

`build_order` writes the index arrays (`shuffle.py`) as `.npy`; `open_order` maps them and checks
that they are an order of this store; `Order` turns places in the order into tokens.
T = context length. Not here: how many rows an update takes (`batches.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from ontogeny.artifact import Artifact, open_artifact, writing
from ontogeny.digest import digest_json
from ontogeny.errors import OrderError
from ontogeny.order.blend import windows_asked
from ontogeny.order.shuffle import Indices, neox_indices, sound_indices
from ontogeny.order.windows import require_places
from ontogeny.ranges import Place
from ontogeny.suite import RECIPES, OrderSettings, RecipeName
from ontogeny.tokens.store import DocumentStore, Store

ARRAYS = ("documents", "samples", "windows")
INT_KINDS = "iu"
# What numpy raises on a header that is none: it is Python text, read by Python's own parser.
NO_ARRAY = (ValueError, OverflowError, SyntaxError, TokenError)
BLOCK = 1 << 20  # windows checked together


@dataclass(frozen=True, slots=True)
class Pieces:
    """The parts of documents that some windows are made of, one after another.

    `documents`, and in tokens `offsets` in them and `lengths`: the lengths of each window's sum to
    T + 1. Those of window w begin at piece `firsts[w]`. All int64, but documents.
    """

    documents: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    firsts: np.ndarray


@dataclass(frozen=True, slots=True)
class Order:
    """A store's windows in order. `start` is what the rolling digest of the rows begins from.

    Orders of one store, seed and recipe start equal, also when one goes on for longer.
    """

    store: Store
    indices: Indices
    context_length: int
    start: str

    @property
    def num_windows(self) -> int:
        return len(self.indices.windows)

    @property
    def num_ids(self) -> int | None:
        """Ids the store's vocabulary has, None where the store does not say."""
        if not isinstance(self.store, DocumentStore):
            return None
        return int(self.store.artifact.facts["vocabulary_size"])

    def rows(self, first: int, count: int) -> np.ndarray:
        """The windows at `count` places from `first` on: int64 [count, T + 1].

        Raises OrderError when the order ends before.
        """
        pieces = self.pieces(first, count)
        starts = self.store.starts(pieces.documents) + pieces.offsets
        return self.store.gather(starts, pieces.lengths).reshape(count, self.context_length + 1)

    def pieces(self, first: int, count: int) -> Pieces:
        """What the windows at `count` places from `first` on are made of.

        Raises OrderError when the order ends before, and where its index arrays do not give windows
        of T + 1 tokens.
        """
        require_places(self, first, count)
        windows = self.indices.windows[first : first + count].astype(np.int64)
        samples = self.indices.samples[np.concatenate((windows, windows + 1))].astype(np.int64)
        begins, nexts = samples[:count], samples[count:]  # [W, 2]
        counts = nexts[:, 0] - begins[:, 0] + 1  # documents touched, [W]
        if (counts < 1).any():
            raise self._no_window(first + int((counts < 1).argmax()))
        firsts = np.cumsum(counts) - counts
        places = np.arange(int(counts.sum())) + np.repeat(begins[:, 0] - firsts, counts)
        documents = self.indices.documents[places]
        offsets = np.zeros(len(places), np.int64)
        lengths = self.store.sizes[documents].astype(np.int64)
        offsets[firsts] = begins[:, 1]
        lengths[firsts] -= begins[:, 1]
        ends = np.cumsum(lengths)
        ends -= np.repeat(ends[firsts] - lengths[firsts], counts)  # now within the window
        lengths -= np.clip(ends - (self.context_length + 1), 0, lengths)
        wrong = np.add.reduceat(lengths, firsts) != self.context_length + 1 if count else firsts
        if wrong.any():
            raise self._no_window(first + int(wrong.argmax()))
        return Pieces(documents, offsets, lengths, firsts)

    def _no_window(self, place: int) -> OrderError:
        return OrderError(
            f"damaged order: no window of {self.context_length + 1} tokens is at place {place}",
            where=self.store.idx,
            fix="make the order again, or fetch it anew",
        )


def order_config(
    settings: OrderSettings, recipe: RecipeName, num_windows: int
) -> Mapping[str, Any]:
    """What an order is recorded, and found again, under."""
    return settings.resolved() | {"recipe": recipe, "num_windows": num_windows}


def build_order(
    store: DocumentStore,
    settings: OrderSettings,
    *,
    recipe: RecipeName,
    num_windows: int,
    folder: Path,
) -> Artifact:
    """Write an order of at least `num_windows` windows of a store, in whole epochs."""
    config = order_config(settings, recipe, num_windows)
    together = RECIPES[recipe].shuffles_epochs_together
    sizes, length, seed = store.sizes, settings.context_length, settings.seed
    with writing(folder, "order", config=config, inputs={"store": store.artifact}) as draft:
        make = neox_indices if together else sound_indices
        asked = windows_asked(num_windows)[0] if together else num_windows
        indices = make(sizes, num_windows=asked, context_length=length, seed=seed)
        for name in ARRAYS:
            np.save(draft.folder / f"{name}.npy", getattr(indices, name))
        num_epochs = len(indices.documents) // len(store)
        draft.facts |= {
            "num_windows": len(indices.windows),
            "num_epochs": num_epochs,
            "windows_per_epoch": len(indices.windows) // num_epochs,
            "start": _start(store, settings, recipe, num_epochs if together else None),
        }
    return draft.artifact


def open_order(path: Path, store: DocumentStore) -> Order:
    """Open an order of `store`. Raises OrderError for one of another store or a damaged one."""
    artifact = open_artifact(path, "order")
    if artifact.inputs["store"] != store.digest:
        raise OrderError(
            "an order of another store",
            where=path,
            expected=store.digest,
            found=artifact.inputs["store"],
            fix=f"give the store it was made for, or remove {path} and order this one",
        )
    files = {name: path / f"{name}.npy" for name in ARRAYS}
    indices = Indices(**{name: load_array(file) for name, file in files.items()})
    check_indices(indices, store, int(artifact.facts["num_epochs"]), files)
    return Order(
        store, indices, int(artifact.config["context_length"]), str(artifact.facts["start"])
    )


def reordered(order: Order, path: Path) -> Order:
    """The windows of an order in the sequence of a file. Raises OrderError for a damaged one."""
    windows = load_array(path)
    _check_shape(windows, (order.num_windows,), path)
    _check_complete(windows, order.num_windows, path)
    return replace(order, indices=replace(order.indices, windows=windows))


def _start(
    store: DocumentStore, settings: OrderSettings, recipe: RecipeName, num_epochs: int | None
) -> str:
    """The identity of the sequence of windows; `num_epochs` where it changes the first window."""
    return digest_json(
        {"store": store.digest, "recipe": recipe, "num_epochs": num_epochs} | settings.resolved()
    )


def load_array(path: Path) -> np.ndarray:
    """Map an index array. Raises OrderError for what is none, or is cut short."""
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except (OSError, *NO_ARRAY) as error:
        raise OrderError(f"unreadable array ({error})", where=path) from error
    return array.view(np.ndarray)


def check_indices(
    indices: Indices, store: Store, num_epochs: int, files: Mapping[str, Place]
) -> None:
    """Check shapes, ranges, and that no document or window is left out.

    Raises OrderError naming which of `files`, by the name of the array, is damaged and where.
    """
    check_shapes(indices, store, num_epochs, files)
    _check_complete(indices.documents, len(store), files["documents"])
    _check_complete(indices.windows, len(indices.windows), files["windows"])
    for first in range(0, len(indices.windows), BLOCK):
        starts = indices.samples[first : first + BLOCK + 1]
        _check_starts(starts, first, indices.documents, store, files["samples"])


def check_shapes(
    indices: Indices, store: Store, num_epochs: int, files: Mapping[str, Place]
) -> None:
    """Raise OrderError unless the arrays are of integers and have the shapes of an order's."""
    num_windows = indices.windows.size
    wanted = [(len(store) * num_epochs,), (num_windows + 1, 2), (num_windows,)]
    for name, shape in zip(ARRAYS, wanted, strict=True):
        _check_shape(getattr(indices, name), shape, files[name])


def _check_shape(array: np.ndarray, shape: tuple[int, ...], where: Place) -> None:
    if array.shape != shape or array.dtype.kind not in INT_KINDS:
        raise OrderError(
            "array of the wrong shape",
            where=where,
            expected=f"integers {list(shape)}",
            found=f"{array.dtype} {list(array.shape)}",
        )


def _check_complete(values: np.ndarray, bound: int, where: Place) -> None:
    """Every number below `bound` occurs; once each, when there are `bound` of them."""
    inside = (values >= 0) & (values < bound)
    if not inside.all():
        at = int(inside.argmin())
        raise _damaged(where, at, f"0 to {bound - 1}", values[at])
    seen = np.zeros(bound, bool)
    seen[values] = True
    if not seen.all():
        raise _damaged(where, None, f"every number below {bound}", f"no {int(seen.argmin())}")


def _check_starts(
    starts: np.ndarray, first: int, documents: np.ndarray, store: Store, where: Place
) -> None:
    """Windows start inside the documents, each after the one in front of it."""
    places, offsets = starts[:, 0], starts[:, 1]
    right = (places >= 0) & (places < len(documents))
    sizes = np.zeros(len(places), np.int64)
    sizes[right] = store.sizes[documents[places[right]]]
    right &= (offsets >= 0) & (offsets < np.maximum(sizes, 1))  # the first may be an empty one
    right[1:] &= (places[1:] > places[:-1]) | (
        (places[1:] == places[:-1]) & (offsets[1:] > offsets[:-1])
    )
    if not right.all():
        at = int(right.argmin())
        expected = "a place after the last, an offset inside its document"
        raise _damaged(where, first + at, expected, f"{places[at]}, {offsets[at]}")


def _damaged(where: Place, at: int | None, expected: str, found: object) -> OrderError:
    return OrderError(
        "damaged order" if at is None else f"damaged order at entry {at}",
        where=where,
        expected=expected,
        found=found,
        fix="make the order again, or fetch it anew",
    )
