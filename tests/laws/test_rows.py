"""Rows: choices by definition, intervals of every measure, levels on accuracies alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.evaluation.rows import option_item, score_rows
from ontogeny.evaluation.tasks import NotFiniteError, Spec
from ontogeny.results import Item
from ontogeny.scores import Place

PLACE = Place("m", 8, 99, "1m", 1000)
SPEC = Spec("quiz", 5, "d", "e", "ours 1", chance=0.25, majority=0.3, differs="shorter")
VALUES = st.floats(-500, -0.01)
OPTIONS = st.lists(st.tuples(VALUES, st.integers(1, 80)), min_size=2, max_size=5)


@given(OPTIONS, st.data())
def test_an_item_by_definition(options: list[tuple[float, int]], data: st.DataObject) -> None:
    gold = data.draw(st.integers(0, len(options) - 1))
    values, sizes = [value for value, _ in options], [size for _, size in options]
    item = option_item(PLACE, "quiz", 5, "q1", gold, values, sizes)
    best = max(values)
    rates = [value / size for value, size in options]
    assert item.chosen == values.index(best)
    assert item.metrics == {
        "acc": float(values.index(best) == gold),
        "acc_norm": float(rates.index(max(rates)) == gold),
    }
    assert item.margin == values[gold] - max(values[:gold] + values[gold + 1 :])
    assert (item.log_likelihood, item.num_bytes) == (values[gold], sizes[gold])
    assert (item.member, item.step, item.task, item.shots, item.item, item.gold) == (
        "m", 8, "quiz", 5, "q1", gold,
    )  # fmt: skip


def test_a_text_is_no_choice() -> None:
    item = option_item(PLACE, "text", 0, "t", 0, [-3.5], [7])
    assert (item.gold, item.chosen, item.margin, item.metrics) == (None, None, None, {})
    assert option_item(PLACE, "text", 0, "t", 0, [-3.5], [7], {"acc": 1.0}).metrics == {"acc": 1.0}


def test_of_equal_options_the_first_is_chosen() -> None:
    items = [option_item(PLACE, "t", 0, "i", gold, [-2.0, -2.0], [3, 3]) for gold in (0, 1)]
    assert [(item.chosen, item.margin, item.metrics["acc"]) for item in items] == [
        (0, 0.0, 1.0), (0, 0.0, 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_an_answer_that_is_no_number_names_its_item(value: float) -> None:
    with pytest.raises(NotFiniteError) as caught:
        option_item(PLACE, "quiz", 0, "q7", 0, [-1.0, value], [1, 1])
    assert str(caught.value) == f"item q7 of quiz: an answer is no number; found -1, {value:g}"


def quiz(number: int) -> list[Item]:
    random = np.random.RandomState(number)
    return [
        option_item(PLACE, "quiz", 5, f"q{n}", n % 4, (-random.rand(4) * 9).tolist(), [4, 5, 6, 7])
        for n in range(number)
    ]


def test_every_measure_has_its_row() -> None:
    items = quiz(40)
    rows = {row.metric: row for row in score_rows(PLACE, SPEC, items)}
    expected = {
        "acc": np.mean([item.metrics["acc"] for item in items]),
        "acc_norm": np.mean([item.metrics["acc_norm"] for item in items]),
        "log_likelihood": np.mean([item.log_likelihood for item in items]),
        "margin": np.mean([item.margin for item in items if item.margin is not None]),
        "bits_per_byte": -sum(item.log_likelihood for item in items)
        / math.log(2)
        / sum(item.num_bytes for item in items),
    }
    assert {metric: row.value for metric, row in rows.items()} == pytest.approx(expected)
    for metric, row in rows.items():
        assert (row.member, row.step, row.tokens, row.task) == ("m", 8, 99, "quiz")
        assert (row.n, row.shots, row.differs) == (40, 5, "shorter")
        assert row.low <= row.value <= row.high
        levels = (0.25, 0.3) if metric.startswith("acc") else (None, None)
        assert (row.chance, row.majority) == levels


def test_what_not_all_items_have_is_no_measure() -> None:
    items = quiz(6)
    assert "margin" not in measures([*items[:-1], replace(items[-1], margin=None)])
    assert "bits_per_byte" not in measures([*items[:-1], replace(items[-1], num_bytes=0)])


def measures(items: list[Item]) -> set[str]:
    return {row.metric for row in score_rows(PLACE, SPEC, items)}


def test_a_part_goes_by_its_name_and_one_item_has_no_interval() -> None:
    (row,) = (one for one in score_rows(PLACE, SPEC, quiz(1), "quiz/a") if one.metric == "margin")
    assert (row.task, row.n) == ("quiz/a", 1)
    assert math.isnan(row.low)
    assert math.isnan(row.high)
