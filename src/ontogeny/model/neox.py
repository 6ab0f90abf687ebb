"""GPT-NeoX, read top to bottom: partial rotary, parallel residual, untied embeddings, fused QKV.

Int tokens in, logits out; one device, no word about ranks. Weights may be kept in float32 while
the arithmetic runs in another dtype: every matrix is cast to the dtype of what it multiplies.
Source: Black et al. 2022 (GPT-NeoX-20B), section 2; parameter names as in Hugging Face's
`GPTNeoXForCausalLM`. Not here: initialisation (`init.py`), the loss (`loss.py`).

Shapes: B batch, T time, W width, H heads, D head size, R rotary size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ontogeny.model.attention import Trees, causal_attention, rotate, tree_attention
from ontogeny.model.linear import linear
from ontogeny.shape import Activation, Shape

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}  # to train in
SCORING_DTYPES = DTYPES | {"fp16": torch.float32}  # half precision overflows where nobody looks


class Linear(nn.Linear):
    """A linear map whose weights follow the dtype of its input, or of an activation of that."""

    activation: Activation | None = None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.activation)


class Embedding(nn.Embedding):
    """A table of vectors, whose first values are `init.py`'s."""

    def reset_parameters(self) -> None:
        """Nothing: drawn on the meta device, torch's own would import its compiler, for seconds."""


class LayerNorm(nn.LayerNorm):
    """Layer norm whose weights follow the dtype of its input; statistics are float32."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class Attention(nn.Module):
    """Causal self-attention; the first R dimensions of each query and key rotate."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_size = shape.head_size
        self.query_key_value = Linear(shape.hidden_size, 3 * shape.hidden_size)
        self.dense = Linear(shape.hidden_size, shape.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, trees: Trees | None = None) -> Tensor:
        qkv = self.query_key_value(x).unflatten(-1, (-1, 3 * self.head_size))  # [B, T, H, 3D]
        if trees is not None:
            return self.dense(tree_attention(qkv, cos, sin, trees).flatten(1))
        return self.dense(causal_attention(qkv, cos, sin).flatten(2))

    def past(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys, and values, [H, T, D] each: all that later tokens need of x [T, W]."""
        qkv = self.query_key_value(x).unflatten(-1, (-1, 3 * self.head_size))
        _, k, v = (part.transpose(0, 1) for part in qkv.chunk(3, dim=-1))
        return rotate(k, cos, sin), v


class MLP(nn.Module):
    """Two linear maps, four times as wide between them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(shape.hidden_size, 4 * shape.hidden_size)
        self.dense_4h_to_h = Linear(4 * shape.hidden_size, shape.hidden_size)
        self.dense_4h_to_h.activation = shape.activation

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(self.dense_h_to_4h(x))


class Block(nn.Module):
    """Attention and MLP side by side: both read the block's input, each through its own norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.post_attention_layernorm = LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.attention = Attention(shape)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, trees: Trees | None = None) -> Tensor:
        attention = self.attention(self.input_layernorm(x), cos, sin, trees)
        return x + (attention + self.mlp(self.post_attention_layernorm(x)))


class NeoX(nn.Module):
    """The whole model."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_in = Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.final_layer_norm = LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.embed_out = Linear(shape.hidden_size, shape.vocab_size, bias=False)
        self._kept: tuple[tuple[Any, ...], tuple[Tensor, Tensor]] | None = None

    def forward(self, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Logits [B, T, V] of the next token for int tokens [B, T], computed in `dtype`."""
        return self.embed_out(self.hidden(tokens, dtype))

    def hidden(self, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """What the output embedding multiplies: [B, T, W] in `dtype`, after the last norm."""
        cos, sin = self._tables(tokens.shape[1], dtype, tokens.device)
        x = self.embed_in(tokens).to(dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.final_layer_norm(x)

    def _tables(self, *what: Any) -> tuple[Tensor, Tensor]:
        """`rotary_tables` of the shape; the last ones are kept, as training asks for no others."""
        if self._kept is None or self._kept[0] != what:
            self._kept = what, rotary_tables(self.shape, *what)
        return self._kept[1]

    def hidden_of_trees(
        self, tokens: Tensor, dtype: torch.dtype, layers: Sequence[Trees]
    ) -> Tensor:
        """The same [N, W] of tokens [N] in rows that are trees, told to each layer. No gradient."""
        depths = layers[0].depths
        tables = rotary_tables(self.shape, int(depths.max()) + 1, dtype, tokens.device)
        cos, sin = (table[depths] for table in tables)  # [B, T, R]
        x = self.embed_in(tokens).to(dtype)
        for layer, trees in zip(self.layers, layers, strict=True):
            x = layer(x, cos, sin, trees)
        return self.final_layer_norm(x)

    def past(self, tokens: Tensor, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """What later tokens need of these [T], for every layer (`Trees.past`). No gradient."""
        cos, sin = rotary_tables(self.shape, len(tokens), dtype, tokens.device)
        x = self.embed_in(tokens[None]).to(dtype)
        found = []
        for layer in cast("Iterable[Block]", self.layers):
            found.append(layer.attention.past(layer.input_layernorm(x[0]), cos, sin))
            x = layer(x, cos, sin)
        return found


def rotary_tables(
    shape: Shape, time: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, R] of position times frequency, in `dtype`; the halves repeat.

    With `shape.rotary_tables == "compute"` positions, frequencies and angles are rounded to
    `dtype` first, as GPT-NeoX does, which at half precision is visible at large positions.
    """
    exponents = torch.arange(0, shape.rotary_size, 2, device=device).float() / shape.rotary_size
    rounded = dtype if shape.rotary_tables == "compute" else torch.float32
    frequencies = (1.0 / shape.rotary_base**exponents).to(rounded)
    positions = torch.arange(time, device=device).to(rounded)
    angles = (positions[:, None] * frequencies).repeat(1, 2).float()
    return angles.cos().to(dtype), angles.sin().to(dtype)
