"""A single run on a store that exists: `ontogeny train`."""

from __future__ import annotations

from pathlib import Path

from ontogeny.artifact import keyed, open_artifact
from ontogeny.errors import ConfigError
from ontogeny.order.batches import Batches
from ontogeny.order.plan import build_order, open_order, order_config
from ontogeny.suite import RunFile
from ontogeny.tokens.store import open_store
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
    config = order_config(file.order, file.recipe, num_windows)
    inputs = {"store": store.artifact}
    place = keyed(folder.with_name(f"{folder.name}-order"), "order", config, inputs)
    if not place.exists():
        build_order(store, file.order, recipe=file.recipe, num_windows=num_windows, folder=place)
    run = create_run(
        folder,
        settings,
        {"order": open_artifact(place, "order"), "vocabulary": vocabulary_artifact},
        tokenizer_files={
            name: vocabulary_artifact.path / name for name in (TOKENIZER, TOKENIZER_CONFIG)
        },
    )
    return run, Batches(open_order(place, store), settings.training.rows_per_update)
