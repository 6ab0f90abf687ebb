"""The figures of the report: data in, a matplotlib figure out.

A size has one colour wherever it appears, light for small to dark for large, told apart in grey
and by the colour-blind. Solid is the standard corpus, dashed the deduplicated one, dotted a member
that differs in rows per update, learning rate or seed. Files are the same bytes on every day.
Not here: the tables their numbers are in (`tables.py`), pyplot and its global state.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, PercentFormatter

from ontogeny.report.evidence import (
    ACCURACY,
    BITS_PER_BYTE,
    LOG_PROBABILITY,
    SOURCE_PREFIX,
    History,
    Measure,
)
from ontogeny.shape import num_non_embedding
from ontogeny.suite import Member

SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.labelsize": 9,
    "font.size": 9,
    "grid.color": "#e6e4df",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.4,
    "lines.markeredgewidth": 0,
    "lines.markersize": 3,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",  # looks the same whatever fonts the reader has
    "svg.hashsalt": "ontogeny",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}
NUM_BINS = 80  # of the smoothed training loss, over the whole width of the axis
DASHES = {"standard": "-", "deduped": (0, (5, 2))}
VARIANT_DASHES = (0, (1, 1.3))
MARKERS = "os^Dv"
INTERVALS = "Bands are 95 % intervals over the items."


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure of the page: its vertical axis, a panel for each measure, the words below it.

    One of no measure is of the training loss.
    """

    label: str
    measures: Sequence[Measure]
    caption: str

    @property
    def table(self) -> str:
        """The table that holds its numbers."""
        return "scores" if self.measures else "updates"


@dataclass(frozen=True, slots=True)
class Look:
    """How a member is drawn in every figure, in the words of `Axes.plot`."""

    color: str
    linestyle: Any
    marker: str | None


def drawings(measures: Collection[Measure]) -> dict[str, Drawing]:
    """The figures of what was measured, by the name of their files."""
    sources = [measure for measure in measures if measure[0].startswith(SOURCE_PREFIX)]
    every = {
        "held-out": Drawing(
            "bits per byte of held-out text",
            [BITS_PER_BYTE],
            f"Bits per byte of held-out text that no member was trained on; lower is better. "
            f"{INTERVALS}",
        ),
        "last-word-log-probability": Drawing(
            "log-probability of the last word (nats)",
            [LOG_PROBABILITY],
            "Mean log-probability of the last word of a held-out passage, given what comes before "
            f"it; higher is better. {INTERVALS}",
        ),
        "last-word-accuracy": Drawing(
            "last words predicted exactly",
            [ACCURACY],
            f"Share of last words whose every token is the model's first choice. {INTERVALS}",
        ),
        "training-loss": Drawing(
            "training loss (nats a token)",
            [],
            "Training loss of the model before each update, smoothed: the mean of the updates in "
            f"each of {NUM_BINS} equal intervals of the log axis, so that the first updates stand "
            "alone. The file holds every update.",
        ),
        "sources": Drawing(
            "bits per byte",
            sources,
            f"Bits per byte of the held-out text of each source, on one scale. {INTERVALS}",
        ),
    }
    if not sources:
        del every["sources"]
    return {name: one for name, one in every.items() if set(one.measures) <= set(measures)}


def looks(members: Sequence[Member]) -> dict[str, Look]:
    """The look of every member. Members that would look alike get different markers."""
    sizes = sorted({(_scale(member), member.size) for member in members})
    colours = {size: _colour(at, len(sizes)) for at, (_, size) in enumerate(sizes)}
    found: dict[str, Look] = {}
    for member in members:
        plain = member.name in (member.size, f"{member.size}-deduped")
        dashes = DASHES[member.corpus] if plain else VARIANT_DASHES
        colour = colours[member.size]
        alike = sum((look.color, look.linestyle) == (colour, dashes) for look in found.values())
        found[member.name] = Look(colour, dashes, MARKERS[alike % len(MARKERS)])
    return found


def draw(drawing: Drawing, histories: Sequence[History], folder: Path, name: str) -> None:
    """Draw a figure and write it as `<name>.svg` and `<name>.png`.

    Members come from small to large. The reader's own matplotlib settings play no part.
    """
    members = sorted(histories, key=lambda history: _scale(history.member))
    appearance = looks([history.member for history in members])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure, panels = _panels(max(1, len(drawing.measures)), members)
        for panel, measure in zip(panels, drawing.measures, strict=False):
            _draw_scores(panel, members, appearance, measure)
        if not drawing.measures:
            _draw_loss(panels[0], members, appearance)
        figure.supylabel(drawing.label)
        figure.supxlabel("tokens seen")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
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


def _panels(num_panels: int, histories: Sequence[History]) -> tuple[Figure, list[Any]]:
    """One wide panel, or rows of three on one scale, each with the tokens of all the members."""
    num_columns = min(3, num_panels)
    num_rows = math.ceil(num_panels / num_columns)
    height = 4.1 if num_panels == 1 else 0.3 + 2.45 * num_rows
    figure = Figure(figsize=(9.2, height), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).ravel()
    panels, spare = list(grid[:num_panels]), grid[num_panels:]
    for panel in spare:
        panel.remove()
    first = min(history.updates[0].tokens for history in histories)
    last = max(history.tokens for history in histories)
    for panel in panels:
        _token_axis(panel, first, last, is_narrow=num_columns > 1)
    return figure, panels


def _token_axis(axes: Any, first: int, last: int, *, is_narrow: bool) -> None:
    """A log axis that is linear up to the end of the first update, so that it holds 0 too."""
    axes.set_xscale("symlog", linthresh=first, linscale=0.4)
    axes.set_xlim(-first / 4, last * 1.12)
    powers = range(math.ceil(math.log10(first)), math.ceil(math.log10(last)))
    decades = [10.0**power for power in powers]
    apart = [at for at in decades if at * (3 if is_narrow else 1.8) < last]  # labels not to overlap
    axes.xaxis.set_major_locator(FixedLocator([0, *apart, last]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    minor = LogLocator(subs=range(1, 10)).tick_values(first, last)
    axes.xaxis.set_minor_locator(FixedLocator([at for at in minor if first <= at <= last]))


def _draw_scores(
    axes: Any, histories: Sequence[History], appearance: Mapping[str, Look], measure: Measure
) -> None:
    for history in histories:
        rows, look = history.scores[measure], appearance[history.member.name]
        x = [row.tokens for row in rows]
        low, high = [row.low for row in rows], [row.high for row in rows]
        axes.fill_between(x, low, high, color=look.color, alpha=0.1, linewidth=0)
        axes.plot(x, [row.value for row in rows], **asdict(look), label=history.member.name)
    if measure[0].startswith(SOURCE_PREFIX):
        axes.set_title(measure[0].removeprefix(SOURCE_PREFIX))
    if measure == ACCURACY:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_loss(axes: Any, histories: Sequence[History], appearance: Mapping[str, Look]) -> None:
    for history in histories:
        look, per_update = appearance[history.member.name], history.run.tokens_per_update
        # An update's loss is that of the model before it, so it belongs to the tokens seen by then.
        seen = np.array([row.tokens - per_update for row in history.updates])
        loss = np.array([row.loss for row in history.updates])
        edges = np.geomspace(per_update, history.tokens, NUM_BINS + 1)
        x, y = smoothed(seen[1:], loss[1:], edges)
        if look.marker == MARKERS[0]:
            look = replace(look, marker=None)
        axes.plot([0, *x], [loss[0], *y], **asdict(look), label=history.member.name)


def _scale(member: Member) -> int:
    size = member.size_settings
    return num_non_embedding(size.num_layers, size.hidden_size)


def _colour(place: int, num_sizes: int) -> str:
    """From orange for the smallest to dark blue for the largest: lightness falls all the way."""
    at = 0.78 - 0.76 * (place / (num_sizes - 1) if num_sizes > 1 else 1.0)
    return to_hex(matplotlib.colormaps["plasma"](at))
