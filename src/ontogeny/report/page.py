"""HTML for one static page: elements, tables, figures and the style sheet.

`Html` is text that is safe to put into the page; only `text` and `element` make it, so the type
checker finds what was not escaped. Nothing on the page is fetched: no script, no font, no network.
Not here: what the page says (`site.py`).
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any, NewType

from ontogeny.report.tables import Column, Interval, Table, shown

Html = NewType("Html", str)

NUMERIC = frozenset({"count", "number", "percent", "interval"})

STYLE = """
:root { --ink: #1d1d1f; --soft: #6b6862; --line: #dedad2; --paper: #fdfcfa; --mark: #7b2382; }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.55 Charter, "Bitstream Charter", "Iowan Old Style", Georgia, serif; }
.frame { display: grid; grid-template-columns: 10.5rem minmax(0, 1fr); gap: 2.5rem;
  max-width: 78rem; margin: 0 auto; padding: 2.5rem 2rem 5rem; }
nav { position: sticky; top: 2.5rem; align-self: start;
  font: 13px/1.4 system-ui, "Helvetica Neue", Arial, sans-serif; }
nav a { display: block; padding: .28rem 0; color: var(--soft); text-decoration: none; }
nav a:hover { color: var(--mark); }
h1 { font-size: 2.1rem; line-height: 1.15; font-weight: 600; margin: 0 0 .8rem; }
h2 { font-size: 1.35rem; font-weight: 600; margin: 3.2rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; font-weight: 600; margin: 1.9rem 0 .4rem; }
p { max-width: 44rem; margin: .5rem 0; }
a { color: var(--mark); text-underline-offset: .15em; }
figure { margin: 1.2rem 0 2.2rem; }
figure img { display: block; width: 100%; height: auto; background: white;
  border: 1px solid var(--line); padding: .6rem; }
figcaption, .note, summary { font: 13.5px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif;
  color: var(--soft); max-width: 52rem; }
figcaption { margin-top: .5rem; }
.scroll { overflow-x: auto; margin: .7rem 0 .2rem; }
table { border-collapse: collapse; min-width: 40%;
  font: 13px/1.4 system-ui, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums lining-nums; }
th { text-align: left; vertical-align: bottom; font-weight: 600; color: var(--soft);
  border-bottom: 1.5px solid var(--ink); padding: .3rem .9rem .35rem 0; }
td { vertical-align: top; border-bottom: 1px solid var(--line); padding: .3rem .9rem .3rem 0; }
th.right, td.right { text-align: right; }
td.right, td:first-child { white-space: nowrap; }
tr.total td { font-weight: 600; border-bottom-color: var(--ink); }
td .interval { color: var(--soft); font-weight: 400; margin-left: .35em; }
code, .digest { font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
code.long { overflow-wrap: anywhere; }
pre { background: #f4f1ea; padding: .8rem 1rem; overflow-x: auto; border-radius: 3px; }
.equal { color: #22663b; } .different { color: #b00020; font-weight: 700; }
.proof { border-left: 3px solid currentColor; padding-left: .9rem; max-width: 44rem; }
details { margin: .5rem 0; } summary { cursor: pointer; }
@media (max-width: 900px) {
  .frame { display: block; padding: 0 1rem 3rem; }
  nav { top: 0; background: var(--paper); border-bottom: 1px solid var(--line); z-index: 1;
    display: flex; flex-wrap: wrap; gap: 0 1rem; padding: .4rem 0; margin-bottom: 1.4rem; }
  html { scroll-padding-top: 5rem; } body { font-size: 16px; } h1 { font-size: 1.7rem; }
}
@media print {
  body { font-size: 10.5pt; background: white; } nav { display: none; }
  .frame { display: block; max-width: none; padding: 0; } .scroll { overflow: visible; }
  table { font-size: 7.5pt; } figure, tr, .proof { break-inside: avoid; }
  h2, h3 { break-after: avoid; } details::details-content { content-visibility: visible; }
}
"""


def text(value: object) -> Html:
    """A value as text of the page, with what HTML would read as markup escaped."""
    return Html(html.escape(str(value), quote=True))


def join(parts: Iterable[Html]) -> Html:
    return Html("".join(parts))


def element(name: str, *children: Html, **attributes: str | None) -> Html:
    """An element; `class_` is the attribute `class`, and an attribute that is None is left out."""
    written = "".join(
        f' {key.rstrip("_")}="{html.escape(value, quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def paragraph(*sentences: str, class_: str | None = None) -> Html:
    return element("p", text(" ".join(sentences)), class_=class_)


def link(target: str, label: str) -> Html:
    return element("a", text(label), href=target)


def table(table: Table) -> Html:
    """A table with a link to its CSV; the best of a column in bold, digests in full on hover."""
    head = join(
        element("th", text(column.title), class_=_alignment(column)) for column in table.columns
    )
    body = [_row(table, at) for at in range(len(table.rows))]
    written = element("table", element("thead", element("tr", head)), element("tbody", *body))
    source = link(f"tables/{table.name}.csv", f"{table.name}.csv")
    return join((element("div", written, class_="scroll"), element("p", source, class_="note")))


def figure(name: str, caption: str, *, table: str) -> Html:
    """A figure with its caption and links to its other forms and its numbers."""
    image = Html(f'<img src="figures/{text(name)}.svg" alt="{text(caption)}">')
    links = (
        link(f"figures/{name}.svg", "SVG"),
        link(f"figures/{name}.png", "PNG"),
        link(f"tables/{table}.csv", "numbers"),
    )
    forms = join((links[0], *(join((text(" · "), one)) for one in links[1:])))
    below = element("figcaption", text(caption), Html("<br>"), forms)
    return element("figure", image, below, id=name)


def section(name: str, title: str, *children: Html) -> Html:
    return element("section", element("h2", text(title)), *children, id=name)


def document(title: str, opening: Html, sections: dict[str, Html]) -> str:
    """The whole page; the keys of `sections` are the entries of its contents, in order."""
    contents = [link(f"#{anchor(label)}", label) for label in sections]
    main = element("main", opening, *sections.values())
    frame = element("div", element("nav", *contents), main, class_="frame")
    head = (
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("title", text(title)),
        element("style", Html(STYLE)),
    )
    page = element("html", element("head", *head), element("body", frame), lang="en")
    return f"<!doctype html>\n{page}\n"


def anchor(label: str) -> str:
    """The fragment a label is reached by."""
    return "-".join(label.lower().split())


def _row(table: Table, at: int) -> Html:
    row = table.rows[at]
    cells = [
        _cell(column, value, is_best=table.is_best(at, position))
        for position, (column, value) in enumerate(zip(table.columns, row, strict=True))
    ]
    is_total = "all" in row[:2]
    return element("tr", *cells, class_="total" if is_total else None)


def _cell(column: Column, value: Any, *, is_best: bool) -> Html:
    form = column.form
    if isinstance(value, Interval):
        point, _, bounds = shown(column, value).partition(" ")
        number = element("strong", text(point)) if is_best else text(point)
        return element(
            "td", number, element("span", text(bounds), class_="interval"), class_="right"
        )
    if form == "digest" and value is not None:
        return element("td", text(shown(column, value)), class_="digest", title=str(value))
    if form == "verdict":
        return element("td", text(shown(column, value)), class_="equal" if value else "different")
    return element("td", text(shown(column, value)), class_=_alignment(column))


def _alignment(column: Column) -> str | None:
    return "right" if column.form in NUMERIC else None
