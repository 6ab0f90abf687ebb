"""A model's shape: its sizes, and parameter and FLOP counts in closed form.

`SIZES` holds every size of Pythia as a row; its non-embedding count is an invariant checked when
the row is made. Source: Pythia (Biderman et al. 2023), table 1 and the released configurations;
14M and 31M from the later release. Not here: how a size is trained (`suite.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from ontogeny.config import Settings

PYTHIA_VOCABULARY = 50277  # ids of its tokenizer, before padding

Activation = Literal["gelu", "gelu_tanh"]  # the exact (erf) form, and its tanh approximation
RotaryTables = Literal["float32", "compute"]  # the dtype cos and sin are formed in


class Shape(Settings):
    """What determines a GPT-NeoX model as a function of its weights."""

    num_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    context_length: int = Field(ge=1)
    activation: Activation = "gelu"
    rotary_tables: RotaryTables = "float32"
    rotary_fraction: float = Field(default=0.25, gt=0, le=1)
    rotary_base: float = Field(default=10000.0, gt=1)
    layer_norm_eps: float = Field(default=1e-5, gt=0)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Shape:
        check_heads(self.num_layers, self.hidden_size, self.num_heads)
        if self.rotary_size < 2 or self.rotary_size % 2:
            raise ValueError(
                f"rotary dimensions must be even and at least 2, but rotary_fraction "
                f"{self.rotary_fraction} of head size {self.head_size} gives {self.rotary_size}"
            )
        return self

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def rotary_size(self) -> int:
        """Dimensions of each head that rotate; the rest pass unchanged."""
        return int(self.head_size * self.rotary_fraction)

    @property
    def num_parameters(self) -> int:
        return self.num_non_embedding + 2 * self.vocab_size * self.hidden_size

    @property
    def num_non_embedding(self) -> int:
        """Parameters without the two embeddings; biases and all norms included."""
        return num_non_embedding(self.num_layers, self.hidden_size)

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations to train on one token of a full window, forward and backward.

        Two a multiply-add, three passes; attention counted as causal (half the score matrix).
        """
        matmul = self.num_non_embedding + self.vocab_size * self.hidden_size
        attention = self.num_layers * self.context_length * self.hidden_size
        return 6.0 * (matmul + attention)


def padded(size: int, multiple: int = 128) -> int:
    """The least multiple of `multiple` that holds `size` ids: rows of the embeddings."""
    return -(-size // multiple) * multiple


def num_non_embedding(num_layers: int, hidden_size: int) -> int:
    """Parameters of all blocks and the final norm: L (12 h^2 + 13 h) + 2 h."""
    return num_layers * (12 * hidden_size**2 + 13 * hidden_size) + 2 * hidden_size


def check_heads(num_layers: int, hidden_size: int, num_heads: int) -> None:
    """Raise ValueError unless the heads divide the width, naming a swap if that is what it is."""
    if hidden_size % num_heads == 0:
        return
    swapped = hidden_size % num_layers == 0
    raise ValueError(
        f"heads must divide the width: hidden_size {hidden_size} is not divisible by num_heads "
        f"{num_heads}" + (f" (are num_layers {num_layers} and num_heads swapped?)" * swapped)
    )


@dataclass(frozen=True, slots=True)
class Size:
    """One row of the published table: a shape and how that size was trained."""

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    learning_rate: float
    published_non_embedding: int
    vocab_multiple: int = 128  # 128 times the tensor-parallel degree the size was trained with
    init: Literal["small-wang", "normal"] = "small-wang"
    rows_per_update: int = 1024
    equivalents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_heads(self.num_layers, self.hidden_size, self.num_heads)
        counted = num_non_embedding(self.num_layers, self.hidden_size)
        if counted != self.published_non_embedding:
            raise ValueError(
                f"size {self.name}: {counted} non-embedding parameters, "
                f"published {self.published_non_embedding}"
            )


SIZES: dict[str, Size] = {
    size.name: size
    for size in (
        Size("14m", 6, 128, 4, 1e-3, 1_189_888),
        Size("31m", 6, 256, 8, 1e-3, 4_739_072),
        Size("70m", 6, 512, 8, 1e-3, 18_915_328),
        Size("160m", 12, 768, 12, 6e-4, 85_056_000, equivalents=("GPT-Neo 125M", "OPT-125M")),
        Size("410m", 24, 1024, 16, 3e-4, 302_311_424, equivalents=("OPT-350M",)),
        # The released configuration says 2.5e-4; the paper's table says 3e-4.
        Size("1b", 16, 2048, 8, 2.5e-4, 805_736_448),
        Size("1.4b", 24, 2048, 16, 2e-4, 1_208_602_624, equivalents=("GPT-Neo 1.3B", "OPT-1.3B")),
        Size("2.8b", 32, 2560, 32, 1.6e-4, 2_517_652_480, equivalents=("GPT-Neo 2.7B", "OPT-2.7B")),
        # Their configurations name no initialiser, so they got the library's defaults.
        Size("6.9b", 32, 4096, 32, 1.2e-4, 6_444_163_072, 256, "normal", equivalents=("OPT-6.7B",)),
        Size("12b", 36, 5120, 40, 1.2e-4, 11_327_027_200, 512, "normal"),
    )
}
