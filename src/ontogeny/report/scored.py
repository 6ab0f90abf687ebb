"""What the page says of scores: final tables, figures, maps of items, and what was asked.

In: `Measured`. Out: sections of the page and the figures they show, the same for a suite and for a
store of scores without one. Not here: the rest of a suite's page (`site.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ontogeny.report import tables
from ontogeny.report.drawings import Drawing, loss_drawing, score_drawings
from ontogeny.report.evidence import History
from ontogeny.report.explorer import PAGE
from ontogeny.report.figures import draw
from ontogeny.report.flips import CAPTION, Maps, draw_maps, item_maps
from ontogeny.report.measured import PACK, PAPER, Measured
from ontogeny.report.page import Html, element, figure, link, paragraph, text
from ontogeny.report.tables import Table
from ontogeny.scores import ScoreStore

GUIDE = (
    "The horizontal axis counts the tokens a member has seen, on a log scale that is linear "
    "up to the first update, so that the untrained model, step 0, has a place. One colour is "
    "one size, the darker the larger. Solid lines are the standard corpus, dashed lines the "
    "deduplicated one, dotted lines members that differ in anything else."
)
Show = Callable[[Table], Html]


@dataclass(frozen=True, slots=True)
class Pictures:
    """The figures of a page: lines, and maps of items."""

    drawings: list[Drawing]
    maps: list[Maps]

    def told(self) -> list[Html]:
        """The section that shows them."""
        told = [
            paragraph(GUIDE),
            element("p", link(PAGE, "Explore all scores"), text(" (by JavaScript).")),
        ]
        for drawing in self.drawings:
            told += _shown(drawing)
        return told + [figure(maps.name, CAPTION, table="scores") for maps in self.maps]

    def draw(self, measured: Measured, folder: Path) -> int:
        """Write them all into a new folder; how many they are."""
        folder.mkdir()
        for drawing in self.drawings:
            draw(drawing, measured, folder)
        for maps in self.maps:
            draw_maps(maps, folder)
        return sum(len(drawing.axes) for drawing in self.drawings) + len(self.maps)


def pictures(measured: Measured, store: ScoreStore, histories: Sequence[History]) -> Pictures:
    """The figures that there are to draw; of a suite the training loss too."""
    drawings = score_drawings(measured)
    if histories:
        drawings.insert(1, loss_drawing(histories))
    return Pictures(drawings, item_maps(store, measured, (*PACK, *PAPER)))


def final_scores(measured: Measured, show: Show) -> list[Html]:
    """Where every member ended on every task that has a figure, and what was asked."""
    told, variants = list[Html](), measured.variants
    members = [model.member for model in measured.models]
    groups = {"": [name for name in members if name not in variants]}
    groups["-variants"] = [name for name in members if name in variants]
    for shots in measured.shots:
        charts = [
            *(measured.charts(PACK) if shots == 0 else []),
            *measured.charts(PAPER, shots),
            *measured.other_charts(shots)[0],
        ]
        examples = f"{shots or 'no'} worked example{'s' * (shots != 1)}"
        told += [element("h3", text(f"With {examples}"))] if charts else []
        for group, names in groups.items():
            final = tables.finals(f"final-{shots}-shot{group}", names, charts)
            told += [show(final)] if charts and final.rows else []
    marks = paragraph(
        "At the last checkpoint that was asked; in brackets 95 % intervals over the items, the",
        "best in bold. A star marks a task that differs from the one of its name, as told below.",
        tables.MARKED,
        class_="note",
    )
    heading = element("summary", text("What was asked"))
    asked = element("details", heading, show(tables.asked(measured)))
    return [*told, marks, asked] if told else [asked]


def _shown(drawing: Drawing) -> list[Html]:
    first, *others = (
        figure(name, drawing.caption, table=drawing.table) for name in drawing.names.values()
    )
    heading = element("summary", text("On a linear axis"))
    return [first, *(element("details", heading, other) for other in others)]
