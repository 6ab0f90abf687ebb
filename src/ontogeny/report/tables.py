"""The tables of the report as data: typed columns and rows, shown as text or written as CSV.

In: `Evidence`. Out: a `Table` a function; the CSV holds every digit and every digest in full, the
shown form what a reader needs. Not here: HTML (`page.py`), what the numbers mean (`site.py`).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from ontogeny.digest import SHORT
from ontogeny.report.control import Comparison
from ontogeny.report.evidence import Evidence, History
from ontogeny.report.measured import BITS_PER_BYTE, LAST_WORD, LOG_LIKELIHOOD, Chart, Measured
from ontogeny.results import Score, UpdateMetrics
from ontogeny.steps import state_folder


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, what is in it, and which end of it is the better one.

    `spec` is a format specification for a number, or for each of the three of a score.
    """

    title: str
    spec: str = ""
    form: Literal["plain", "score", "digest", "verdict"] = "plain"
    best: Literal["low", "high"] | None = None


FINAL_SCORES = {
    BITS_PER_BYTE: Column("held-out bits per byte", ".3f", "score", "low"),
    LOG_LIKELIHOOD: Column("last word: log-likelihood", ".2f", "score", "high"),
    LAST_WORD: Column("last word: accuracy", ".1%", "score", "high"),
}


MARK = "\N{DAGGER}"
MARKED = f"{MARK} Its interval is not wholly above chance and the commonest answer's share."


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows under a name, which is also the name of its CSV file."""

    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]

    def best(self, position: int) -> float | None:
        """The best value of a column of scores that has a better end, if there is a choice."""
        end = self.columns[position].best
        if end is None or len(self.rows) < 2:
            return None
        values = [row[position].value for row in self.rows if row[position] is not None]
        return float(min(values) if end == "low" else max(values))


def plain(*titles: str) -> list[Column]:
    """Columns of words."""
    return [Column(title) for title in titles]


def counts(*titles: str) -> list[Column]:
    """Columns of whole numbers."""
    return [Column(title, ",") for title in titles]


def digests(*titles: str) -> list[Column]:
    """Columns of digests, of which a reader sees the first digits."""
    return [Column(title, form="digest") for title in titles]


def shown(column: Column, value: Any) -> str:
    """The cell as a reader sees it; an absent value is a dash."""
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, Score):
        spec, mark = column.spec, "" if is_above(value) else MARK
        bounds = f" [{value.low:{spec}}, {value.high:{spec}}]"
        if math.isnan(value.low):
            bounds = " [one item]" if value.n == 1 else ""
        return f"{value.value:{spec}}{mark}{bounds}"
    return str(value)[:SHORT] if column.form == "digest" else f"{value:{column.spec}}"


def is_above(score: Score) -> bool:
    """Whether a score is above what guessing gives and above always giving one answer."""
    levels = [level for level in (score.chance, score.majority) if level is not None]
    return all(score.low > level for level in levels)


def write_csv(table: Table, folder: Path) -> None:
    """Write the table as `<name>.csv`: full precision, a score and its bounds as three columns."""
    ends = [("", " low", " high") if one.form == "score" else ("",) for one in table.columns]
    with (folder / f"{table.name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = zip(table.columns, ends, strict=True)
        writer.writerow(column.title + end for column, of_column in columns for end in of_column)
        for row in table.rows:
            cells: list[Any] = []
            for value, of_column in zip(row, ends, strict=True):
                is_score = isinstance(value, Score)
                given = (value.value, value.low, value.high) if is_score else (value, None, None)
                cells += given[: len(of_column)]
            writer.writerow(cells)


def summary_rows(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """The summary table as plain strings: its header, and one row a member."""
    table = summary(evidence)
    header = [column.title for column in table.columns]
    return header, [list(map(shown, table.columns, row)) for row in table.rows]


def summary(evidence: Evidence) -> Table:
    """Where every member ended."""
    curves = evidence.measured.curves
    measured = {key: FINAL_SCORES[key] for key in FINAL_SCORES if key in curves}
    sizes = counts("non-embedding parameters", "all parameters", "tokens seen", "checkpoints")
    rows = [
        [
            history.member.name,
            history.run.shape.num_non_embedding,
            history.run.shape.num_parameters,
            history.tokens,
            len(history.checkpoints),
            *(curves[measure][history.member.name][-1] for measure in measured),
        ]
        for history in evidence.histories
    ]
    return Table("summary", [*plain("member"), *sizes, *measured.values()], rows)


def members(evidence: Evidence) -> Table:
    """The suite: what each member is and how it was trained."""
    columns = [
        *plain("member", "size", "corpus"),
        *counts("layers", "width", "heads", "head size"),
        Column("learning rate", "g"),
        *counts("rows per update", "tokens per update", "updates"),
        Column("init seed", "d"),
        Column("order seed", "d"),
        Column("training FLOPs", ".2e"),
    ]
    rows = []
    for history in evidence.histories:
        member, run, shape = history.member, history.run, history.run.shape
        row: list[Any] = [member.name, member.size, member.corpus]
        row += [shape.num_layers, shape.hidden_size, shape.num_heads, shape.head_size]
        row += [member.learning_rate, member.rows_per_update, run.tokens_per_update]
        row += [run.num_updates, run.init_seed, evidence.record.suite.order.seed]
        rows.append([*row, shape.flops_per_token * history.tokens])
    return Table("members", columns, rows)


def scores(measured: Measured) -> Table:
    """Every score of every checkpoint: what the score figures are drawn from."""
    names = [field.name for field in fields(Score)]
    curves = [curve for by_member in measured.curves.values() for curve in by_member.values()]
    rows = [row for curve in curves for row in curve]
    rows.sort(key=lambda row: (row.member, row.step, row.shots, row.task, row.metric))
    return Table("scores", plain(*names), list(map(attrgetter(*names), rows)))


def finals(name: str, members: Sequence[str], charts: Sequence[Chart]) -> Table:
    """Where members ended on some tasks; one that differs from its namesake has a star."""
    columns = [*plain("member"), *counts("tokens seen")]
    for chart in charts:
        ends = [curve[-1] for curve in chart.curves.values() if curve]
        star = "*" if any(row.differs for row in ends) else ""
        spec = ".1%" if chart.is_share else ".3f"
        column = Column(chart.name + star, spec, "score", "high")
        columns.append(column if chart.metric.startswith("acc") else replace(column, best=None))
    rows = []
    for member in members:
        curves = [chart.curves.get(member) for chart in charts]
        last = [curve[-1] if curve else None for curve in curves]
        if any(last):
            tokens = max(row.tokens for row in last if row is not None)
            rows.append([member, tokens, *last])
    return Table(name, columns, rows)


def asked(measured: Measured) -> Table:
    """What was asked: how many items, what costs nothing to reach, how it departs from its name."""
    columns = [
        *plain("task", "metric"),
        *counts("shots", "items"),
        Column("chance", ".1%"),
        Column("commonest answer", ".1%"),
        *counts("members", "checkpoints"),
        *plain("differs from the task of its name"),
    ]
    rows = []
    for measure, curves in sorted(measured.curves.items()):
        if measure.metric == measured.main_metric(measure.task, measure.shots):
            every = [row for curve in curves.values() for row in curve]
            steps = {row.step for row in every}
            first = every[0]
            row: list[Any] = [measure.task, measure.metric, measure.shots, first.n or None]
            row += [first.chance, first.majority, len(curves), len(steps), first.differs or None]
            rows.append(row)
    return Table("asked", columns, rows)


def updates(evidence: Evidence) -> Table:
    """Every update of every member, unsmoothed."""
    columns = plain("member", *(field.name for field in fields(UpdateMetrics)))
    rows = [
        (history.member.name, *astuple(row))
        for history in evidence.histories
        for row in history.updates
    ]
    return Table("updates", columns, rows)


def control(corpus: str, comparisons: Sequence[Comparison], histories: Sequence[History]) -> Table:
    """The rolling row digest of each member of a corpus at equal tokens, and the verdict."""
    names = [history.member.name for history in histories]
    columns = [*counts("tokens"), *digests(*names), Column("verdict", form="verdict")]
    rows = [
        (one.tokens, *one.digests.values(), "DIFFERENT" if one.odd_members else "equal")
        for one in comparisons
    ]
    return Table(f"control-{corpus}", columns, rows)


def checkpoints(evidence: Evidence, history: History) -> Table:
    """A member's chain of checkpoints: each names the one it grew from."""
    name, run = history.member.name, history.run
    columns = [
        *counts("step", "tokens"),
        *digests("digest", "parent", "rows digest"),
        *plain("full state"),
    ]
    rows = []
    for step, one in zip(run.steps, history.checkpoints, strict=True):
        origin = one.digest, one.inputs.get("parent"), one.facts.get("rows_digest")
        state = state_folder(evidence.artifacts[f"runs/{name}"].path, step)
        kept = "yes" if state.is_dir() else "no"
        rows.append((step, step * run.tokens_per_update, *origin, kept))
    return Table(f"checkpoints-{name}", columns, rows)
