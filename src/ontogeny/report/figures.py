"""The figures of the report: a `Drawing` in, an SVG and a PNG out, by matplotlib.

A size has one colour wherever it appears, light for small to dark for large, told apart in grey
and by the colour-blind. Solid is the standard corpus, dashed the deduplicated one, dotted a member
that differs in anything else. Files are the same bytes on every day. Not here: what is drawn
(`drawings.py`), the tables their numbers are in (`tables.py`), pyplot and its global state.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from ontogeny.report.drawings import Axis, Drawing, Panel
from ontogeny.report.measured import Measured
from ontogeny.scores import Place

SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.facecolor": "white",
    "figure.labelsize": 9,
    "font.size": 9,
    "grid.color": "#e6e4df",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.4,
    "lines.markeredgewidth": 0,
    "lines.markersize": 3,
    "text.parse_math": False,  # in the name of a model $ is a letter
    "svg.fonttype": "path",  # looks the same whatever fonts the reader has
    "svg.hashsalt": "ontogeny",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}
WIDTH, DOTS = 9.2, 100  # inches, and dots an inch of a PNG
DASHES = {"standard": "-", "deduped": (0, (5, 2))}
VARIANT_DASHES = (0, (1, 1.3))
MARKERS = "os^Dv"
LEVEL_STYLES: dict[str, Any] = {  # by what the level is
    "chance": (0, (1, 2)),
    "commonest answer": (0, (4, 2, 1, 2)),
    "no difference": (0, (1, 2)),
}
LEVEL_COLOUR = "#777777"


@dataclass(frozen=True, slots=True)
class Look:
    """How a member is drawn in every figure, in the words of `Axes.plot`."""

    color: str
    linestyle: Any
    marker: str | None


def looks(models: Sequence[Place], variants: Collection[str]) -> dict[str, Look]:
    """The look of every member. Members that would look alike get different markers."""
    sizes = sorted({(model.num_parameters, model.size) for model in models})
    colours = {size: _colour(at, len(sizes)) for at, (_, size) in enumerate(sizes)}
    found: dict[str, Look] = {}
    for model in models:
        dashes = VARIANT_DASHES if model.member in variants else DASHES[model.corpus]
        colour = colours[model.size]
        alike = sum((look.color, look.linestyle) == (colour, dashes) for look in found.values())
        found[model.member] = Look(colour, dashes, MARKERS[alike % len(MARKERS)])
    return found


def draw(drawing: Drawing, measured: Measured, folder: Path) -> None:
    """Draw a figure and write it as SVG and PNG, by the name of each of its axes.

    The reader's own matplotlib settings play no part.
    """
    appearance = looks(measured.models, measured.variants)
    with style.context(SETTINGS, after_reset=True):
        figure, panels, spare = _grid(drawing)
        for axes, panel in zip(panels, drawing.panels, strict=True):
            _draw_panel(axes, panel, appearance, is_narrow=len(panels) > 1)
        figure.supylabel(drawing.label)
        figure.supxlabel("tokens seen")
        key = _key(measured, appearance, drawing)
        if spare is None:
            figure.legend(handles=key, loc="outside right upper")
        else:
            spare.legend(handles=key, loc="upper left", ncols=1 + (len(key) > 9), columnspacing=1.2)
        seen = np.concatenate([line.tokens for panel in drawing.panels for line in panel.lines])
        for axis, name in drawing.names.items():
            for axes in panels:
                _token_axis(axes, seen, axis, is_narrow=len(panels) > 1)
            write(figure, folder / name)


def write(figure: Figure, path: Path) -> None:
    """Write a figure as `path`.svg and `path`.png, without the date.

    By the canvases themselves: `savefig` draws all of it once more for each file.
    """
    figure.set_dpi(DOTS)  # a canvas of SVG leaves it at its own
    FigureCanvasAgg(figure).print_png(f"{path}.png", metadata={"Software": None})
    figure.set_layout_engine("none")  # it is laid out, and need not be for each file again
    FigureCanvasSVG(figure).print_svg(f"{path}.svg", metadata={"Date": None, "Creator": None})


def short_count(value: float) -> str:
    """A count as an axis shows it: 20k, 1.5M, 300B."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _grid(drawing: Drawing) -> tuple[Figure, list[Any], Any]:
    """One wide panel, or rows of several, and the place that is left for the key, if one is."""
    num_panels = len(drawing.panels)
    num_columns = 2 if num_panels == 4 else min(3, num_panels)
    num_rows = math.ceil(num_panels / num_columns)
    height = 4.1 if num_panels == 1 else max(3.2, 0.3 + 2.3 * num_rows)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, sharey=drawing.one_scale, squeeze=False).ravel()
    panels, spare = list(grid[:num_panels]), list(grid[num_panels:])
    for axes in spare:
        axes.set_axis_off()
    return figure, panels, spare[0] if spare else None


def _token_axis(axes: Any, seen: np.ndarray, axis: Axis, *, is_narrow: bool) -> None:
    """A linear axis, or a log axis that is linear up to the first update, so that 0 has a place."""
    first, last = float(min(seen[seen > 0], default=1.0)), float(max(seen.max(), 1.0))
    if axis == "linear":
        axes.set_xscale("linear")
        axes.set_xlim(-last * 0.02, last * 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(3 if is_narrow else 7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        return
    subs = None if is_narrow else range(2, 10)
    axes.set_xscale("symlog", linthresh=first, linscale=0.4, subs=subs)
    begins_at_zero = bool(seen.min() == 0)
    axes.set_xlim(-first / 4 if begins_at_zero else first * 0.85, last * 1.12)
    powers = range(math.ceil(math.log10(first)), math.ceil(math.log10(last)))
    decades = [10.0**power for power in powers]
    apart = [at for at in decades if at * (3 if is_narrow else 1.8) < last]  # labels not to overlap
    if is_narrow and len(apart) > 3:
        apart = apart[len(apart) % 2 :: 2]
    axes.xaxis.set_major_locator(FixedLocator([0.0] * begins_at_zero + [*apart, last]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))


def _draw_panel(
    axes: Any, panel: Panel, appearance: Mapping[str, Look], *, is_narrow: bool
) -> None:
    alpha = min(0.12, 0.5 / max(1, len(panel.lines)))
    is_alone = all(appearance[line.member].marker == MARKERS[0] for line in panel.lines)
    for line in panel.lines:
        look = asdict(appearance[line.member])
        if len(line.tokens) > 3 and (len(panel.lines) > 6 or len(line.tokens) > 30):
            look |= {"linewidth": 1.1, "marker": None if is_alone else look["marker"]}
        axes.fill_between(line.tokens, line.low, line.high, color=look["color"], alpha=alpha, lw=0)
        if len(line.tokens) == 1:  # a band of no width
            axes.vlines(line.tokens, line.low, line.high, color=look["color"], lw=0.8)
        axes.plot(line.tokens, line.values, **look)
    for name, level in panel.levels.items():
        dashes = LEVEL_STYLES[name]
        axes.axhline(level, color=LEVEL_COLOUR, linestyle=dashes, linewidth=1.1, zorder=1.5)
    axes.set_title(textwrap.fill(panel.title, 28 if is_narrow else 99))
    if panel.is_share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))


def _key(measured: Measured, appearance: Mapping[str, Look], drawing: Drawing) -> list[Any]:
    """What the looks mean: a colour a size, the two corpora, members that differ otherwise."""
    drawn = {line.member for panel in drawing.panels for line in panel.lines}
    models = [model for model in measured.models if model.member in drawn]
    variants = measured.variants & drawn
    colours = {model.size: appearance[model.member].color for model in models}
    handles = [Line2D([], [], color=colour, label=size) for size, colour in colours.items()]
    if DASHES.keys() == {model.corpus for model in models if model.member not in variants}:
        handles += [
            Line2D([], [], color=LEVEL_COLOUR, linestyle=dashes, label=corpus)
            for corpus, dashes in DASHES.items()
        ]
    handles += [
        Line2D([], [], **asdict(appearance[model.member]), label=model.member)
        for model in models
        if model.member in variants
    ]
    levels = {name for panel in drawing.panels for name in panel.levels}
    handles += [
        Line2D([], [], color=LEVEL_COLOUR, linestyle=dashes, lw=1.1, label=name)
        for name, dashes in LEVEL_STYLES.items()
        if name in levels
    ]
    return handles


def _colour(place: int, num_sizes: int) -> str:
    """From green for the smallest to violet for the largest: lightness falls all the way."""
    at = 0.86 - 0.86 * (place / (num_sizes - 1) if num_sizes > 1 else 1.0)
    return to_hex(matplotlib.colormaps["viridis"](at))
