"""Verbs that ask what a run saw, and when: `seen`, `trace`; and `index`, which they ask."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from ontogeny.cli.app import app, err, numbers, out, print_json, print_table
from ontogeny.cli.batch import ContextLength, RowsPerUpdate, Seed, Updates, VocabularyFile
from ontogeny.errors import ConfigError

if TYPE_CHECKING:
    from ontogeny.questions.seen import Begin, Memory
    from ontogeny.tokens.suffixes import Observe

SHOWN_FORMS = 8
WIDTH = 100  # columns of a line

Place = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder; or GPT-NeoX's files, as for batch")
]
Before = Annotated[int | None, typer.Option(help="Only what was seen before this step")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object")]
Folder = Annotated[
    Path | None, typer.Option("--index", help="Where indexes are kept; default: beside their store")
]


@app.command()
def seen(
    place: Place,
    text: Annotated[str | None, typer.Argument(help="What to look for")] = None,
    tokens: Annotated[str | None, typer.Option(help="Look for these ids: 12,34")] = None,
    document: Annotated[str | None, typer.Option(help="Look for any of this document")] = None,
    before: Before = None,
    limit: Annotated[int, typer.Option(min=1, help="Places a page")] = 20,
    page: Annotated[int, typer.Option(min=1, help="Which page of the places")] = 1,
    as_json: Json = False,
    folder: Folder = None,
    vocabulary: VocabularyFile = None,
    rows_per_update: RowsPerUpdate = None,
    context_length: ContextLength = None,
    seed: Seed = None,
    updates: Updates = None,
) -> None:
    """Say how often a text, or a document, was seen before any step, and where."""
    if sum(value is not None for value in (text, tokens, document)) != 1:
        raise ConfigError("what to look for?", fix='one of "a text", --tokens 12,34, --document ID')
    ids = numbers(tokens or "0", "ids", option="--tokens", expected="ids, as 12,34")
    memory = opened(place, folder, vocabulary=vocabulary, rows_per_update=rows_per_update,
                    context_length=context_length, seed=seed, updates=updates)  # fmt: skip
    first = (page - 1) * limit
    if document is not None:
        answer = memory.document(document, before, first, limit)
    elif text is not None:
        answer = memory.text(text, before, first, limit)
    else:
        answer = memory.strings([ids], before, first, limit)
    if as_json:
        print_json(answer)
        return
    tell_seen(answer)
    if answer["places"]:
        tell_places(answer["places"])
    left = answer["count"] - first - len(answer["places"])
    if left > 0:
        out.print(f"and {left:,} more: --page {page + 1}, or --limit")


@app.command()
def trace(
    place: Place,
    text: Annotated[str, typer.Argument(help="What a model wrote")],
    least: Annotated[int, typer.Option(min=1, help="Tokens of a span, at least")] = 6,
    before: Before = None,
    limit: Annotated[int, typer.Option(min=0, help="Places of every span")] = 3,
    as_json: Json = False,
    folder: Folder = None,
    vocabulary: VocabularyFile = None,
    rows_per_update: RowsPerUpdate = None,
    context_length: ContextLength = None,
    seed: Seed = None,
    updates: Updates = None,
) -> None:
    """Find the longest parts of a text that were seen, and when."""
    memory = opened(place, folder, vocabulary=vocabulary, rows_per_update=rows_per_update,
                    context_length=context_length, seed=seed, updates=updates)  # fmt: skip
    spans = memory.trace(text, least=least, before=before, limit=limit)
    if as_json:
        print_json(spans)
        return
    if not spans:
        out.print(f"no {least} tokens in a row of it were seen")
    for span in spans:
        words = json.dumps(span["text"], ensure_ascii=False)
        out.print(f"{words}, {len(span['tokens'])} tokens", style="bold")
        tell_seen(span)
        if span["places"]:
            tell_places(span["places"])
        out.print()


@app.command()
def index(
    store: Annotated[str, typer.Argument(help="A store, or a .bin/.idx pair")],
    folder: Folder = None,
) -> None:
    """Build the index that `seen` and `trace` ask, or say where it is."""
    from ontogeny.questions.seen import index_of, open_any_store

    with indexing() as begin:
        opened = index_of(open_any_store(store), begin, folder)
    out.print(f"index: {opened.artifact.path}")


def opened(place: str, folder: Path | None, **options: Any) -> Memory:
    """What can be asked of a source; bars show the indexes it has to build."""
    from ontogeny.questions.seen import Memory
    from ontogeny.questions.sources import open_source

    source = open_source(place, **options)
    with indexing() as begin:
        return Memory(source, begin, folder)


@contextmanager
def indexing() -> Iterator[Begin]:
    """Bars, on standard error, for indexes that are built."""
    progress = Progress(console=err, transient=True)

    def begin(path: Path) -> Observe:
        err.print(f"building {path}")
        progress.start()
        bar = progress.add_task("tokens", total=None)
        return lambda done, total: progress.update(bar, completed=done, total=total)

    try:
        yield begin
    finally:
        if progress.tasks:
            progress.stop()


def tell_seen(answer: dict[str, Any]) -> None:
    """Say how often, by which updates, in which forms, and how often before every step."""
    count = answer["count"]
    what = "pieces of it" if "document" in answer else "times"
    until = f" before step {answer['before']}" if "before" in answer else ""
    when = f"; first by update {answer['first']}, last by update {answer['last']}" * bool(count)
    out.print(f"seen: {count:,} {what}{until}{when}")
    forms = answer.get("forms", [])
    if len(forms) > 1:
        rows = [
            [json.dumps(form["text"], ensure_ascii=False), " ".join(map(str, form["tokens"])),
             f"{form['count']:,}"]
            for form in forms[:SHOWN_FORMS]
        ]  # fmt: skip
        print_table(["form", "tokens", "count"], rows)
    if len(forms) > SHOWN_FORMS:
        others = sum(form["count"] for form in forms[SHOWN_FORMS:])
        out.print(f"and {len(forms) - SHOWN_FORMS} more forms, {others:,} times")
    if "counts" in answer and count:
        told = "  ".join(f"step{step}:{count:,}" for step, count in answer["counts"].items())
        out.print(textwrap.fill(f"before  {told}", WIDTH))


def tell_places(places: list[dict[str, Any]]) -> None:
    """A table of places, with what is known of each."""
    names = [name for name in places[0] if any(place[name] is not None for place in places)]
    rows = [
        ["-" if place[name] is None else str(place[name]) for name in names] for place in places
    ]
    print_table(names, rows)
