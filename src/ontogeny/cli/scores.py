"""The verb that asks what was measured: `scores`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ontogeny.cli.app import app, numbers, out, print_table
from ontogeny.errors import ConfigError, EvaluationError

if TYPE_CHECKING:
    import pandas as pd

    from ontogeny.questions.scores import Selection

MOST_ROWS = 1000  # of a table; --csv has them all


@app.command()
def scores(
    path: Annotated[Path, typer.Argument(help="A suite, a run, or a folder of scores")],
    member: Annotated[str | None, typer.Option(help="A member, or a pattern: '2m*'")] = None,
    task: Annotated[str | None, typer.Option(help="A task, or a pattern: 'blimp*'")] = None,
    metric: Annotated[str | None, typer.Option(help="A metric, or a pattern: 'acc*'")] = None,
    steps: Annotated[
        str | None, typer.Option(help="last, all, or steps: 8,16; default: last")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Worked examples shown")] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="A,B", help="Two members, or MEMBER@STEP, item by item")
    ] = None,
    emergence: Annotated[
        bool, typer.Option("--emergence", help="Since which step scores are above their level")
    ] = False,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="How members scatter that differ in their seed alone")
    ] = False,
    sql: Annotated[
        str | None, typer.Option(metavar="QUERY", help="Of scores, items, places and cells")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all of it to this file instead")] = None,
) -> None:
    """Print what was measured, with intervals and what guessing gives; or compare, or query it."""
    from ontogeny.questions.comparisons import compare as compare_two
    from ontogeny.questions.comparisons import emergences, seed_bands
    from ontogeny.questions.scores import open_scores

    questions = {"--compare": compare, "--emergence": emergence, "--seeds": seeds, "--sql": sql}
    asked = [name for name, value in questions.items() if value not in (None, False)]
    if len(asked) > 1:
        raise ConfigError("one question at a time", found=" and ".join(asked))
    given = {"--member": member, "--steps": steps, "--task": task, "--metric": metric}
    for name, value in (given | {"--shots": shots}).items():
        names_it = sql is not None or (compare is not None and name in ("--member", "--steps"))
        if value is not None and names_it:
            raise ConfigError(f"{name} is said by {asked[0]} itself", fix=f"without {name}")
    only: Selection = {"member": member, "task": task, "metric": metric, "shots": shots}
    only["steps"] = _steps(steps or ("all" if emergence else "last"))
    opened = open_scores(path)
    if sql is not None:
        frame = opened.sql(sql)
    elif compare is not None:
        frame = compare_two(opened, *_pair(compare), **only)
    elif emergence:
        frame = emergences(opened, **only)
    elif seeds:
        frame = seed_bands(opened, **only)
    else:
        frame = opened.scores(**only)
    if csv is not None:
        _write(frame, csv)
    elif asked:
        _print(frame, ".3f" if sql is None else ".6g")
    else:
        _print_scores(frame)


def _steps(words: str) -> str | list[int]:
    if words in ("last", "all"):
        return words
    return numbers(words, "steps", option="--steps", expected="last, all, or 8,16")


def _pair(words: str) -> list[str]:
    pair = words.split(",")
    if len(pair) != 2 or not all(pair):
        example = "two members: 2m,5m, or 2m@8,2m@16"
        raise ConfigError("not a pair", where="--compare", expected=example, found=words)
    return pair


def _print_scores(frame: pd.DataFrame) -> None:
    """Score rows with what their baselines say of them; how tasks differ from their names below."""
    from ontogeny.questions.scores import verdict

    differs = [words for words in frame["differs"].unique() if words]
    notes = {words: f" [{number}]" for number, words in enumerate(differs, 1)}
    told = [verdict(row) + notes.get(row.differs, "") for row in frame.itertuples()]
    _print(frame.drop(columns=["tokens", "differs"]).assign(note=told))
    for words, number in notes.items():
        out.print(f"{number.strip()} {words}")


def _print(frame: pd.DataFrame, form: str = ".3f") -> None:
    """A frame as a table, both ends of an interval in one column; what there is not is a dash."""
    shown = frame.head(MOST_ROWS)
    words = shown.astype(object).where(shown.notna(), "-")
    for name in words:
        own = ".2g" if name == "p" else form
        words[name] = [
            format(one, own) if isinstance(one, float) else str(one) for one in words[name]
        ]
    if form == ".3f" and "low" in words:
        words["low"] += " to " + words.pop("high")
        words = words.rename(columns={"low": "95 % interval"})
    if len(shown):
        print_table(list(words), words.values.tolist())
    left = len(frame) - len(shown)
    if left or not len(shown):
        out.print(f"and {left:,} more: --csv FILE" if left else "no rows")


def _write(frame: pd.DataFrame, file: Path) -> None:
    try:
        frame.to_csv(file, index=False)
    except OSError as error:
        told = error.strerror or error
        raise EvaluationError(f"cannot be written ({told})", where=file) from error
    out.print(f"{len(frame):,} rows: {file}")
