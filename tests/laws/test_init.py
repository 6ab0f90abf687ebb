"""Initial weights: the published deviations, one stream a tensor, the same anywhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ontogeny.model.init import (
    initial_model,
    initial_tensor,
    standard_deviations,
    stream_seed,
)
from ontogeny.shape import SIZES, Shape
from ontogeny.suite import Init

SMALL = Shape(num_layers=2, hidden_size=32, num_heads=2, vocab_size=128, context_length=16)


def weights(shape: Shape = SMALL, init: Init = "small-wang", seed: int = 0) -> dict[str, Tensor]:
    return {
        name: parameter.detach()
        for name, parameter in initial_model(shape, init, seed).named_parameters()
    }


def deepened(num_layers: int) -> Shape:
    return Shape(**(SMALL.resolved() | {"num_layers": num_layers}))


def measured(name: str, shape: Shape, init: Init) -> tuple[float, float]:
    """Mean and standard deviation of a tensor of 400 by 500 by that name."""
    tensor = initial_tensor(name, torch.Size((400, 500)), shape, init, 0).double()
    return float(tensor.mean()), float(tensor.std())


@pytest.mark.parametrize("name", SIZES)
def test_golden_deviations(golden: Path, name: str) -> None:
    row = json.loads((golden / "init_std.json").read_text())["rows"][name]
    size = SIZES[name]
    assert (size.num_layers, size.hidden_size) == (row["num_layers"], row["hidden_size"])
    assert size.init == {"small_init": "small-wang", "normal": "normal"}[row["init_method"]]
    found = standard_deviations(size.init, size.num_layers, size.hidden_size)
    assert found == pytest.approx((row["std"], row["output_std"]), rel=1e-12)
    shape = Shape(
        num_layers=size.num_layers, hidden_size=size.hidden_size, num_heads=size.num_heads,
        vocab_size=64, context_length=16,
    )  # fmt: skip
    # Five standard errors of a deviation and of a mean over 200,000 draws.
    for tensor, expected in (
        ("embed_in.weight", row["std"]),
        ("layers.0.mlp.dense_4h_to_h.weight", row["output_std"]),
    ):
        mean, deviation = measured(tensor, shape, size.init)
        assert deviation == pytest.approx(expected, rel=5 / math.sqrt(400_000))
        assert abs(mean) < 5 * expected / math.sqrt(200_000)


def test_deviations_by_hand() -> None:
    # Small-init sqrt(2 / 5h), Wang-init 2 / (L sqrt(h)); plain: 0.02, and 0.02 / sqrt(2L).
    assert standard_deviations("small-wang", 6, 40) == pytest.approx((0.1, 2 / 6 / 40**0.5))
    assert standard_deviations("normal", 8, 40) == pytest.approx((0.02, 0.005))


@pytest.mark.parametrize("init", ["small-wang", "normal"])
def test_every_tensor_by_its_kind(init: Any) -> None:
    matrix, output = standard_deviations(init, 2, 32)
    for name, tensor in weights(init=init).items():
        if name.endswith("norm.weight"):
            assert bool((tensor == 1).all()), name
        elif name.endswith("bias"):
            assert bool((tensor == 0).all()), name
        else:
            into_residual = "attention.dense." in name or "4h_to_h" in name
            expected = output if into_residual else matrix
            error = 5 / math.sqrt(2 * tensor.numel())
            assert float(tensor.std()) == pytest.approx(expected, rel=error), name


def test_the_same_on_every_call_whatever_torchs_seed_is() -> None:
    torch.manual_seed(1)
    first = weights()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = weights()
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        assert tensor.dtype == torch.float32


def test_a_deeper_model_shares_its_tensors() -> None:
    shallow, deep = weights(), weights(deepened(5))
    assert shallow.keys() < deep.keys()
    for name, tensor in shallow.items():
        into_residual = "attention.dense.weight" in name or "4h_to_h.weight" in name
        factor = 2 / 5 if into_residual else 1.0  # Wang-init goes with 1 / L
        torch.testing.assert_close(deep[name], tensor * factor, rtol=1e-6, atol=0)


def test_seeds_and_names_have_streams_of_their_own() -> None:
    matrices = [
        tensor.flatten()[:16]
        for seed in (0, 1)
        for tensor in weights(seed=seed).values()
        if tensor.ndim == 2
    ]
    draws = torch.stack([part / part.norm() for part in matrices])
    same = draws @ draws.T - torch.eye(len(draws))
    assert float(same.abs().max()) < 0.95


def test_seeds_of_streams_literally() -> None:
    # Part of what a member is: a change of these changes every model grown from step 0.
    assert stream_seed(0, "embed_in.weight") == SEED_OF_EMBEDDING
    assert stream_seed(1, "embed_in.weight") != SEED_OF_EMBEDDING
    assert 0 <= SEED_OF_EMBEDDING < 2**63


SEED_OF_EMBEDDING = 8816902133699063994
