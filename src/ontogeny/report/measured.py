"""What the models of a store were asked and how they answered, through training.

In: a store of scores (`scores.py`), of a suite, a run or published models. Out: curves, each of one
measure of one member, and the choice of those that are put side by side. Not here: how they are
drawn (`drawings.py`, `figures.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ontogeny.errors import EvaluationError
from ontogeny.results import SCORES, Score, read_scores
from ontogeny.scores import Place, ScoreStore


class Measure(NamedTuple):
    """What a score is of."""

    task: str
    metric: str
    shots: int = 0


HELD_OUT, SOURCE_PREFIX = "held-out", "held-out/"
PACK = ("last-word", "next-sentence", "agreement", "word-order")
PAPER = (
    *("lambada_openai", "piqa", "winogrande", "wsc", "wsc273", "arc_easy", "arc_challenge"),
    *("sciq", "logiqa"),
)
# How the names of tasks begin that are parts of one benchmark, and have no figure of their own.
PARTS = (
    *("hendrycksTest", "mmlu_", "crows_pairs_english_", "crows_pairs_french_", "blimp_"),
    "arithmetic_",
)
MAIN = ("acc", "pct_stereotype", "exact_match", "bits_per_byte")  # of a task, the first it has
SHARES = ("acc", "pct_", "exact_match")  # how metrics begin that are shares of items
BITS_PER_BYTE = Measure(HELD_OUT, "bits_per_byte")
LOG_LIKELIHOOD = Measure("last-word", "log_likelihood")
LAST_WORD = Measure("last-word", "acc")
USUAL = ("acc", BITS_PER_BYTE.metric, LOG_LIKELIHOOD.metric)
MOST_CHARTS = 12  # in a figure
CORPORA = ("standard", "deduped")


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves that belong on one pair of axes: of each member its scores, in the order of steps."""

    title: str
    metric: str
    curves: Mapping[str, list[Score]]

    @property
    def name(self) -> str:
        """What its axes are called: the task, and the measure unless it is the usual one."""
        task = self.title.removeprefix(SOURCE_PREFIX)
        return task if self.metric in USUAL else f"{task}, {self.metric}"

    @property
    def is_share(self) -> bool:
        return self.metric.startswith(SHARES)

    @property
    def levels(self) -> dict[str, float]:
        """The levels that cost nothing to reach, where every score states the same."""
        rows = [row for curve in self.curves.values() for row in curve]
        found: dict[str, float] = {}
        for name, values in (
            ("chance", {row.chance for row in rows}),
            ("commonest answer", {row.majority for row in rows}),
        ):
            level = values.pop() if len(values) == 1 else None
            if level is not None:
                found[name] = level
        return found


@dataclass(frozen=True, slots=True)
class Measured:
    """The models of a store, from small to large, each at its last step, and their curves."""

    models: list[Place]
    curves: Mapping[Measure, Mapping[str, list[Score]]]

    @property
    def plain(self) -> dict[tuple[str, str], str]:
        """By size and corpus the member that stands for them: called so, or else asked most."""
        found: dict[tuple[str, str], tuple[bool, int, str]] = {}
        for model in self.models:
            name, place = model.member, (model.size, model.corpus)
            is_called_so = name in (model.size, f"{model.size}-{model.corpus}")
            asked = sum(name in by_member for by_member in self.curves.values())
            if model.corpus in CORPORA:
                found[place] = max(found.get(place, (False, 0, name)), (is_called_so, asked, name))
        return {place: name for place, (*_, name) in found.items()}

    @property
    def variants(self) -> set[str]:
        """The members that differ from another in more than size and corpus."""
        return {model.member for model in self.models} - set(self.plain.values())

    def found(self, measures: Iterable[Measure]) -> list[Chart]:
        """The curves of those of the measures that there are, in the order given."""
        return [
            Chart(measure.task, measure.metric, self.curves[measure])
            for measure in measures
            if measure in self.curves
        ]

    @property
    def shots(self) -> list[int]:
        return sorted({measure.shots for measure in self.curves})

    def whole_tasks(self, shots: int) -> list[str]:
        """The tasks asked with so many examples, without the parts of any and the held-out text."""
        tasks = {measure.task for measure in self.curves if measure.shots == shots}
        return sorted(task for task in tasks if "/" not in task and task != HELD_OUT)

    def main_metric(self, task: str, shots: int) -> str:
        """The metric a task is first judged by."""
        found = {one.metric for one in self.curves if (one.task, one.shots) == (task, shots)}
        return min(found, key=rank)

    def charts(self, tasks: Iterable[str], shots: int = 0) -> list[Chart]:
        """The main curves of those of the tasks that were asked, in the order given."""
        asked = set(self.whole_tasks(shots))
        asked_of = [task for task in tasks if task in asked]
        return self.found(Measure(task, self.main_metric(task, shots), shots) for task in asked_of)

    def other_charts(self, shots: int) -> tuple[list[Chart], int]:
        """The charts of other whole tasks most members were asked, and how many tasks are left."""
        left = [task for task in self.whole_tasks(shots) if task not in (*PACK, *PAPER)]
        plain = self.plain.values() or [model.member for model in self.models]
        charts = [
            chart
            for chart in self.charts([task for task in left if not task.startswith(PARTS)], shots)
            if 2 * sum(name in chart.curves for name in plain) > len(plain)
        ][:MOST_CHARTS]
        return charts, len(left) - len(charts)


def read_measured(store: ScoreStore, members: Collection[str] | None = None) -> Measured:
    """Everything a store holds, or what it holds of these members.

    Raises EvaluationError where there is nothing, a row is of another checkpoint than its folder,
    or a value is no number; DataError where a checkpoint's scores are damaged.
    """
    models: dict[str, Place] = {}
    curves: dict[Measure, dict[str, list[Score]]] = {}
    for member, step in store.places():
        if members is None or member in members:
            models[member] = store.place(member, step)
            path = store.artifact(member, step).path / SCORES
            for row in read_scores(path):
                _require_true(row, models[member], path)
                measure = Measure(row.task, row.metric, row.shots)
                curves.setdefault(measure, {}).setdefault(member, []).append(row)
    if not models:
        raise EvaluationError(
            "no scores",
            where=store.folder,
            expected="the folder of a suite, or member=M/step=N folders of scores",
            fix="ontogeny evaluate, or ontogeny import-scores",
        )
    return Measured(sorted(models.values(), key=_order), curves)


def seeds(models: Iterable[Place]) -> list[list[Place]]:
    """The members that differ only in the seed of their first weights, where there are several."""
    found: dict[tuple[str, str, str], list[Place]] = {}
    for model in models:
        name = re.sub(r"-seed\d+", "", model.member)
        found.setdefault((model.size, model.corpus, name), []).append(model)
    return [alike for alike in found.values() if len(alike) > 1]


def rank(metric: str) -> tuple[int, str]:
    """Where a metric stands among those of a task, of which the main one is first."""
    return MAIN.index(metric) if metric in MAIN else len(MAIN), metric


def _require_true(row: Score, place: Place, path: object) -> None:
    """Raise EvaluationError unless a row is a number of its place.

    The perplexity of a model that has learned nothing may be too great for one, so infinite.
    """
    expected = (place.member, place.step, place.tokens)
    bounds_fit = math.isnan(row.low) == math.isnan(row.high)
    is_number = bounds_fit and not math.isnan(row.value)
    if (row.member, row.step, row.tokens) != expected or not is_number:
        raise EvaluationError(
            "not a score of this checkpoint",
            where=path,
            expected=f"a number of {place.member} at step {place.step}, {place.tokens} tokens",
            found=row,
        )


def _order(model: Place) -> tuple[int, str, str, str]:
    """Small before large, standard before deduplicated, plain members before others."""
    corpus = "" if model.corpus == "standard" else model.corpus
    return model.num_parameters, model.size, corpus, model.member
