"""Scores alone tell of checkpoints that were one, of gaps, and of series that stand still."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ontogeny.errors import EvaluationError
from ontogeny.evaluation.lint import LintedScores, lint_scores
from ontogeny.evaluation.published import SHARES
from ontogeny.results import Score
from ontogeny.scores import Cell, Place, ScoreStore

METRICS = ("acc", "acc_norm", "perplexity", "log_likelihood")
TASKS = ("piqa", "sciq", "logiqa", "arc_easy", "winogrande")
STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 288)
Values = dict[tuple[str, int], dict[tuple[str, str], float]]


def drawn(seed: int) -> dict[tuple[str, str], float]:
    """Scores of one checkpoint, unlike any other's."""
    random = np.random.default_rng(seed)
    names = [(task, metric) for task in TASKS for metric in METRICS]
    return {name: float(value) for name, value in zip(names, random.random(20), strict=True)}


@pytest.fixture
def values() -> Values:
    """A clean family: two members of different seeds."""
    places = [(member, step) for member in ("small", "large") for step in STEPS]
    return {place: drawn(number) for number, place in enumerate(places)}


def lint(
    folder: Path, values: Values, weights: dict[tuple[str, int], str] | None = None
) -> LintedScores:
    store = ScoreStore(folder / "scores")
    with store.locked():
        for (member, step), scores in values.items():
            digest = (weights or {}).get((member, step), "")
            cells = [Cell(task, 0, digest, "", "", "", "", "") for task in TASKS]
            rows = [
                Score(member, step, step, task, metric, value, 0, 1, 50)
                for (task, metric), value in scores.items()
            ]
            store.add(Place(member, step, step, "1m", 1), cells, rows, [], {})
    return lint_scores(folder)


def told(linted: LintedScores) -> list[tuple[str, str, tuple[int, ...], str]]:
    return [(one.severity, one.run, one.steps, one.problem) for one in linted.findings]


def test_a_clean_family_gives_no_finding(tmp_path: Path, values: Values) -> None:
    linted = lint(tmp_path, values)
    assert (told(linted), linted.unchecked) == ([], [])
    assert linted.checked.startswith("600 scores of 30 checkpoints, 2 members")


def test_copies_within_a_member_are_alarms_group_by_group(tmp_path: Path, values: Values) -> None:
    values["small", 1] = values["large", 1] = values["small", 0]
    values["large", 0] = values["small", 0]
    values["small", 64] = values["small", 96] = values["small", 32]
    values["small", 192] = values["small", 160]
    linted = lint(tmp_path, values)
    same = "the same scores with 0 shots"
    assert sorted(told(linted)) == [
        ("alarm", "large; small", (0, 1), same),
        ("alarm", "small", (32, 64, 96), same),
        ("alarm", "small", (160, 192), same),
        ("note", "large and small", (0, 1), "start from the same scores with 0 shots"),
    ]
    causes = {one.steps: one.cause for one in linted.findings if one.severity == "alarm"}
    assert "learning rate of 0" in causes[0, 1]
    assert causes[160, 192] == "one is a copy of the other"


def test_members_that_are_one_are_an_alarm(tmp_path: Path, values: Values) -> None:
    for step in (2, 4, 8):
        values["small", step] = values["large", step]
    values["small", 128] = values["large", 224]
    assert told(lint(tmp_path, values)) == [
        ("alarm", "large and small", (2, 4, 8), "the same scores with 0 shots"),
        ("alarm", "large and small", (128, 224), "the same scores at other steps with 0 shots"),
    ]


def test_what_has_the_same_weights_is_no_fault_of_the_scores(
    tmp_path: Path, values: Values
) -> None:
    values["small", 1] = values["small", 0]
    values["large", 64] = values["small", 64]
    one = dict.fromkeys([("small", 0), ("small", 1)], "a") | {("small", 64): "b"}
    linted = lint(tmp_path, values, one | {("large", 64): "c"})
    assert [(severity, steps) for severity, _, steps, _ in told(linted)] == [
        ("alarm", (64,)),  # other weights cannot give the same scores
        ("note", (0, 1)),
    ]


def test_nearly_the_same_scores_are_the_same_weights_measured_twice(
    tmp_path: Path, values: Values
) -> None:
    still = dict(list(drawn(99).items())[:2])  # a tenth does not change from step to step
    for step in (96, 128):
        values["small", step] |= still
        values["large", step] |= dict(list(values["small", step].items())[:14])
    assert told(lint(tmp_path, values)) == [
        ("note", "large and small", (96, 128), "nearly the same scores with 0 shots")
    ]


def test_members_that_set_out_alike_are_not_nearly_the_same(tmp_path: Path, values: Values) -> None:
    for step in (1, 2, 4):
        for member in ("small", "large"):
            values[member, step] |= dict(list(values["small", 0].items())[: 16 - step])
    assert told(lint(tmp_path, values)) == []


@pytest.mark.parametrize("kind", ["shares", "few", "one number", "not finite"])
def test_models_that_always_answer_alike_are_not_taken_for_one(
    tmp_path: Path, values: Values, kind: str
) -> None:
    kept = {"shares": ("acc", "acc_norm"), "few": ("perplexity",)}.get(kind, METRICS)
    for place, scores in values.items():
        values[place] = {name: scores[name] for name in scores if name[1] in kept}
    values["small", 4] = values["small", 2]
    if kind == "one number":
        values["small", 4] = values["small", 2] = dict.fromkeys(values["small", 4], 0.5)
    if kind == "not finite":
        unlike = {name: np.inf for name in values["small", 4] if name[1] not in SHARES}
        values["small", 4] = values["small", 2] = values["small", 2] | unlike
    linted = lint(tmp_path, values)
    assert told(linted) == []
    few = ["checkpoints with fewer than 8 scores: 30"]
    assert linted.unchecked == (few if kind == "few" else [])


def test_steps_left_out_and_scores_that_stand_are_noted(tmp_path: Path, values: Values) -> None:
    del values["small", 160], values["small", 224]
    for place in values:
        values[place]["sciq", "acc"] = 0.25
    values |= {("short", step): drawn(99) | {("sciq", "acc_norm"): step} for step in (0, 1)}
    assert told(lint(tmp_path, values)) == [
        ("note", "small", (160, 224), "no scores of 5 tasks with 0 shots"),
        ("note", "large; small", (), "acc of sciq is 0.25 at every step with 0 shots"),
    ]


def test_a_second_distance_between_steps_is_no_gap(tmp_path: Path, values: Values) -> None:
    coarse = {("small", 960 * step): drawn(step + 500) for step in (1, 2, 3)}
    powers = {("few", step): drawn(step + 900) for step in (0, 1, 2, 4)}
    assert told(lint(tmp_path, values | coarse | powers)) == []


def test_scores_of_which_none_is_finite_say_nothing(tmp_path: Path) -> None:
    values = {("small", step): {("lambada", "perplexity"): np.inf} for step in (0, 1)}
    assert told(lint(tmp_path, values)) == []


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no scores; expected .*; try: ontogeny evaluate"):
        lint_scores(tmp_path)
