"""Checkpoints and `transformers`: it reads ours, we read its, with equal logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ontogeny.model import hf
from ontogeny.model.init import initial_model
from ontogeny.model.neox import NeoX
from ontogeny.shape import Activation, Shape

pytestmark = pytest.mark.slow  # importing transformers takes seconds

BASE: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 48,
    "num_heads": 3,
    "vocab_size": 97,
    "context_length": 40,
}
TOKENS = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(0))


def random_model(**changes: Any) -> NeoX:
    """A model whose norms and biases too are away from where they start."""
    model = initial_model(Shape(**(BASE | changes)), "small-wang", 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def logits_of(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        out = model(tokens)
    return out if isinstance(out, torch.Tensor) else out.logits


def assert_alike(ours: NeoX, theirs: Any) -> None:
    torch.testing.assert_close(logits_of(ours), logits_of(theirs.eval()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"rotary_fraction": 0.5, "rotary_base": 500.0, "layer_norm_eps": 1e-3}],
    ids=["pythia", "other"],
)
def test_transformers_reads_ours(
    tmp_path: Path, transformers: Any, activation: Activation, changes: dict[str, Any]
) -> None:
    model = random_model(activation=activation, **changes)
    hf.save(model, tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert type(theirs).__name__ == "GPTNeoXForCausalLM"
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.float32
    assert_alike(model, theirs)


@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"])
def test_we_read_what_transformers_writes(
    tmp_path: Path, transformers: Any, hidden_act: str, shard_size: str
) -> None:
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=3,
        intermediate_size=192, max_position_embeddings=40, hidden_act=hidden_act,
        tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    theirs = transformers.GPTNeoXForCausalLM(config)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size != "5GB")
    assert_alike(hf.load(tmp_path), theirs)


def test_there_and_back(tmp_path: Path, transformers: Any) -> None:
    model = random_model(activation="gelu_tanh")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    hf.save(model, ours)
    transformers.AutoModelForCausalLM.from_pretrained(ours).save_pretrained(theirs)
    back = hf.load(theirs)
    assert back.shape == model.shape
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name])


def test_half_precision_is_kept(tmp_path: Path, transformers: Any) -> None:
    hf.save(random_model(), tmp_path, torch.float16)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float16"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    ours = hf.load(tmp_path)
    assert theirs.dtype == torch.float16
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float16}
    # Ours computes in float32 unless told otherwise, from the same rounded numbers.
    assert_alike(ours, theirs.float())
