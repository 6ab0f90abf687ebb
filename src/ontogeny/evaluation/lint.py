"""What scores tell of the checkpoints behind them: two that were one, gaps, and series that stand.

Two checkpoints have *the same scores* if all they were both asked, with one number of shots, has
the same answer to the last bit: at least `LEAST_VALUES` different numbers, one of which at least is
no share of items, since models that always answer alike agree on shares. They have *nearly* the
same scores if half are equal, and `NEARER` times as many as of either and itself a step away, as
weights have that were measured twice in half precision. Members may share the step they start from.
Not here: checkpoints themselves (`checkpoints/lint.py`), how sound scores compare (`questions`).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ontogeny.checkpoints.lint_folders import Finding
from ontogeny.errors import EvaluationError
from ontogeny.evaluation.published import SHARES
from ontogeny.results import Score
from ontogeny.scores import ScoreStore

LEAST_VALUES = 8
NEARER = 6
LEAST_STEPS = 5  # of a series that says something by standing still
AGAIN = "measure these steps again, from weights of known digests"
SAME_WEIGHTS = "their weights are the same, which `ontogeny lint` on the checkpoints explains"

Pair = tuple[str, int]  # a member and a step


@dataclass(frozen=True, slots=True)
class LintedScores:
    """A store of scores that was looked at."""

    name: str
    checked: str
    unchecked: list[str]
    findings: list[Finding]


class Answers:
    """All scores with one number of shots: a row a checkpoint, a column a task and metric."""

    def __init__(self, shots: int, rows: list[Score], weights: dict[Pair, str]) -> None:
        self.shots, self.weights = shots, weights
        self.places = sorted({(row.member, row.step) for row in rows})
        columns = {name: i for i, name in enumerate(sorted({(r.task, r.metric) for r in rows}))}
        at = {place: i for i, place in enumerate(self.places)}
        self.values = np.full((len(self.places), len(columns)), np.nan)  # [places, columns]
        for row in rows:
            self.values[at[row.member, row.step], columns[row.task, row.metric]] = row.value
        self.is_share = np.array([metric in SHARES for _, metric in columns])

    def equal(self, i: int, j: int) -> tuple[int, int]:
        """How many scores two checkpoints have in common, and how many of them are equal."""
        common = np.isfinite(self.values[i]) & np.isfinite(self.values[j])
        return int(common.sum()), int((self.values[i] == self.values[j]).sum())

    def same(self) -> Iterator[tuple[Pair, Pair]]:
        """Every two checkpoints that have the same scores, in order."""
        for i, place in enumerate(self.places):
            one, others = self.values[i], self.values[i + 1 :]
            common = np.isfinite(one) & np.isfinite(others)
            for j in np.flatnonzero(((one == others) | ~common).all(axis=1)):
                told = one[common[j]]
                is_sharp = (common[j] & ~self.is_share).any()
                if is_sharp and len(np.unique(told)) >= LEAST_VALUES:
                    yield place, self.places[i + 1 + int(j)]

    def nearly(self) -> Iterator[tuple[Pair, Pair]]:
        """Every two members at one step that have nearly the same scores."""
        own = [0.0] * len(self.places)
        for i, (before, after) in enumerate(itertools.pairwise(self.places)):
            if before[0] == after[0]:
                common, equal = self.equal(i, i + 1)
                own[i], own[i + 1] = (max(own[k], equal / max(common, 1)) for k in (i, i + 1))
        for i, j in itertools.combinations(range(len(self.places)), 2):
            if self.places[i][1] == self.places[j][1]:
                common, equal = self.equal(i, j)
                share = equal / max(common, 1)
                is_near = 0.5 <= share < 1 and share >= NEARER * max(own[i], own[j]) > 0
                if is_near and common >= LEAST_VALUES:
                    yield self.places[i], self.places[j]

    def finding(self, run: str, pairs: list[tuple[Pair, Pair]], told: str, cause: str) -> Finding:
        """An alarm over pairs of checkpoints, unless their weights are known to be the same."""
        are_same = all(self.weights.get(a) and self.weights[a] == self.weights[b] for a, b in pairs)
        steps = sorted({step for pair in pairs for _, step in pair})
        problem = f"{told} with {self.shots} shots"
        if are_same:
            return Finding("note", run, tuple(steps), problem, SAME_WEIGHTS, "")
        return Finding("alarm", run, tuple(steps), problem, cause, AGAIN)


def find_store(path: Path) -> ScoreStore:
    """The scores of a suite, or those in a folder of their own."""
    for folder in (path, path / "scores"):
        if ScoreStore(folder).places():
            return ScoreStore(folder)
    raise EvaluationError(
        "no scores", where=path, expected="a suite with scores, or a folder of them",
        fix=f"ontogeny evaluate {path}",
    )  # fmt: skip


def lint_scores(path: Path) -> LintedScores:
    """What the scores of a suite or a store say against the checkpoints they were measured on."""
    store = find_store(path)
    rows, findings, uncompared = store.scores(), list[Finding](), 0
    for shots in sorted({row.shots for row in rows}):
        weights = {
            place: cell.weights
            for place in store.places()
            for cell in store.cells(*place)
            if cell.shots == shots
        }
        answers = Answers(shots, [row for row in rows if row.shots == shots], weights)
        uncompared += int((np.isfinite(answers.values).sum(axis=1) < LEAST_VALUES).sum())
        findings += [*_same(answers), *_nearly(answers)]
    findings += [*_missing(rows), *_standing(rows)]
    members, places = store.members(), store.places()
    checked = (
        f"{len(rows):,} scores of {len(places):,} checkpoints, {len(members)} members: "
        "same and nearly same scores, gaps between steps, series that stand still"
    )
    few = f"checkpoints with fewer than {LEAST_VALUES} scores: {uncompared}"
    return LintedScores(str(path), checked, [few] if uncompared else [], findings)


def _same(answers: Answers) -> Iterator[Finding]:
    pairs = list(answers.same())
    starts = {(member, 0) for member, _ in answers.places}
    starts |= {b for a, b in pairs if a[0] == b[0] and a[1] == 0}
    within, across = defaultdict[str, list[tuple[Pair, Pair]]](list), defaultdict[
        tuple[str, str], list[tuple[Pair, Pair]]](list)  # fmt: skip
    for pair in pairs:
        (member, _), (other, _) = pair
        if member == other:
            within[member].append(pair)
        else:
            across[member, other].append(pair)
    for member, found in within.items():
        cause = "one is a copy of the other"
        if {step for pair in found for _, step in pair} == {0, 1}:
            cause = f"the first update had a learning rate of 0, or {cause}"
        yield answers.finding(member, found, "all scores are the same", cause)
    for (member, other), found in across.items():
        names = f"{member} and {other}"
        begun = [pair for pair in found if {*pair} <= starts]
        if begun:
            steps = sorted({step for pair in begun for _, step in pair})
            told = f"start from the same scores with {answers.shots} shots"
            yield Finding("note", names, tuple(steps), told, "the same seed", "")
        later = [pair for pair in found if pair not in begun]
        if later:
            cause = "one member's weights or result files were taken for the other's"
            yield answers.finding(names, later, "have the same scores", cause)


def _nearly(answers: Answers) -> Iterator[Finding]:
    found = defaultdict[str, list[int]](list)
    for (member, step), (other, _) in answers.nearly():
        found[f"{member} and {other}"].append(step)
    for names, steps in found.items():
        told = f"have nearly the same scores with {answers.shots} shots"
        cause = "the same weights, measured twice"
        yield Finding("note", names, tuple(steps), told, cause, "")


def _series(rows: list[Score]) -> dict[tuple[str, int, str, str], dict[int, Score]]:
    found = defaultdict[tuple[str, int, str, str], dict[int, Score]](dict)
    for row in sorted(rows, key=lambda row: row.step):
        found[row.member, row.shots, row.task, row.metric][row.step] = row
    return found


def _missing(rows: list[Score]) -> Iterator[Finding]:
    """Steps left out once of a series that otherwise goes on by the commonest distance."""
    found = defaultdict[tuple[str, int, tuple[int, ...]], set[str]](set)
    for (member, shots, task, _), series in _series(rows).items():
        gaps = Counter(after - before for before, after in itertools.pairwise(series))
        usual, number = max(gaps.items(), key=lambda gap: (gap[1], gap[0]), default=(1, 0))
        left_out = tuple(
            step
            for before, after in itertools.pairwise(series)
            if gaps[after - before] == 1 and (after - before) % usual == 0
            for step in range(before + usual, after, usual)
        )
        if left_out and number >= LEAST_STEPS:
            found[member, shots, left_out].add(task)
    for (member, shots, steps), tasks in found.items():
        told = f"no scores of {len(tasks)} tasks with {shots} shots"
        yield Finding("note", member, steps, told, "not measured, or not published", "")


def _standing(rows: list[Score]) -> Iterator[Finding]:
    """Shares of items that never change, of as many members as they do so in."""
    found = defaultdict[tuple[str, str, int, float], list[str]](list)
    for (member, shots, task, metric), series in _series(rows).items():
        values = {row.value for row in series.values()}
        if metric in SHARES and len(series) >= LEAST_STEPS and len(values) == 1:
            found[task, metric, shots, values.pop()].append(member)
    for (task, metric, shots, value), members in found.items():
        told = f"{metric} is {value:.4g} at every step, with {shots} shots: {', '.join(members)}"
        cause = "the same answers whatever the weights: it tells nothing of them"
        yield Finding("note", task, (), told, cause, "")
