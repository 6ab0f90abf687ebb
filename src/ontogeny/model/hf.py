"""The Hugging Face layout of a model, both ways: `config.json` and `model.safetensors`.

`transformers` reads what `save` writes, and `load` reads what `transformers` writes and what hubs
hold for GPT-NeoX (old and new spellings; whole or sharded; safetensors, or else pickled `.bin`).
Files always say `gpt_neox.` before every name but `embed_out.weight`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ontogeny.config import build
from ontogeny.errors import CheckpointError, ConfigError
from ontogeny.model.neox import NeoX
from ontogeny.model.pickled import read_pickled
from ontogeny.shape import Activation, Shape

CONFIG, WEIGHTS, SHARDS = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_SHARDS = "pytorch_model.bin", "pytorch_model.bin.index.json"
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
# What `NeoX` computes in one way only.
FIXED = {
    "model_type": "gpt_neox",
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "rope_scaling": None,
}
# Buffers that old files carry beside the parameters; the model computes them.
BUFFERS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def save(model: NeoX, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the model into an existing folder, cast to `dtype` if one is given."""
    weights = {
        name: tensor.to("cpu", dtype or tensor.dtype).contiguous()
        for name, tensor in named_weights(model).items()
    }
    write_config(model.shape, next(iter(weights.values())).dtype, folder)
    write_tensors(weights, folder / WEIGHTS)


def named_weights(model: NeoX) -> dict[str, Tensor]:
    """The parameters of a model, by their names in files; in the same memory."""
    return {to_file_name(name): one.detach() for name, one in model.named_parameters()}


def write_config(shape: Shape, dtype: torch.dtype, folder: Path) -> None:
    """Write the `config.json` that belongs to weights."""
    config = config_of(shape, dtype)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises CheckpointError when the disk does not take it."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise CheckpointError(
            f"cannot be written ({error})", where=path, fix="free some space, then go on"
        ) from error


def load(folder: Path) -> NeoX:
    """The model a folder holds, in the dtype of its files, on the CPU.

    Called on int64 tokens [batch, time] it returns logits [batch, time, vocab]. Raises
    CheckpointError for a file, key or tensor that is missing, damaged or of another shape.
    """
    shape = shape_of(read_config(folder), folder / CONFIG)
    return assembled(shape, read_weights(folder), folder)


def assembled(shape: Shape, weights: Mapping[str, Tensor], where: object) -> NeoX:
    """The model of a shape with these weights, named as in files.

    Raises CheckpointError unless they are exactly the tensors of the shape.
    """
    with torch.device("meta"):
        model = NeoX(shape)
    expected = {to_file_name(name): tensor for name, tensor in model.state_dict().items()}
    check_tensors(expected, weights, where)
    model.load_state_dict(
        {from_file_name(name): weights[name] for name in expected}, assign=True, strict=True
    )
    return model.requires_grad_(True)


def to_file_name(name: str) -> str:
    """The name files give to a parameter of `NeoX`."""
    return name if name == "embed_out.weight" else f"gpt_neox.{name}"


def from_file_name(name: str) -> str:
    """The parameter of `NeoX` that files call `name`."""
    return name.removeprefix("gpt_neox.")


def config_of(shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
    """The `config.json` of a shape, in the spelling every version of transformers reads."""
    hidden_act = next(act for act, ours in ACTIVATIONS.items() if ours == shape.activation)
    config: dict[str, Any] = {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "attention_bias": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": hidden_act,
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": 4 * shape.hidden_size,
        "layer_norm_eps": shape.layer_norm_eps,
        "max_position_embeddings": shape.context_length,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "rotary_emb_base": shape.rotary_base,
        "rotary_pct": shape.rotary_fraction,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "use_parallel_residual": True,
        "vocab_size": shape.vocab_size,
    }
    if shape.rotary_tables != "float32":
        config["rotary_tables"] = shape.rotary_tables  # ours; transformers computes in float32
    return config


def shape_of(config: Mapping[str, Any], where: object = CONFIG) -> Shape:
    """The shape a `config.json` describes, in either spelling of its rotary settings.

    Raises CheckpointError for what `NeoX` does not compute.
    """
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{key} is not supported", where=where, expected=value,
                                  found=config[key])  # fmt: skip
    try:
        rope = config.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise CheckpointError("rope_type is not supported", where=where, expected="default",
                                  found=rope["rope_type"])  # fmt: skip
        if config["intermediate_size"] != 4 * config["hidden_size"]:
            raise CheckpointError("intermediate_size must be 4 times hidden_size", where=where)
        values = {
            "num_layers": config["num_hidden_layers"],
            "hidden_size": config["hidden_size"],
            "num_heads": config["num_attention_heads"],
            "vocab_size": config["vocab_size"],
            "context_length": config["max_position_embeddings"],
            "activation": ACTIVATIONS[config.get("hidden_act", "gelu")],
            "rotary_tables": config.get("rotary_tables", "float32"),
            "rotary_fraction": config.get("rotary_pct", rope.get("partial_rotary_factor", 0.25)),
            "rotary_base": config.get("rotary_emb_base", rope.get("rope_theta", 10000)),
            "layer_norm_eps": config.get("layer_norm_eps", 1e-5),
        }
        return build(Shape, values, where)
    except KeyError as error:
        raise CheckpointError(f"missing or unknown {error}", where=where) from error
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"not a GPT-NeoX configuration ({error})", where=where) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The JSON object in a folder's `config.json`."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"unreadable {CONFIG} ({error})", where=folder) from error
    if not isinstance(config, dict):
        raise CheckpointError("not a JSON object", where=path)
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's weights, by its name in the files."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        found = read_pickled(path) if path.suffix == ".bin" else _read_safetensors(path)
        twice = sorted(weights.keys() & found.keys())
        if twice:
            raise CheckpointError(f"tensor {twice[0]} is in two files", where=path)
        weights |= found
    return {name: tensor for name, tensor in weights.items() if not name.endswith(BUFFERS)}


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder's weights: the whole one, or the shards its index names.

    Pickled files count only where there is no safetensors form.
    """
    for whole, shards in ((WEIGHTS, SHARDS), (PICKLED, PICKLED_SHARDS)):
        if (folder / shards).is_file():
            return [folder / name for name in _shard_names(folder / shards)]
        if (folder / whole).is_file():
            return [folder / whole]
    raise CheckpointError(
        "no weights",
        where=folder,
        expected=f"{WEIGHTS} or {SHARDS} (or {PICKLED}, {PICKLED_SHARDS})",
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"unreadable weights ({error})", where=path) from error


def _shard_names(path: Path) -> list[str]:
    """The files an index spreads the tensors over: neighbours of it, in its own form."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
        suffix = Path(path.name.removesuffix(".index.json")).suffix
        strangers = [name for name in names if Path(name).name != name or not name.endswith(suffix)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"not an index of shards ({type(error).__name__}: {error})", where=path
        ) from error
    if strangers:
        raise CheckpointError(
            "names a shard that is no file beside it",
            where=path,
            expected=f"a name that ends in {suffix}",
            found=strangers[0],
        )
    return names


def check_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: object
) -> None:
    """Raise CheckpointError unless names and shapes agree and what was found can be trained."""
    for name, tensor in expected.items():
        if name not in found:
            raise CheckpointError(f"missing tensor {name}", where=where)
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"tensor {name} has another shape",
                where=where,
                expected=list(tensor.shape),
                found=list(found[name].shape),
            )
        if not found[name].is_floating_point():
            raise CheckpointError(
                f"tensor {name} is of another kind",
                where=where,
                expected="floating-point numbers",
                found=found[name].dtype,
            )
    unknown = sorted(found.keys() - expected.keys())
    if unknown:
        raise CheckpointError(f"unknown tensor {unknown[0]}", where=where)
