"""A run with what it was made from: its batches, their store, its vocabulary.

The manifests say where each lies and with which digest. Not here: whole suites (`handles.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ontogeny.artifact import open_input
from ontogeny.order.batches import Batches
from ontogeny.order.plan import open_order
from ontogeny.tokens.store import DocumentStore, open_store
from ontogeny.tokens.vocabulary import TOKENIZER, Vocabulary, load_vocabulary
from ontogeny.training.run import Run, open_run


@dataclass(frozen=True, slots=True)
class Materials:
    """A run and what it was made from."""

    run: Run
    batches: Batches
    store: DocumentStore
    vocabulary: Vocabulary


def open_materials(path: Path) -> Materials:
    """Open a run and what it was made from. Raises DataError for what is not there any more."""
    run = open_run(path)
    order = open_input(run.artifact, "order")
    store = open_store(open_input(order, "store").path)
    batches = Batches(open_order(order.path, store), run.settings.training.rows_per_update)
    return Materials(run, batches, store, load_vocabulary(run.path / TOKENIZER))
