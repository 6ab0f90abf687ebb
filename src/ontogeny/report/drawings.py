"""What the figures show: lines, bands and levels, computed before anything is drawn.

In: `Measured`, and of a suite the updates of its runs. Out: a `Drawing` a figure. Not here: ink
(`figures.py`), the map of items (`flips.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from ontogeny.report.evidence import History
from ontogeny.report.measured import (
    BITS_PER_BYTE,
    HELD_OUT,
    LOG_LIKELIHOOD,
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
LEVELS = "Grey: what guessing gives (chance), and what always giving the commonest answer does."
OF_HELD_OUT = (
    f"Bits per byte of held-out text that no member was trained on; lower is better. {INTERVALS}"
)
OF_SOURCES = f"Bits per byte of the held-out text of each source, on one scale. {INTERVALS}"
OF_TASKS = (
    "The tasks made of the held-out text: the last word of a passage, the sentence that comes next "
    "among four, the grammatical one of two that differ in agreement, and the one of two whose "
    f"words are in order. {INTERVALS} {LEVELS}"
)
OF_LIKELIHOODS = (
    "The same items by the mean log-likelihood of the right answer, which moves before answers "
    f"change; higher is better. {INTERVALS}"
)
OF_TWINS = (
    "Score on the deduplicated corpus less score on the standard one, at equal tokens. Bands are "
    "95 % intervals that take the two for independent; asked the same items they are not, so they "
    "are too wide: ontogeny scores compares two members item by item."
)
OF_SEEDS = (
    "Members that differ only in the seed of their first weights: their mean, and as bands the "
    "lowest and the highest of them"
)


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


Axis = Literal["log", "linear"]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure: its file's name, its vertical axis, its panels, and the words below it.

    `table` holds its numbers. `one_scale` gives all panels the same vertical axis. It is drawn on
    each of its horizontal `axes`.
    """

    name: str
    label: str
    panels: Sequence[Panel]
    caption: str
    table: Literal["scores", "updates"] = "scores"
    one_scale: bool = False
    axes: tuple[Axis, ...] = ("log", "linear")

    @property
    def names(self) -> dict[Axis, str]:
        """The names of its files, by the axis they are drawn on."""
        return {axis: self.name if axis == "log" else f"{self.name}-{axis}" for axis in self.axes}


def score_drawings(measured: Measured) -> list[Drawing]:
    """The figures of a store's scores, for as far as it has what they show."""

    def grown(charts: Sequence[Chart]) -> list[Panel]:
        return _panels(charts, lambda chart: _growth(measured, chart))

    held_out, pack = measured.found([BITS_PER_BYTE]), measured.charts(PACK)
    sources = [one for one in measured.curves if one.task.startswith(SOURCE_PREFIX)]
    of_sources = [one for one in sources if one.metric == BITS_PER_BYTE.metric]
    likelihoods = measured.found([Measure(task, LOG_LIKELIHOOD.metric) for task in PACK])
    compared = [*held_out, *pack, *measured.charts(PAPER)]
    drawings = [
        Drawing(HELD_OUT, "bits per byte of held-out text", grown(held_out), OF_HELD_OUT),
        Drawing("sources", "bits per byte", grown(measured.found(of_sources)), OF_SOURCES,
                one_scale=True),
        Drawing("tasks", "items answered rightly", grown(pack), OF_TASKS),
        Drawing("tasks-log-likelihood", "log-likelihood of the right answer (nats)",
                grown(likelihoods), OF_LIKELIHOODS),
    ]  # fmt: skip
    for shots in measured.shots:
        given = f"{shots or 'no'} worked example{'s' * (shots != 1)} before each item"
        others, num_left = measured.other_charts(shots)
        left = f" Tasks that only the explorer and the file have: {num_left}." if num_left else ""
        for name, what, charts, more in (
            ("paper", "The tasks of the paper", measured.charts(PAPER, shots), ""),
            ("others", "Other tasks", others, left),
        ):
            caption = f"{what}, with {given}. {INTERVALS} {LEVELS}{more}"
            drawings.append(Drawing(f"{name}-{shots}-shot", "score", grown(charts), caption))
    drawings += [_twins(measured, compared), _seeds(measured, compared)]
    return [drawing for drawing in drawings if drawing.panels]


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


def _twins(measured: Measured, charts: Sequence[Chart]) -> Drawing:
    """What deduplication changes: each size's difference through training."""
    plain = measured.plain
    pairs = [
        (name, plain[size, "deduped"])
        for (size, corpus), name in plain.items()
        if corpus == "standard" and (size, "deduped") in plain
    ]
    panels = _panels(charts, lambda chart: [_difference(chart, *pair) for pair in pairs])
    panels = [replace(panel, levels={"no difference": 0.0}) for panel in panels]
    return Drawing("deduped-less-standard", "difference", panels, OF_TWINS, axes=("log",))


def _seeds(measured: Measured, charts: Sequence[Chart]) -> Drawing:
    """How far members come apart that differ only in the seed of their first weights."""
    groups = seeds(measured.models)
    panels = _panels(charts, lambda chart: [_spread(chart, group) for group in groups])
    numbers = ", ".join(f"{len(group)} of {group[0].member}" for group in groups)
    caption = f"{OF_SEEDS} ({numbers})."
    return Drawing("seeds", "mean over seeds", panels, caption, axes=("log",))


def _panels(charts: Sequence[Chart], lines_of: Callable[[Chart], Sequence[Line]]) -> list[Panel]:
    """A panel for each chart that has lines."""
    panels = [
        Panel(
            chart.name,
            [line for line in lines_of(chart) if len(line.tokens)],
            chart.levels,
            chart.is_share,
        )
        for chart in charts
    ]
    return [panel for panel in panels if panel.lines]


def _growth(measured: Measured, chart: Chart) -> list[Line]:
    """A line a member, of too many only the plain ones."""
    members = [model.member for model in measured.models if chart.curves.get(model.member)]
    if len(members) > MOST_LINES:
        variants = measured.variants
        members = [name for name in members if name not in variants] or members[:MOST_LINES]
    return [_line(name, chart.curves[name]) for name in members]


def _line(member: str, rows: Sequence[Score]) -> Line:
    columns = [(row.tokens, row.value, row.low, row.high) for row in rows]
    return Line(member, *np.array(columns, float).T)


def _difference(chart: Chart, standard: str, deduped: str) -> Line:
    """The deduplicated twin less the standard one."""
    tokens, pairs = _together(chart, [standard, deduped])
    values = np.array([b.value - a.value for a, b in pairs])
    reach = np.array([math.hypot(a.high - a.low, b.high - b.low) / 2 for a, b in pairs])
    return Line(standard, tokens, values, values - reach, values + reach)


def _spread(chart: Chart, group: Sequence[Place]) -> Line:
    """Mean, lowest and highest of the seeds."""
    tokens, found = _together(chart, [model.member for model in group])
    values = np.array([[row.value for row in rows] for rows in found]).reshape(-1, len(group))
    ends = values.min(axis=1), values.max(axis=1)
    return Line(group[0].member, tokens, values.mean(axis=1), *ends)


def _together(chart: Chart, members: Sequence[str]) -> tuple[np.ndarray, list[list[Score]]]:
    """The tokens after which all of the members were asked, and what each of them scored there."""
    found = [{row.tokens: row for row in chart.curves.get(member, [])} for member in members]
    tokens = sorted(set.intersection(*map(set, found)))
    return np.array(tokens, float), [[one[at] for one in found] for at in tokens]


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
