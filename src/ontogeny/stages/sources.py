"""Whatever has batches: a run of ours, or the originals' files, here or on a server.

Not here: how the originals' files are read (`ontogeny.order.originals`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ontogeny.artifact import MANIFEST
from ontogeny.errors import ConfigError
from ontogeny.order.batches import Batches
from ontogeny.order.originals import open_rows
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
    place: Place, *, rows_per_update: int | None = None, vocabulary: Path | None = None
) -> Source:
    """Open a run's folder or an original file.

    `rows_per_update` and `vocabulary` (a tokenizer.json) are for what does not know its own; the
    former is Pythia's unless given. Raises DataError, OrderError or ConfigError.
    """
    if not is_remote(place) and (Path(place) / MANIFEST).is_file():
        if rows_per_update is not None or vocabulary is not None:
            raise ConfigError(
                "a run knows its rows and its vocabulary",
                where=place,
                fix="leave out --rows-per-update and --vocabulary",
            )
        return _open_run(Path(place))
    windows = open_rows(place)
    batches = Batches(windows, rows_per_update or PYTHIA_ROWS)
    known = None if vocabulary is None else load_vocabulary(vocabulary)
    num_updates = -(-windows.num_windows // batches.rows_per_update)
    return Source(str(place), batches, num_updates, windows.store, known)


def _open_run(path: Path) -> Source:
    # Brings in torch, which the originals do without.
    from ontogeny.stages.materials import open_materials

    materials = open_materials(path)
    num_updates = materials.run.settings.num_updates
    return Source(str(path), materials.batches, num_updates, materials.store, materials.vocabulary)
