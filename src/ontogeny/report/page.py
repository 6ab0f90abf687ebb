"""HTML for one static page: elements, tables, figures and the style sheet.

`Html` is text that is safe to put into the page; only `text` and `element` make it, so the type
checker finds what was not escaped. Nothing on the page is fetched: no script, no font, no network.
Not here: what the page says (`site.py`).
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, NewType

from ontogeny.report.tables import Column, Table, is_above, shown
from ontogeny.results import Score

Html = NewType("Html", str)

STYLE = """
:root { --ink: #1d1d1f; --soft: #6b6862; --line: #dedad2; --paper: #fdfcfa; --mark: #7b2382;
  --sans: system-ui, "Helvetica Neue", Arial, sans-serif; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.55 Charter, "Bitstream Charter", "Iowan Old Style", Georgia, serif; }
.frame { display: grid; grid-template-columns: 10.5rem minmax(0, 1fr); gap: 2.5rem;
  max-width: 78rem; margin: 0 auto; padding: 2.5rem 2rem 5rem; }
nav { position: sticky; top: 2.5rem; align-self: start; font: 13px/1.4 var(--sans); }
nav a { display: block; padding: .28rem 0; color: var(--soft); text-decoration: none; }
h1, h2, h3 { font-weight: 600; margin: 0 0 .6rem; }
h2 { margin-top: 3.2rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin-top: 1.9rem; }
p { max-width: 44rem; margin: .5rem 0; }
a, nav a:hover { color: var(--mark); }
figure { margin: 1.2rem 0 2.2rem; }
figure img { width: 100%; border: 1px solid var(--line); }
figcaption, .note, summary { font: 13.5px/1.5 var(--sans); color: var(--soft); max-width: 52rem; }
details { margin: .5rem 0; }
.scroll { overflow-x: auto; margin: .7rem 0 .2rem; }
table { border-collapse: collapse; min-width: 40%; font: 13px/1.4 var(--sans);
  font-variant-numeric: tabular-nums lining-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0;
  border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; color: var(--soft); border-color: var(--ink); }
.right { text-align: right; }
td.right, td:first-child { white-space: nowrap; }
tr.total { font-weight: 600; }
.interval { color: var(--soft); font-weight: 400; margin-left: .35em; white-space: nowrap; }
.narrow .interval { display: block; font-size: 11.5px; }
.narrow td, .narrow th { padding-right: .5rem; }
.alone { padding: 2rem; } form { display: flex; flex-wrap: wrap; gap: .4rem 1.4rem; }
form, select { font: 14px/1.6 var(--sans); } label[hidden] { display: none; }
code, td.digest { font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre { background: #f4f1ea; padding: .8rem 1rem; overflow-x: auto; }
.equal { color: #22663b; } .different { color: #b00020; font-weight: 700; }
.proof { border-left: 3px solid currentColor; padding-left: .9rem; }
@media (max-width: 900px) {
  .frame { display: block; padding: 0 1rem 3rem; }
  nav { position: static; } nav a { display: inline-block; margin-right: 1rem; }
}
@media print {
  nav { display: none; } .frame { display: block; padding: 0; } .scroll { overflow: visible; }
  body { font-size: 10.5pt; } table { font-size: 7.5pt; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } details::details-content { content-visibility: visible; }
}
"""


def text(value: object) -> Html:
    """A value as text of the page, with what HTML would read as markup escaped."""
    return Html(html.escape(str(value), quote=True))


def element(name: str, *children: Html, **attributes: str | None) -> Html:
    """An element; `class_` is the attribute `class`, and an attribute that is None is left out."""
    written = "".join(
        f' {key.rstrip("_")}="{html.escape(value, quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{''.join(children)}</{name}>")


def paragraph(*sentences: str, class_: str | None = None) -> Html:
    return element("p", text(" ".join(sentences)), class_=class_)


def link(target: str, label: str) -> Html:
    return element("a", text(label), href=target)


def table(table: Table) -> Html:
    """A table with a link to its CSV; the best of a column in bold, digests in full on hover."""
    head = (element("th", text(column.title), class_=_style(column)) for column in table.columns)
    rows = []
    for row in table.rows:
        cells = (_cell(table, position, value) for position, value in enumerate(row))
        rows.append(element("tr", *cells, class_="total" if "all" in row[:2] else None))
    body = element("thead", element("tr", *head)), element("tbody", *rows)
    num_scores = sum(column.form == "score" for column in table.columns)
    whole = element("table", *body, class_="narrow" if num_scores > 4 else None)
    source = element("p", link(f"tables/{table.name}.csv", f"{table.name}.csv"), class_="note")
    return element("div", element("div", whole, class_="scroll"), source)


def figure(name: str, caption: str, *, table: str) -> Html:
    """A figure with its caption and links to its other forms and its numbers."""
    image = Html(f'<img src="figures/{text(name)}.svg" alt="{text(caption)}">')
    below = element(
        "figcaption",
        text(f"{caption} "),
        link(f"figures/{name}.svg", "SVG"),
        text(", "),
        link(f"figures/{name}.png", "PNG"),
        text(", "),
        link(f"tables/{table}.csv", "numbers"),
    )
    return element("figure", image, below, id=name)


def document(
    title: str,
    opening: Html,
    sections: Mapping[str, Sequence[Html]],
    scripts: Sequence[Html] = (),
) -> str:
    """The whole page: a section for each heading, which its contents list in order."""
    places = {heading: "-".join(heading.lower().split()) for heading in sections}
    contents = (link(f"#{place}", heading) for heading, place in places.items())
    written = (
        element("section", element("h2", text(heading)), *parts, id=places[heading])
        for heading, parts in sections.items()
    )
    nav = [element("nav", *contents)] if sections else []
    main = element("main", element("h1", text(title)), opening, *written)
    head = (
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", text(f"{title}: report")),
        element("style", Html(STYLE)),
    )
    frame = element("div", *nav, main, class_="frame" if sections else "alone")
    body = element("body", frame, *scripts)
    return f"<!doctype html>\n{element('html', element('head', *head), body, lang='en')}\n"


def _cell(table: Table, position: int, value: Any) -> Html:
    column = table.columns[position]
    words, style = shown(column, value), _style(column)
    if column.form == "verdict":
        style = words.lower()
    if isinstance(value, Score):
        point, _, bounds = words.partition(" ")
        is_best = value.value == table.best(position) and is_above(value)
        number = element("strong", text(point)) if is_best else text(point)
        return element("td", number, element("span", text(bounds), class_="interval"), class_=style)
    full = str(value) if column.form == "digest" and value is not None else None
    return element("td", text(words), class_=style, title=full)


def _style(column: Column) -> str | None:
    """The class of a column's cells: numbers stand at the right."""
    return "right" if column.spec else "digest" if column.form == "digest" else None
