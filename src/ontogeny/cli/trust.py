"""Verbs that need no belief: `verify`, `show`."""

from __future__ import annotations

import os
import textwrap
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from ontogeny.cli.app import app, err, out, print_json, print_table
from ontogeny.digest import SHORT
from ontogeny.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ontogeny.questions.subjects import Subject

Json = Annotated[bool, typer.Option("--json", help="For machines")]
WIDTH, MARGIN = 100, 12  # columns of a line, and of the word in front of it
MOST_NAMED = 8  # parents that are named one by one
TOLD_APART = {"path", "kind", "digest", "name", "stages"}  # in the first line, or as a table
FAULTY = 1  # how `verify` leaves where something is not what was recorded


@app.command()
def verify(
    path: Annotated[str, typer.Argument(help="A checkpoint, run, store, any artifact, or a suite")],
    tensor: Annotated[
        str | None, typer.Option(help="Only this one of a checkpoint; PATH may be a URL")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute every digest and the chain; name the first fault, and exit with 1 if any."""
    from ontogeny.questions.verify import verify as verify_all
    from ontogeny.questions.verify import verify_tensor
    from ontogeny.ranges import is_remote

    began = time.perf_counter()
    if tensor is not None:
        subjects = [verify_tensor(path, tensor)]
    elif is_remote(path):
        raise ConfigError(
            "which tensor of it?", where=path, fix="--tensor NAME, or fetch all of it"
        )
    else:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        silent = not err.is_terminal
        with Progress(*columns, console=err, transient=True, disable=silent) as progress:
            bar = progress.add_task("")
            subjects = verify_all(
                Path(path), lambda done, total: progress.update(bar, completed=done, total=total)
            )
    seconds = time.perf_counter() - began
    faulty = any(subject.faults for subject in subjects)
    if as_json:
        names = [one.name for one in fields(subjects[0]) if one.name != "jobs"]
        rows = [{name: getattr(one, name) for name in names} for one in subjects]
        said = {"path": path, "whole": not faulty, "seconds": seconds, "checked": rows}
        print_json(said, indent=1)
    else:
        _tell_verdict(subjects, seconds)
    raise typer.Exit(FAULTY if faulty else 0)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="Any artifact, such as demo/runs/2m, or a suite")],
    as_json: Json = False,
) -> None:
    """Print what an artifact is, where it came from (up to the text) and what it holds."""
    from ontogeny.questions.show import describe

    shown = describe(path)
    if as_json:
        print_json(shown, indent=1)
        return
    for line in _told(shown):
        out.print(line)
    if "stages" in shown:
        header = ["stage", "kind", "digest", "bytes", "seconds", ""]
        print_table(
            header,
            [
                [one["name"], one["kind"], one["digest"][:SHORT], f"{one['bytes']:,}",
                 f"{one['seconds']:.1f}", one["state"]]
                for one in shown["stages"]
            ],
        )  # fmt: skip


def _told(shown: dict[str, Any]) -> Iterator[str]:
    """The lines about an artifact, at most `WIDTH` wide where words can be broken."""
    yield f"{shown['kind']} {shown.get('digest') or shown['name']}"
    for name, value in shown.items():
        if name == "from":
            for place, origin in enumerate(value):
                role = f"{'  ' * origin['depth'] + origin['role']:<24}{origin['digest'][:SHORT]}"
                where = os.path.relpath(origin["path"]) if origin["path"] else ""
                yield f"{'' if place else 'from':<{MARGIN}}{role}  {origin['state']}  {where}"
        elif name not in TOLD_APART and (value or value == 0):
            yield from textwrap.wrap(
                _worded(name, value),
                WIDTH,
                initial_indent=f"{name:<{MARGIN}}",
                subsequent_indent=" " * MARGIN,
                break_long_words=False,
                break_on_hyphens=False,
            )


def _worded(name: str, value: Any) -> str:
    if isinstance(value, dict):
        comma = "," if name in ("facts", "files") else ""
        words = {key: f"{one:{comma if type(one) is int else ''}}" for key, one in value.items()}
        return "  ".join(f"{key}={word}" for key, word in words.items())
    if name == "parents" and len(value) > MOST_NAMED:
        named = " <- ".join(value[: MOST_NAMED - 1])
        return f"{named} <- ({len(value) - MOST_NAMED} more) <- {value[-1]}"
    if isinstance(value, list):
        return (" <- " if name == "parents" else " ").join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _tell_verdict(subjects: list[Subject], seconds: float) -> None:
    header = ["what", "kind", "files", "tensors", "bytes", "verdict"]
    counts = [(one.num_files, one.num_tensors, one.num_bytes) for one in subjects]
    rows = []
    for one, numbers in zip(subjects, counts, strict=True):
        number = len(one.faults)
        verdict = f"{number} fault{'s' * (number > 1)}" if number else "whole"
        rows.append([one.name, one.kind, *(f"{count:,}" for count in numbers), verdict])
    print_table(header, rows)
    lines = [""]
    for one in subjects:
        lines += [f"note: {one.name}: {note}" for note in one.notes]
    faults = [fault for one in subjects for fault in one.faults]
    if faults:
        first = faults[0]
        lines += [
            f"first fault: {first.place}",
            f"  what   {first.problem}",
            f"  cause  {first.cause} (likely)",
            f"  try    {first.fix}",
        ]
    if faults[1:]:
        lines.append(f"{len(faults) - 1} more, after it or because of it; --json lists them")
    if not faults:
        files, tensors, size = map(sum, zip(*counts, strict=True))
        told = f"{files:,} files, {tensors:,} tensors, {size / 1e9:.2f} GB in {seconds:.1f} s"
        lines.append(f"whole: {told}")
    for line in lines:
        out.print(line)
