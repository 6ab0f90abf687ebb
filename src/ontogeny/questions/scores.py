"""What was measured, as data frames: score rows, item rows, and whatever SQL makes of them.

A store (`ontogeny.scores`) is read in place by DuckDB, be it of a suite, of a run or of published
scores. Not here: comparing (`comparisons.py`), measuring (`evaluation`), printing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TypedDict, Unpack

import duckdb
import pandas as pd

from ontogeny.config import nearest
from ontogeny.errors import EvaluationError
from ontogeny.intervals import told_from
from ontogeny.results import ITEMS, SCORES, Item, Score
from ontogeny.scores import Cell, Place, ScoreStore, find_scores

LAST, ALL = "last", "all"
COLUMNS = {
    "scores": [field.name for field in fields(Score)],
    "items": [field.name for field in fields(Item)],
    "places": [field.name for field in fields(Place)],
    "cells": ["member", "step", *(field.name for field in fields(Cell))],
}
EXACT = 1e-9  # shares of items that differ by less are one share


class Selection(TypedDict, total=False):
    """Which rows: names, or patterns such as `blimp*`; `last`, `all` or some steps; shots."""

    member: str | None
    task: str | None
    metric: str | None
    steps: str | Sequence[int]
    shots: int | None


def open_scores(path: Path) -> Scores:
    """What can be asked of the scores at a path; see `ontogeny.scores.find_scores`."""
    return Scores(find_scores(path))


@dataclass(frozen=True)
class Scores:
    """The scores in a store, to be asked for."""

    store: ScoreStore

    def scores(self, **only: Unpack[Selection]) -> pd.DataFrame:
        """Score rows, small members first, by step; the columns are the fields of `Score`.

        A level that there is not is NaN. Raises EvaluationError for names, steps or shots of which
        there is nothing.
        """
        frame = self._scores
        for column in ("member", "task", "metric"):
            pattern = only.get(column)
            if isinstance(pattern, str):
                frame = frame[frame[column].isin(_matching(pattern, frame[column], column))]
        shots, steps = only.get("shots"), only.get("steps", ALL)
        if shots is not None:
            frame = frame[_among([shots], frame["shots"], "shots")]
        if steps == LAST:
            return frame[frame["step"] == frame.groupby("member")["step"].transform("max")]
        if not isinstance(steps, str):
            frame = frame[_among(steps, frame["step"], "steps")]
        return frame

    def items(self, **only: Unpack[Selection]) -> pd.DataFrame:
        """Item rows, by member, step, task, shots and item: the fields of `Item`.

        In place of its metrics stands a column for each; what an item does not have is NaN. Empty
        where scores were published without items.
        """
        asked = self.scores(**only)
        names = sorted(set(asked["metric"]) - set(COLUMNS["items"]))
        places = asked[["member", "step"]].drop_duplicates().itertuples(index=False, name=None)
        rows = self._ask(
            "select * exclude metrics"
            + "".join(f", metrics[{_text(name)}] as m{at}" for at, name in enumerate(names))
            + " from read_parquet($files) where list_contains($tasks, task)"
            " and list_contains($shots, shots) order by member, step, task, shots, item",
            files=[str(self.store.path(*place).resolve() / ITEMS) for place in places],
            tasks=sorted(set(asked["task"])),
            shots=sorted(set(asked["shots"].tolist())),
        )
        # Renamed only here: to SQL names that differ in case are one.
        rows = rows.rename(columns={f"m{at}": name for at, name in enumerate(names)})
        return rows.drop(columns=[name for name in names if rows[name].isna().all()])

    def sql(self, query: str) -> pd.DataFrame:
        """What a query makes of `scores`, `items`, `places` and `cells`; it can change nothing.

        Columns are the fields of `Score`, `Item`, `Place` and `Cell`; the metrics of an item are a
        map: `metrics['acc']`. Raises EvaluationError for anything but one query of these.
        """
        try:
            kinds = [statement.type for statement in self._tables.extract_statements(query)]
            if kinds == [duckdb.StatementType.SELECT]:
                return self._tables.execute(query).df()
            told = "not one query that only reads"
        except duckdb.Error as error:
            told = str(error).partition("\n\n")[0]
        known = "; ".join(f"{table} ({', '.join(names)})" for table, names in COLUMNS.items())
        raise EvaluationError(told, where="sql", expected=f"a select from {known}")

    @cached_property
    def places(self) -> pd.DataFrame:
        """Every checkpoint that was asked something: the fields of `Place`."""
        return pd.DataFrame([asdict(self.store.place(*place)) for place in self.store.places()])

    @cached_property
    def cells(self) -> pd.DataFrame:
        """What each was asked: member, step and the fields of `Cell`."""
        return pd.DataFrame(
            [
                {"member": member, "step": step} | asdict(cell)
                for member, step in self.store.places()
                for cell in self.store.cells(member, step)
            ]
        )

    def _ask(self, query: str, **values: object) -> pd.DataFrame:
        try:
            return self._tables.execute(query, values).df()
        except duckdb.Error as error:
            told = str(error).partition("\n\n")[0]
            raise EvaluationError(f"cannot be read ({told})", where=self.store.folder) from error

    @cached_property
    def _scores(self) -> pd.DataFrame:
        frame, places = self._ask("select * from scores"), self.places
        sizes = dict(zip(places["member"], places["num_parameters"], strict=True))
        return frame.sort_values(
            "member", key=lambda names: names.map(sizes), kind="stable", ignore_index=True
        )

    @cached_property
    def _tables(self) -> duckdb.DuckDBPyConnection:
        """The four tables, and no way to anything else: no file, no network, no variable."""
        tables = duckdb.connect()
        tables.execute(f"set allowed_directories = [{_text(self.store.folder.resolve())}]")
        tables.execute("set enable_external_access = false")
        places = self.store.places()
        for name, file in (("scores", SCORES), ("items", ITEMS)):
            files = ", ".join(_text(self.store.path(*place).resolve() / file) for place in places)
            tables.execute(f"create view {name} as select * from read_parquet([{files}])")
        tables.register("places", self.places)
        tables.register("cells", self.cells)
        tables.execute("set lock_configuration = true")
        return tables


def verdict(row: Score) -> str:
    """What a score's levels say of it, in words; empty where it is above both, or has none.

    A score that is just what always giving one of two answers makes is named so, whatever its
    interval: WSC's 38 of 104 is no knowledge.
    """
    levels = {"chance": row.chance, "majority": row.majority}
    known = {name: at for name, at in levels.items() if at is not None and not math.isnan(at)}
    if not known:
        return ""
    constant = known.get("majority", math.nan)
    others = {constant, 1 - constant if row.chance == 0.5 else constant} - {row.chance}
    if any(abs(row.value - other) < EXACT for other in others):
        return "! the constant answer"
    name = max(known, key=known.__getitem__)
    if math.isnan(row.low):
        return "! no interval"
    if not told_from(row.low, row.high, known[name]):
        return f"! not told from {name}"
    return f"! below {name}" if row.high < known[name] else ""


def _matching(pattern: str, names: pd.Series, column: str) -> list[str]:
    """The names that a name or a pattern means. Raises EvaluationError naming the nearest for none.

    A name that is there means itself, also one such as `model[2]`.
    """
    known = sorted(set(names))
    found = [name for name in known if pattern == name or fnmatchcase(name, pattern)]
    if not found:
        listed = f"one of {', '.join(known)}"
        fix = nearest(pattern, known)
        raise EvaluationError(f"no {column} {pattern!r}", expected=listed, fix=fix)
    return found


def _among(wanted: Sequence[int], values: pd.Series, column: str) -> pd.Series:
    """Which values are wanted. Raises EvaluationError for one that there is not."""
    for one in wanted:
        if one not in set(values):
            known = ", ".join(map(str, sorted(set(values))))
            raise EvaluationError(f"nothing with {column} {one}", expected=f"one of {known}")
    return values.isin(wanted)


def _text(word: object) -> str:
    """A text as SQL writes it."""
    return "'" + str(word).replace("'", "''") + "'"
