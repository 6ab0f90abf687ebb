"""What the report computes, against naive computations: common tokens, bins, looks, TOML, HTML."""

from __future__ import annotations

import html
import math
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.config import build
from ontogeny.report.control import Comparison, compare, finding
from ontogeny.report.drawings import smoothed
from ontogeny.report.evidence import History
from ontogeny.report.figures import looks, short_count
from ontogeny.report.origins import suite_toml
from ontogeny.report.page import element, text
from ontogeny.report.tables import Column, Table, shown
from ontogeny.results import Score, UpdateMetrics
from ontogeny.scores import Place
from ontogeny.suite import Suite

CONTEXT = 8
SIZES = {
    "small": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "learning_rate": 1e-3},
    "middle": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "learning_rate": 1e-3},
    "large": {"num_layers": 3, "hidden_size": 64, "num_heads": 4, "learning_rate": 1e-3},
}


def suite_of(members: list[dict[str, object]], **changes: object) -> Suite:
    values = {
        "name": "laws",
        "text": {"path": "texts"},
        "vocabulary": {"size": 512},
        "order": {"context_length": CONTEXT},
        "training": {"tokens": 4096, "rows_per_update": 4},
        "sizes": SIZES,
        "members": members,
    }
    return build(Suite, values | changes, "laws")


def histories(rows: list[int]) -> list[History]:
    """Members of one corpus that differ in rows per update; the digest is the count of tokens."""
    suite = suite_of([{"size": ["small"], "rows_per_update": count} for count in rows])
    found = []
    for member in suite.table():
        run = suite.run_settings(member, 512)
        tokens = [(update + 1) * run.tokens_per_update for update in range(run.num_updates)]
        updates = [UpdateMetrics(i, 1.0, 0.1, 1.0, t, str(t), 0.1) for i, t in enumerate(tokens)]
        found.append(History(member, run, updates, []))
    return found


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True))
def test_common_tokens_lie_between_updates_of_every_member(rows: list[int]) -> None:
    members = histories(rows)
    passed = [{row.tokens for row in member.updates} for member in members]
    everywhere = sorted(set.intersection(*passed))
    comparisons = compare(members)
    found = [comparison.tokens for comparison in comparisons]
    assert set(found) <= set(everywhere)
    assert found[:1] == everywhere[:1]
    assert found[-1:] == everywhere[-1:]
    assert found == sorted(set(found))
    for comparison in comparisons:
        assert set(comparison.digests.values()) == {str(comparison.tokens)}


def test_what_cannot_be_compared_is_said_to_be_so() -> None:
    members = histories([37, 41])
    assert compare(members) == []
    assert finding("standard", members, [])[0] == "unproven"
    alone = members[:1]
    verdict, words = finding("standard", alone, compare(alone))
    assert verdict == "unproven"
    assert "nothing to compare" in words


def test_odd_members_are_those_off_the_commonest_digest() -> None:
    assert Comparison(8, {"a": "1", "b": "2", "c": "1"}).odd_members == ["b"]
    assert Comparison(8, {"a": "1", "b": "1"}).odd_members == []


@given(
    st.lists(st.integers(8, 10_000), min_size=1, max_size=60, unique=True),
    st.integers(1, 12),
)
def test_smoothing_is_the_mean_of_each_bin(tokens: list[int], num_bins: int) -> None:
    x = np.array(sorted(tokens), float)
    y = np.sqrt(x)
    edges = np.geomspace(8, 10_000, num_bins + 1)
    expected = []
    for at in range(num_bins):
        last = at == num_bins - 1
        inside = [
            b for a, b in zip(x, y, strict=True)
            if (at == 0 or a >= edges[at]) and (last or a < edges[at + 1])
        ]  # fmt: skip
        expected += [sum(inside) / len(inside)] if inside else []
    np.testing.assert_allclose(smoothed(x, y, edges)[1], expected)


def test_a_point_on_an_edge_belongs_to_the_bin_it_opens_and_empty_bins_are_left_out() -> None:
    edges, tokens = np.array([1.0, 10.0, 50.0, 100.0]), np.array([1.0, 10.0, 20.0])
    x, y = smoothed(tokens, np.array([5.0, 1.0, 3.0]), edges)
    assert x.tolist() == [1.0, 15.0]
    assert y.tolist() == [5.0, 2.0]
    assert smoothed(tokens[:0], tokens[:0], edges)[0].tolist() == []


def test_one_colour_a_size_darker_for_larger_and_no_two_members_alike() -> None:
    suite = suite_of(
        [
            {"size": ["large", "small", "middle"], "corpus": ["standard", "deduped"]},
            {"size": ["middle"], "rows_per_update": 8},
            {"size": ["middle"], "init_seed": [1, 2]},
        ]
    )
    table = suite.table()
    variants = {
        member.name for member in table if member.name.count("-") and "ded" not in member.name
    }
    places = [
        Place(one.name, 1, 1, one.size, one.size_settings.hidden_size, one.corpus, one.init_seed)
        for one in table
    ]
    found = looks(places, variants)
    drawn = {(look.color, str(look.linestyle), look.marker) for look in found.values()}
    assert len(drawn) == len(table)
    assert len({look.color for look in found.values()}) == 3
    for name, look in found.items():
        assert look.color == found[name.partition("-")[0]].color
    assert found["small"].linestyle == found["large"].linestyle != found["large-deduped"].linestyle
    assert found["middle-rows8"].linestyle == found["middle-seed1"].linestyle
    light = [_lightness(found[size].color) for size in ("small", "middle", "large")]
    assert light == sorted(light, reverse=True)
    assert light[0] - light[1] > 0.1 < light[1] - light[2]


def _lightness(colour: str) -> float:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2


@given(
    st.dictionaries(st.text(min_size=1, max_size=8), st.integers(1, 10**9), min_size=1),
    st.floats(1e-9, 1.0),
)
def test_suite_file_reads_back(components: dict[str, int], rate: float) -> None:
    printable = {key: size for key, size in components.items() if "\x7f" not in key}
    suite = suite_of(
        [{"size": ["small"], "learning_rate": rate}],
        text={"components": printable or {"a": 1}, "planted": {"canary_copies": [1, 3]}},
    )
    assert build(Suite, tomllib.loads(suite_toml(suite)), "suite.toml") == suite


@given(st.text())
def test_text_comes_back_from_the_page(words: str) -> None:
    escaped = text(words)
    assert html.unescape(escaped) == html.unescape(html.escape(words))
    assert "<" not in escaped
    assert '"' not in element("a", href=words).removeprefix('<a href="').removesuffix('"></a>')


@pytest.mark.parametrize(
    ("value", "short"),
    [(512, "512"), (4096, "4.1k"), (20_000, "20k"), (1_500_000, "1.5M"), (300e9, "300B")],
)
def test_counts_are_short_on_an_axis(value: float, short: str) -> None:
    assert short_count(value) == short


def score(
    value: float, low: float = 0.0, high: float = 9.0, n: int = 3, chance: float | None = None
) -> Score:
    return Score("small", 1, 64, "task", "acc", value, low, high, n, chance=chance)


@pytest.mark.parametrize(
    ("column", "value", "seen"),
    [
        (Column("a", ","), 1_234_567, "1,234,567"),
        (Column("a", ".1%"), 0.123, "12.3%"),
        (Column("a", form="digest"), "0123456789abcdef", "01234567"),
        (Column("a", ".2f"), score(1, 0.5, 1.5), "1.00 [0.50, 1.50]"),
        (Column("a", ".2f"), score(1, math.nan, math.nan, n=1), "1.00 [one item]"),
        (Column("a", ".2f"), score(1, math.nan, math.nan), "1.00"),
        (Column("a", ".1%"), score(0.5, 0.4, 0.6, chance=0.45), "50.0%\N{DAGGER} [40.0%, 60.0%]"),
        (Column("a", ".1%"), score(0.5, 0.4, 0.6, chance=0.25), "50.0% [40.0%, 60.0%]"),
        (Column("a", ","), None, "\N{EN DASH}"),
    ],
)
def test_cells_are_shown(column: Column, value: object, seen: str) -> None:
    assert shown(column, value) == seen


def test_best_is_the_better_end_of_several() -> None:
    columns = [Column("name"), Column("bits", ".1f", "score", "low"), Column("n", ".1f", "score")]
    columns.append(Column("accuracy", ".1f", "score", "high"))
    rows = [(name, *[score(value)] * 3) for name, value in (("a", 2.0), ("b", 1.0), ("c", 1.0))]
    assert [Table("t", columns, rows).best(place) for place in range(4)] == [None, 1.0, None, 2.0]
    assert Table("t", columns, rows[:1]).best(1) is None
