"""A run with what it was made from: its batches, their store, its vocabulary.

The manifests say where each lies and with which digest. Not here: whole suites (`handles.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ontogeny.artifact import Artifact, open_artifact, open_input
from ontogeny.order.batches import Batches
from ontogeny.order.plan import Order
from ontogeny.order.splice import Spliced, open_windows
from ontogeny.order.windows import Windows
from ontogeny.suite import RunSettings, settings_of
from ontogeny.tokens.store import DocumentStore
from ontogeny.tokens.vocabulary import TOKENIZER, Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from ontogeny.training.run import Run


@dataclass(frozen=True, slots=True)
class Materials:
    """A run and what it was made from."""

    artifact: Artifact
    settings: RunSettings
    batches: Batches
    store: DocumentStore
    vocabulary: Vocabulary

    @property
    def run(self) -> Run:
        """The run, to compute with; questions about its data do without torch."""
        from ontogeny.training.run import Run

        return Run(self.artifact, self.settings)


def open_materials(path: Path) -> Materials:
    """Open a run and what it was made from. Raises DataError for what is not there any more.

    Of a branch the batches before it are its parent's, and the store the one its parent began on.
    """
    run = open_artifact(path, "run")
    settings = settings_of(run)
    windows = open_windows(open_input(run, "order"))
    earlier = None
    if settings.branch:
        left = open_input(open_input(run, "parent"), "run")
        earlier = open_materials(left.path).batches
    batches = batches_of(settings, windows, earlier)
    return Materials(run, settings, batches, _store(windows), load_vocabulary(path / TOKENIZER))


def batches_of(settings: RunSettings, windows: Windows, earlier: Batches | None) -> Batches:
    """The batches of a run; `earlier` are those of the run it branched from, if any."""
    rows, branch = settings.training.rows_per_update, settings.branch
    if branch is None:
        return Batches(windows, rows)
    place = branch.tokens // settings.shape.context_length
    return Batches(windows, rows, branch.step, place, earlier)


def _store(windows: Windows) -> DocumentStore:
    while isinstance(windows, Spliced):
        windows = windows.parts[0].windows
    assert isinstance(windows, Order)
    assert isinstance(windows.store, DocumentStore)
    return windows.store
