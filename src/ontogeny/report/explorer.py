"""The interactive page of a store's scores: one file of HTML beside plotly's JavaScript.

In: `Measured`. Out: `explorer.html`, whose own script (`explorer.js`) draws what its reader
chooses, and `plotly.min.js`, as plotly's Python package carries it; nothing is fetched from
elsewhere. Not here: the figures that stand still (`figures.py`).
"""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from ontogeny.report.drawings import MOST_LINES
from ontogeny.report.figures import looks
from ontogeny.report.measured import BITS_PER_BYTE, PACK, PAPER, SHARES, Measured, rank
from ontogeny.report.page import Html, document, element, link, paragraph, text
from ontogeny.results import Score

PAGE, SCRIPT = "explorer.html", "plotly.min.js"
STYLES = {"-": "solid", (0, (5, 2)): "dash", (0, (1, 1.3)): "dot"}  # of matplotlib, for plotly


def write_explorer(measured: Measured, title: str, folder: Path) -> None:
    """Write the page and plotly's script into a folder."""
    (folder / SCRIPT).write_text(get_plotlyjs(), encoding="utf-8")
    (folder / PAGE).write_text(_page(measured, title), encoding="utf-8")


def _page(measured: Measured, title: str) -> str:
    own = resources.files("ontogeny.report").joinpath("explorer.js").read_text(encoding="utf-8")
    data = json.dumps(_data(measured), allow_nan=False, separators=(",", ":"))
    controls = [
        *(_choice(name) for name in ("task", "shots", "metric", "axis")),
        _box("intervals", "intervals"),
        _box("others", "all members"),
    ]
    opening = element(
        "div",
        paragraph(
            "Every score of every checkpoint. Point at a line for its numbers; click a name to",
            "take its line away, twice to leave it alone.",
        ),
        element("p", link("index.html", "Back to the report")),
        element("form", *controls, id="controls"),
        element("div", id="chart"),
        element("p", class_="note", id="note"),
    )
    scripts = (  # in which nothing is escaped, but what would end one must not stand
        element("script", src=SCRIPT),
        element("script", Html(data.replace("<", "\\u003c")), type="application/json", id="scores"),
        element("script", Html(own)),
    )
    return document(title, opening, {}, scripts)


def _data(measured: Measured) -> dict[str, Any]:
    """What the script reads: the members with their looks, and every curve in columns."""
    variants = measured.variants
    appearance = looks(measured.models, variants)
    members = [
        {
            "name": model.member,
            "corpus": model.corpus,
            "plain": model.member not in variants or len(measured.models) <= MOST_LINES,
            "colour": appearance[model.member].color,
            "dash": STYLES[appearance[model.member].linestyle],
        }
        for model in measured.models
    ]
    places = {model.member: at for at, model in enumerate(measured.models)}
    curves: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for measure in sorted(measured.curves, key=lambda one: (one.task, one.shots, rank(one.metric))):
        of_task = curves.setdefault(measure.task, {}).setdefault(str(measure.shots), {})
        by_member = measured.curves[measure].items()
        of_task[measure.metric] = [[places[name], *_columns(rows)] for name, rows in by_member]
    first = [BITS_PER_BYTE.task, *PACK, *PAPER]
    tasks = [task for task in first if task in curves]
    return {
        "members": members,
        "tasks": tasks + [task for task in curves if task not in tasks],
        "curves": curves,
        "shares": SHARES,
    }


def _columns(rows: list[Score]) -> list[Any]:
    """Steps, tokens, items, values, bounds, and the levels and the remark of the last score."""
    columns = ([getattr(row, name) for row in rows] for name in ("step", "tokens", "n"))
    numbers = ([_number(getattr(row, name)) for row in rows] for name in ("value", "low", "high"))
    last = rows[-1]
    return [*columns, *numbers, last.chance, last.majority, last.differs]


def _number(value: float) -> float | None:
    """A number to as many digits as a reader can use; None for one that has none."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _choice(name: str) -> Html:
    return element("label", text(f"{name} "), element("select", id=name))


def _box(name: str, words: str) -> Html:
    return element("label", Html(f'<input type="checkbox" id="{name}">'), text(f" {words}"))
