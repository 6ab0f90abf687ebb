"""Rows: scores, items and metrics are read as written; what is torn or foreign is refused."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.digest import SHORT, digest_json
from ontogeny.errors import EvaluationError
from ontogeny.results import (
    CHECK,
    ITEM_SCHEMA,
    SCORE_SCHEMA,
    Item,
    Score,
    UpdateMetrics,
    parse_metrics,
    read_items,
    read_metrics,
    read_scores,
    write_items,
    write_scores,
)

texts = st.text(st.characters(exclude_categories=["Cs"]))
counts = st.integers(0, 2**62)
finite = st.floats(allow_nan=False, allow_infinity=False)
scores = st.builds(
    Score,
    member=texts,
    step=counts,
    tokens=counts,
    task=texts,
    metric=texts,
    value=finite,
    low=finite,
    high=finite,
    n=counts,
)
items = st.builds(
    Item,
    member=texts,
    step=counts,
    task=texts,
    shots=counts,
    item=texts,
    gold=st.none() | counts,
    chosen=st.none() | counts,
    log_likelihood=finite,
    margin=st.none() | finite,
    num_bytes=counts,
    metrics=st.dictionaries(texts, finite, max_size=3),
)
updates = st.builds(
    UpdateMetrics,
    update=counts,
    loss=finite,
    learning_rate=finite,
    gradient_norm=finite,
    tokens=counts,
    rows_digest=texts,
    seconds=finite,
)
FIRST = UpdateMetrics(0, 8.5, 1e-3, 0.5, 2048, "0" * 64, 0.25)


@settings(max_examples=40)
@given(st.lists(scores, max_size=4), st.lists(items, max_size=4))
def test_tables_round_trip(
    tmp_path_factory: pytest.TempPathFactory, score_rows: list[Score], item_rows: list[Item]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_scores(folder / "scores.parquet", iter(score_rows))
    write_items(folder / "items.parquet", iter(item_rows))
    assert read_scores(folder / "scores.parquet") == score_rows
    assert read_items(folder / "items.parquet") == item_rows


def test_an_interval_that_is_no_number(tmp_path: Path) -> None:
    row = Score("14m", 1, 2, "t", "m", 0.5, float("nan"), float("nan"), 1)
    write_scores(tmp_path / "scores.parquet", [row])
    (read,) = read_scores(tmp_path / "scores.parquet")
    assert math.isnan(read.low)
    assert math.isnan(read.high)
    assert replace(read, low=0.0, high=0.0) == replace(row, low=0.0, high=0.0)


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    row = Score("14m", 1, 2, "t", "m", 0.5, 0.4, 0.6, 10)
    for name in ("one", "two"):
        write_scores(tmp_path / name, [row] * 3)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tables_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    with pytest.raises(EvaluationError, match=r"scores\.parquet: unreadable table"):
        read_scores(path)
    path.write_bytes(b"PAR1 is how one begins")
    with pytest.raises(EvaluationError, match=r"scores\.parquet: unreadable table"):
        read_scores(path)


def test_a_truncated_table(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    write_items(path, [Item("14m", 1, "t", 0, "i", 0, 1, -2.5, -0.5, 9, {"acc": 0.0})])
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(EvaluationError, match="unreadable table"):
            read_items(path)


def test_a_table_with_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    write_items(path, [Item("14m", 1, "t", 0, "i", 0, 1, -2.5, -0.5, 9, {"acc": 0.0})])
    with pytest.raises(EvaluationError, match=r"table\.parquet: .*other columns.*expected member"):
        read_scores(path)
    write_scores(path, [Score("14m", 1, 2, "t", "m", 0.5, 0.4, 0.6, 10)])
    with pytest.raises(EvaluationError, match="other columns"):
        read_items(path)
    texts_for_numbers = pa.schema([(name, pa.string()) for name in SCORE_SCHEMA.names])
    pq.write_table(texts_for_numbers.empty_table(), path)
    with pytest.raises(EvaluationError, match="other columns"):
        read_scores(path)
    assert set(ITEM_SCHEMA.names) == set(Item.__dataclass_fields__)
    assert set(SCORE_SCHEMA.names) == set(Score.__dataclass_fields__)


@given(updates)
def test_a_line_says_what_it_was_made_of(row: UpdateMetrics) -> None:
    line = row.line()
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert parse_metrics(line) == row


def test_every_flipped_bit_is_noticed() -> None:
    line = FIRST.line().rstrip("\n").encode()
    for place in range(len(line) * 8):
        flipped = bytearray(line)
        flipped[place // 8] ^= 1 << place % 8
        assert parse_metrics(flipped.decode(errors="replace")) is None


def test_every_torn_line_is_noticed() -> None:
    line = FIRST.line().rstrip("\n")
    assert parse_metrics(line) == FIRST
    assert [parse_metrics(line[:size]) for size in range(len(line))] == [None] * len(line)


@pytest.mark.parametrize(
    "line",
    ["", "null", "3", "[]", "{}", '"text"', "\x00" * 40, json.dumps(list(asdict(FIRST)))],
)
def test_foreign_lines(line: str) -> None:
    assert parse_metrics(line) is None


def test_a_line_with_a_number_beyond_all() -> None:
    values = asdict(FIRST) | {"loss": 10**400}
    del values["loss_scale"], values["skipped"]
    assert parse_metrics(json.dumps(values | {CHECK: digest_json(values)[:SHORT]})) is None
    values["loss"] = 8.5
    assert parse_metrics(json.dumps(values | {CHECK: digest_json(values)[:SHORT]})) == FIRST


@pytest.mark.parametrize("name", asdict(FIRST))
def test_a_line_with_other_keys(name: str) -> None:
    values: dict[str, Any] = asdict(FIRST)
    del values[name]
    assert parse_metrics(json.dumps(values)) is None
    assert parse_metrics(json.dumps(asdict(FIRST) | {"added": 1})) is None


@pytest.mark.parametrize("field", ["loss", "learning_rate", "gradient_norm", "seconds"])
def test_what_is_no_number_is_never_written(field: str) -> None:
    nan: dict[str, Any] = {field: float("nan")}
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(FIRST, **nan).line()


def test_metrics_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [replace(FIRST, update=number, tokens=2048 * (number + 1)) for number in range(3)]
    path.write_text("".join(row.line() for row in rows))
    assert list(read_metrics(path)) == rows


@pytest.mark.parametrize(
    ("second", "found"),
    [
        (replace(FIRST, update=2).line().encode(), '{"update": 2'),
        (FIRST.line().encode(), '{"update": 0'),
        (replace(FIRST, update=1).line().encode()[:50], '{"update": 1'),
        (b"\xff\xfe\n", r"\xff\xfe"),
        (b"\n", ""),
    ],
)
def test_metrics_with_a_line_that_is_not_the_next(
    tmp_path: Path, second: bytes, found: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(FIRST.line().encode() + second)
    rows = read_metrics(path)
    assert next(rows) == FIRST
    with pytest.raises(EvaluationError) as caught:
        next(rows)
    said = f"{path}:2: not the metrics of the next update; expected one JSON line for update 1; "
    assert str(caught.value).startswith(f"{said}found {found}".rstrip())
