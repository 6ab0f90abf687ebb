"""The tables of the report as data: typed columns and rows, shown as text or written as CSV.

In: `Evidence`. Out: a `Table` a function; the CSV holds every digit and every digest in full, the
shown form what a reader needs. Not here: HTML (`page.py`), what the numbers mean (`site.py`).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ontogeny.digest import SHORT
from ontogeny.report.control import Comparison
from ontogeny.report.evidence import ACCURACY, BITS_PER_BYTE, LOG_PROBABILITY, Evidence, History
from ontogeny.results import Score

Form = Literal["text", "count", "number", "percent", "interval", "digest", "yes", "verdict"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the bounds of its 95 % interval, NaN where one item leaves none to state."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, how its cells are shown, and which end of it is the better one.

    `spec` is a format specification for the number itself.
    """

    title: str
    form: Form = "text"
    spec: str = ""
    best: Literal["low", "high"] | None = None


FINAL_SCORES = (
    (BITS_PER_BYTE, Column("held-out bits per byte", "interval", ".3f", "low")),
    (LOG_PROBABILITY, Column("last word: log-probability", "interval", ".2f", "high")),
    (ACCURACY, Column("last word: accuracy", "interval", ".1%", "high")),
)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows under a name, which is also the name of its CSV file."""

    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]

    def best(self, position: int) -> float | None:
        """The best value of a column that has a better end."""
        column = self.columns[position]
        if column.best is None or len(self.rows) < 2:
            return None
        values = [_number(row[position]) for row in self.rows]
        return min(values) if column.best == "low" else max(values)

    def is_best(self, row: int, position: int) -> bool:
        best = self.best(position)
        return best is not None and _number(self.rows[row][position]) == best


def shown(column: Column, value: Any) -> str:
    """The cell as a reader sees it; an absent value is a dash."""
    if value is None:
        return "–"  # noqa: RUF001
    match column.form:
        case "count":
            return f"{value:,}"
        case "number":
            return f"{value:{column.spec}}"
        case "percent":
            return f"{value:.1%}"
        case "interval":
            return _shown_interval(value, column.spec)
        case "digest":
            return str(value)[:SHORT]
        case "yes":
            return "yes" if value else "–"  # noqa: RUF001
        case "verdict":
            return "equal" if value else "DIFFERENT"
        case _:
            return str(value)


def write_csv(table: Table, folder: Path) -> None:
    """Write the table as `<name>.csv`: full precision, intervals as three columns."""
    header: list[str] = []
    for column in table.columns:
        ends = ("", " low", " high") if column.form == "interval" else ("",)
        header += [column.title + end for end in ends]
    with (folder / f"{table.name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in table.rows:
            cells = zip(table.columns, row, strict=True)
            writer.writerow([part for column, value in cells for part in _csv_cells(column, value)])


def summary_rows(evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    """The summary table as plain strings: its header, and one row a member."""
    table = summary(evidence)
    header = [column.title for column in table.columns]
    rows = [
        [shown(column, value) for column, value in zip(table.columns, row, strict=True)]
        for row in table.rows
    ]
    return header, rows


def summary(evidence: Evidence) -> Table:
    """Where every member ended."""
    measured = [(task, column) for task, column in FINAL_SCORES if evidence.has(task)]
    columns = [
        Column("member"),
        Column("non-embedding parameters", "count"),
        Column("all parameters", "count"),
        Column("tokens seen", "count"),
        Column("checkpoints", "count"),
        *(column for _, column in measured),
    ]
    rows = [
        [
            history.member.name,
            history.run.shape.num_non_embedding,
            history.run.shape.num_parameters,
            history.tokens,
            len(history.checkpoints),
            *(_interval(history.final(task)) for task, _ in measured),
        ]
        for history in evidence.histories
    ]
    return Table("summary", columns, rows)


def members(evidence: Evidence) -> Table:
    """The suite: what each member is and how it was trained."""
    columns = [
        Column("member"),
        Column("size"),
        Column("corpus"),
        Column("layers", "count"),
        Column("width", "count"),
        Column("heads", "count"),
        Column("head size", "count"),
        Column("learning rate", "number", "g"),
        Column("rows per update", "count"),
        Column("tokens per update", "count"),
        Column("updates", "count"),
        Column("init seed", "number"),
        Column("order seed", "number"),
        Column("training FLOPs", "number", ".2e"),
    ]
    seed = evidence.record.suite.order.seed
    return Table("members", columns, [_member_row(history, seed) for history in evidence.histories])


def scores(evidence: Evidence) -> Table:
    """Every score of every checkpoint: what the score figures are drawn from."""
    columns = [Column(title) for title in ("member", "step", "tokens", "task", "metric")]
    columns += [Column("value", "interval"), Column("items", "count")]
    rows = [
        (row.member, row.step, row.tokens, row.task, row.metric, _interval(row), row.n)
        for history in evidence.histories
        for measure in history.scores.values()
        for row in measure
    ]
    return Table("scores", columns, rows)


def updates(evidence: Evidence) -> Table:
    """Every update of every member, unsmoothed."""
    names = ("member", "update", "tokens", "loss", "learning rate", "gradient norm", "rows digest")
    rows = [
        (
            history.member.name,
            row.update,
            row.tokens,
            row.loss,
            row.learning_rate,
            row.gradient_norm,
            row.rows_digest,
        )
        for history in evidence.histories
        for row in history.updates
    ]
    return Table("updates", [Column(name) for name in names], rows)


def control(corpus: str, comparisons: Sequence[Comparison], histories: Sequence[History]) -> Table:
    """The rolling row digest of each member of a corpus at equal tokens, and the verdict."""
    names = [history.member.name for history in histories]
    columns = [
        Column("tokens", "count"),
        *(Column(name, "digest") for name in names),
        Column("verdict", "verdict"),
    ]
    rows = [
        (comparison.tokens, *(comparison.digests[name] for name in names), comparison.is_equal)
        for comparison in comparisons
    ]
    return Table(f"control-{corpus}", columns, rows)


def checkpoints(histories: Iterable[History], name: str) -> Table:
    """The chains of checkpoints: each names the one it grew from."""
    columns = [
        Column("member"),
        Column("step", "count"),
        Column("tokens", "count"),
        Column("digest", "digest"),
        Column("parent", "digest"),
        Column("rows digest", "digest"),
        Column("full state", "yes"),
    ]
    rows = [
        (
            history.member.name,
            link.step,
            link.tokens,
            link.digest,
            link.parent,
            link.rows_digest,
            link.full_state,
        )
        for history in histories
        for link in history.checkpoints
    ]
    return Table(name, columns, rows)


def _member_row(history: History, order_seed: int) -> list[Any]:
    run, shape = history.run, history.run.shape
    return [
        history.member.name,
        history.member.size,
        history.member.corpus,
        shape.num_layers,
        shape.hidden_size,
        shape.num_heads,
        shape.head_size,
        history.member.learning_rate,
        run.training.rows_per_update,
        run.tokens_per_update,
        run.num_updates,
        run.init_seed,
        order_seed,
        shape.flops_per_token * history.tokens,
    ]


def _shown_interval(interval: Interval, spec: str) -> str:
    if math.isnan(interval.low):
        return f"{interval.value:{spec}} [one item]"
    return f"{interval.value:{spec}} [{interval.low:{spec}}, {interval.high:{spec}}]"


def _interval(score: Score) -> Interval:
    return Interval(score.value, score.low, score.high)


def _number(value: Any) -> float:
    return float(value.value if isinstance(value, Interval) else value)


def _csv_cells(column: Column, value: Any) -> list[Any]:
    if isinstance(value, Interval):
        bounds = (value.low, value.high)
        return [value.value, *("" if math.isnan(bound) else bound for bound in bounds)]
    if value is None:
        return [""]
    if column.form == "verdict":
        return [shown(column, value)]
    return [("yes" if value else "no") if isinstance(value, bool) else value]
