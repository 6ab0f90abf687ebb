"""The checkpoints that can be asked: where their weights lie, what they are, how they are opened.

A checkpoint's weights are known by the digests of its files as they are now, not by its place. Own
ones are checked against their manifests, and their run's tokenizer against its; anything else that
`transformers` loads is what it is. Not here: reading either layout (`checkpoints`, `foreign.py`).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ontogeny.artifact import MANIFEST, Artifact, Input, faults, open_artifact, read_manifest
from ontogeny.checkpoints.store import load_checkpoint, open_checkpoint
from ontogeny.digest import digest_file, digest_json
from ontogeny.errors import CheckpointError, EvaluationError
from ontogeny.evaluation.foreign import GGUF, open_foreign
from ontogeny.evaluation.score import NeoXScorer
from ontogeny.evaluation.tasks import Scorer
from ontogeny.model import hf
from ontogeny.model.neox import DTYPES
from ontogeny.scores import Place
from ontogeny.steps import STEPS
from ontogeny.suite import settings_of
from ontogeny.tokens.vocabulary import TOKENIZER, Vocabulary, load_vocabulary

Dtype = Literal["auto", "fp32", "bf16"]
STEP = re.compile(r"step(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights at `path`, a folder or a file, called as `place` says.

    `run` is the folder of the run they are of, None of weights that were trained elsewhere.
    `weights` and `vocabulary` are digests; `dtype` is what is computed in, `fp32` or `bf16`.
    """

    path: Path
    run: Path | None
    place: Place
    weights: str
    vocabulary: str
    dtype: str


def own_checkpoint(
    run: Artifact, step: int, size: str, corpus: str, dtype: Dtype = "auto", *, rehash: bool = True
) -> Checkpoint:
    """The checkpoint of a run at a step, as its manifest has it; its files are read if `rehash`.

    Raises CheckpointError where it is not what the run recorded, EvaluationError where the
    tokenizer is not.
    """
    settings, opened = settings_of(run), _opened(run, step)
    if rehash:
        _require_whole(opened)
    place = Place(
        member=settings.member,
        step=step,
        tokens=int(opened.facts["tokens"]),
        size=size,
        num_parameters=settings.shape.num_non_embedding,
        corpus=corpus,
        init_seed=settings.init_seed,
    )
    if dtype == "auto":
        dtype = "bf16" if settings.training.precision == "bf16" else "fp32"
    vocabulary = _own_vocabulary(run).digest
    return Checkpoint(opened.path, run.path, place, _recorded(opened), vocabulary, dtype)


def foreign_checkpoint(path: Path, dtype: Dtype = "auto") -> Checkpoint:
    """Weights that were trained elsewhere: a folder that transformers loads, or a .gguf file.

    A folder called stepN is that step of the member its parent is called after. Raises
    CheckpointError or EvaluationError where there are no weights, or no tokenizer.
    """
    folder, step = foreign_name(path)
    name = folder.stem if folder.suffix == GGUF else folder.name
    weights, vocabulary, config = foreign_digest(path), "", dict[str, object]()
    if path.is_dir():
        config = hf.read_config(path)
        vocabulary = load_vocabulary(path / TOKENIZER).digest
    place = Place(name, step, 0, name, _num_parameters(config))
    dtype = _dtype_of(config) if dtype == "auto" else dtype
    return Checkpoint(path, None, place, weights, vocabulary or weights, dtype)


def foreign_name(path: Path) -> tuple[Path, int]:
    """The folder or file that foreign weights are called after, and their step."""
    folder = Path(os.path.abspath(path))  # noqa: PTH100 (links keep their names)
    found = STEP.fullmatch(folder.name)
    if found is None:
        return folder, 0
    above = folder.parent
    return (above.parent if above.name == STEPS else above), int(found[1])


def checkpoint_inputs(checkpoint: Checkpoint) -> dict[str, Input]:
    """What scores of a checkpoint are made from."""
    if checkpoint.run is None:
        return {"weights": checkpoint.weights, "vocabulary": checkpoint.vocabulary}
    return {"checkpoint": open_artifact(checkpoint.path, "checkpoint")}


def open_scorer(checkpoint: Checkpoint, device: str) -> Scorer:
    """The model of a checkpoint with its vocabulary, to be asked.

    Raises CheckpointError where the weights are no longer those that were looked at.
    """
    if checkpoint.run is None:
        _require_unchanged(checkpoint, foreign_digest(checkpoint.path))
        return open_foreign(checkpoint.path, checkpoint.dtype)
    run, step = read_manifest(checkpoint.run), checkpoint.place.step
    _require_unchanged(checkpoint, _recorded(_opened(run, step)))
    model = load_checkpoint(run.path, step).to(device)  # every tensor is checked
    return NeoXScorer(model, _own_vocabulary(run), DTYPES[checkpoint.dtype])


def foreign_digest(path: Path) -> str:
    """The digest of the files that make a model: weights and configuration, as they are now.

    Where a manifest lies beside them they must be those it recorded.
    """
    if path.suffix == GGUF and path.is_file():
        return digest_file(path)
    if (path / MANIFEST).is_file():
        _require_whole(read_manifest(path))
    files = [path / hf.CONFIG, *hf.weight_files(path)]
    for file in files:
        if not file.is_file():
            raise CheckpointError("missing file", where=file)
    return digest_json({file.name: digest_file(file) for file in files})


def _opened(run: Artifact, step: int) -> Artifact:
    opened = open_checkpoint(run.path, step)
    if opened.inputs.get("run") != run.digest:
        raise CheckpointError(
            "the checkpoint of another run",
            where=opened.path,
            expected=run.digest,
            found=opened.inputs.get("run"),
            fix=f"ontogeny verify {run.path}",
        )
    return opened


def _recorded(opened: Artifact) -> str:
    """The digest of a checkpoint's files by its manifest."""
    return digest_json({name: entry["sha256"] for name, entry in opened.files.items()})


def _require_whole(artifact: Artifact) -> None:
    for fault in faults(artifact):
        raise CheckpointError(fault.problem, where=fault.place, fix=fault.fix)


def _require_unchanged(checkpoint: Checkpoint, found: str) -> None:
    if found != checkpoint.weights:
        raise CheckpointError(
            "the weights changed while they were being scored",
            where=checkpoint.path,
            expected=checkpoint.weights,
            found=found,
            fix="the same command again",
        )


def _own_vocabulary(run: Artifact) -> Vocabulary:
    """The vocabulary of a run, if it is the one recorded."""
    path, recorded = run.path / TOKENIZER, run.files.get(TOKENIZER, {}).get("sha256")
    found = digest_file(path) if path.is_file() else "no file"
    if found != recorded:
        raise EvaluationError(
            "not the tokenizer that the run was trained with",
            where=path,
            expected=recorded,
            found=found,
            fix=f"put {TOKENIZER} of the run's vocabulary there",
        )
    return _vocabulary(path, found)


@functools.lru_cache(maxsize=4)
def _vocabulary(path: Path, digest: str) -> Vocabulary:
    return load_vocabulary(path)


def _num_parameters(config: Mapping[str, object]) -> int:
    """Without embeddings, of a GPT-NeoX; 0 of others."""
    is_neox = config.get("model_type") == "gpt_neox"
    return hf.shape_of(config).num_non_embedding if is_neox else 0


def _dtype_of(config: Mapping[str, object]) -> Dtype:
    kept_in = str(config.get("dtype") or config.get("torch_dtype"))
    return "bf16" if kept_in == "bfloat16" else "fp32"
