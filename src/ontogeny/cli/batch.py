"""The verb that shows what an update saw: `batch`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ontogeny.cli.app import app, err, out, print_json, print_table
from ontogeny.errors import ConfigError

if TYPE_CHECKING:
    from ontogeny.order.spans import Spans
    from ontogeny.questions.sources import Source

TABLE_ROWS = 12  # of an update, when no rows are named
PREVIEW = 60  # characters of a row in the table
EXCERPT = 1000  # characters of the one row that is shown as well

# What files of the originals do not say of themselves.
VocabularyFile = Annotated[Path | None, typer.Option(help="A tokenizer.json, for files")]
RowsPerUpdate = Annotated[
    int | None, typer.Option(min=1, help="For files; Pythia's 1024 unless given")
]
ContextLength = Annotated[int | None, typer.Option(min=1, help="To order a pair")]
Seed = Annotated[int | None, typer.Option(min=0, help="To order a pair")]
Updates = Annotated[int | None, typer.Option(min=1, help="To order a pair")]


@app.command()
def batch(
    place: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run's folder; or GPT-NeoX's files (rows, shards, index arrays), also by "
            "https://... or hf://datasets/OWNER/NAME/PATH",
        ),
    ],
    update: Annotated[str | None, typer.Option(help="Update N, or N to M - 1 as N:M")] = None,
    step: Annotated[str | None, typer.Option(help="What stepN goes on with: update N")] = None,
    row: Annotated[str | None, typer.Option(help="Row R whole, or R to S - 1 as R:S")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show the ids")] = False,
    npy: Annotated[Path | None, typer.Option(help="Write the ids to this file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for every row")] = False,
    vocabulary: VocabularyFile = None,
    rows_per_update: RowsPerUpdate = None,
    context_length: ContextLength = None,
    seed: Seed = None,
    updates: Updates = None,
) -> None:
    """Show what an update saw: tokens, text, and the documents they are from."""
    from ontogeny.order.spans import Spans
    from ontogeny.questions.sources import open_source

    if npy is not None and (tokens or as_json):
        raise ConfigError("writes a file, shows no rows", where="--npy", fix="it without the rest")
    wanted, rows = chosen(update, step), None if row is None else parsed(row, "--row")
    source = open_source(
        place, rows_per_update=rows_per_update, vocabulary=vocabulary,
        context_length=context_length, seed=seed, updates=updates,
    )  # fmt: skip
    for number in (wanted[0], wanted[-1]):
        source.num_rows(number)
    spans = Spans(source.batches.order, source.vocabulary)
    if npy is not None:
        npy.parent.mkdir(parents=True, exist_ok=True)
        shape = source.save(npy, wanted, rows)
        saved = f"{source.dtype.name} {list(shape)} in {npy}"
        out.print(f"{title(wanted)}: {saved}")
    elif as_json:
        for told in rows_of(source, spans, wanted, rows):
            print_json({key: one for key, one in told.items() if tokens or key != "tokens"})
    else:
        for number in wanted:
            show(source, spans, number, rows, tokens)
    if source.moved is not None:
        err.print(f"{source.moved:,} bytes moved")


def chosen(update: str | None, step: str | None) -> range:
    """The updates that one of two options names. Raises ConfigError for both and for none."""
    if update is not None and step is None:
        return parsed(update, "--update")
    if step is not None and update is None:
        return parsed(step, "--step")
    raise ConfigError("which update?", fix="--update 512, or --step 512, which is the same")


def parsed(words: str, option: str) -> range:
    """The numbers that `N` or `N:M` means. Raises ConfigError for other words and for none."""
    if not re.fullmatch(r"[0-9]{1,15}(:[0-9]{1,15})?", words):
        raise ConfigError("not numbers", where=option, expected="N or N:M", found=words)
    first, _, last = words.partition(":")
    numbers = range(int(first), int(last) if last else int(first) + 1)
    if not numbers:
        raise ConfigError("is empty", where=option, expected="N:M with M above N", found=words)
    return numbers


def title(updates: range) -> str:
    """What updates are called, and the steps they lie between."""
    first, last = updates[0], updates[-1]
    called = f"update {first}" if first == last else f"updates {first} to {last}"
    return f"{called}: step{first} -> step{last + 1}"


def rows_of(
    source: Source, spans: Spans, updates: range, rows: range | None
) -> Iterator[dict[str, Any]]:
    """All there is to say about every row, as soon as it is read."""
    for update, first, block in source.blocks(updates, rows):
        for row, ids in enumerate(block, first):
            place = source.batches.place(update) + row
            found, patched = spans(place, ids)
            value: dict[str, Any] = {"update": update, "row": row, "place": place}
            value |= {"patched": patched, "num_tokens": len(ids), "tokens": ids.tolist()}
            if source.vocabulary is not None:
                value["text"] = source.vocabulary.decode(value["tokens"])
            yield value | {"spans": [asdict(span) for span in found]}


def show(source: Source, spans: Spans, update: int, rows: range | None, tokens: bool) -> None:
    """The rows asked for, whole; or a table of the first ones and an excerpt of row 0."""
    count, length = source.num_rows(update), source.batches.order.context_length + 1
    own = range(update, update + 1)
    out.print(f"{title(own)}, {count} rows of {length} tokens", style="bold")
    if rows is not None:
        for row in rows_of(source, spans, own, rows):
            show_row(row, tokens, whole=True)
        return
    first = list(rows_of(source, spans, own, range(min(TABLE_ROWS, count))))
    lines = []
    for row in first:
        sources = ", ".join(sorted({span["source"] or "" for span in row["spans"]} - {""})) or "-"
        begin = " ".join(words_of(row).split())[:PREVIEW]
        lines.append([str(row["row"]), str(len(row["spans"])), sources, f"  {begin}"])
    print_table(["row", "pieces", "sources", "text" if source.vocabulary else "ids"], lines)
    if count > TABLE_ROWS:
        others = f"and {count - TABLE_ROWS} more: --row {TABLE_ROWS}, --json or --npy FILE"
        out.print(others)
    show_row(first[0], tokens, whole=False)


def show_row(row: dict[str, Any], tokens: bool, *, whole: bool) -> None:
    """Where a row's tokens are from, and what they say."""
    called = f"row {row['row']}{', replaced by a splice' * row['patched']}"
    out.print(f"\n{called}", style="bold")
    lines = []
    for span in row["spans"]:
        extent = "{} to {}".format(*span["bytes"]) if span["bytes"] else None
        cells = [span[key] for key in ("column", "length", "document", "offset")]
        cells += [extent, span["source"], span["id"]]
        lines.append(["-" if cell in (None, "") else str(cell) for cell in cells])
    header = ["column", "tokens", "document", "from token", "bytes", "source", "id"]
    print_table(header, lines)
    words = words_of(row)
    cut = words if whole or len(words) <= EXCERPT else words[:EXCERPT] + " ..."
    out.print(f"\n{cut}\n")
    if tokens and "text" in row:
        out.print(" ".join(map(str, row["tokens"])), end="\n\n")


def words_of(row: dict[str, Any]) -> str:
    """The text of a row; its ids where no vocabulary is known."""
    return str(row.get("text", " ".join(map(str, row["tokens"]))))
