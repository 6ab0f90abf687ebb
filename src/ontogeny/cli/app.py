"""What every verb uses: the app they belong to, the two consoles, tables, the way out."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
PLAIN: dict[str, Any] = {"soft_wrap": True, "emoji": False, "markup": False, "highlight": False}
out = Console(**PLAIN)  # a text's :words: and [words] are words
err = Console(stderr=True, **PLAIN)

RunFolder = Annotated[Path, typer.Argument(help="The folder of a run, such as demo/runs/2m")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting")
]
OtherBits = Annotated[
    bool, typer.Option("--other-bits", help="Go on from states of another torch or processor")
]

STOPPED = "stopped; the same command goes on from the last saved state"


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version")] = False,
) -> None:
    """Grow controlled suites of language models and study how they grow."""
    if version:
        out.print(metadata.version("ontogeny"))
        raise typer.Exit


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as they need to be, words to the left and numbers to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, title in enumerate(header):
        is_words = not any(character.isdigit() for character in rows[0][place][:2])
        table.add_column(title, justify="left" if place == 0 or is_words else "right")
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: texts may look like markup
    width = sum(max(map(len, column)) + 2 for column in zip(header, *rows, strict=True))
    Console(width=max(width, 1)).print(table)


def leave(words: str, code: int) -> NoReturn:
    """Say something on standard error and exit."""
    err.print(words)
    raise SystemExit(code)
