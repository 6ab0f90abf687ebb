"""Whatever has batches: a run of ours, or the originals' files, here or on a server.

Not here: how the originals' files are read (`ontogeny.order.originals`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ontogeny.artifact import MANIFEST
from ontogeny.errors import ConfigError, DataError, OrderError
from ontogeny.order.batches import Batches
from ontogeny.order.originals import build_neox_order, is_index_map, open_index_maps, open_rows
from ontogeny.order.plan import Order
from ontogeny.order.rows import Rows
from ontogeny.questions.materials import open_materials
from ontogeny.ranges import Place, is_remote
from ontogeny.tokens.ranged import located
from ontogeny.tokens.store import Store
from ontogeny.tokens.vocabulary import Vocabulary, load_vocabulary
from ontogeny.tokens.writer import token_dtype

PYTHIA_ROWS = 1024  # rows an update took in all of Pythia
BLOCK = 1 << 21  # tokens read together


@dataclass(frozen=True, slots=True)
class Source:
    """Batches with what they are made of; `vocabulary` is None where none was given.

    `num_updates` counts those that were, or can be, trained; the last may be short of rows where a
    file ends within it.
    """

    name: str
    batches: Batches
    num_updates: int
    store: Store
    vocabulary: Vocabulary | None

    @property
    def dtype(self) -> np.dtype:
        """The type the tokens of its rows are stored in."""
        num_ids = self.batches.order.num_ids
        return self.store.dtype if num_ids is None else token_dtype(num_ids)

    @property
    def moved(self) -> int | None:
        """Bytes a server has sent so far; None of what lies here."""
        if not is_remote(self.name):
            return None
        parts: list[object] = [self.store]
        if isinstance(self.batches.order, Order):
            indices = self.batches.order.indices
            parts += [indices.documents, indices.samples, indices.windows]
        return sum(getattr(part, "moved", 0) for part in parts)

    def num_rows(self, update: int) -> int:
        """Rows of an update: fewer than the others' in the last of a file.

        Raises OrderError when there is no such update.
        """
        first, last = self.batches.first_update, self.num_updates
        if not first <= update < last:
            raise OrderError(
                f"there is no update {update}",
                where=self.name,
                expected=f"updates {first} to {last - 1}",
                fix="ask the run it branched from" if update < first else None,
            )
        left = self.batches.order.num_windows - self.batches.place(update)
        return min(self.batches.rows_per_update, left)

    def blocks(
        self, updates: range, rows: range | None = None
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """All rows of some updates, or the same few of each: update, first row, tokens.

        The tokens are int64 [rows, T + 1] and at most BLOCK, but for a row that is longer.
        Raises OrderError for updates or rows there are not, before anything is read of an update.
        """
        windows = self.batches.order
        step = max(1, BLOCK // (windows.context_length + 1))
        for update in updates:
            count = self.num_rows(update)
            wanted = range(count) if rows is None else rows
            if not 0 <= wanted.start < wanted.stop <= count:
                raise OrderError(
                    f"update {update} has no such rows",
                    where=self.name,
                    expected=f"rows 0 to {count - 1}",
                    found=f"{wanted.start} to {wanted.stop - 1}",
                )
            for first in range(wanted.start, wanted.stop, step):
                place = self.batches.place(update) + first
                yield update, first, windows.rows(place, min(step, wanted.stop - first))

    def save(self, path: Path, updates: range, rows: range | None = None) -> tuple[int, int]:
        """Write rows as the batch viewer of Pythia does, one block after another; their shape.

        The file holds one array of `dtype` and is whole or absent. Raises DataError if it exists.
        """
        counts = (self.num_rows(update) if rows is None else len(rows) for update in updates)
        shape = sum(counts), self.batches.order.context_length + 1
        if path.exists():
            raise DataError("already exists", where=path, fix="choose another file")
        aside = path.with_name(f".{path.name}.writing-{os.getpid()}")
        head = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        try:
            with aside.open("xb") as file:
                np.lib.format.write_array_header_1_0(file, head)
                for _, _, block in self.blocks(updates, rows):
                    file.write(block.astype(self.dtype).data)
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
        return shape


def open_source(
    place: Place,
    *,
    rows_per_update: int | None = None,
    vocabulary: Path | None = None,
    context_length: int | None = None,
    seed: int | None = None,
    updates: int | None = None,
) -> Source:
    """Open a run's folder, or files of GPT-NeoX, of which only the names are looked at.

    A run knows everything. Files know neither their vocabulary (a tokenizer.json) nor how many rows
    an update took, which is Pythia's number unless given. `context_length`, `seed` and `updates`
    are for a pair whose order is to be built as GPT-NeoX does. Raises DataError, OrderError or
    ConfigError.
    """
    asked = {"context-length": context_length, "seed": seed, "updates": updates}
    if not is_remote(place) and (Path(place) / MANIFEST).is_file():
        _refuse(asked | {"rows-per-update": rows_per_update, "vocabulary": vocabulary}, place)
        run = open_materials(Path(place))
        name = str(Path(place))
        return Source(name, run.batches, run.settings.num_updates, run.store, run.vocabulary)
    if not is_remote(place) and not is_index_map(place):
        _require_pair(Path(place))
    rows = PYTHIA_ROWS if rows_per_update is None else rows_per_update
    known = None if vocabulary is None else load_vocabulary(vocabulary)
    windows: Order | Rows
    if context_length is not None and seed is not None and updates is not None:
        settings = {"context_length": context_length, "seed": seed}
        windows = build_neox_order(place, **settings, num_windows=updates * rows)
        num_updates = updates
    else:
        _refuse(asked, place)
        windows = open_index_maps(place) if is_index_map(place) else open_rows(place)
        short = isinstance(windows, Rows) and windows.num_windows % rows > 0
        num_updates = windows.num_windows // rows + short
    return Source(str(place), Batches(windows, rows), num_updates, windows.store, known)


def _refuse(asked: Mapping[str, object], place: Place) -> None:
    given = [f"--{name}" for name, value in asked.items() if value is not None]
    if given:
        raise ConfigError(
            f"{', '.join(given)} cannot be asked of this",
            where=place,
            expected="a run's folder alone, an index array or rows with --rows-per-update and "
            "--vocabulary, or a .bin/.idx pair with --context-length, --seed and --updates",
        )


def _require_pair(path: Path) -> None:
    if path.is_dir() or not Path(located(path)[1]).is_file():
        raise DataError(
            "neither a run nor tokens",
            where=path,
            expected=f"a folder with {MANIFEST}, or the name of a .bin/.idx pair",
            fix=", ".join(sorted(map(str, path.glob("*.idx")))) or None,
        )
