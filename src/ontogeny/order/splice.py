"""Splices: a parent's windows up to a place, and from there on others, as many and as long.

In: the windows of a run, and how those of a stretch change. Out: `Spliced`, which is windows again,
and the artifact that holds it: the windows that differ, written down one by one, and what is
counted of the difference. All of it in token ids. Not here: making other tokens of text
(`ontogeny.tokens.rewrite`), which change a user may ask for (`ontogeny.stages.splices`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ontogeny.artifact import Artifact, open_input, writing
from ontogeny.errors import ConfigError, OrderError
from ontogeny.order.plan import Order, load_array, open_order, reordered
from ontogeny.order.rows import Rows
from ontogeny.order.windows import Windows, require_places
from ontogeny.tokens.store import Store, open_store
from ontogeny.tokens.writer import StoreWriter, token_dtype

PATCH, PATCHED, SEQUENCE = "patch", "patched.npy", "windows.npy"
BLOCK = 1 << 20  # tokens changed and compared at a time


@dataclass(frozen=True, slots=True)
class Part:
    """`count` consecutive places, which hold the windows of a sequence from `first` on."""

    windows: Windows
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Spliced:
    """Windows in parts, some of them replaced: window i of `patch` stands at place `patched[i]`.

    `patched` is int64 and ascending. The first part is the parent's, though it may be empty: with
    its rows the rolling digest starts.
    """

    parts: tuple[Part, ...]
    patched: np.ndarray
    patch: Rows

    @property
    def context_length(self) -> int:
        return self.patch.context_length

    @property
    def num_windows(self) -> int:
        return sum(part.count for part in self.parts)

    @property
    def num_ids(self) -> int | None:
        """The largest of its parts', None where one does not say."""
        numbers = [part.windows.num_ids for part in self.parts]
        known = [number for number in numbers if number is not None]
        return max(known) if len(known) == len(numbers) else None

    @property
    def start(self) -> str:
        return self.parts[0].windows.start

    def rows(self, first: int, count: int) -> np.ndarray:
        """The windows at `count` places from `first` on: int64 [count, context_length + 1].

        Raises OrderError when there are no such places.
        """
        require_places(self, first, count)
        rows = np.empty((count, self.context_length + 1), np.int64)
        done = 0
        for part in self.stretches(first, count):
            rows[done : done + part.count] = part.windows.rows(part.first, part.count)
            done += part.count
        low, high = np.searchsorted(self.patched, [first, first + count]).tolist()
        rows[self.patched[low:high] - first] = self.patch.rows(low, high - low)
        return rows

    def stretches(self, first: int, count: int) -> Iterator[Part]:
        """The parts of `count` places from `first` on, whatever is patched there."""
        begin = 0
        for part in self.parts:
            low, high = max(first, begin), min(first + count, begin + part.count)
            if low < high:
                yield Part(part.windows, part.first + low - begin, high - low)
            begin += part.count


def beneath(windows: Windows, first: int, count: int) -> tuple[Windows, int] | None:
    """The windows, no splice, that stand at `count` places, and the place of the first in them.

    None where a splice replaced some of them, or put them together from several sequences.
    """
    while isinstance(windows, Spliced):
        low, high = np.searchsorted(windows.patched, [first, first + count])
        parts = list(windows.stretches(first, count))
        if low != high or len(parts) != 1:
            return None
        windows, first = parts[0].windows, parts[0].first
    return windows, first


@dataclass(frozen=True, slots=True)
class Stretch:
    """The places `first` to `last` - 1 of the parent's windows: where a splice applies."""

    parent: Windows
    first: int
    last: int

    @property
    def count(self) -> int:
        return self.last - self.first

    @property
    def order(self) -> tuple[Order, int]:
        """The order all windows of the stretch come from as they are, and the place of the first.

        Raises OrderError where there is no such order, because the parent is spliced there.
        """
        windows, first = beneath(self.parent, self.first, self.count) or (None, 0)
        if not isinstance(windows, Order):
            raise OrderError(
                "the parent is spliced there itself: its documents are not whole",
                expected=f"windows of one order at places {self.first} to {self.last - 1}",
                fix="branch from the run it branched from, or insert, identity or store",
            )
        return windows, first

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First place and number of places of its blocks, which fit in memory."""
        step = max(1, BLOCK // (self.parent.context_length + 1))
        for first in range(self.first, self.last, step):
            yield first, min(step, self.last - first)


# The rows from a place on as they are -> the rows as they are to be.
Change = Callable[[int, np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Splice:
    """What happens in a stretch: its rows `change`, or come in another `sequence`.

    `counts` is filled on the way, for the summary.
    """

    change: Change | None = None
    sequence: np.ndarray | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


def write_splice(
    path: Path,
    stretch: Stretch,
    make: Callable[[Path], Splice],
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
) -> Artifact:
    """Write the splice that `make` gives, handed a scratch folder, with what it changed as facts.

    The input `parent` is what the stretch is of; an input `order` takes its place in the stretch.
    Raises ConfigError when nothing is changed.
    """
    parent = stretch.parent
    with writing(path, "splice", config=config, inputs=inputs) as draft:
        scratch = draft.folder / "scratch"
        scratch.mkdir()
        splice = make(scratch)
        if splice.sequence is not None:
            np.save(draft.folder / SEQUENCE, splice.sequence)
        patched = [np.empty(0, np.int64)]
        with StoreWriter(draft.folder / PATCH, token_dtype(parent.num_ids or 1 << 31)) as patch:
            for places, rows in _changed(stretch, splice.change) if splice.change else ():
                patched.append(places)
                patch.add_documents(rows.reshape(-1), np.full(len(rows), rows.shape[1]))
        np.save(draft.folder / PATCHED, np.concatenate(patched))
        shutil.rmtree(scratch)
        spliced = _assemble(draft.folder, stretch, inputs.get("order"))
        summary = difference(stretch, spliced)
        if not summary["windows_changed"] + summary["windows_added"]:
            raise ConfigError(
                "the splice changes no window: the branch would equal its parent",
                where="splice",
                fix="another one, or --splice identity if that is what you want",
            )
        draft.facts |= {"first": stretch.first, "last": stretch.last}
        draft.facts["summary"] = summary | dict(splice.counts)
    return draft.artifact


def open_windows(artifact: Artifact) -> Windows:
    """Open what a run goes through: an order, or a splice. Raises OrderError or DataError."""
    if artifact.kind == "splice":
        other = open_input(artifact, "order") if "order" in artifact.inputs else None
        parent = open_windows(open_input(artifact, "parent"))
        stretch = Stretch(parent, int(artifact.facts["first"]), int(artifact.facts["last"]))
        return _assemble(artifact.path, stretch, other)
    return open_order(artifact.path, open_store(open_input(artifact, "store").path))


def difference(stretch: Stretch, spliced: Windows) -> dict[str, int]:
    """Windows and tokens of a stretch that are others in `spliced` at the same place and column.

    Windows at places the parent does not reach are counted apart, as added.
    """
    windows = tokens = 0
    reached = min(stretch.last, stretch.parent.num_windows)
    for first, count in Stretch(stretch.parent, stretch.first, reached).blocks():
        differs = stretch.parent.rows(first, count) != spliced.rows(first, count)
        windows += int(differs.any(1).sum())
        tokens += int(differs.sum())
    return {
        "windows": stretch.count,
        "windows_changed": windows,
        "tokens_changed": tokens,
        "windows_added": stretch.last - max(reached, stretch.first),
    }


def _changed(stretch: Stretch, change: Change) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places and rows of the windows that come out differently, in blocks."""
    for first, count in stretch.blocks():
        rows = stretch.parent.rows(first, count)
        other = change(first, rows.copy())
        changed = (other != rows).any(1)
        yield first + np.flatnonzero(changed), other[changed]


def _assemble(folder: Path, stretch: Stretch, other: Artifact | None) -> Spliced:
    """A splice from its files. Raises OrderError if they do not fit together."""
    parent, first, last = stretch.parent, stretch.first, stretch.last
    middle = Part(parent, first, stretch.count)
    if other is not None:
        middle = Part(open_windows(other), 0, stretch.count)
    elif (folder / SEQUENCE).is_file():
        order, at = stretch.order
        middle = Part(reordered(order, folder / SEQUENCE), at, stretch.count)
    after = Part(parent, last, max(0, parent.num_windows - last))
    parts = (Part(parent, 0, first), middle, *([after] if after.count else []))
    patch = Rows(Store(folder / PATCH), parent.context_length)
    patched = load_array(folder / PATCHED)
    fits = patched.shape == (patch.num_windows,) and patched.dtype == np.int64
    if not (fits and (np.diff(patched, prepend=first - 1, append=last) > 0).all()):
        raise OrderError(
            "damaged splice",
            where=folder / PATCHED,
            expected=f"{patch.num_windows} ascending places from {first} to {last - 1}",
            found=f"{patched.dtype} {list(patched.shape)}",
            fix="remove it and branch again",
        )
    return Spliced(parts, patched, patch)
