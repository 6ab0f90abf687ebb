"""What the figures show: lines, bands and levels, computed before anything is drawn.

In: `Measured`, and of a suite the updates of its runs. Out: a `Drawing` a figure. Not here: ink
(`figures.py`), the map of items (`flips.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ontogeny.report.evidence import History
from ontogeny.report.measured import (
    BITS_PER_BYTE,
    HELD_OUT,
    PACK,
    PAPER,
    SOURCE_PREFIX,
    Chart,
    Measure,
    Measured,
    seeds,
)
from ontogeny.results import Score
from ontogeny.scores import Place

NUM_BINS = 80  # of the smoothed training loss, over the whole width of the axis
MOST_LINES = 16  # in a panel; with more members only those that are plain are drawn
INTERVALS = "Bands are 95 % intervals over the items."
LEVELS = "Dotted grey: what guessing gives (chance), or always giving the commonest answer."


@dataclass(frozen=True, slots=True)
class Line:
    """What one member, pair or group of seeds did: arrays [points], NaN bounds for no band."""

    member: str  # whose look it has
    tokens: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines on one pair of axes, and the levels they are to be held against."""

    title: str
    lines: Sequence[Line]
    levels: Mapping[str, float] = field(default_factory=dict)
    is_share: bool = False


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure: its file's name, its vertical axis, its panels, and the words below it.

    `table` holds its numbers. `one_scale` gives all panels the same vertical axis.
    """

    name: str
    label: str
    panels: Sequence[Panel]
    caption: str
    table: Literal["scores", "updates"] = "scores"
    one_scale: bool = False


def score_drawings(measured: Measured) -> list[Drawing]:
    """The figures of a store's scores, for as far as it has what they show."""
    found = [*_held_out(measured), *_pack(measured)]
    for shots in measured.shots:
        found += _benchmarks(measured, shots)
    compared = measured.charts((*PACK, *PAPER))
    if BITS_PER_BYTE in measured.curves:
        compared = [measured.chart(BITS_PER_BYTE), *compared]
    found += _twins(measured, compared)
    found += _seeds(measured, compared)
    return found


def loss_drawing(histories: Sequence[History]) -> Drawing:
    """The training loss of every member."""
    return Drawing(
        "training-loss",
        "training loss (nats a token)",
        [Panel("", [_loss(history) for history in histories])],
        "Training loss of the model before each update, smoothed: the mean of the updates in each "
        f"of {NUM_BINS} equal intervals of the log axis, so that the first updates stand alone. "
        "The file holds every update.",
        table="updates",
    )


def smoothed(
    tokens: np.ndarray, values: np.ndarray, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean tokens and mean value of the points between each two edges; empty bins are left out.

    Bins of equal width on the log axis keep the first updates apart and average the many last ones.
    """
    bins = np.clip(np.searchsorted(edges, tokens, side="right"), 1, len(edges) - 1)
    counts = np.bincount(bins)
    held = counts > 0
    mean_tokens = np.bincount(bins, tokens)[held] / counts[held]
    mean_values = np.bincount(bins, values)[held] / counts[held]
    return mean_tokens, mean_values


def _held_out(measured: Measured) -> list[Drawing]:
    if BITS_PER_BYTE not in measured.curves:
        return []
    sources = [
        measured.chart(Measure(one.task, one.metric))
        for one in measured.curves
        if one.task.startswith(SOURCE_PREFIX) and one.metric == BITS_PER_BYTE.metric
    ]
    whole = Drawing(
        HELD_OUT,
        "bits per byte of held-out text",
        [_growth(measured, measured.chart(BITS_PER_BYTE), "")],
        f"Bits per byte of held-out text that no member was trained on; lower is better. "
        f"{INTERVALS}",
    )
    each = Drawing(
        "sources",
        "bits per byte",
        [_growth(measured, one, one.title.removeprefix(SOURCE_PREFIX)) for one in sources],
        f"Bits per byte of the held-out text of each source, on one scale. {INTERVALS}",
        one_scale=True,
    )
    return [whole, each] if sources else [whole]


def _pack(measured: Measured) -> list[Drawing]:
    asked = [Measure(task, "log_likelihood") for task in PACK]
    likelihoods = [measured.chart(one) for one in asked if one in measured.curves]
    right = measured.charts(PACK)
    drawings = [
        Drawing(
            "tasks",
            "items answered rightly",
            [_growth(measured, one, one.title) for one in right],
            "The tasks made of the held-out text: the last word of a passage, the sentence that "
            "comes next among four, the grammatical one of two that differ in agreement, and the "
            f"one of two whose words are in order. {INTERVALS} {LEVELS}",
        ),
        Drawing(
            "tasks-log-likelihood",
            "log-likelihood of the right answer (nats)",
            [_growth(measured, one, one.title) for one in likelihoods],
            "The same items by the mean log-likelihood of the right answer, which moves before "
            f"answers change; higher is better. {INTERVALS}",
        ),
    ]
    return [one for one in drawings if one.panels]


def _benchmarks(measured: Measured, shots: int) -> list[Drawing]:
    """The paper's tasks and the others, with so many worked examples before each item."""
    examples = "1 worked example" if shots == 1 else f"{shots} worked examples"
    given = f"each item asked with {examples} before it" if shots else "no worked examples"
    others, num_left = measured.other_charts(shots)
    tasks = "1 more task is" if num_left == 1 else f"{num_left} more tasks are"
    left = f" {tasks} in the explorer and in the file." if num_left else ""
    drawings = []
    for name, what, charts, more in (
        ("paper", "The tasks of the paper", measured.charts(PAPER, shots), ""),
        ("others", "Other tasks", others, left),
    ):
        panels = [_growth(measured, one, _titled(one)) for one in charts]
        caption = f"{what}, {given}. {INTERVALS} {LEVELS}{more}"
        if panels:
            drawings.append(Drawing(f"{name}-{shots}-shot", "score", panels, caption))
    return drawings


def _twins(measured: Measured, charts: Sequence[Chart]) -> list[Drawing]:
    """What deduplication changes: each size's difference through training."""
    plain = measured.plain
    pairs = [
        (name, plain[size, "deduped"])
        for (size, corpus), name in plain.items()
        if corpus == "standard" and (size, "deduped") in plain
    ]
    panels = [
        Panel(
            _titled(chart),
            [line for pair in pairs if len((line := _difference(chart, *pair)).tokens)],
            {"no difference": 0.0},
            chart.is_share,
        )
        for chart in charts
    ]
    caption = (
        "Score on the deduplicated corpus less score on the standard one, at equal tokens. Bands "
        "are 95 % intervals that take the two for independent; asked the same items they are not, "
        "so they are too wide: ontogeny scores compares two members item by item."
    )
    panels = [panel for panel in panels if panel.lines]
    return [Drawing("deduped-less-standard", "difference", panels, caption)] if panels else []


def _seeds(measured: Measured, charts: Sequence[Chart]) -> list[Drawing]:
    """How far members come apart that differ only in the seed of their first weights."""
    groups = seeds(measured.models)
    panels = [
        Panel(
            _titled(chart),
            [line for group in groups if len((line := _spread(chart, group)).tokens)],
            chart.level_values,
            chart.is_share,
        )
        for chart in charts
    ]
    numbers = ", ".join(f"{len(group)} of {group[0].member}" for group in groups)
    caption = (
        "Members that differ only in the seed of their first weights: their mean, and as bands the "
        f"lowest and the highest of them ({numbers})."
    )
    panels = [panel for panel in panels if panel.lines]
    return [Drawing("seeds", "mean over seeds", panels, caption)] if panels else []


def _titled(chart: Chart) -> str:
    return chart.title if chart.metric == "acc" else f"{chart.title}, {chart.metric}"


def _growth(measured: Measured, chart: Chart, title: str) -> Panel:
    """A line a member."""
    members = [model.member for model in measured.models if chart.curves.get(model.member)]
    if len(members) > MOST_LINES:
        variants = measured.variants
        members = [name for name in members if name not in variants] or members[:MOST_LINES]
    lines = [_line(name, chart.curves[name]) for name in members]
    return Panel(title, lines, chart.level_values, chart.is_share)


def _line(member: str, rows: Sequence[Score]) -> Line:
    columns = [(row.tokens, row.value, row.low, row.high) for row in rows]
    return Line(member, *np.array(columns, float).T)


def _difference(chart: Chart, standard: str, deduped: str) -> Line:
    """The deduplicated twin less the standard one wherever both were asked."""
    of_standard = {row.tokens: row for row in chart.curves.get(standard, [])}
    of_deduped = {row.tokens: row for row in chart.curves.get(deduped, [])}
    tokens = sorted(of_standard.keys() & of_deduped.keys())
    both = [(of_standard[at], of_deduped[at]) for at in tokens]
    values = np.array([b.value - a.value for a, b in both])
    reach = np.array([math.hypot(a.high - a.low, b.high - b.low) / 2 for a, b in both])
    return Line(standard, np.array(tokens, float), values, values - reach, values + reach)


def _spread(chart: Chart, group: Sequence[Place]) -> Line:
    """Mean, lowest and highest of the seeds wherever all of them were asked."""
    found = [
        {row.tokens: row.value for row in chart.curves.get(model.member, [])} for model in group
    ]
    tokens = sorted(set.intersection(*(set(one) for one in found)))
    values = np.array([[one[at] for at in tokens] for one in found]).reshape(len(group), -1)
    return Line(
        group[0].member,
        np.array(tokens, float),
        values.mean(axis=0),
        values.min(axis=0),
        values.max(axis=0),
    )


def _loss(history: History) -> Line:
    per_update = history.run.tokens_per_update
    # An update's loss is that of the model before it, so it belongs to the tokens seen by then.
    seen = np.array([row.tokens - per_update for row in history.updates], float)
    loss = np.array([row.loss for row in history.updates])
    edges = np.geomspace(per_update, history.tokens, NUM_BINS + 1)
    tokens, values = smoothed(seen[1:], loss[1:], edges)
    none = np.full(len(values) + 1, math.nan)
    tokens, values = np.array([0.0, *tokens]), np.array([loss[0], *values])
    return Line(history.member.name, tokens, values, none, none)
