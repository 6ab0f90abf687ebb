"""Runs of many checkpoints, and the faults that were found in published ones, put into copies."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from grown import CONTEXT, Ground, settings
from ontogeny.artifact import MANIFEST, open_artifact
from ontogeny.checkpoints.lint_folders import find_steps
from ontogeny.config import build
from ontogeny.model.hf import SHARDS, WEIGHTS
from ontogeny.order.batches import Batches
from ontogeny.order.plan import build_order, open_order
from ontogeny.suite import OrderSettings, RecipeName, RunSettings
from ontogeny.tokens.store import open_store
from ontogeny.tokens.vocabulary import TOKENIZER, TOKENIZER_CONFIG
from ontogeny.training.loop import train
from ontogeny.training.run import create_run
from ontogeny.training.schedule import learning_rate

ROWS = 4
EMBEDDING = "gpt_neox.embed_in.weight"


def many_steps(
    ground: Ground,
    folder: Path,
    *,
    seed: int = 0,
    num_updates: int = 160,
    num_linear: int = 40,
    recipe: RecipeName = "sound",
    spike: range = range(0),
    **training: object,
) -> Path:
    """Train a run with a checkpoint at `num_linear` even steps and powers of two.

    During the updates of `spike` the learning rate is 20 times what it should be.
    """
    order = folder.parent / f"order-{num_updates}-{recipe}"
    store = open_store(ground.store)
    if not order.exists():
        form = OrderSettings(context_length=CONTEXT)
        build_order(store, form, recipe=recipe, num_windows=num_updates * ROWS, folder=order)
    tokens = num_updates * ROWS * CONTEXT
    usual = settings(tokens=tokens, num_linear=num_linear, full_state_every=999, **training)
    values = usual.resolved() | {"recipe": recipe, "init_seed": seed}
    inputs = {
        "order": open_artifact(order, "order"),
        "vocabulary": open_artifact(ground.vocabulary, "vocabulary"),
    }
    files = {name: ground.vocabulary / name for name in (TOKENIZER, TOKENIZER_CONFIG)}
    run_settings = build(RunSettings, values, "test")
    run = create_run(folder, run_settings, inputs, tokenizer_files=files)

    def rate(update: int, of: RunSettings) -> float:
        return learning_rate(update, of) * (20 if update in spike else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ontogeny.training.update.learning_rate", rate)
        train(run, Batches(open_order(order, store), ROWS))
    return folder


def copy_of(run: Path, folder: Path) -> Path:
    """The checkpoints of a run as anybody's folder: linked, without manifests."""
    shutil.rmtree(folder, ignore_errors=True)
    for step, source in find_steps(run).items():
        (folder / f"step{step}").mkdir(parents=True)
        for path in source.iterdir():
            if path.name != MANIFEST:
                os.link(path, folder / f"step{step}" / path.name)
    return folder


def matrices(run: Path) -> list[str]:
    """The names of the tensors that are matrices."""
    tensors = load_file(next(iter(find_steps(run).values())) / WEIGHTS)
    return sorted(name for name, tensor in tensors.items() if tensor.ndim == 2)


def put(run: Path, step: int, source: Path) -> None:
    """Give a step the files of another folder."""
    shutil.rmtree(run / f"step{step}", ignore_errors=True)
    shutil.copytree(source, run / f"step{step}")


def alter(run: Path, step: int, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a step, in a file of its own."""
    file = run / f"step{step}" / WEIGHTS
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)


def rounded(run: Path, folder: Path, dtype: torch.dtype) -> Path:
    """A copy of a run in numbers of another form."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})

    for step in find_steps(copy_of(run, folder)):
        alter(folder, step, change)
    return folder


def add_noise(run: Path, step: int, name: str, share: float = 0.5, seed: int = 0) -> None:
    """Add noise to a tensor: of a share of the shorter of the moves to its neighbours."""
    steps = list(find_steps(run))
    at = steps.index(step)
    near = [load_file(run / f"step{one}" / WEIGHTS)[name] for one in steps[at - 1 : at + 2]]
    move = min((near[1] - near[0]).norm(), (near[2] - near[1]).norm())
    noise = torch.randn(near[1].shape, generator=torch.Generator().manual_seed(seed))

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] += noise * (share * move / noise.norm())

    alter(run, step, change)


def shard(run: Path, step: int) -> None:
    """Split the weights of a step into two files and an index."""
    folder = run / f"step{step}"
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    places = {
        name: f"model-0000{1 if at < len(names) // 3 else 2}-of-00002.safetensors"
        for at, name in enumerate(names)
    }
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file)
    (folder / SHARDS).write_text(json.dumps({"weight_map": places}))
    (folder / WEIGHTS).unlink()
