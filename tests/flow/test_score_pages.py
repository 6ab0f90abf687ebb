"""Pages about scores alone: what is drawn, marked and explored, against naive computations."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ontogeny.artifact import faults, open_artifact
from ontogeny.errors import EvaluationError
from ontogeny.report.drawings import Drawing, Line, score_drawings
from ontogeny.report.explorer import write_explorer
from ontogeny.report.figures import draw
from ontogeny.report.flips import by_lasting, item_maps, read_flips
from ontogeny.report.measured import Measure, Measured, rank, read_measured
from ontogeny.report.site import build_report
from ontogeny.results import Item, Score
from ontogeny.scores import Cell, Place, ScoreStore
from spoken import Type

STEPS = (0, 1, 8, 64)
LEVELS: dict[str, tuple[float | None, float | None]] = {
    "last-word": (None, None), "agreement": (0.5, None), "wsc": (0.5, 66 / 104),
    "sciq": (0.25, None), "hendrycksTest-law": (0.25, None), "hendrycksTest-art": (0.2, None),
    "blimp": (0.5, None), "blimp_island": (0.5, None), "blimp_npi": (0.5, None),
}  # fmt: skip
EVIL = "other </script><b> text"
NUM_ITEMS = 20


def places() -> list[Place]:
    """Two sizes on both corpora, one size from three seeds, and a variant."""
    found = []
    for size, count in (("1m", 10**6), ("2m", 2 * 10**6)):
        for corpus, ending in (("standard", ""), ("deduped", "-deduped")):
            found.append(Place(f"{size}{ending}", 0, 0, size, count, corpus))
    found += [Place(f"1m-seed{seed}", 0, 0, "1m", 10**6, "standard", seed) for seed in (1, 2)]
    return [*found, Place("2m-bf16", 0, 0, "2m", 2 * 10**6, "standard")]


def fill(folder: Path, members: list[Place], tasks: tuple[str, ...] = tuple(LEVELS)) -> ScoreStore:
    store, random = ScoreStore(folder), np.random.RandomState(0)
    for member in members:
        for step in STEPS:
            place = replace(member, step=step, tokens=step * 512)
            scores: list[Score] = []
            items: list[Item] = []
            cells = [Cell(task, 0, "w", "v", "s", "d", "fp32", "test") for task in tasks]
            for task in tasks:
                where = member.member, step
                right = random.rand(NUM_ITEMS) < 0.3 + step / 120
                items += [
                    Item(*where, task, 0, f"{at:02}", 0, 0, -1.0, None, 3, {"acc": float(one)})
                    for at, one in enumerate(right)
                ]
                value = 38 / 104 if task == "wsc" else float(right.mean())
                differs = EVIL if task == "sciq" else ""
                scores.append(
                    Score(*where, place.tokens, task, "acc", value, value - 0.1, value + 0.1,
                          NUM_ITEMS, 0, *LEVELS[task], differs)
                )  # fmt: skip
            store.add(place, cells, scores, items, {})
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    return fill(tmp_path_factory.mktemp("scores") / "store", places())


@pytest.fixture(scope="module")
def measured(store: ScoreStore) -> Measured:
    return read_measured(store)


@pytest.fixture(scope="module")
def drawn(measured: Measured) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in score_drawings(measured)}


def lines(drawing: Drawing, title: str) -> dict[str, Line]:
    (panel,) = (panel for panel in drawing.panels if panel.title == title)
    return {line.member: line for line in panel.lines}


def value(store: ScoreStore, member: str, step: int, task: str) -> float:
    (row,) = (
        row for row in store.scores() if (row.member, row.step, row.task) == (member, step, task)
    )
    return row.value


def test_every_member_has_its_line_with_levels(
    store: ScoreStore, drawn: dict[str, Drawing]
) -> None:
    assert list(drawn) == ["tasks", "paper-0-shot", "others-0-shot", "deduped-less-standard",
                           "seeds"]  # fmt: skip
    found = lines(drawn["paper-0-shot"], "sciq")
    assert found.keys() == {place.member for place in places()}
    line = found["2m-deduped"]
    assert line.tokens.tolist() == [step * 512 for step in STEPS]
    assert line.values.tolist() == [value(store, "2m-deduped", step, "sciq") for step in STEPS]
    np.testing.assert_allclose(line.high - line.low, 0.2)
    wsc = next(panel for panel in drawn["paper-0-shot"].panels if panel.title == "wsc")
    assert wsc.levels == {"chance": 0.5, "commonest answer": 66 / 104}


def test_parts_of_a_benchmark_are_left_to_the_explorer(
    measured: Measured, drawn: dict[str, Drawing]
) -> None:
    assert [panel.title for panel in drawn["others-0-shot"].panels] == ["blimp"]
    assert "Tasks that only the explorer and the file have: 4." in drawn["others-0-shot"].caption
    assert measured.other_charts(0)[1] == 4


def test_tasks_that_few_were_asked_are_left_to_the_explorer(tmp_path: Path) -> None:
    members = places()[:4]
    fill(tmp_path, members[:3], ("sciq", "blimp"))
    store = fill(tmp_path, members[3:], ("sciq",))
    fill(tmp_path, members[:1], ("sciq", "hendrycksTest-law"))
    charts, num_left = read_measured(store).other_charts(0)
    assert ([chart.title for chart in charts], num_left) == (["blimp"], 1)


def test_twins_and_seeds_are_compared_at_equal_tokens(
    store: ScoreStore, drawn: dict[str, Drawing]
) -> None:
    twins = lines(drawn["deduped-less-standard"], "agreement")
    assert twins.keys() == {"1m", "2m"}
    for at, step in enumerate(STEPS):
        ours = [value(store, name, step, "agreement") for name in ("2m-deduped", "2m")]
        assert twins["2m"].values[at] == pytest.approx(ours[0] - ours[1])
        assert twins["2m"].high[at] - twins["2m"].values[at] == pytest.approx(math.sqrt(0.02))
        alike = [value(store, f"1m{end}", step, "last-word") for end in ("", "-seed1", "-seed2")]
        spread = lines(drawn["seeds"], "last-word")["1m"]
        assert spread.values[at] == pytest.approx(sum(alike) / 3)
        assert (spread.low[at], spread.high[at]) == (min(alike), max(alike))


def test_of_too_many_members_the_plain_are_drawn(tmp_path: Path) -> None:
    members = [Place("1m-bf16", 0, 0, "1m", 10**6)]
    members += [Place(f"2m-rate{at}", 0, 0, "2m", 2 * 10**6) for at in range(16)]
    store = fill(tmp_path, members, ("sciq",))
    fill(tmp_path, members[3:4], ("sciq", "wsc"))
    measured = read_measured(store)
    assert set(measured.plain.values()) == {"1m-bf16", "2m-rate2"}  # alone, and asked most
    (paper,) = (one for one in score_drawings(measured) if one.name == "paper-0-shot")
    assert lines(paper, "sciq").keys() == set(measured.plain.values())


def test_models_that_are_of_no_suite_are_drawn_where_nothing_was_seen(tmp_path: Path) -> None:
    store, name = ScoreStore(tmp_path), r"smol $\no$"
    score = Score(name, 0, 0, "odd", "ppl", 1e9, math.nan, math.nan, 0)
    store.add(Place(name, 0, 0, "135m", 10**8, "unknown"), [Cell("odd", 0, *[""] * 6)],
              [score], [], {})  # fmt: skip
    measured = read_measured(store)
    (drawing,) = score_drawings(measured)
    assert lines(drawing, "odd, ppl")[name].values.tolist() == [1e9]
    draw(drawing, measured, tmp_path)
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        "others-0-shot.svg", "others-0-shot-linear.svg",
    }  # fmt: skip


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 6))))
def test_items_are_sorted_by_when_they_are_right_for_good(right: np.ndarray) -> None:
    def key(item: int) -> tuple[int, int]:
        wrong = [step for step in range(right.shape[1]) if not right[item, step]]
        return max(wrong, default=-1), -int(right[item].sum())

    assert by_lasting(right).tolist() == sorted(range(len(right)), key=key)


def test_maps_hold_the_items_of_the_store(store: ScoreStore, measured: Measured) -> None:
    (maps,) = item_maps(store, measured, ("agreement", "piqa", "sciq"))
    assert (maps.name, maps.members) == ("items-0-shot", ["1m", "2m"])
    assert [task for task, _ in maps.rows] == ["agreement", "sciq"]
    flips = read_flips(store, "1m", ["agreement"])["agreement", 0]
    assert flips.columns.tolist() == [step * 512 for step in STEPS]
    for at, step in enumerate(STEPS):
        right = [one.metrics["acc"] for one in store.items("1m", step) if one.task == "agreement"]
        assert flips.to_numpy()[:, at].sum() == sum(right)


def test_items_not_asked_everywhere_and_tasks_without_right_answers(tmp_path: Path) -> None:
    store = fill(tmp_path, places()[:1], ("sciq",))
    items = [one for one in store.items("1m", 8) if one.item != "03"]
    store.add(store.place("1m", 8), store.cells("1m", 8), [], items, {})
    no_answers = [replace(one, task="wsc", metrics={"f1": 0.5}) for one in items]
    cells = [replace(store.cells("1m", 64)[0], task="wsc")]
    store.add(store.place("1m", 64), cells, [], no_answers, {})
    found = read_flips(store, "1m", ["sciq", "wsc"])
    assert found.keys() == {("sciq", 0)}
    assert found["sciq", 0].shape == (NUM_ITEMS - 1, len(STEPS))


def test_perplexity_too_great_for_a_number_is_told(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path / "store")
    for step, value in ((0, math.inf), (1, 1e9), (2, 9.0)):
        score = Score("1m", step, step, "odd", "perplexity", value, value / 2, value, 5)
        cells = [Cell("odd", 0, *[""] * 6)]
        store.add(replace(places()[0], step=step, tokens=step), cells, [score], [], {})
    page = build_report(store.folder, tmp_path / "page").path
    assert "odd,perplexity,inf,inf,inf,5" in (page / "tables" / "scores.csv").read_text()
    assert "null,1000000000.0,9.0" in (page / "explorer.html").read_text(encoding="utf-8")


def test_checkpoints_of_unknown_tokens_are_mapped_by_their_steps(tmp_path: Path) -> None:
    fill(tmp_path / "known", places()[:1], ("sciq",))
    known, store = ScoreStore(tmp_path / "known"), ScoreStore(tmp_path / "unknown")
    for name, step in known.places():
        place = replace(known.place(name, step), tokens=0)
        scores = [replace(row, tokens=0) for row in known.scores(name, step)]
        store.add(place, known.cells(name, step), scores, known.items(name, step), {})
    found = read_flips(store, "1m", ["sciq"])["sciq", 0]
    assert (found.to_numpy() == read_flips(known, "1m", ["sciq"])["sciq", 0].to_numpy()).all()
    assert found.columns.tolist() == [0] * len(STEPS)


def test_damaged_items_are_refused(tmp_path: Path) -> None:
    store = fill(tmp_path, places()[:1], ("sciq",))
    path = store.path("1m", 8) / "items.parquet"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(EvaluationError, match=r"step=8/items.parquet: unreadable table"):
        read_flips(store, "1m", ["sciq"])


def test_explorer_holds_every_score_and_nothing_that_ends_a_script(
    store: ScoreStore, measured: Measured, tmp_path: Path
) -> None:
    write_explorer(measured, "Scores & more", tmp_path)
    page = (tmp_path / "explorer.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [
        ' src="plotly.min.js"', ' type="application/json" id="scores"', "",
    ]  # fmt: skip
    assert "http" not in page
    assert sorted(["acc_norm", "f1", "acc", "bits_per_byte"], key=rank)[:2] == [
        "acc", "bits_per_byte",
    ]  # fmt: skip
    assert "<h1>Scores &amp; more</h1>" in page
    data = json.loads(scripts[1][1])
    found = [
        (data["members"][member]["name"], step, task, at_tokens, n[at], values[at], differs)
        for task, by_shots in data["curves"].items()
        for member, steps, tokens, n, values, _, _, _, _, differs in by_shots["0"]["acc"]
        for at, (step, at_tokens) in enumerate(zip(steps, tokens, strict=True))
    ]
    rows = [(row.member, row.step, row.task, row.tokens, row.n, row.value, row.differs)
            for row in store.scores()]  # fmt: skip
    assert sorted(found) == [
        (*row[:5], pytest.approx(row[5], rel=1e-4), row[6]) for row in sorted(rows)
    ]
    write_explorer(read_measured(store), "Scores & more", tmp_path)
    assert (tmp_path / "explorer.html").read_text(encoding="utf-8") == page


@pytest.mark.slow
def test_page_of_a_store_marks_what_is_not_above_its_baseline(
    store: ScoreStore, say: Type, tmp_path: Path
) -> None:
    told = say("report", store.folder, "--out", tmp_path / "page")
    assert (told.code, told.err) == (0, "")
    report = open_artifact(tmp_path / "page", "report")
    assert faults(report) == []
    assert report.facts == {"figures": 9, "members": 7}
    assert report.inputs["2m-bf16"] == store.digest("2m-bf16")
    page = (report.path / "index.html").read_text(encoding="utf-8")
    for target in re.findall(r'(?:src|href)="([^#"]+)"', page):
        assert target in report.files
    assert "7 models, asked up to 9 tasks each." in page
    assert page.count("36.5%\N{DAGGER}") == 7  # 38 of 104, with 66 the commonest answer
    assert ">sciq*</th>" in page
    assert "other &lt;/script&gt;&lt;b&gt; text" in page
    with (report.path / "tables" / "scores.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(store.scores())
    with (report.path / "tables" / "asked.csv").open(encoding="utf-8", newline="") as file:
        asked = {row["task"]: row for row in csv.DictReader(file)}
    assert asked["wsc"]["items"] == "20"
    assert float(asked["wsc"]["commonest answer"]) == 66 / 104
    final = (report.path / "tables" / "final-0-shot.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in final] == ["member", "1m", "1m-deduped", "2m",
                                                      "2m-deduped"]  # fmt: skip


@pytest.mark.slow
def test_page_lies_in_the_store_until_more_was_asked(tmp_path: Path, say: Type) -> None:
    store = fill(tmp_path / "store", places()[:1], ("sciq",))
    assert say("report", store.folder).out.strip().endswith("report/index.html")
    first = (store.folder / "report").resolve()
    say("report", store.folder)
    assert (store.folder / "report").resolve() == first
    fill(store.folder, places()[:1], ("sciq", "wsc"))
    say("report", store.folder)
    assert (store.folder / "report").resolve() != first
    assert Measure("wsc", "acc") in read_measured(store).curves


def test_folder_of_no_scores_is_refused_in_a_line(tmp_path: Path, say: Type) -> None:
    told = say("report", tmp_path)
    assert told.code == 2
    assert "no scores; expected the folder of a suite, or member=M/step=N folders" in told.err
    assert not list(tmp_path.iterdir())
