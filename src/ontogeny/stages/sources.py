"""Whatever has batches: a run of ours, or the originals' files, here or on a server.

Not here: how the originals' files are read (`ontogeny.order.originals`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ontogeny.artifact import MANIFEST
from ontogeny.errors import ConfigError, DataError
from ontogeny.order.batches import Batches
from ontogeny.order.originals import build_neox_order, is_index_map, open_index_maps, open_rows
from ontogeny.ranges import Place, is_remote
from ontogeny.tokens.store import Store
from ontogeny.tokens.vocabulary import Vocabulary, load_vocabulary

PYTHIA_ROWS = 1024  # rows an update took in all of Pythia


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
    given = [f"--{name}" for name, value in asked.items() if value is not None]
    if not is_remote(place) and (Path(place) / MANIFEST).is_file():
        given += ["--rows-per-update"] * (rows_per_update is not None)
        _require_none([*given, *["--vocabulary"] * (vocabulary is not None)], place)
        return _open_run(Path(place))
    if not is_remote(place) and Path(place).is_dir():
        pairs = ", ".join(sorted(str(path) for path in Path(place).glob("*.idx")))
        raise DataError(
            "is no run",
            where=place,
            expected=f"a folder with {MANIFEST}, or the name of a .bin/.idx pair",
            fix=pairs or None,
        )
    rows = PYTHIA_ROWS if rows_per_update is None else rows_per_update
    known = None if vocabulary is None else load_vocabulary(vocabulary)
    if context_length is not None and seed is not None and updates is not None:
        order = build_neox_order(
            place, context_length=context_length, seed=seed, num_windows=updates * rows
        )
        return Source(str(place), Batches(order, rows), updates, order.store, known)
    _require_none(given, place)
    if is_index_map(place):
        order = open_index_maps(place)
        batches = Batches(order, rows)
        return Source(str(place), batches, batches.num_updates, order.store, known)
    windows = open_rows(place)
    num_updates = -(-windows.num_windows // rows)
    return Source(str(place), Batches(windows, rows), num_updates, windows.store, known)


def _require_none(given: list[str], place: Place) -> None:
    if given:
        raise ConfigError(
            f"{', '.join(given)} cannot be asked of this",
            where=place,
            expected="a run's folder alone, an index array or rows with --rows-per-update and "
            "--vocabulary, or a .bin/.idx pair with --context-length, --seed and --updates",
        )


def _open_run(path: Path) -> Source:
    # Brings in torch, which the originals do without.
    from ontogeny.stages.materials import open_materials

    materials = open_materials(path)
    num_updates = materials.run.settings.num_updates
    return Source(str(path), materials.batches, num_updates, materials.store, materials.vocabulary)
