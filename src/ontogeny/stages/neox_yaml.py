"""The YAML settings of GPT-NeoX, Pythia's among them, read as one of our run files.

Every key is mapped (`NeoxSettings`), is computed here in one way only and must say so (`FIXED`), or
changes nothing that this trainer computes (`NO_EFFECT`); any other is refused by name. What a file
leaves out is what gpt-neox v1.0, megatron/neox_arguments/, takes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from ontogeny.config import Settings, build
from ontogeny.errors import ConfigError
from ontogeny.shape import check_heads
from ontogeny.suite import Init, Precision, SizeSettings

# What `yaml` raises on text that is not YAML, or whose values are not what their tags claim.
BROKEN = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
          RecursionError)  # fmt: skip
GPUS = re.compile(r"#.*\btrained on (\d+) gpus\b", re.IGNORECASE)

# What GPT-NeoX takes where a key is left out, and the one value that is computed here.
FIXED: dict[str, tuple[Any, Any]] = {
    "pos_emb": ("learned", "rotary"),
    "rotary_pct": (1.0, 0.25),
    "rotary_emb_base": (10000, 10000),
    "norm": ("layernorm", "layernorm"),
    "layernorm_epsilon": (1e-5, 1e-5),
    "no_weight_tying": (False, True),
    "gpt_j_residual": (False, True),
    "gpt_j_tied": (False, False),
    "activation": ("gelu", "gelu"),
    "bias_gelu_fusion": (False, True),  # the fused form is the tanh one
    "hidden_dropout": (0.1, 0),
    "attention_dropout": (0.1, 0),
    "init_method_std": (0.02, 0.02),
    "lr_decay_style": ("linear", "cosine"),
    "checkpoint_scale": ("linear", "linear"),
    "eod_mask_loss": (False, False),
}
_NO_EFFECT = (
    # how the work is spread, and kept in memory
    "output_layer_parallelism zero_optimization checkpoint_activations checkpoint_num_layers "
    "partition_activations synchronize_each_layer distributed_backend launcher deepspeed_slurm "
    "fp32_allreduce data_impl num_workers scaled_upper_triang_masked_softmax_fusion "
    # what is validated, logged and where
    "eval_interval eval_iters valid_data_paths test_data_paths log_interval log_grad_norm "
    "steps_per_print wall_clock_breakdown "
    # overwritten or only checked by GPT-NeoX itself
    "gas max_position_embeddings tokenizer_type"
)
NO_EFFECT = frozenset(_NO_EFFECT.split())
Initialiser = Literal["normal", "scaled_normal", "small_init", "wang_init"]
INITIALISERS: dict[tuple[Initialiser, Initialiser], Init] = {
    ("normal", "scaled_normal"): "normal",
    ("small_init", "wang_init"): "small-wang",
}


class OptimizerParams(Settings):
    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


class Optimizer(Settings):
    type: Literal["Adam"]
    params: OptimizerParams


class HalfPrecision(Settings):
    """Which half precision is meant, and the loss scale, which only fp16 has."""

    enabled: bool = False
    fp16: bool = True
    type: Literal["fp16", "bfloat16"] = "fp16"
    auto_cast: bool = False
    loss_scale: float = 0
    loss_scale_window: int = 1000
    initial_scale_power: int = Field(default=32, ge=0, lt=64)
    hysteresis: int = 2
    min_loss_scale: float = 1


class NeoxSettings(Settings):
    """What a file of GPT-NeoX says and this package uses, under GPT-NeoX's own names."""

    num_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    seq_length: int = Field(ge=1)
    attention_config: tuple[tuple[list[Literal["flash", "global"]], int | Literal["all"]], ...] = ()
    make_vocab_size_divisible_by: int = Field(default=128, ge=1)
    init_method: Initialiser = "normal"
    output_layer_init_method: Initialiser = "scaled_normal"
    seed: int = Field(default=1234, ge=0, lt=2**32)
    optimizer: Optimizer
    min_lr: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.01, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    gradient_clipping: float = Field(default=1.0, gt=0)
    train_iters: int = Field(ge=1, le=10**7)
    lr_decay_iters: int | None = None
    train_batch_size: int | None = Field(default=None, ge=1)
    train_micro_batch_size_per_gpu: int | None = Field(default=None, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    model_parallel_size: int = Field(default=1, ge=1)
    pipe_parallel_size: int = Field(default=0, ge=0)
    fp16: HalfPrecision = HalfPrecision()
    checkpoint_factor: int = Field(ge=1)
    extra_save_iters: tuple[int, ...] = ()
    train_data_paths: list[str] = Field(default_factory=list, max_length=1)
    vocab_file: str | None = None

    @property
    def size(self) -> SizeSettings:
        """What a run file says of a size."""
        return SizeSettings(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            num_heads=self.num_attention_heads,
            learning_rate=self.optimizer.params.lr,
            init=INITIALISERS[self.init_method, self.output_layer_init_method],
            vocab_multiple=self.make_vocab_size_divisible_by * self.model_parallel_size,
        )

    @property
    def precision(self) -> Precision:
        """What the original's arithmetic is."""
        if not self.fp16.enabled:
            return "fp32"
        return "bf16" if self.fp16.type == "bfloat16" else "fp16"

    @property
    def loss_scale(self) -> dict[str, float] | None:
        """What a run file says of the loss scale; nothing but in fp16."""
        if self.precision != "fp16":
            return None
        half = self.fp16
        return {
            "initial": 2.0**half.initial_scale_power,
            "window": half.loss_scale_window,
            "hysteresis": half.hysteresis,
            "floor": half.min_loss_scale,
        }

    @property
    def steps(self) -> set[int]:
        """The steps GPT-NeoX keeps a checkpoint of."""
        multiples = range(self.checkpoint_factor, self.train_iters, self.checkpoint_factor)
        extra = (step for step in self.extra_save_iters if 0 <= step < self.train_iters)
        return {*multiples, *extra, self.train_iters}

    @model_validator(mode="after")
    def _can_be_computed(self) -> NeoxSettings:
        check_heads(self.num_layers, self.hidden_size, self.num_attention_heads)
        counts = [count for _, count in self.attention_config]
        if counts and "all" not in counts and sum(map(int, counts)) != self.num_layers:
            raise ValueError(f"attention_config names {counts} layers of {self.num_layers}")
        if self.lr_decay_iters not in (None, self.train_iters):
            raise ValueError(f"lr_decay_iters {self.lr_decay_iters} must equal train_iters")
        if (self.init_method, self.output_layer_init_method) not in INITIALISERS:
            raise ValueError(f"init_method {self.init_method} with output_layer_init_method "
                             f"{self.output_layer_init_method} is not supported")  # fmt: skip
        if self.precision == "fp16" and self.fp16.loss_scale:
            raise ValueError(f"fp16 with the fixed loss_scale {self.fp16.loss_scale:g} is not "
                             "supported, only with one that moves, which 0 asks for")  # fmt: skip
        if self.min_lr > self.optimizer.params.lr:
            raise ValueError(f"min_lr {self.min_lr} is above the rate {self.optimizer.params.lr}")
        return self


@dataclass(frozen=True, slots=True)
class NeoxFile:
    """A file that was read: its settings, what was mended, what has no effect, its GPU count."""

    path: Path
    settings: NeoxSettings
    repairs: tuple[str, ...]
    ignored: tuple[str, ...]
    num_gpus: int | None  # from a comment, the only place such files have it in


def read_neox_yaml(path: Path, *, repair: bool = False) -> NeoxFile:
    """Read a settings file of GPT-NeoX; hyphens and underscores in keys are one.

    Two faults of published files are known: a comma missing at a line's end, and the numbers of
    layers and heads swapped. They are mended only where `repair` asks for it, and named. Raises
    ConfigError for everything that cannot be read, is unknown or is not computed here.
    """
    repairs = []
    try:
        text = path.read_text(encoding="utf-8")
        try:
            values = yaml.load(text, _Loader)
        except yaml.MarkedYAMLError as error:
            values, fault = _with_comma(text, error)
            repairs.append(_allowed(fault, "add the comma", path, repair))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=path) from error
    except BROKEN as error:
        raise ConfigError(f"not valid YAML ({error})", where=path) from error
    values = _one_spelling(values, path)
    for key, (default, needed) in FIXED.items():
        if values.get(key, default) != needed:
            found = values.get(key, f"nothing, which means {default}")
            raise ConfigError(f"{key} is not supported", where=path, expected=needed, found=found)
    if swap := _swap_in(values):
        repairs.append(_allowed(swap, "swap them back", path, repair))
        layers, heads = values["num_layers"], values["num_attention_heads"]
        values |= {"num_layers": heads, "num_attention_heads": layers}
    read = {key: value for key, value in values.items() if key not in FIXED.keys() | NO_EFFECT}
    counts = set(GPUS.findall(text))
    return NeoxFile(
        path=path,
        settings=build(NeoxSettings, read, path),
        repairs=tuple(repairs),
        ignored=tuple(key for key in values if key in NO_EFFECT),
        num_gpus=int(counts.pop()) if len(counts) == 1 else None,
    )


class _Loader(yaml.SafeLoader):
    """Plain values only: no aliases, and no key twice, of which the library keeps the last."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if counts and max(counts.values()) > 1:
            raise yaml.YAMLError(f"{counts.most_common(1)[0][0]} is given twice")
        return super().construct_mapping(node, deep)


def _allowed(fault: str, mend: str, path: Path, repair: bool) -> str:
    """The fault, if it may be mended; otherwise raises ConfigError with it."""
    if not repair:
        raise ConfigError(fault, where=path, fix=f"--repair to {mend}")
    return fault


def _with_comma(text: str, error: yaml.MarkedYAMLError) -> tuple[Any, str]:
    """The values with a comma on the line before the one a parser stumbled over, and the fault.

    Raises the error again where that does not mend it.
    """
    stumbled = error.problem_mark.line if error.problem_mark else 0
    lines = text.split("\n")
    said = [at for at, line in enumerate(lines[:stumbled]) if line.split("#")[0].strip()]
    if not said or "expected ',' or '}'" not in str(error.problem):
        raise error
    line = lines[said[-1]]
    lines[said[-1]] = line.rstrip() + ","
    try:
        values = yaml.load("\n".join(lines), _Loader)
    except BROKEN:
        raise error from None
    return values, f"not valid YAML: line {said[-1] + 1} ends without a comma ({line.strip()})"


def _one_spelling(values: Any, path: Path) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ConfigError("no settings by name", where=path, expected="a file of GPT-NeoX")
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in found:
            raise ConfigError(f"{name} is given in two spellings", where=path, fix="keep one")
        found[name] = value
    return found


def _swap_in(values: Mapping[str, Any]) -> str | None:
    """How the numbers of layers and heads are swapped, if they are.

    The heads must divide the width, and the attention of the layers is counted a second time.
    """
    names = ("num_layers", "num_attention_heads", "hidden_size")
    layers, heads, width = (values.get(name, 0) for name in names)
    if not all(isinstance(number, int) and number > 0 for number in (layers, heads, width)):
        return None
    counted = values.get("attention_config") == [[["flash"], heads]]
    if width % heads == 0 or width % layers or not counted:
        return None
    return (
        f"num_layers {layers} and num_attention_heads {heads} are swapped, as {heads} heads cannot "
        f"divide hidden_size {width}, and attention_config counts {heads} layers"
    )
