"""The store of scores: cells are added, replaced and found; nothing is lost to a kill or a race."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.errors import DataError, EvaluationError
from ontogeny.record import StageRecord
from ontogeny.results import Item, Score
from ontogeny.scores import Cell, Place, ScoreStore, stage_digest

PLACE = Place("2m", 8, 1024, "2m", 1000)
INPUTS = {"weights": "f" * 64}
TASKS = ("held-out", "last-word", "piqa")


def cell(task: str, shots: int = 0, weights: str = "w", data: str = "d") -> Cell:
    return Cell(task, shots, weights, "v", "s", data, "fp32", "ontogeny 1")


def rows(asked: Cell, place: Place = PLACE) -> tuple[list[Score], list[Item]]:
    """Rows that tell which cell they are of; two tasks' worth where the task has parts."""
    names = [asked.task, f"{asked.task}/part"] if asked.task == "held-out" else [asked.task]
    scores = [
        Score(place.member, place.step, place.tokens, name, asked.data, 0.5, 0.4, 0.6, 1,
              shots=asked.shots)
        for name in names
    ]  # fmt: skip
    items = [
        Item(place.member, place.step, name, asked.shots, asked.data, 0, 1, -1.0, 0.5, 3,
             {"acc": 1.0})
        for name in names
    ]  # fmt: skip
    return scores, items


def add(store: ScoreStore, *cells: Cell, place: Place = PLACE, bits: object = "here") -> None:
    found = [rows(one, place) for one in cells]
    scores = [row for some, _ in found for row in some]
    items = [row for _, some in found for row in some]
    store.add(place, cells, scores, items, INPUTS, {"bits": bits})


asks = st.lists(
    st.lists(
        st.builds(cell, st.sampled_from(TASKS), st.sampled_from([0, 5]),
                  data=st.sampled_from("abc")),
        min_size=1, max_size=3, unique_by=lambda one: (one.task, one.shots),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=25)
@given(asks)
def test_a_checkpoint_has_the_latest_answers_to_everything_asked(asked: list[list[Cell]]) -> None:
    expected: dict[tuple[str, int], Cell] = {}
    with TemporaryDirectory() as folder:
        store = ScoreStore(Path(folder))
        for cells in asked:
            add(store, *cells)
            expected |= {(one.task, one.shots): one for one in cells}
        left = [expected[name] for name in sorted(expected)]
        assert store.cells("2m", 8) == left
        assert store.scores() == store.scores("2m") == [row for one in left for row in rows(one)[0]]
        assert store.items("2m", 8) == [row for one in left for row in rows(one)[1]]
        assert store.place("2m", 8) == PLACE
        at_once = ScoreStore(Path(folder) / "other")
        add(at_once, *left)
        assert at_once.digest("2m") == store.digest("2m")


def test_every_part_of_a_key_makes_another_cell() -> None:
    one = cell("piqa")
    names = ("task", "weights", "vocabulary", "spec", "data", "dtype", "harness")
    changes: list[dict[str, Any]] = [{"shots": 1}, *({name: "x"} for name in names)]
    others = [replace(one, **change) for change in changes]
    assert len({one.key, *(other.key for other in others)}) == 9


def test_what_computed_an_answer_is_kept_for_its_cell(tmp_path: Path) -> None:
    store, kept, other, new = ScoreStore(tmp_path), cell("a"), cell("b"), cell("c")
    add(store, kept, other, bits=1)
    add(store, new, replace(other, data="x"), bits=2)
    groups = store.artifact("2m", 8).provenance["bits"]
    keys = {group["bits"]["bits"]: set(group["cells"]) for group in groups}
    assert keys == {1: {kept.key}, 2: {new.key, replace(other, data="x").key}}


def test_places_and_digests_are_of_members(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    assert store.places() == []
    for member, step in (("b", 16), ("b", 2), ("a", 2)):
        add(store, cell("piqa"), place=replace(PLACE, member=member, step=step))
    assert store.places() == [("a", 2), ("b", 2), ("b", 16)]
    assert store.members() == ["a", "b"]
    before = store.digest("a"), store.digest("b")
    add(store, cell("sciq"), place=replace(PLACE, member="b", step=2))
    assert store.digest("a") == before[0]
    assert store.digest("b") != before[1]


def test_a_stage_s_digest(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path / "scores")
    add(store, cell("piqa"))
    stage = StageRecord(
        name="scores/2m", kind="scores", path="scores/member=2m", digest="", seconds=0.0
    )
    assert stage_digest(tmp_path, stage) == store.digest("2m")
    shutil.rmtree(store.of_member("2m"))
    with pytest.raises(DataError, match="member=2m: not an artifact"):
        stage_digest(tmp_path, stage)


@pytest.mark.parametrize("member", ["2m", "a[b]*"])
@pytest.mark.parametrize("is_new_there", [True, False])
def test_what_a_kill_left_half_exchanged_is_mended(
    tmp_path: Path, is_new_there: bool, member: str
) -> None:
    store, place = ScoreStore(tmp_path), replace(PLACE, member=member)
    add(store, cell("piqa"), place=place)
    path = store.path(member, 8)
    old = path.with_name(".step=8.old")
    shutil.copytree(path, old)
    if not is_new_there:
        shutil.rmtree(path)
    with store.locked(member):
        assert store.cells(member, 8) == [cell("piqa")]
    assert not old.exists()
    add(store, cell("sciq"), place=place)
    assert len(store.cells(member, 8)) == 2


@pytest.mark.parametrize(
    ("held", "asked", "is_free"),
    [
        ([], None, False),
        ([], "a", False),
        (["a"], None, False),
        (["a"], "a", False),
        (["a"], "b", True),
    ],
)
def test_a_store_or_a_part_of_it_is_one_process_s(
    tmp_path: Path, held: list[str], asked: str | None, is_free: bool
) -> None:
    store = ScoreStore(tmp_path)
    with store.locked(*held):  # a lock is of an open file, so one process can ask twice
        if is_free:
            with store.locked(asked):
                assert store.places() == []
        else:
            with (
                pytest.raises(EvaluationError, match="another process is adding scores; try: wait"),
                store.locked(asked),
            ):
                raise AssertionError
    with store.locked(asked, patiently=True):
        assert store.places() == []
