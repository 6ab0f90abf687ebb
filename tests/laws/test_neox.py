"""The model against an independent reading of the paper in NumPy, and its laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.model.attention import rotate
from ontogeny.model.init import initial_model
from ontogeny.model.neox import NeoX, rotary_tables
from ontogeny.shape import Shape

BASE: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 48,
    "num_heads": 3,
    "vocab_size": 61,
    "context_length": 40,
}


def random_model(**changes: Any) -> NeoX:
    """A model whose norms and biases too are away from where they start."""
    model = initial_model(Shape(**(BASE | changes)), "small-wang", 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def random_tokens(batch: int, time: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(61, (batch, time), generator=torch.Generator().manual_seed(seed))


class Paper:
    """GPT-NeoX as Black et al. describe it, one sequence and one head at a time, in float64."""

    def __init__(self, model: NeoX) -> None:
        self.shape = model.shape
        self.weights = {
            name: tensor.double().numpy() for name, tensor in model.state_dict().items()
        }

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        x = self.weights["embed_in.weight"][tokens]
        for layer in range(self.shape.num_layers):
            at = f"layers.{layer}."
            attended = self.attention(self.norm(x, at + "input_layernorm"), at + "attention.")
            widened = self.mlp(self.norm(x, at + "post_attention_layernorm"), at + "mlp.")
            x = x + attended + widened
        return self.norm(x, "final_layer_norm") @ self.weights["embed_out.weight"].T

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.shape.layer_norm_eps)
        return centred / deviation * self.weights[name + ".weight"] + self.weights[name + ".bias"]

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def attention(self, x: np.ndarray, at: str) -> np.ndarray:
        size = self.shape.head_size
        fused = self.linear(x, at + "query_key_value")
        heads = []
        for head in range(self.shape.num_heads):
            # Rows of the fused matrix: head by head, and in each its queries, keys and values.
            mine = fused[:, 3 * size * head : 3 * size * (head + 1)]
            q, k, v = mine[:, :size], mine[:, size : 2 * size], mine[:, 2 * size :]
            q, k = self.rotated(q), self.rotated(k)
            out = np.empty_like(v)
            for now in range(len(x)):
                scores = k[: now + 1] @ q[now] / math.sqrt(size)
                weights = np.exp(scores - scores.max())
                out[now] = weights / weights.sum() @ v[: now + 1]
            heads.append(out)
        return self.linear(np.concatenate(heads, axis=-1), at + "dense")

    def rotated(self, x: np.ndarray) -> np.ndarray:
        """Each pair (j, j + R/2) of the first R numbers, as one complex number, turned."""
        half = self.shape.rotary_size // 2
        pairs = x[:, :half] + 1j * x[:, half : 2 * half]
        frequencies = self.shape.rotary_base ** (-np.arange(half) / half)
        turned = pairs * np.exp(1j * np.outer(np.arange(len(x)), frequencies))
        return np.concatenate([turned.real, turned.imag, x[:, 2 * half :]], axis=-1)

    def mlp(self, x: np.ndarray, at: str) -> np.ndarray:
        wide = self.linear(x, at + "dense_h_to_4h")
        if self.shape.activation == "gelu":
            active = wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2
        else:
            inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
            active = wide * (1 + np.tanh(inner)) / 2
        return self.linear(active, at + "dense_4h_to_h")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "gelu_tanh"},
        {"rotary_fraction": 1.0},
        {"rotary_base": 500.0, "layer_norm_eps": 1e-2},
        {"num_heads": 6, "rotary_fraction": 0.5},
        {"num_layers": 1, "hidden_size": 8, "num_heads": 1},
    ],
    ids=str,
)
def test_equal_to_the_paper(changes: dict[str, Any]) -> None:
    model = random_model(**changes)
    tokens = random_tokens(2, 33)
    with torch.no_grad():
        found = model(tokens).numpy()
    for row, expected in zip(tokens.numpy(), found, strict=True):
        np.testing.assert_allclose(Paper(model).logits(row), expected, rtol=1e-5, atol=1e-5)


def test_the_two_activations_differ() -> None:
    tokens = random_tokens(1, 9)
    exact, tanh = (
        Paper(random_model(activation=name)).logits(tokens[0].numpy())
        for name in ("gelu", "gelu_tanh")
    )
    assert 1e-5 < np.abs(exact - tanh).max() < 1e-1


@settings(max_examples=25)
@given(time=st.integers(2, 40), data=st.data())
def test_no_logit_knows_a_later_token(time: int, data: st.DataObject) -> None:
    model, tokens = random_model(), random_tokens(1, time)
    changed = data.draw(st.integers(1, time - 1))
    others = tokens.clone()
    others[0, changed:] = random_tokens(1, time, seed=1)[0, changed:]
    others[0, changed] = (tokens[0, changed] + 1) % 61
    with torch.no_grad():
        before, after = model(tokens), model(others)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed], after[:, changed])


def test_rows_of_a_batch_do_not_know_each_other() -> None:
    model, tokens = random_model(), random_tokens(3, 20)
    with torch.no_grad():
        together = model(tokens)
        alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 30), st.integers(0, 9))
@settings(max_examples=30)
def test_rotation_knows_only_distance(shift: int, distance: int) -> None:
    shape = Shape(**(BASE | {"context_length": 64}))
    cos, sin = rotary_tables(shape, 40, torch.float64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(shift)
    pair = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64, generator=generator)
    q, k = pair.expand(2, 1, 1, 40, 16)
    turned_q, turned_k = rotate(q, cos, sin)[0, 0], rotate(k, cos, sin)[0, 0]
    # Frequencies are float32: exact to their rounding.
    torch.testing.assert_close(
        turned_q[shift + distance] @ turned_k[shift],
        turned_q[distance] @ turned_k[0],
        rtol=1e-5,
        atol=1e-5,
    )
    assert torch.equal(turned_q[:, 4:], q[0, 0, :, 4:])


def test_bfloat16_arithmetic_leaves_the_weights() -> None:
    model, tokens = random_model(), random_tokens(2, 33)
    with torch.no_grad():
        exact, rounded = model(tokens), model(tokens, torch.bfloat16)
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    # Eight bits of mantissa through two layers: the error is a few hundredths of the logits.
    assert float((rounded.float() - exact).norm() / exact.norm()) < 0.05
    model(tokens, torch.bfloat16).float().sum().backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all())
        for p in model.parameters()
    )


def test_names_are_those_of_the_hub() -> None:
    names = set(random_model(num_layers=1).state_dict())
    block = {
        f"layers.0.{part}.{kind}"
        for part in (
            "input_layernorm", "post_attention_layernorm", "attention.query_key_value",
            "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
        )
        for kind in ("weight", "bias")
    }  # fmt: skip
    ends = {"embed_in.weight", "final_layer_norm.weight", "final_layer_norm.bias"}
    assert names == block | ends | {"embed_out.weight"}
