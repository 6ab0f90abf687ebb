"""A model artifact: weights that were trained elsewhere, in the layout of our checkpoints.

Its manifest has the digest of every tensor, as a checkpoint's has, and the digests of the files
the tensors were read from. It belongs to no run, so it has no step, parent or rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ontogeny import artifact
from ontogeny.artifact import Artifact, open_artifact
from ontogeny.checkpoints.store import checked_model, tensor_digests
from ontogeny.digest import digest_file
from ontogeny.model import hf
from ontogeny.model.neox import NeoX


def save_model(
    folder: Path, model: NeoX, *, config: Mapping[str, Any], files: Mapping[str, Path]
) -> Artifact:
    """Publish a model that was read from `files`, which the manifest names as they are here."""
    inputs = {name: digest_file(path) for name, path in files.items()}
    with artifact.writing(folder, "model", config=config, inputs=inputs) as draft:
        draft.facts["tensors"] = tensor_digests(model)
        hf.save(model, draft.folder)
    return draft.artifact


def load_model(folder: Path) -> NeoX:
    """The model of an artifact. Raises CheckpointError for a tensor other than the recorded one."""
    opened = open_artifact(folder, "model")
    return checked_model(hf.load(folder), opened.facts["tensors"], folder)
