"""Asking for scores: what is printed, compared and queried, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ontogeny
from grown import SUITE
from ontogeny.intervals import mean_interval
from ontogeny.questions.comparisons import compare, emergences, seed_bands
from ontogeny.questions.handles import OpenMember
from ontogeny.questions.scores import Scores, open_scores, verdict
from ontogeny.record import Record, write_record
from ontogeny.results import Item, Score
from ontogeny.scores import Cell, Place, ScoreStore
from ontogeny.suite import load_suite
from spoken import Type

N, STEPS = 60, (0, 8, 16, 24)
SKILLS = {0: 0.05, 8: 0.3, 16: 0.7, 24: 0.9}
WSC = replace(
    Score("2m", 24, 1, "wsc", "acc", 38 / 104, 0.28, 0.46, 104), chance=0.5, majority=66 / 104
)


@dataclass(frozen=True)
class Asked:
    """A task as it is asked here: how much easier it is, and its words."""

    task: str
    ease: float = 0.0
    spec: str = "s" * 64
    shots: int = 0
    items: range = range(N)


def put(store: ScoreStore, place: Place, *tasks: Asked, seed: int = 0) -> None:
    """Add what a checkpoint gave: `acc` of every item, or scores alone where there are none."""
    for asked in tasks:
        cell = Cell(asked.task, asked.shots, "w", "v", asked.spec, "d", "float32", "ontogeny 1")
        random = np.random.RandomState(seed + place.step)
        right = (random.rand(N) < SKILLS[place.step] + asked.ease).astype(float)
        differs = "shortened" if asked.task == "quiz" else ""
        rows = [
            Score(place.member, place.step, place.tokens, asked.task, "acc",
                  *mean_interval(right), N, asked.shots, 0.25, 0.3, differs),
            Score(place.member, place.step, place.tokens, asked.task, "log_likelihood",
                  -3.0, -4.0, -2.0, N, asked.shots, None, None, differs),
        ]  # fmt: skip
        items = [
            Item(place.member, place.step, asked.task, asked.shots, f"i{number:02}", 1,
                 int(right[number]), -3.0 + right[number], right[number] - 0.5, 4,
                 {"acc": right[number]})
            for number in asked.items
        ]  # fmt: skip
        with store.locked():
            store.add(place, [cell], rows, items, {"run": "r" * 64})


def place(member: str, step: int, init_seed: int = 0) -> Place:
    return Place(
        member, step, step * 512, member.partition("-")[0], len(member), "standard", init_seed
    )


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members, one with three seeds, at four steps."""
    store = ScoreStore(tmp_path_factory.mktemp("it's [here]") / "scores")
    for step in STEPS:
        for seed in range(3):
            name = "2m" + f"-seed{seed}" * (seed > 0)
            put(
                store, place(name, step, seed), Asked("quiz"), Asked("pairs", 0.05), seed=seed * 100
            )
        put(store, place("5m", step), Asked("quiz", 0.1), Asked("quiz", 0.2, shots=5), seed=7)
    return store.folder.parent


def test_the_last_step_of_all(say: Type, grown: Path) -> None:
    said = say("scores", grown)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0].split()[:6] == ["member", "step", "task", "metric", "value", "95"]
    assert len(lines) == 1 + 2 * (3 * 2 + 2) + 1
    assert all(line.split()[1] == "24" for line in lines[1:-1])
    assert lines[-1] == "[1] shortened"
    assert sum(line.rstrip().endswith("[1]") for line in lines) == 2 * 5


def test_what_cannot_be_told_is_said(say: Type, grown: Path) -> None:
    said = say("scores", grown, "--steps", "all", "--task", "quiz", "--metric", "acc",
               "--member", "2m", "--shots", "0")  # fmt: skip
    notes = [line.rpartition("0.300")[2].strip() for line in said.out.splitlines()[1:-1]]
    assert notes == ["! below majority [1]", "! not told from majority [1]", "[1]", "[1]"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (WSC, "! the constant answer"),
        (replace(WSC, value=66 / 104), "! the constant answer"),
        (replace(WSC, value=39 / 104), "! below majority"),
        (replace(WSC, value=0.7, low=0.6, high=0.8), "! not told from majority"),
        (replace(WSC, value=0.7, low=0.65, high=0.8), ""),
        (replace(WSC, chance=0.25), "! below majority"),  # of four options, not the other answer
        (replace(WSC, chance=0.9), "! below chance"),
        (replace(WSC, majority=None), "! below chance"),
        (replace(WSC, majority=None, high=0.51), "! not told from chance"),
        (replace(WSC, value=0.4, low=float("nan"), high=float("nan")), "! no interval"),
        (replace(WSC, chance=None, majority=None), ""),
        (replace(WSC, value=0.5, majority=0.5, high=0.6), "! not told from chance"),
    ],
)
def test_verdicts(row: Score, words: str) -> None:
    assert verdict(row) == words


def test_both_checkpoints_answer_the_same_items(say: Type, grown: Path) -> None:
    frame = compare(open_scores(grown), "5m@16", "2m@16", task="quiz", metric="acc").iloc[0]
    store = ScoreStore(grown / "scores")
    a, b = (
        {one.item: one.metrics["acc"] for one in store.items(member, 16)
         if (one.task, one.shots) == ("quiz", 0)}
        for member in ("5m", "2m")
    )  # fmt: skip
    assert frame["n"] == N == len(a)
    assert frame["only_a"] == sum(a[item] > b[item] for item in a)
    assert frame["only_b"] == sum(a[item] < b[item] for item in a)
    assert frame["difference"] == pytest.approx(sum(a[item] - b[item] for item in a) / N)
    assert frame["low"] < frame["difference"] < frame["high"]
    said = say("scores", grown, "--compare", "5m@16,2m", "--task", "quiz", "--metric", "acc")
    assert said.out.splitlines()[1].split()[:4] == ["5m@16", "2m@16", "quiz", "0"]
    assert f"{frame['difference']:.3f}" in said.out


def test_measures_that_move_before_choices_are_compared_too(grown: Path) -> None:
    frame = compare(open_scores(grown), "2m@24", "2m@0", task="quiz").set_index("metric")
    assert list(frame.index) == ["acc", "log_likelihood", "margin", "bits_per_byte"]
    right = frame["difference"]["acc"]
    assert frame["difference"]["log_likelihood"] == pytest.approx(right)
    assert frame["difference"]["bits_per_byte"] == pytest.approx(-right / np.log(2) / 4)
    assert frame["only_a"].isna().tolist() == [False, True, True, True]


def test_without_steps_the_last_of_both(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    for name, steps in (("a", (0, 8, 16)), ("b", (0, 8))):
        for step in steps:
            put(store, place(name, step), Asked("quiz"), seed=len(name))
    frame = compare(Scores(store), "a", "b")
    assert set(frame["a"]) | set(frame["b"]) == {"a@8", "b@8"}


def test_items_are_paired_by_name_and_seeds_at_common_steps(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    put(store, place("a", 8), Asked("quiz"))
    put(store, place("a-seed1", 8, 1), Asked("quiz", items=range(N - 1, -1, -1)))
    put(store, place("a", 16), Asked("quiz"))
    opened = Scores(store)
    row = compare(opened, "a@8", "a-seed1", metric="acc").iloc[0]
    assert (row["only_a"], row["only_b"], row["p"]) == (0, 0, 1)
    assert set(seed_bands(opened)["step"]) == set(seed_bands(opened, steps="last")["step"]) == {8}


ODD = [
    (Asked("quiz", spec="t" * 64), "ssssssss of a@8 and tttttttt of b@8"),
    (Asked("quiz", items=range(1, N)), "item i00 of some only"),
]


@pytest.mark.parametrize(("asked", "told"), ODD)
def test_what_was_asked_otherwise_is_not_compared(
    say: Type, tmp_path: Path, asked: Asked, told: str
) -> None:
    store = ScoreStore(tmp_path)
    put(store, place("a", 8), Asked("quiz"))
    put(store, place("b", 8), asked)
    said = say("scores", tmp_path, "--compare", "a,b")
    assert said.code == 2
    assert "quiz at 0 shots: was not asked alike" in said.err
    assert told in said.err
    put(store, place("a", 16), asked)
    said = say("scores", tmp_path, "--emergence", "--member", "a")
    assert said.code == 2
    assert "quiz at 0 shots: was not asked alike" in said.err


def test_emergence_is_from_where_all_later_intervals_are_above(say: Type, grown: Path) -> None:
    opened = open_scores(grown)
    rows = emergences(opened, shots=0).set_index(["member", "task"])
    curves = opened.scores(metric="acc", shots=0).groupby(["member", "task"])
    assert len(rows) == len(curves) == 7
    for cell, curve in curves:
        above = dict(zip(curve["step"], curve["low"] > 0.3, strict=True))
        expected = min(step for step in STEPS if all(above[late] for late in STEPS if late >= step))
        row = rows.loc[cell]
        assert row["step"] == expected
        assert row["first"] <= row["step"] <= row["last"]
    said = say("scores", grown, "--emergence", "--member", "2m", "--task", "quiz")
    assert said.out.splitlines()[1].split()[:5] == ["2m", "quiz", "0", "acc", "0.300"]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    store = ScoreStore(tmp_path / "published")
    for step in STEPS:
        put(store, place("70m", step), Asked("quiz", spec="", items=range(0)))
        put(store, place("160m", step), Asked("quiz", -0.6, spec="", items=range(0)))
    return store.folder


def test_published_scores_emerge_without_items(published: Path) -> None:
    rows = emergences(open_scores(published)).set_index("member")
    assert rows.loc["70m", "step"] == 16
    assert rows["step"].isna().to_dict() == {"160m": True, "70m": False}
    assert rows[["first", "last"]].isna().all(axis=None)
    assert open_scores(published).items().empty
    put(ScoreStore(published), place("70m", 24), Asked("quiz", spec=""))  # items of one step alone
    assert emergences(open_scores(published), member="70m")["first"].isna().all()


def test_published_scores_cannot_be_paired(say: Type, published: Path) -> None:
    said = say("scores", published, "--compare", "70m,160m")
    assert said.code == 2
    assert "70m@24 and 160m@24: no items that both answered" in said.err


def test_seeds_of_one_member(say: Type, grown: Path) -> None:
    opened = open_scores(grown)
    bands = seed_bands(opened, metric="acc").set_index(["step", "task"])
    assert set(bands["member"]) == {"2m"}
    assert len(bands) == len(STEPS) * 2
    values = opened.scores(member="2m*", steps=[16], task="quiz", metric="acc")["value"]
    band = bands.loc[16, "quiz"]
    assert (band["num_seeds"], band["lowest"], band["highest"]) == (3, min(values), max(values))
    assert band["mean"] == pytest.approx(values.mean())
    assert band["low"] < band["mean"] < band["high"]
    assert len(say("scores", grown, "--seeds", "--metric", "acc").out.splitlines()) == 3
    said = say("scores", grown, "--seeds", "--member", "5m")
    assert said.code == 2
    assert "no members that differ in their seed alone" in said.err


def test_frames_hold_the_rows(grown: Path) -> None:
    opened, store = open_scores(grown / "scores"), ScoreStore(grown / "scores")
    rows = [Score(**row) for row in opened.scores(shots=5).to_dict("records")]
    assert [(row.step, row.metric, row.value) for row in rows] == [
        (row.step, row.metric, row.value) for row in store.scores() if row.shots == 5
    ]
    items = opened.items(member="5m", steps=[8], shots=5)
    expected = [one for one in store.items("5m", 8) if one.shots == 5]
    assert items["acc"].tolist() == [one.metrics["acc"] for one in expected]
    assert items["item"].tolist() == [one.item for one in expected]
    assert "metrics" not in items


def test_names_that_look_like_patterns_mean_themselves(tmp_path: Path) -> None:
    put(ScoreStore(tmp_path), place("2m[1]", 8), Asked("quiz"))
    opened = open_scores(tmp_path)
    assert set(opened.scores(member="2m[1]", task="qu*")["member"]) == {"2m[1]"}
    assert emergences(opened)["member"].tolist() == ["2m[1]"]


def test_metrics_whose_names_differ_in_case(tmp_path: Path) -> None:
    store, metrics = ScoreStore(tmp_path), {"F1": 0.25, "f1": 0.75}
    scores = [Score("2m", 8, 8, "quiz", name, at, at, at, 1) for name, at in metrics.items()]
    items = [Item("2m", 8, "quiz", 0, "i", 0, 0, -1.0, None, 4, metrics)]
    store.add(place("2m", 8), [Cell("quiz", 0, *"wvsdft")], scores, items, {})
    found = open_scores(tmp_path).items()
    assert (found["F1"].tolist(), found["f1"].tolist()) == ([0.25], [0.75])


def test_a_suite_in_python_answers_the_same(grown: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "scores").symlink_to(grown / "scores")
    (tmp_path / "suite.toml").write_text(SUITE)
    write_record(home, Record(suite=load_suite(tmp_path / "suite.toml"), stages=()))
    suite, opened = ontogeny.open(home), open_scores(grown)
    assert suite.scores(steps="last").equals(opened.scores(steps="last"))
    assert OpenMember(suite, "5m").scores(shots=5).equals(opened.scores(member="5m", shots=5))
    assert suite.items(member="5m", steps=[8]).equals(opened.items(member="5m", steps=[8]))
    assert suite.compare("2m", "5m").equals(compare(opened, "2m", "5m"))
    assert suite.emergence(member="5m").equals(emergences(opened, member="5m"))
    assert suite.seeds(metric="acc").equals(seed_bands(opened, metric="acc"))
    assert suite.sql("select count(*) as n from items")["n"].item() == len(opened.items())


def test_a_runs_scores_lie_beside_it(say: Type, tmp_path: Path) -> None:
    put(ScoreStore(tmp_path / "run-scores"), place("a", 8), Asked("quiz"))
    assert say("scores", tmp_path / "run").out.startswith("member")


def test_small_members_come_first(grown: Path) -> None:
    members = open_scores(grown).scores()["member"].drop_duplicates().tolist()
    assert members == ["2m", "5m", "2m-seed1", "2m-seed2"]  # as the fixture counts parameters


def test_sql_asks_all_tables(say: Type, grown: Path, tmp_path: Path) -> None:
    query = """select corpus, avg(metrics['acc']) as mean, count(distinct spec) as specs
        from items join places using (member, step) join cells using (member, step, task, shots)
        where member = '5m' and step = 24 and shots = 5 group by corpus"""
    frame = open_scores(grown).sql(query)
    value = open_scores(grown).scores(member="5m", steps="last", shots=5, metric="acc")["value"]
    assert frame.to_dict("records") == [
        {"corpus": "standard", "mean": pytest.approx(value.iloc[0]), "specs": 1}
    ]
    file = tmp_path / "out.csv"
    said = say("scores", grown, "--sql", query, "--csv", file)
    assert said.out == f"1 rows: {file}\n"
    assert pd.read_csv(file).equals(frame)
    assert say("scores", grown, "--sql", "select 1 as one where false").out == "no rows\n"
    many = say("scores", grown, "--sql", "select range as n from range(1500)").out
    assert many.splitlines()[-1] == "and 500 more: --csv FILE"


FORBIDDEN = [
    "copy scores to '{0}/scores/x.parquet'",
    "create table x as select 1",
    "insert into scores select * from scores",
    "drop view scores",
    "set enable_external_access = true",
    "attach '{0}/scores/x.db'",
    "select 1; drop view scores",
    "",
    "select * from read_text('/etc/hostname')",
    "select * from '/etc/hostname'",
    "select * from glob('/etc/*')",
    "select * from read_csv('http://127.0.0.1:9/x.csv')",
    "select * from rows",
    "selec 1",
    "select nothing from scores",
]


@pytest.mark.parametrize("query", FORBIDDEN)
def test_sql_reads_the_tables_and_nothing_else(say: Type, grown: Path, query: str) -> None:
    rows = pd.DataFrame({"secret": [1]})  # a variable is no table
    before = sorted(grown.rglob("*"))
    said = say("scores", grown, "--sql", query.format(grown))
    assert (said.code, said.out, len(rows)) == (2, "", 1)
    assert said.err.count("\n") == 1
    assert "scores (member, step, tokens, task, metric" in said.err
    assert sorted(grown.rglob("*")) == before


REFUSED = [
    (["--member", "3m"], "no member '3m'; expected one of 2m, 2m-seed1, 2m-seed2, 5m"),
    (["--task", "quizz"], "no task 'quizz'; expected one of pairs, quiz; try: did you mean 'quiz'"),
    (["--metric", "accuracy"], "no metric 'accuracy'; expected one of acc, log_likelihood"),
    (["--steps", "9"], "nothing with steps 9; expected one of 0, 8, 16, 24"),
    (["--steps", "first"], "--steps: not steps; expected last, all, or 8,16; found first"),
    (["--shots", "1"], "nothing with shots 1; expected one of 0, 5"),
    (["--compare", "2m"], "--compare: not a pair"),
    (["--compare", "2m,3m"], "no member '3m'"),
    (["--compare", "2m,5m@9"], "no scores of 2m@9; expected one of 2m@0, 2m@8, 2m@16, 2m@24"),
    (["--compare", "2m,2m"], "a checkpoint compared with itself; found 2m@24"),
    (["--compare", "2m,5m", "--task", "pairs"], "no task 'pairs'"),
    (["--emergence", "--metric", "log*"], "has no level to be above"),
    (["--seeds", "--emergence"], "one question at a time; found --emergence and --seeds"),
    (["--sql", "from scores", "--task", "quiz"], "--task is said by --sql itself"),
    (["--compare", "2m,5m", "--steps", "8"], "--steps is said by --compare itself"),
    (["--csv", "/nowhere/at/all.csv"], "/nowhere/at/all.csv: cannot be written"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED)
def test_what_cannot_be_answered(say: Type, grown: Path, words: list[str], told: str) -> None:
    said = say("scores", grown, *words)
    assert (said.code, said.out) == (2, "")
    assert told in said.err
    assert said.err.count("\n") == 1


def test_where_nothing_was_measured(say: Type, tmp_path: Path) -> None:
    said = say("scores", tmp_path)
    assert said.code == 2
    assert said.err.endswith(f"try: ontogeny evaluate {tmp_path}\n")
    assert "no such folder" in say("scores", tmp_path / "nothing").err


def test_a_damaged_table_is_named(say: Type, tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    put(store, place("a", 8), Asked("quiz"))
    path = store.path("a", 8) / "scores.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    said = say("scores", tmp_path)
    assert said.code == 2
    assert "cannot be read" in said.err
    assert str(path) in said.err
    assert said.err.count("\n") == 1
