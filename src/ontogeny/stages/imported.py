"""What others wrote, brought into our forms: run files of YAML settings, models of weights.

Here is what a GPT-NeoX setting becomes in a run file, which of ours it equals, and where a model's
shape comes from. Not here: reading the foreign files (`neox_yaml.py`, `checkpoints/neox_layers.py`,
`model/hf.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ontogeny.artifact import Artifact
from ontogeny.checkpoints.neox_layers import Layers, read_layers
from ontogeny.checkpoints.store import save_model
from ontogeny.config import build
from ontogeny.errors import CheckpointError, ConfigError
from ontogeny.model import hf
from ontogeny.shape import SIZES, Shape, Size, num_non_embedding
from ontogeny.stages.neox_yaml import NeoxFile, NeoxSettings
from ontogeny.steps import checkpoint_steps
from ontogeny.suite import RECIPES, RunFile


def rows_per_update(settings: NeoxSettings, num_gpus: int | None, where: object) -> int:
    """Rows of one update over all data-parallel ranks.

    Source: gpt-neox v1.0, megatron/neox_arguments/arguments.py (calculate_batch_parameters).
    """
    micro, total = settings.train_micro_batch_size_per_gpu, settings.train_batch_size
    layout = settings.model_parallel_size * max(1, settings.pipe_parallel_size)
    if num_gpus is None or micro is None:
        if total is None:
            raise ConfigError(
                "does not say how many rows an update takes", where=where,
                expected="train_micro_batch_size_per_gpu, and `# (trained on N gpus)` or --gpus",
            )  # fmt: skip
        return total
    if num_gpus < layout or num_gpus % layout:
        raise ConfigError(f"{num_gpus} GPUs cannot be shared out among {layout} tensor and "
                          f"pipeline parallel ranks", where=where)  # fmt: skip
    rows = micro * settings.gradient_accumulation_steps * (num_gpus // layout)
    if total not in (None, rows):
        raise ConfigError("train_batch_size is another number", where=where, expected=rows,
                          found=total)  # fmt: skip
    return rows


def run_file_of(file: NeoxFile, *, num_gpus: int | None, store: str, vocabulary: str) -> RunFile:
    """The run file of settings; `num_gpus` where the file does not say it, or says another."""
    settings = file.settings
    rows = rows_per_update(settings, num_gpus or file.num_gpus, file.path)
    values = {
        "recipe": "pythia",
        "store": store,
        "vocabulary": vocabulary,
        "order": {"context_length": settings.seq_length, "seed": settings.seed},
        "training": _training(settings, rows, file.path),
    }
    own, size = settings.size, same_shape(settings)
    if size and (size.init, size.vocab_multiple) == (own.init, own.vocab_multiple):
        return build(RunFile, values | {"size": size.name}, file.path)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", file.path.stem)
    values |= {"size": name, "sizes": {name: own.resolved()}}
    return build(RunFile, values, file.path)


def same_shape(settings: NeoxSettings) -> Size | None:
    """The size of Pythia with these layers, width and heads."""
    own = settings.size
    for size in SIZES.values():
        if (size.num_layers, size.hidden_size, size.num_heads) == (
            own.num_layers, own.hidden_size, own.num_heads):  # fmt: skip
            return size
    return None


def compared(settings: NeoxSettings, rows: int) -> list[tuple[str, str, str]]:
    """Name by name what a file says, and our table of the size of that shape; `-` for nothing."""
    own, size = settings.size, same_shape(settings)
    non_embedding = num_non_embedding(own.num_layers, own.hidden_size)
    pairs: list[tuple[str, object, object]] = [
        ("layers", own.num_layers, size and size.num_layers),
        ("width", own.hidden_size, size and size.hidden_size),
        ("heads", own.num_heads, size and size.num_heads),
        ("non-embedding", f"{non_embedding:,}", size and f"{size.published_non_embedding:,}"),
        ("learning rate", f"{own.learning_rate:g}", size and f"{size.learning_rate:g}"),
        ("rows/update", rows, size and size.rows_per_update),
        ("initialiser", own.init, size and size.init),
        ("vocabulary padded to", own.vocab_multiple, size and size.vocab_multiple),
    ]
    return [(name, str(theirs), str(ours or "-")) for name, theirs, ours in pairs]


def toml_of(file: RunFile) -> str:
    """A run file as TOML; what is left to its default is left out."""
    return "\n".join(_toml_lines(file.model_dump(mode="json", exclude_unset=True))) + "\n"


def import_hf(source: Path, folder: Path) -> Artifact:
    """Publish the weights of a folder in the Hugging Face layout as a model."""
    model = hf.load(source)
    files = {path.name: path for path in (source / hf.CONFIG, *hf.weight_files(source))}
    return save_model(folder, model, config={"layout": "hugging-face"}, files=files)


def import_layers(
    source: Path,
    folder: Path,
    *,
    file: NeoxFile | None = None,
    num_heads: int | None = None,
    context_length: int = 2048,
    average_norms: bool = False,
) -> Artifact:
    """Publish the layer files of GPT-NeoX's trainer, merged, as a model.

    They do not say their number of heads and context length: `file` does, or else the caller.
    """
    layers = read_layers(source, average_norms=average_norms)
    if file is not None:
        settings = file.settings
        num_heads, context_length = settings.num_attention_heads, settings.seq_length
        for key, found in (("num_layers", layers.num_layers), ("hidden_size", layers.hidden_size),
                           ("model_parallel_size", layers.num_ranks)):  # fmt: skip
            if getattr(settings, key) != found:
                raise CheckpointError(f"{key} is another in {file.path.name}", where=source,
                                      expected=getattr(settings, key), found=found)  # fmt: skip
    if num_heads is None:
        raise CheckpointError("layer files do not say how many heads the model has", where=source,
                              fix="--config with its YAML file, or --heads")  # fmt: skip
    shape = _shape_of(layers, num_heads, context_length, source)
    config = {"layout": "gpt-neox-layers", "ranks": layers.num_ranks, "shape": shape.resolved()}
    files = {path.name: path for path in (*layers.files, *([file.path] if file else []))}
    return save_model(folder, hf.assembled(shape, layers.tensors, source), config=config,
                      files=files)  # fmt: skip


def _training(settings: NeoxSettings, rows: int, where: Path) -> dict[str, Any]:
    adam = settings.optimizer.params
    num_linear = max(1, round(settings.train_iters / settings.checkpoint_factor))
    ours = checkpoint_steps(settings.train_iters, num_linear)
    lost = sorted(settings.steps - set(ours))
    if lost:
        raise ConfigError(
            f"checkpoints of {len(lost)} steps cannot be kept", where=where, found=lost[:5],
            expected="0, powers of two up to the spacing, its multiples, and the last",
        )  # fmt: skip
    values = {
        "tokens": settings.train_iters * rows * settings.seq_length,
        "rows_per_update": rows,
        "micro_batch_rows": settings.train_micro_batch_size_per_gpu,
        "learning_rate": adam.lr,
        "min_rate_ratio": float(f"{settings.min_lr / adam.lr:.12g}"),
        "warmup": settings.warmup,
        "beta1": adam.betas[0],
        "beta2": adam.betas[1],
        "epsilon": adam.eps,
        "weight_decay": settings.weight_decay,
        "clip_norm": settings.gradient_clipping,
        "precision": settings.precision,
        "loss_scale": settings.loss_scale,
        "num_linear": num_linear,
    }
    return {key: value for key, value in values.items() if value is not None}


def _shape_of(layers: Layers, num_heads: int, context_length: int, where: Path) -> Shape:
    """The shape that was trained; the frequencies in the files tell a wrong number of heads."""
    values = {
        "num_layers": layers.num_layers,
        "hidden_size": layers.hidden_size,
        "num_heads": num_heads,
        "vocab_size": layers.vocab_size,
        "context_length": context_length,
        "activation": RECIPES["pythia"].training_activation,
        "rotary_tables": RECIPES["pythia"].rotary_tables,
    }
    shape = build(Shape, values, where)
    if layers.rotary_size not in (0, shape.rotary_size):
        raise CheckpointError(
            f"{num_heads} heads do not fit the frequencies in the files", where=where,
            expected=f"{layers.rotary_size} dimensions of a head that rotate",
            found=shape.rotary_size,
        )  # fmt: skip
    return shape


def _toml_lines(values: Mapping[str, Any], table: str = "") -> Iterator[str]:
    """The lines of a table and of the tables in it; JSON's form of a plain value is TOML's too."""
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    if table and plain:
        yield f"\n[{table}]"
    for key, value in plain.items():
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in values.items():
        if isinstance(value, Mapping):
            name = key if key.isidentifier() else json.dumps(key)
            yield from _toml_lines(value, f"{table}.{name}" if table else name)
