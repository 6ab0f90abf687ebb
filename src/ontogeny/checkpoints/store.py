"""Step folders: the state of a run after N updates, with its proof.

`steps/step512/` is a checkpoint: the weights in the Hugging Face layout, and a manifest with the
digest of every tensor, of the rows consumed so far and of the checkpoint before it.
`states/step512/` is what a run needs besides to go on from there: the optimizer's state, and the
weights (with their `config.json`) where no checkpoint keeps them. It is one file of each where one
rank trains, else a file of every rank's parts (`shards.py`). A state can be removed; no
checkpoint's identity knows it. A *model*, which was trained elsewhere, has a checkpoint's layout
and belongs to no run: it has no step, parent or rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed import ProcessGroup

from ontogeny import artifact
from ontogeny.artifact import Artifact, open_artifact
from ontogeny.digest import digest_bytes, digest_file, digest_json
from ontogeny.errors import CheckpointError
from ontogeny.model import hf
from ontogeny.model.neox import NeoX
from ontogeny.steps import STATES, STEPS, list_steps, numbered_steps, state_folder, step_folder
from ontogeny.suite import settings_of

OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: updates done, tokens consumed, the digest of all rows consumed."""

    step: int
    tokens: int
    rows_digest: str


def save_model(
    folder: Path, model: NeoX, *, config: Mapping[str, Any], files: Mapping[str, Path]
) -> Artifact:
    """Publish a model that was read from `files`, which the manifest names as they are here."""
    inputs = {name: digest_file(path) for name, path in files.items()}
    with artifact.writing(folder, "model", config=config, inputs=inputs) as draft:
        draft.facts["tensors"] = tensor_digests(model)
        hf.save(model, draft.folder)
    return draft.artifact


def list_states(run: Path) -> list[int]:
    """The steps a run can start from, ascending: those whose state and weights are both there."""
    return [step for step in numbered_steps(run / STATES) if _weights_folder(run, step) is not None]


def save_checkpoint(
    run: Artifact,
    model: NeoX,
    progress: Progress,
    *,
    parent: Artifact | None,
    provenance: Mapping[str, Any],
    folder: Path | None = None,
) -> Artifact:
    """Publish the checkpoint of a step, or check it against the one that is there.

    Its facts name the digest of the run's settings, and whether those keep a full state of the
    step. A run that was killed computes some steps twice; they must come out the same. Raises
    CheckpointError when they do not. It goes to its place in the run, or to `folder`.
    """
    folder = folder or step_folder(run.path, progress.step)
    settings = settings_of(run)
    facts = {
        "member": settings.member,
        "step": progress.step,
        "tokens": progress.tokens,
        "rows_digest": progress.rows_digest,
        "tensors": tensor_digests(model),
        "config": digest_json(run.config),
        "full_state": progress.step in settings.full_state_steps,
    }
    if folder.exists():
        return _same_checkpoint(folder, facts)
    inputs = {"run": run} | ({} if parent is None else {"parent": parent})
    with artifact.writing(
        folder, "checkpoint", config={"step": progress.step}, inputs=inputs, provenance=provenance
    ) as draft:
        draft.facts.update(facts)
        hf.save(model, draft.folder)
    return draft.artifact


def save_state(
    run: Artifact,
    tensors: Mapping[str, Tensor],
    progress: Progress,
    *,
    weights: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    folder: Path | None = None,
    group: ProcessGroup | None = None,
) -> None:
    """Publish what a run needs to go on from a step, unless it is there.

    `weights`, named as in files, are none where a checkpoint of the step holds them. With a group
    each of its ranks gives its parts, in the CPU's memory, and all call this. It goes to its place
    in the run, or to `folder`.
    """
    place = folder or state_folder(run.path, progress.step)
    with ExitStack() as stack:

        def begin() -> Path | None:
            if place.exists():
                return None
            draft = stack.enter_context(
                artifact.writing(
                    place,
                    "state",
                    config={"step": progress.step},
                    inputs={"run": run},
                    provenance=provenance,
                )
            )
            draft.facts.update(tokens=progress.tokens, rows_digest=progress.rows_digest)
            if weights:
                hf.write_config(settings_of(run).shape, torch.float32, draft.folder)
            return draft.folder

        if group is not None:
            from ontogeny.checkpoints import shards

            aside = shards.told(begin, group)
            if aside is not None:
                shards.write({**tensors, **weights}, aside, group)
        elif (aside := begin()) is not None:
            hf.write_tensors(tensors, aside / OPTIMIZER)
            if weights:
                hf.write_tensors(weights, aside / hf.WEIGHTS)


def load_checkpoint(run: Path, step: int) -> NeoX:
    """The model after `step` updates. Raises CheckpointError naming the steps there are."""
    opened = open_checkpoint(run, step)
    for name in opened.files.keys() - {hf.WEIGHTS}:  # those are checked tensor by tensor
        if digest_file(opened.path / name) != opened.files[name]["sha256"]:
            raise CheckpointError("is not the file recorded", where=opened.path / name)
    model, recorded = hf.load(opened.path), opened.facts["tensors"]
    for name, found in tensor_digests(model).items():
        if recorded.get(name) != found:
            raise CheckpointError(
                f"tensor {name} is not the one recorded", where=opened.path,
                expected=recorded.get(name), found=found,
            )  # fmt: skip
    return model


def open_state(run: Artifact, step: int) -> tuple[Artifact, Artifact]:
    """The full state of a step, and the artifact that holds its weights: the same, or a checkpoint.

    Raises CheckpointError or DataError where it is not the run's own or a file of it is missing.
    """
    state = open_artifact(state_folder(run.path, step), "state")
    if state.inputs["run"] != run.digest:
        raise CheckpointError(
            "state of another run", where=state.path, expected=run.digest,
            found=state.inputs["run"], fix="choose another folder with --out",
        )  # fmt: skip
    return state, state if hf.CONFIG in state.files else open_checkpoint(run.path, step)


def read_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, by name, from a state or a checkpoint: whole ones, or this rank's parts.

    Ranks that hold parts all call it, and read only those. Raises CheckpointError for a tensor
    that is missing or has another shape.
    """
    if not folder.is_dir():
        raise CheckpointError("was removed meanwhile", where=folder)
    files = [path for path in (folder / hf.WEIGHTS, folder / OPTIMIZER) if path.is_file()]
    if not files or any(hasattr(tensor, "full_tensor") for tensor in tensors.values()):
        from ontogeny.checkpoints import shards

        shards.read(tensors, folder)
        return
    left = dict(tensors)
    try:
        for path in files:
            with safe_open(path, framework="pt") as file:
                for name in left.keys() & set(file.keys()):
                    tensor, kept = left.pop(name), file.get_tensor(name)
                    if kept.shape != tensor.shape:  # of which `copy_` bears with some
                        raise CheckpointError(
                            f"tensor {name} does not fit the model", where=path,
                            expected=list(tensor.shape), found=list(kept.shape),
                        )  # fmt: skip
                    tensor.copy_(kept)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=folder) from error
    if left:
        raise CheckpointError(f"missing tensor {min(left)}", where=folder)


def drop_states(run: Path, keep: frozenset[int]) -> int:
    """Remove every full state but those of the steps in `keep`; the bytes that were freed.

    To be called under the run's lock: what killed writers left in the run is removed too.
    """
    freed = 0
    for place in (run / STEPS, run / STATES):
        for leftover in place.glob(".step*.writing-*"):
            shutil.rmtree(leftover)
    for step in list_states(run):
        if step not in keep:
            folder = state_folder(run, step)
            freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            # Renamed first: whole or gone, for a kill and for whoever reads at the same time.
            shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.writing-no-more")))
    return freed


def tensor_digests(model: NeoX) -> dict[str, dict[str, Any]]:
    """Dtype, shape and digest of the bytes of every tensor, by its name in files."""
    return {
        hf.to_file_name(name): {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "sha256": digest_tensor(tensor),
        }
        for name, tensor in model.state_dict().items()
    }


def digest_tensor(tensor: Tensor) -> str:
    """The digest of a tensor's bytes in C order: the digest of its range in a safetensors file."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return digest_bytes(flat.view(torch.uint8).numpy().data)


def open_checkpoint(run: Path, step: int) -> Artifact:
    """The checkpoint of a run at a step. Raises CheckpointError if there is none, or another."""
    folder = step_folder(run, step)
    if not folder.is_dir():
        there = ", ".join(str(number) for number in list_steps(run)) or "none"
        raise CheckpointError(
            f"no checkpoint of step {step}", where=run, expected=f"one of the steps {there}"
        )
    opened = open_artifact(folder, "checkpoint")
    if opened.config.get("step") != step:
        raise CheckpointError(
            "the checkpoint of another step", where=folder,
            expected=f"step {step}", found=f"step {opened.config.get('step')}",
        )  # fmt: skip
    return opened


def _same_checkpoint(folder: Path, facts: Mapping[str, Any]) -> Artifact:
    there = open_artifact(folder, "checkpoint")
    for name, value in facts.items():
        if there.facts.get(name) != value:
            raise CheckpointError(
                f"computed again, step {facts['step']} has other {name} than the checkpoint there",
                where=folder,
                fix="compare torch version, threads and processor with its provenance, or start "
                "anew with --out",
            )
    return there


def _weights_folder(run: Path, step: int) -> Path | None:
    """Where the weights of a full state are; None if a kill left the state without them."""
    folders = (state_folder(run, step), step_folder(run, step))
    return next((folder for folder in folders if (folder / hf.CONFIG).is_file()), None)
