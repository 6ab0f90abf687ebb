"""What every verb uses: the app they belong to, the two consoles, tables, JSON, the way out.

Texts, names and ids come from anywhere: what a terminal would obey in them is never printed.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ontogeny.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal would obey


class Plain(Console):
    """Prints words as they are, :these: and [these] too, but for what a terminal would obey."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, emoji=False, markup=False, highlight=False)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as any console does."""
        super().print(*(harmless(one) if isinstance(one, str) else one for one in objects), **how)


def harmless(words: str) -> str:
    """Words without what a terminal would obey."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", words)


out = Plain()
err = Plain(stderr=True)

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
    rows = [[harmless(cell) for cell in row] for row in rows]
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: texts may look like markup
    width = sum(max(map(cell_len, column)) + 2 for column in zip(header, *rows, strict=True))
    Console(width=max(width, 1)).print(table)


def print_json(value: Any, indent: int | None = None) -> None:
    """A value as JSON, with letters of all scripts as they are."""
    words = json.dumps(value, indent=indent, ensure_ascii=False, default=asdict)
    out.print(CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", words))


def numbers(words: str, what: str, *, option: str, expected: str) -> list[int]:
    """The numbers that words such as `8,16` mean. Raises ConfigError for other words."""
    if not re.fullmatch(r"[0-9]{1,18}(,[0-9]{1,18})*", words):
        raise ConfigError(f"not {what}", where=option, expected=expected, found=words)
    return [int(word) for word in words.split(",")]


def leave(words: str, code: int) -> NoReturn:
    """Say something on standard error and exit."""
    err.print(words)
    raise SystemExit(code)
