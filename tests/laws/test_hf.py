"""The Hugging Face layout: what is saved is loaded; every damage is one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ontogeny.errors import CheckpointError
from ontogeny.model import hf
from ontogeny.model.init import initial_model
from ontogeny.shape import Shape

SHAPE = Shape(
    num_layers=2, hidden_size=16, num_heads=2, vocab_size=31, context_length=12,
    activation="gelu_tanh", rotary_tables="compute",
)  # fmt: skip
OUT = "embed_out.weight"
NORM = "gpt_neox.final_layer_norm.bias"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hf.save(initial_model(SHAPE, "normal", 0), tmp_path)
    return tmp_path


def change_config(folder: Path, change: dict[str, Any]) -> None:
    path = folder / hf.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / hf.WEIGHTS)
    change(weights)
    save_file(weights, folder / hf.WEIGHTS)


def is_refused(folder: Path, said: str) -> bool:
    """Whether loading fails with what is to be said, about something in the folder."""
    with pytest.raises(CheckpointError, match=said) as caught:
        hf.load(folder)
    return str(caught.value).startswith(str(folder))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_what_is_saved_is_loaded(tmp_path: Path, dtype: torch.dtype | None) -> None:
    model = initial_model(SHAPE, "normal", 0)
    hf.save(model, tmp_path, dtype)
    loaded = hf.load(tmp_path)
    assert loaded.shape == SHAPE
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype or torch.float32))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_the_same_model_is_the_same_bytes(folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    hf.save(hf.load(folder), other)
    for name in (hf.CONFIG, hf.WEIGHTS):
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_logits_have_their_shape(folder: Path) -> None:
    logits = hf.load(folder)(torch.zeros(3, 5, dtype=torch.int64))
    assert logits.shape == (3, 5, 31)


def test_old_buffers_are_passed_over(folder: Path) -> None:
    at = "gpt_neox.layers.0.attention."
    buffers = {
        f"{at}bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        f"{at}masked_bias": torch.tensor(-1e9),
        f"{at}rotary_emb.inv_freq": torch.ones(2),
    }
    change_weights(folder, lambda weights: weights.update(buffers))
    assert hf.load(folder).shape == SHAPE


def test_shards(folder: Path) -> None:
    whole = load_file(folder / hf.WEIGHTS)
    names = sorted(whole)
    places = {name: f"part-{number % 3}.safetensors" for number, name in enumerate(names)}
    for part in set(places.values()):
        save_file({name: whole[name] for name in names if places[name] == part}, folder / part)
    (folder / hf.WEIGHTS).unlink()
    (folder / hf.SHARDS).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert all(
        torch.equal(tensor, whole[hf.to_file_name(name)])
        for name, tensor in hf.load(folder).state_dict().items()
    )
    (folder / "part-1.safetensors").unlink()
    assert is_refused(folder, r"part-1\.safetensors: unreadable weights")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}', "\x00"])
def test_an_index_that_is_none(folder: Path, text: str) -> None:
    (folder / hf.SHARDS).write_text(text)
    assert is_refused(folder, r"index\.json: not an index of shards")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop(OUT), f"missing tensor {OUT}"),
        (lambda weights: weights.update({"extra.weight": torch.ones(2)}), "unknown tensor extra"),
        (
            lambda weights: weights.update({OUT: torch.ones(31, 17)}),
            rf"tensor {OUT} has another shape; expected \[31, 16\]; found \[31, 17\]",
        ),
        (
            lambda weights: weights.update({NORM: torch.ones(16, dtype=torch.int32)}),
            f"tensor {NORM} is of another kind; expected floating-point numbers; found torch.int32",
        ),
    ],
    ids=["missing", "unknown", "shape", "integers"],
)
def test_tensors_that_do_not_fit(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    change_weights(folder, change)
    assert is_refused(folder, said)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_truncated_file(folder: Path, keep: int) -> None:
    data = (folder / hf.WEIGHTS).read_bytes()
    (folder / hf.WEIGHTS).write_bytes(data[:keep])
    assert is_refused(folder, r"model\.safetensors: unreadable weights")


def test_no_weights(folder: Path) -> None:
    (folder / hf.WEIGHTS).unlink()
    assert is_refused(
        folder, r"no weights; expected model\.safetensors or model\.safetensors\.index\.json"
    )


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3"])
def test_a_configuration_that_is_none(folder: Path, text: str | None) -> None:
    (folder / hf.CONFIG).unlink()
    if text is not None:
        (folder / hf.CONFIG).write_text(text)
    assert is_refused(folder, r"unreadable config\.json|not a JSON object")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "model_type is not supported; expected gpt_neox; found llama"),
        ({"use_parallel_residual": False}, "use_parallel_residual is not supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is not supported"),
        ({"attention_bias": False}, "attention_bias is not supported; expected True; found False"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is not supported"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type is not supported"),
        ({"rope_parameters": [1]}, "not a GPT-NeoX configuration"),
        ({"hidden_act": "relu"}, "missing or unknown 'relu'"),
        ({"hidden_act": ["gelu"]}, "not a GPT-NeoX configuration"),
        ({"intermediate_size": 48}, "intermediate_size must be 4 times hidden_size"),
        ({"hidden_size": None}, "not a GPT-NeoX configuration"),
        ({"num_attention_heads": 3}, "heads must divide the width"),
        ({"num_hidden_layers": "2"}, "config.json: num_layers: Input should be a valid int"),
        (
            {"rotary_emb_base": "large"},
            "rotary_base: Input should be a valid number; found 'large'",
        ),
        ({"rotary_tables": "float8"}, "rotary_tables: Input should be 'float32' or 'compute'"),
        ({"vocab_size": 30}, r"embed_in\.weight has another shape"),
    ],
    ids=str,
)
def test_configurations_that_are_not_ours(folder: Path, change: dict[str, Any], said: str) -> None:
    change_config(folder, change)
    assert is_refused(folder, said)


def test_a_key_that_is_missing(folder: Path) -> None:
    config = json.loads((folder / hf.CONFIG).read_text())
    del config["vocab_size"]
    (folder / hf.CONFIG).write_text(json.dumps(config))
    assert is_refused(folder, "missing or unknown 'vocab_size'")
