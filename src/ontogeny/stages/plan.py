"""What a suite will cost before it starts: parameters, operations, bytes on disk, hours.

Counts follow from the settings in closed form. Times are estimates: operations over the rate of
a matrix product measured here and now, times the share of it that training reaches.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from ontogeny.model.arithmetic import threads
from ontogeny.model.neox import DTYPES
from ontogeny.shape import PYTHIA_VOCABULARY
from ontogeny.suite import Member, RunSettings, Suite, TextSettings
from ontogeny.training.machine import device, resolve_precision
from ontogeny.workers import num_cores

SHARE_OF_MATMUL = 0.5  # what training reaches of it at small sizes; see docs/performance.md
PREPARED_BYTES_PER_SECOND = 0.5e6  # of text: read, cut, learned from, encoded
REPORT_SECONDS = 3.0
START_SECONDS = 4.0  # of a process: most of it is importing torch
FORWARD_SHARE = 1 / 3  # of the operations of a training step
MASTER_BYTES, MOMENT_BYTES = 4, 8  # a parameter, in a checkpoint and in a full state
STORED_BYTES = 4  # a byte of text: as text and as tokens, in both corpora, at most


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """What one member costs."""

    member: Member
    settings: RunSettings

    @property
    def num_checkpoints(self) -> int:
        return len(self.settings.steps)

    @property
    def checkpoint_bytes(self) -> int:
        """What the weights of all checkpoints take."""
        return MASTER_BYTES * self.settings.shape.num_parameters * self.num_checkpoints

    @property
    def state_bytes(self) -> int:
        """What the kept full states take besides, and the rolling one at its largest."""
        moments = MOMENT_BYTES * (len(self.settings.full_state_steps) + 1)
        return self.settings.shape.num_parameters * (moments + MASTER_BYTES)

    @property
    def num_bytes(self) -> int:
        return self.checkpoint_bytes + self.state_bytes

    @property
    def train_flops(self) -> float:
        return self.settings.training.tokens * self.settings.shape.flops_per_token


@dataclass(frozen=True, slots=True)
class SuitePlan:
    """What a suite costs, on a machine whose lanes multiply at `flops_per_second` each."""

    suite: Suite
    members: list[MemberPlan]
    num_lanes: int
    flops_per_second: float
    precision: str
    num_text_bytes: int  # 0 where the text is not there yet

    @property
    def num_bytes(self) -> int:
        return STORED_BYTES * self.num_text_bytes + sum(one.num_bytes for one in self.members)

    def missing_bytes(self, home: Path) -> int:
        """What is not in the suite's folder yet, as far as its size tells."""
        there = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
        return max(0, self.num_bytes - there)

    def train_seconds(self, one: MemberPlan) -> float:
        """Estimated seconds to train a member."""
        return one.train_flops / (self.flops_per_second * SHARE_OF_MATMUL)

    def score_seconds(self, one: MemberPlan) -> float:
        """Estimated seconds to score all checkpoints of a member."""
        settings = self.suite.evaluation
        pairs = settings.agreement_items + settings.word_order_items
        tokens = settings.held_out_tokens + 64 * (settings.last_word_items + pairs)
        tokens += 128 * settings.next_sentence_items  # four short options of one context
        flops = one.num_checkpoints * tokens * one.settings.shape.flops_per_token
        return flops * FORWARD_SHARE / (self.flops_per_second * SHARE_OF_MATMUL)

    def member_seconds(self, one: MemberPlan) -> float:
        """Estimated seconds of a member's process, from its start to its last score."""
        return START_SECONDS + self.train_seconds(one) + self.score_seconds(one)

    @property
    def seconds(self) -> float:
        """Estimated seconds for the whole suite: its lanes side by side, its costliest member."""
        costs = [self.member_seconds(one) for one in self.members]
        side_by_side = max(sum(costs) / self.num_lanes, max(costs))
        return self.num_text_bytes / PREPARED_BYTES_PER_SECOND + side_by_side


def plan_suite(suite: Suite, base: Path, num_ranks: int = 1) -> SuitePlan:
    """Resolve every member and measure the machine; the text's path is relative to `base`.

    Every member has so many ranks. Raises ConfigError for a member that cannot be.
    """
    vocab_size = suite.vocabulary.size
    # A vocabulary file of unstated size is counted as Pythia's; it only matters to the plan.
    precision = resolve_precision(suite.training.precision)
    members = [
        MemberPlan(member, suite.run_settings(member, vocab_size or PYTHIA_VOCABULARY, precision))
        for member in suite.table()
    ]
    num_lanes = lanes(suite.training.threads * num_ranks)
    rate = matmul_rate(DTYPES[precision], suite.training.threads)
    return SuitePlan(suite, members, num_lanes, rate, precision, text_bytes(suite.text, base))


def text_bytes(settings: TextSettings, base: Path) -> int:
    """The bytes of text a suite reads: as its components state, or as the files at its path are."""
    if settings.path is None:
        return sum(settings.components.values())
    files = [base / settings.path, *(base / settings.path).rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())


def lanes(num_threads: int) -> int:
    """How many members are trained side by side: one on an accelerator, else as cores allow."""
    if device().type != "cpu":
        return 1
    return max(1, num_cores() // num_threads)


def matmul_rate(dtype: torch.dtype, num_threads: int, seconds: float = 0.2) -> float:
    """Operations a second of a matrix product of the size small models make, best of several."""
    where = device()
    a, b = (torch.randn(1024, 512, device=where).to(dtype) for _ in range(2))
    best, ends = float("inf"), time.perf_counter() + seconds
    with threads(num_threads):
        while time.perf_counter() < ends:
            began = time.perf_counter()
            (a @ b.T).sum().item()
            best = min(best, time.perf_counter() - began)
    return 2 * 1024 * 512 * 1024 / best


def stage_rows(plan: SuitePlan, there: Collection[str]) -> tuple[list[str], list[list[str]]]:
    """The stages in order, with their state and what is left of the estimated time."""
    text = plan.num_text_bytes / PREPARED_BYTES_PER_SECOND
    corpora = list(dict.fromkeys(one.member.corpus for one in plan.members))
    prepared = ["text", "vocabulary", *(f"stores/{name}" for name in (*corpora, "held-out"))]
    seconds = dict.fromkeys(prepared, text / len(prepared))
    seconds |= {**{f"orders/{name}": 0.0 for name in corpora}, "tasks": 0.0}
    for one in plan.members:
        seconds[f"runs/{one.member.name}"] = plan.train_seconds(one)
        seconds[f"scores/{one.member.name}"] = plan.score_seconds(one)
    seconds["report"] = REPORT_SECONDS
    unknown = [] if plan.num_text_bytes else prepared
    rows = []
    for name, estimate in seconds.items():
        left = "not known" if name in unknown else as_time(estimate)
        rows.append([name, "there", "-"] if name in there else [name, "to do", left])
    return ["stage", "state", "time (estimate)"], rows


def plan_rows(plan: SuitePlan) -> tuple[list[str], list[list[str]]]:
    """The plan as a table: a row a member, and one for all."""
    header = ["member", "non-embedding", "parameters", "updates", "tokens", "checkpoints",
              "their bytes", "full states", "their bytes", "FLOPs", "time (estimate)"]  # fmt: skip
    rows = []
    for one in plan.members:
        shape = one.settings.shape
        rows.append(
            [
                one.member.name,
                f"{shape.num_non_embedding:,}",
                f"{shape.num_parameters:,}",
                f"{one.settings.num_updates:,}",
                f"{one.settings.num_updates * one.settings.tokens_per_update:,}",
                *_costs([one], plan.member_seconds(one)),
            ]
        )
    return header, [*rows, ["all", "", "", "", "", *_costs(plan.members, plan.seconds)]]


def _costs(members: list[MemberPlan], seconds: float) -> list[str]:
    """What members keep and compute together, and how long it takes."""
    return [
        str(sum(one.num_checkpoints for one in members)),
        as_bytes(sum(one.checkpoint_bytes for one in members)),
        str(sum(len(one.settings.full_state_steps) for one in members)),
        as_bytes(sum(one.state_bytes for one in members)),
        f"{sum(one.train_flops for one in members):.2e}",
        as_time(seconds),
    ]


def as_bytes(number: float) -> str:
    """A number of bytes for a reader."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def as_time(seconds: float) -> str:
    """A time for a reader, in the largest unit of which there is one."""
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"
