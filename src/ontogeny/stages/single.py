"""A single run on a store that exists, and what is kept beside runs: `ontogeny train`."""

from __future__ import annotations

from pathlib import Path

from ontogeny.artifact import Artifact, keyed, open_artifact
from ontogeny.errors import ConfigError
from ontogeny.order.batches import Batches
from ontogeny.order.plan import build_order, open_order, order_config
from ontogeny.suite import OrderSettings, RecipeName, RunFile
from ontogeny.tokens.store import DocumentStore, open_store
from ontogeny.tokens.vocabulary import TOKENIZER, TOKENIZER_CONFIG, open_vocabulary
from ontogeny.training.machine import resolve_precision
from ontogeny.training.run import Run, create_run


def begin_single(file: RunFile, base: Path, folder: Path) -> tuple[Run, Batches]:
    """The run at `folder`, begun if it is not there, and the batches it trains on.

    Paths in the file are relative to `base`; the order is kept beside the run. Raises ConfigError
    for a vocabulary that is not the store's.
    """
    store = open_store(base / file.store)
    vocabulary_artifact = open_artifact(base / file.vocabulary, "vocabulary")
    vocabulary = open_vocabulary(vocabulary_artifact.path)
    if store.artifact.facts["vocabulary"] != vocabulary.digest:
        raise ConfigError(
            "the store was encoded with another vocabulary",
            where=base / file.vocabulary,
            expected=store.artifact.facts["vocabulary"],
            found=vocabulary.digest,
        )
    precision = resolve_precision(file.training.precision)
    settings = file.run_settings(file.the_member(), vocabulary.size, precision)
    num_windows = settings.num_updates * settings.training.rows_per_update
    order = order_beside(folder, store, file.order, file.recipe, num_windows)
    run = create_run(
        folder,
        settings,
        {"order": order, "vocabulary": vocabulary_artifact},
        tokenizer_files={
            name: vocabulary_artifact.path / name for name in (TOKENIZER, TOKENIZER_CONFIG)
        },
    )
    return run, Batches(open_order(order.path, store), settings.training.rows_per_update)


def order_beside(
    folder: Path,
    store: DocumentStore,
    settings: OrderSettings,
    recipe: RecipeName,
    num_windows: int,
) -> Artifact:
    """The order of a store for the run at `folder`: found, or made."""
    config, inputs = order_config(settings, recipe, num_windows), {"store": store.artifact}
    place = keyed(beside(folder, "order"), "order", config, inputs)
    if place.exists():
        return open_artifact(place, "order")
    return build_order(store, settings, recipe=recipe, num_windows=num_windows, folder=place)


def beside(folder: Path, what: str) -> Path:
    """Where something is kept that a run needs. Raises ConfigError for a run without a name."""
    if folder.name in ("", ".."):
        raise ConfigError("a run's folder needs a name of its own", where=folder, fix="--out NAME")
    return folder.with_name(f"{folder.name}-{what}")
