"""The figures of the report: one function a figure, data in, a matplotlib figure out.

A size has one colour wherever it appears, light for small to dark for large, told apart in grey
and by the colour-blind. Solid is the standard corpus, dashed the deduplicated one, dotted a member
that differs in rows per update, learning rate or seed. Files are the same bytes on every day.
Not here: captions (`site.py`), pyplot and its global state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    PercentFormatter,
)

from ontogeny.report.evidence import (
    ACCURACY,
    BITS_PER_BYTE,
    LOG_PROBABILITY,
    SOURCE_PREFIX,
    History,
)
from ontogeny.shape import num_non_embedding
from ontogeny.suite import Member

Measure = tuple[str, str]

SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.labelcolor": "#333333",
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "font.size": 9,
    "grid.color": "#e6e4df",
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.5,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",  # looks the same whatever fonts the reader has
    "svg.hashsalt": "ontogeny",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}
NUM_BINS = 80  # of the smoothed training loss, over the whole width of the axis
ZERO_GAP = 2.5  # the factor by which the mark of 0 tokens lies left of the first update
DASHES = {"standard": "-", "deduped": (0, (5, 2))}
VARIANT_DASHES = (0, (1, 1.3))
MARKERS = "os^Dv"


@dataclass(frozen=True, slots=True)
class Look:
    """How a member is drawn in every figure."""

    colour: str
    dashes: Any
    marker: str


def looks(members: Sequence[Member]) -> dict[str, Look]:
    """The look of every member. Members that would look alike get different markers."""
    sizes = sorted({(_scale(member), member.size) for member in members})
    colours = {size: _colour(at, len(sizes)) for at, (_, size) in enumerate(sizes)}
    found: dict[str, Look] = {}
    for member in members:
        plain = member.name in (member.size, f"{member.size}-deduped")
        dashes = DASHES[member.corpus] if plain else VARIANT_DASHES
        colour = colours[member.size]
        alike = sum((look.colour, look.dashes) == (colour, dashes) for look in found.values())
        found[member.name] = Look(colour, dashes, MARKERS[alike % len(MARKERS)])
    return found


def held_out(histories: Sequence[History]) -> Figure:
    """Bits per byte of held-out text against tokens seen."""
    figure, axes = _single("bits per byte of held-out text")
    _draw_scores(axes, histories, BITS_PER_BYTE)
    return _finished(figure, axes)


def last_word_log_probability(histories: Sequence[History]) -> Figure:
    """Mean natural log-probability of the last word of a passage against tokens seen."""
    figure, axes = _single("log-probability of the last word (nats)")
    _draw_scores(axes, histories, LOG_PROBABILITY)
    return _finished(figure, axes)


def last_word_accuracy(histories: Sequence[History]) -> Figure:
    """Share of last words predicted exactly against tokens seen."""
    figure, axes = _single("last words predicted exactly")
    _draw_scores(axes, histories, ACCURACY)
    axes.set_ylim(bottom=-0.015 * axes.get_ylim()[1])  # so that a line at zero is seen
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return _finished(figure, axes)


def training_loss(histories: Sequence[History]) -> Figure:
    """Smoothed training loss of the model that had seen so many tokens."""
    figure, axes = _single("training loss (nats a token)")
    first, last = _extent(histories)
    edges = np.geomspace(first, last, NUM_BINS + 1)
    appearance = looks([history.member for history in histories])
    for history in histories:
        look = appearance[history.member.name]
        # An update's loss is that of the model before it, so it belongs to the tokens seen by then.
        seen = np.array([row.tokens - history.run.tokens_per_update for row in history.updates])
        loss = np.array([row.loss for row in history.updates])
        x, y = smoothed(seen[1:], loss[1:], edges)
        axes.plot(
            [first / ZERO_GAP, *x],
            [loss[0], *y],
            color=look.colour,
            linestyle=look.dashes,
            marker=None if look.marker == MARKERS[0] else look.marker,
            markersize=3,
            markeredgewidth=0,
            label=history.member.name,
        )
    _token_axis(axes, first, last)
    return _finished(figure, axes)


def sources(histories: Sequence[History]) -> Figure:
    """Bits per byte of each held-out source against tokens seen, one small panel a source."""
    measures = sorted(
        measure
        for measure in histories[0].scores
        if measure[0].startswith(SOURCE_PREFIX) and measure[1] == BITS_PER_BYTE[1]
    )
    num_columns = min(3, len(measures))
    num_rows = -(-len(measures) // num_columns)
    figure = Figure(figsize=(9.2, 2.45 * num_rows + 0.3), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    for panel, measure in zip(panels.flat, measures, strict=False):
        panel.set_title(measure[0].removeprefix(SOURCE_PREFIX))
        _draw_scores(panel, histories, measure, small=True)
    for panel in panels.flat[len(measures) :]:
        panel.set_visible(False)
    for panel in panels.flat[max(0, len(measures) - num_columns) : len(measures)]:
        panel.tick_params(labelbottom=True)
    figure.supylabel("bits per byte", size=9, color="#333333")
    figure.supxlabel("tokens seen", size=9, color="#333333")
    return _finished(figure, panels.flat[0])


def draw(function: Any, histories: Sequence[History], folder: Path, name: str) -> None:
    """Draw a figure of this file and write it as `<name>.svg` and `<name>.png`.

    Members come from small to large. The reader's own matplotlib settings play no part.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure: Figure = function(sorted(histories, key=lambda history: _scale(history.member)))
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})


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


def short_count(value: float) -> str:
    """A count as an axis shows it: 20k, 1.5M, 300B."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _single(label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9.2, 4.1), layout="constrained")
    axes = figure.subplots()
    axes.set_ylabel(label)
    axes.set_xlabel("tokens seen")
    return figure, axes


def _finished(figure: Figure, axes: Any) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


def _draw_scores(
    axes: Any, histories: Sequence[History], measure: Measure, *, small: bool = False
) -> None:
    first, last = _extent(histories)
    appearance: Mapping[str, Look] = looks([history.member for history in histories])
    for history in histories:
        look, rows = appearance[history.member.name], history.scores[measure]
        x = [row.tokens or first / ZERO_GAP for row in rows]
        low, high = [row.low for row in rows], [row.high for row in rows]
        axes.fill_between(x, low, high, color=look.colour, alpha=0.1, linewidth=0)
        axes.plot(
            x,
            [row.value for row in rows],
            color=look.colour,
            linestyle=look.dashes,
            linewidth=1.1 if small else 1.5,
            marker=look.marker,
            markersize=1.8 if small else 3.2,
            markeredgewidth=0,
            label=history.member.name,
        )
    _token_axis(axes, first, last)


def _extent(histories: Sequence[History]) -> tuple[int, int]:
    """The first update's and the last token count of any member: one axis for all figures."""
    first = min(history.updates[0].tokens for history in histories)
    return first, max(history.tokens for history in histories)


def _token_axis(axes: Any, first: int, last: int) -> None:
    """A log axis; step 0, which it cannot hold, gets a place and a mark of its own at the left."""
    zero = first / ZERO_GAP
    axes.set_xscale("log")
    axes.set_xlim(zero / 1.25, last * 1.12)
    decades = [
        10.0**p for p in range(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1)
    ]
    ticks = decades if len(decades) > 1 else [first, last]
    if last > 1.8 * ticks[-1]:
        ticks = [*ticks, last]
    axes.xaxis.set_major_locator(FixedLocator([zero, *ticks]))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "0" if value < first / 1.5 else short_count(value))
    )
    minor = [at for at in LogLocator(subs=range(2, 10)).tick_values(first, last) if at >= first]
    axes.xaxis.set_minor_locator(FixedLocator([at for at in minor if at <= last]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.plot(
        [zero * math.sqrt(ZERO_GAP)],
        [0],
        marker=[(-1, -2), (1, 2)],
        markersize=7,
        color="#888888",
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        zorder=5,
    )


def _scale(member: Member) -> int:
    size = member.size_settings
    return num_non_embedding(size.num_layers, size.hidden_size)


def _colour(place: int, num_sizes: int) -> str:
    """From orange for the smallest to dark blue for the largest: lightness falls all the way."""
    at = 0.78 - 0.76 * (place / (num_sizes - 1) if num_sizes > 1 else 1.0)
    red, green, blue, _ = matplotlib.colormaps["plasma"](at, bytes=True)
    return f"#{red:02x}{green:02x}{blue:02x}"
