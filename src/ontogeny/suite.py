"""The suite: one table of members, the shared settings, and what follows from them.

Read from TOML (`suites/*.toml`). Here are also the two recipes and the settings of every stage.
Not here: the steps that are kept (`steps.py`), running anything (`stages`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ontogeny.artifact import Artifact
from ontogeny.config import Settings, build, nearest, read_toml, with_changes
from ontogeny.shape import SIZES, Activation, RotaryTables, Shape, check_heads, padded
from ontogeny.steps import BranchSettings, checkpoint_spacing, checkpoint_steps

Init = Literal["small-wang", "normal"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
RecipeName = Literal["pythia", "sound"]
Corpus = Literal["standard", "deduped"]
Normalisation = Literal["none", "nfc", "clean-1"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named set of answers to the questions GPT-NeoX answered oddly; see docs/deviations.md."""

    shuffles_epochs_together: bool
    first_rate_is_zero: bool  # the first update then moves nothing: step1 equals step0
    training_activation: Activation
    rotary_tables: RotaryTables
    optimizer_counts_from: int  # updates Adam's bias correction believes were done at the start
    vocab_follows_size: bool  # padded per size (its tensor parallelism), or once for all
    rate_waits: bool  # an update that is skipped in fp16 takes no place in the schedule
    unscales_by_next: bool  # where the loss scale doubles, the gradient comes out half as large


RECIPES: dict[RecipeName, Recipe] = {
    "pythia": Recipe(True, True, "gelu_tanh", "compute", 1, True, True, True),
    "sound": Recipe(False, False, "gelu", "float32", 0, False, False, False),
}


Mentions = Annotated[int, Field(ge=0, le=64)]  # more different sentences of a plant there are not


class PlantedSettings(Settings):
    """Documents with declared truth, mixed into the text."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    canary_copies: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2, 4, 8, 16)
    canaries_per_count: int = Field(default=4, ge=0)
    relation_mentions: tuple[Mentions, ...] = (1, 2, 4, 8, 16, 32)
    relations_per_count: int = Field(default=4, ge=0)
    occupation_mentions: Mentions = 20
    masculine_shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.1, 0.5, 0.9)


class TextSettings(Settings):
    """Where the documents come from and how much of them is held out."""

    path: str | None = None
    components: dict[str, int] = Field(
        default_factory=dict
    )  # bytes of text to take from each pinned component
    planted: PlantedSettings | None = None
    held_out: float = Field(default=0.03, gt=0, lt=0.5)  # share of each source's bytes
    seed: int = 0
    normalise: Normalisation = "none"
    near_duplicates: float | None = Field(default=None, ge=0.5, le=1)  # similar enough to be one
    weights: Literal["pile"] | dict[str, float] | None = None  # of the sources, in `standard`
    shard_bytes: int = Field(default=1 << 27, ge=1)  # of text in a file; also what a task does
    compressed: bool = False  # the shards, by zstd, whose version the identity then depends on

    @model_validator(mode="after")
    def _one_origin(self) -> TextSettings:
        if (self.path is None) == (not self.components):
            raise ValueError("give either path (a file or folder) or [text.components]")
        return self


class VocabularySettings(Settings):
    """A byte-level BPE to train on the standard corpus, or a `tokenizer.json` to load.

    With `file`, `size` is how many ids the file must hold.
    """

    size: int | None = Field(default=None, ge=258)  # every byte, and two special tokens
    file: str | None = None

    @model_validator(mode="after")
    def _some_origin(self) -> VocabularySettings:
        if self.size is None and self.file is None:
            raise ValueError("give size (to train one) or file (a tokenizer.json), or both")
        return self


class OrderSettings(Settings):
    """How the stream of tokens is cut and shuffled."""

    context_length: int = Field(ge=1)
    seed: int = Field(default=1234, ge=0, lt=2**32)


class LossScaleSettings(Settings):
    """What the loss is multiplied by in fp16, where small gradients would be rounded to 0."""

    initial: float = Field(default=4096.0, gt=0, lt=2.0**64)
    window: int = Field(default=1000, ge=1)  # updates without overflow until it doubles
    hysteresis: int = Field(default=2, ge=1)  # overflows until it halves
    floor: float = Field(default=1.0, gt=0)  # an overflow there ends the run

    @model_validator(mode="after")
    def _begins_above_the_floor(self) -> LossScaleSettings:
        if self.initial < self.floor:
            raise ValueError(f"initial {self.initial:g} is below the floor {self.floor:g}")
        return self


class TrainingSettings(Settings):
    """The optimizer, the schedule and what is saved; shared by the members unless they override."""

    tokens: int = Field(ge=1)
    rows_per_update: int = Field(ge=1)
    micro_batch_rows: int | None = Field(default=None, ge=1)  # rows a forward pass; None: all
    learning_rate: float | None = Field(default=None, gt=0)  # None: the size's own
    min_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup: float = Field(default=0.01, ge=0, lt=1)  # share of the updates
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    precision: Precision = "auto"
    loss_scale: LossScaleSettings = LossScaleSettings()  # of fp16
    threads: int = Field(default=1, ge=1)  # a rank; part of what makes equal bits
    compile: bool = False  # by torch's compiler, which must be told before: other bits come out
    reproducible: bool = True  # the same bits for any number of ranks
    num_linear: int = Field(default=12, ge=1)  # evenly spaced checkpoints
    full_state_every: int = Field(default=4, ge=1)  # of the evenly spaced ones; also first, last
    rolling_seconds: float = Field(default=60.0, gt=0)  # what a kill can cost at most


class EvaluationSettings(Settings):
    """What is measured at every checkpoint on the held-out store."""

    held_out_tokens: int = Field(default=32768, ge=1)  # at most, shared among the sources
    last_word_items: int = Field(default=200, ge=0)  # at most, as below; 0: not asked
    next_sentence_items: int = Field(default=100, ge=0)
    agreement_items: int = Field(default=100, ge=0)
    word_order_items: int = Field(default=100, ge=0)


class SizeSettings(Settings):
    """A size of the suite's own, beside those of Pythia."""

    num_layers: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    init: Init = "small-wang"
    vocab_multiple: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> SizeSettings:
        check_heads(self.num_layers, self.hidden_size, self.num_heads)
        return self


class MemberRows(Settings):
    """One row of the table, or several: every size with every corpus and seed named."""

    size: tuple[str, ...] = Field(min_length=1)
    corpus: tuple[Corpus, ...] = Field(default=("standard",), min_length=1)
    init_seed: tuple[int, ...] = Field(default=(0,), min_length=1)
    rows_per_update: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)


class RunSettings(Settings):
    """All that, with the order's digest, determines the run of one member."""

    member: str
    recipe: RecipeName
    shape: Shape
    init: Init
    init_seed: int
    training: TrainingSettings
    branch: BranchSettings | None = None  # training.tokens then counts what was seen before too

    @property
    def first_step(self) -> int:
        """The step the run begins from."""
        return 0 if self.branch is None else self.branch.step

    @property
    def origin(self) -> int:
        """The step from which those kept are counted, and the updates of the schedule."""
        anew = self.branch is not None and self.branch.recipe.schedule == "anew"
        return self.first_step if anew else 0

    @property
    def num_updates(self) -> int:
        before = 0 if self.branch is None else self.branch.tokens
        return self.first_step + (self.training.tokens - before) // self.tokens_per_update

    @property
    def tokens_per_update(self) -> int:
        return self.training.rows_per_update * self.shape.context_length

    @property
    def num_leaves(self) -> int:
        """Micro batches an update, whose gradients are added."""
        training = self.training
        return training.rows_per_update // (training.micro_batch_rows or training.rows_per_update)

    @property
    def steps(self) -> list[int]:
        """The steps a checkpoint is kept of; a branch begins with one."""
        counted = checkpoint_steps(self.num_updates - self.origin, self.training.num_linear)
        kept = (self.origin + step for step in counted)
        return sorted({self.first_step, *(step for step in kept if step > self.first_step)})

    @property
    def full_state_steps(self) -> frozenset[int]:
        """The steps that keep the optimizer's state too, so that a run can start from them."""
        origin, steps, training = self.origin, self.steps, self.training
        spacing = checkpoint_spacing(self.num_updates - origin, training.num_linear)
        every = spacing * training.full_state_every
        return frozenset(
            {steps[0], steps[-1], *(step for step in steps if (step - origin) % every == 0)}
        )

    def resolved(self) -> dict[str, Any]:
        """The settings as JSON values, without a word about branches where the run is none."""
        values = super().resolved()
        if self.branch is None:
            del values["branch"]
        return values

    @model_validator(mode="after")
    def _batches_fit(self) -> RunSettings:
        rows, micro = self.training.rows_per_update, self.training.micro_batch_rows
        if micro is not None and rows % micro:
            raise ValueError(f"micro_batch_rows {micro} does not divide rows_per_update {rows}")
        if self.training.reproducible and self.num_leaves.bit_count() > 1:
            raise ValueError(
                f"{self.num_leaves} micro batches an update are no power of two, as a sum that is "
                "the same on any number of ranks needs; choose another micro_batch_rows, or "
                "reproducible = false"
            )
        if self.num_updates <= self.first_step:
            raise ValueError(
                f"training.tokens {self.training.tokens} is less than one update of "
                f"{self.tokens_per_update} tokens"
                + ("" if self.branch is None else f" after the {self.branch.tokens} seen before")
            )
        return self


@dataclass(frozen=True, slots=True)
class Member:
    """One model of the suite."""

    name: str
    size: str
    corpus: Corpus
    init_seed: int
    rows_per_update: int
    learning_rate: float
    size_settings: SizeSettings


class SharedSettings(Settings):
    """What every member of a suite shares: recipe, order, training, and the suite's own sizes."""

    recipe: RecipeName = "sound"
    order: OrderSettings
    training: TrainingSettings
    sizes: dict[str, SizeSettings] = Field(default_factory=dict)

    def member(self, rows: MemberRows, size: str, corpus: Corpus, seed: int) -> Member:
        """One member of the rows, with what the rows leave to the size or the suite filled in."""
        settings = self._size(size)
        rows_per_update = rows.rows_per_update or self.training.rows_per_update
        rate = rows.learning_rate or self.training.learning_rate or settings.learning_rate
        name = size + ("-deduped" if corpus == "deduped" else "")
        if rows_per_update != self.training.rows_per_update:
            name += f"-rows{rows_per_update}"
        if rows.learning_rate is not None:
            name += f"-rate{rate:g}"
        if seed != 0:
            name += f"-seed{seed}"
        return Member(name, size, corpus, seed, rows_per_update, rate, settings)

    def run_settings(
        self, member: Member, vocab_size: int, precision: Precision | None = None
    ) -> RunSettings:
        """The settings of a member's run, for a vocabulary of `vocab_size` ids before padding.

        `precision` is what `auto` was resolved to. Raises ConfigError when they do not fit
        together.
        """
        size, recipe = member.size_settings, RECIPES[self.recipe]
        multiple = size.vocab_multiple if recipe.vocab_follows_size else 128
        training = self.training.resolved() | {
            "rows_per_update": member.rows_per_update,
            "learning_rate": member.learning_rate,
            "precision": precision or self.training.precision,
        }
        values = {
            "member": member.name,
            "recipe": self.recipe,
            "shape": {
                "num_layers": size.num_layers,
                "hidden_size": size.hidden_size,
                "num_heads": size.num_heads,
                "vocab_size": padded(vocab_size, multiple),
                "context_length": self.order.context_length,
                "activation": recipe.training_activation,
                "rotary_tables": recipe.rotary_tables,
            },
            "init": size.init,
            "init_seed": member.init_seed,
            "training": training,
        }
        return build(RunSettings, values, f"member {member.name}")

    def _size(self, name: str) -> SizeSettings:
        if name in self.sizes:
            return self.sizes[name]
        if name not in SIZES:
            known = [*self.sizes, *SIZES]
            raise ValueError(f"unknown size {name!r}; {nearest(name, known) or f'one of {known}'}")
        size = SIZES[name]
        return SizeSettings(**{field: getattr(size, field) for field in SizeSettings.model_fields})


class Suite(SharedSettings):
    """A suite as its file states it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    text: TextSettings
    vocabulary: VocabularySettings
    evaluation: EvaluationSettings = EvaluationSettings()
    members: tuple[MemberRows, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _table_resolves(self) -> Suite:
        names = [member.name for member in self.table()]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"members listed twice: {', '.join(sorted(twice))}")
        return self

    def table(self) -> list[Member]:
        """Every member, in the file's order."""
        return [
            self.member(rows, size, corpus, seed)
            for rows in self.members
            for size, corpus, seed in product(rows.size, rows.corpus, rows.init_seed)
        ]


class RunFile(SharedSettings):
    """A single run as its file states it: a size, and the store to train it on."""

    store: str  # folder of a store artifact, relative to the file
    vocabulary: str  # folder of the vocabulary artifact it was encoded with
    size: str
    init_seed: int = 0

    def the_member(self) -> Member:
        """The one member of the file, called by its size."""
        return self.member(MemberRows(size=(self.size,)), self.size, "standard", self.init_seed)

    @model_validator(mode="after")
    def _size_resolves(self) -> RunFile:
        self.the_member()
        return self


def settings_of(run: Artifact) -> RunSettings:
    """The settings that a run's manifest states. Raises ConfigError where they are none."""
    return build(RunSettings, run.config, run.path)


def load_suite(path: Path, changes: list[str] | None = None) -> Suite:
    """Read a suite file and apply `key=value` changes. Raises ConfigError on the first fault."""
    return build(Suite, with_changes(read_toml(path), changes or []), path)
