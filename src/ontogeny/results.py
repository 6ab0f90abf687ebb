"""Rows of measurements: the one form every score, benchmark or study is written in.

A score row says what was measured on which checkpoint, with how many items and which interval; an
item row what one item gave. A metrics row is one update of a run. Parquet for scores and items
(pyarrow), one JSON line an update for metrics. Not here: where scores are kept (`scores.py`), how
anything is measured or drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter

from ontogeny.digest import SHORT, canonical_json, digest_bytes, digest_json
from ontogeny.errors import EvaluationError


@dataclass(frozen=True, slots=True)
class Score:
    """One measurement: `value` of `metric` on `task` at a checkpoint, from `n` items.

    `low` and `high` bound a 95 % interval over the items, NaN where there is none. `tokens` is what
    the model was trained on by then: the axis on which members are compared. `shots` is how many
    worked examples stood before each item. `chance` is what guessing gives, `majority` what always
    giving the commonest answer does, None where there is no such level; `differs` says how the task
    departs from the one of its name, empty where it does not. n is 0 where that is not known.
    """

    member: str
    step: int
    tokens: int
    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    shots: int = 0
    chance: float | None = None
    majority: float | None = None
    differs: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """What one item of a task gave: the rows a score was counted from.

    Of an item with options `gold` is the right one's place, None where none is right, and `chosen`
    that of the likeliest. `log_likelihood` (natural log) is of the right option, or of the text,
    whose UTF-8 bytes are counted in `num_bytes`; `margin` is how far it is above the best other.
    `metrics` is what each measure makes of the item.
    """

    member: str
    step: int
    task: str
    shots: int
    item: str
    gold: int | None
    chosen: int | None
    log_likelihood: float
    margin: float | None
    num_bytes: int
    metrics: dict[str, float]


SCORES, ITEMS = "scores.parquet", "items.parquet"  # the files of a scores artifact
COLUMNS = {
    "str": pa.string(),
    "int": pa.int64(),
    "int | None": pa.int64(),
    "float": pa.float64(),
    "float | None": pa.float64(),
    "dict[str, float]": pa.map_(pa.string(), pa.float64()),
}
SCORE_SCHEMA, ITEM_SCHEMA = (
    pa.schema([(field.name, COLUMNS[str(field.type)]) for field in fields(row)])
    for row in (Score, Item)
)


def write_rows(folder: Path, scores: Iterable[Score], items: Iterable[Item]) -> None:
    """Write the score rows and the item rows of an artifact in `folder`."""
    write_scores(folder / SCORES, scores)
    write_items(folder / ITEMS, items)


def read_rows(folder: Path) -> tuple[list[Score], list[Item]]:
    """What `write_rows` wrote. Raises EvaluationError if it is anything else."""
    return read_scores(folder / SCORES), read_items(folder / ITEMS)


def write_scores(path: Path, rows: Iterable[Score]) -> None:
    """Write score rows as Parquet, in the order given."""
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], SCORE_SCHEMA), path)


def write_items(path: Path, rows: Iterable[Item]) -> None:
    """Write item rows as Parquet, in the order given."""
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], ITEM_SCHEMA), path)


def read_scores(path: Path) -> list[Score]:
    """The score rows of a Parquet file. Raises EvaluationError if it is not one."""
    return [Score(**row) for row in _read(path, SCORE_SCHEMA)]


def read_items(path: Path) -> list[Item]:
    """The item rows of a Parquet file. Raises EvaluationError if it is not one."""
    rows = _read(path, ITEM_SCHEMA)
    return [Item(**row | {"metrics": dict(row["metrics"])}) for row in rows]


@dataclass(frozen=True, slots=True)
class UpdateMetrics:
    """One line of `metrics.jsonl`: update `update` took `step = update` to `step + 1`.

    `tokens` counts what was consumed including this update; `rows_digest` rolls over every row so
    far, so runs that saw the same rows agree on it at equal tokens. `seconds` is wall time.
    In fp16 the loss was multiplied by `loss_scale`; where the gradient then overflowed the update
    was skipped, and its norm is 0. A line leaves both out where they are as below.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    update: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    rows_digest: str
    seconds: float
    loss_scale: float = 1.0
    skipped: bool = False

    def line(self) -> str:
        """The line, with the first digits of its own digest: an altered one is noticed."""
        usual = {field.name: field.default for field in fields(self)}
        values = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return json.dumps(values | {CHECK: digest_json(values)[:SHORT]}) + "\n"


METRICS_ROW = TypeAdapter(UpdateMetrics)
CHECK = "check"


def read_metrics(path: Path) -> Iterator[UpdateMetrics]:
    """The updates of a run in order. Raises EvaluationError naming a line that is not one."""
    with path.open(encoding="utf-8", errors="backslashreplace") as file:
        for number, line in enumerate(file, start=1):
            row = parse_metrics(line)
            if row is None or row.update != number - 1:
                raise EvaluationError(
                    "not the metrics of the next update",
                    where=f"{path}:{number}",
                    expected=f"one JSON line for update {number - 1}",
                    found=line[:80],
                )
            yield row


def parse_metrics(line: str) -> UpdateMetrics | None:
    """The update a line records, or None if the line is torn, altered or foreign."""
    try:
        values = json.loads(line)
        check, text = values.pop(CHECK), canonical_json(values).encode()
        return METRICS_ROW.validate_json(text) if check == digest_bytes(text)[:SHORT] else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise EvaluationError where the block finds that the table at `path` cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise EvaluationError(f"unreadable table ({error})", where=path) from error


def _read(path: Path, schema: Any) -> list[dict[str, Any]]:
    with reading(path):
        table = pq.read_table(path)
        rows: list[dict[str, Any]] = table.to_pylist()
    if not table.schema.equals(schema):
        raise EvaluationError(
            "a table with other columns",
            where=path,
            expected=", ".join(f"{column.name} {column.type}" for column in schema),
            found=", ".join(f"{column.name} {column.type}" for column in table.schema),
        )
    return rows
