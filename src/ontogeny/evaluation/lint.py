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
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from ontogeny.checkpoints.lint_folders import Finding, Severity
from ontogeny.evaluation.published import SHARES
from ontogeny.results import Score
from ontogeny.scores import find_scores

LEAST_VALUES = 8
NEARER = 6
LEAST_STEPS = 5  # of a series that says something by standing still
AGAIN = "measure these steps again, from weights of known digests"
COPY = "one is a copy of the other"
COPY_OR_STILL = f"the first update had a learning rate of 0, or {COPY}"
MIXED_UP = "one member's weights or result files were taken for the other's"
SAME_WEIGHTS = "their weights are the same: ask `ontogeny lint` of the checkpoints"

Pair = tuple[str, int]  # a member and a step
Column = tuple[str, str]  # a task and a metric


@dataclass(frozen=True, slots=True)
class LintedScores:
    """A store of scores that was looked at."""

    name: str
    checked: str
    unchecked: list[str]
    findings: list[Finding]


def lint_scores(path: Path) -> LintedScores:
    """What the scores of a suite or a store say against the checkpoints they were measured on.

    Raises EvaluationError where there are none.
    """
    store = find_scores(path)
    rows, places = store.scores(), store.places()
    weights = {
        (place, cell.shots): cell.weights for place in places for cell in store.cells(*place)
    }
    findings, num_few = list[Finding](), 0
    numbers = [row for row in rows if math.isfinite(row.value)]
    for shots in sorted({row.shots for row in numbers}):
        values = defaultdict[Pair, dict[Column, float]](dict)
        for row in (row for row in numbers if row.shots == shots):
            values[row.member, row.step][row.task, row.metric] = row.value
        known = {place: digest for (place, of), digest in weights.items() if of == shots}
        findings += _compared(dict(sorted(values.items())), known, f"with {shots} shots")
        num_few += sum(len(found) < LEAST_VALUES for found in values.values())
    findings += [*_missing(rows), *_standing(rows)]
    checked = (
        f"{len(rows):,} scores of {len(places):,} checkpoints, {len(store.members())} members: "
        "same and nearly same scores, gaps between steps, series that stand still"
    )
    few = f"checkpoints with fewer than {LEAST_VALUES} scores: {num_few}"
    return LintedScores(str(path), checked, [few] if num_few else [], _joined(findings))


def _compared(
    values: Mapping[Pair, Mapping[Column, float]], weights: Mapping[Pair, str], asked: str
) -> Iterator[Finding]:
    """What is told by any two checkpoints that have the same or nearly the same scores."""
    alike = _alike(values)
    starts = {(member, 0) for member, _ in values}
    starts |= {b for a, b, is_same in alike if is_same and a == (b[0], 0)}
    first: dict[Pair, Pair] = {}  # of its member, with the same scores
    found = defaultdict[tuple[str, Pair | None, str, str, str], set[Pair]](set)
    for a, b, is_same in alike:
        names = a[0] if a[0] == b[0] else f"{a[0]} and {b[0]}"
        together = first.setdefault(b, a) if a[0] == b[0] else None
        if not is_same:
            what = "note", "nearly the same scores", "the same weights, measured twice"
        elif {a, b} <= starts and a[0] != b[0]:
            what = "note", "start from the same scores", "the same seed"
        elif weights.get(a) and weights[a] == weights.get(b):
            what = "note", "the same scores", SAME_WEIGHTS
        elif a[0] == b[0]:
            what = "alarm", "the same scores", COPY_OR_STILL if (a[1], b[1]) == (0, 1) else COPY
        else:
            what = "alarm", "the same scores" + " at other steps" * (a[1] != b[1]), MIXED_UP
        found[names, together, *what] |= {a, b}
    for (names, _, severity, told, cause), pairs in found.items():
        steps = tuple(sorted({step for _, step in pairs}))
        fix = AGAIN if severity == "alarm" else ""
        yield Finding(cast("Severity", severity), names, steps, f"{told} {asked}", cause, fix)


def _alike(values: Mapping[Pair, Mapping[Column, float]]) -> list[tuple[Pair, Pair, bool]]:
    """Every two checkpoints with nearly the same scores, or (True) the same."""
    places, columns = list(values), sorted({name for one in values.values() for name in one})
    table = np.array([[values[place].get(name, np.nan) for name in columns] for place in places])
    common = np.stack([(~np.isnan(one) & ~np.isnan(table)).sum(axis=1) for one in table])
    share = np.stack([(one == table).sum(axis=1) for one in table]) / np.maximum(common, 1)
    own = np.zeros(len(places))  # how much of its scores a checkpoint shares with its neighbours
    for i, (a, b) in enumerate(itertools.pairwise(places)):
        if a[0] == b[0]:
            own[i : i + 2] = np.maximum(own[i : i + 2], share[i, i + 1])
    found = []
    for i, j in np.argwhere(np.triu((share >= 0.5) & (common >= LEAST_VALUES), 1)):
        a, b = places[i], places[j]
        both = values[a].keys() & values[b].keys()
        if share[i, j] == 1:
            is_sharp = any(metric not in SHARES for _, metric in both)
            if is_sharp and len({values[a][name] for name in both}) >= LEAST_VALUES:
                found.append((a, b, True))
        elif a[1] == b[1] and share[i, j] >= NEARER * max(own[i], own[j]) > 0:
            found.append((a, b, False))
    return found


def _joined(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, those of several runs that say the same as one."""
    runs = defaultdict[Finding, list[str]](list)
    for one in findings:
        runs[replace(one, run="")].append(one.run)
    return [replace(one, run="; ".join(names)) for one, names in runs.items()]


def _series(rows: Sequence[Score]) -> dict[tuple[str, int, str, str], dict[int, Score]]:
    found = defaultdict[tuple[str, int, str, str], dict[int, Score]](dict)
    for row in sorted(rows, key=lambda row: row.step):
        found[row.member, row.shots, row.task, row.metric][row.step] = row
    return found


def _missing(rows: Sequence[Score]) -> Iterator[Finding]:
    """Steps left out of a series that otherwise, by four to one, goes on by one distance."""
    found = defaultdict[tuple[str, int, tuple[int, ...]], set[str]](set)
    for (member, shots, task, _), series in _series(rows).items():
        gaps = Counter(after - before for before, after in itertools.pairwise(series))
        usual, number = max(gaps.items(), key=lambda gap: (gap[1], gap[0]), default=(1, 0))
        left_out = tuple(
            step
            for before, after in itertools.pairwise(series)
            if (after - before) % usual == 0
            for step in range(before + usual, after, usual)
        )
        # Powers of two have a distance twice.
        if number > 2 and 0 < 4 * len(left_out) <= len(series):
            found[member, shots, left_out].add(task)
    for (member, shots, steps), tasks in found.items():
        told = f"no scores of {len(tasks)} tasks with {shots} shots"
        yield Finding("note", member, steps, told, "not measured, or not published", "")


def _standing(rows: Sequence[Score]) -> Iterator[Finding]:
    """Shares of items that never change."""
    for (member, shots, task, metric), series in _series(rows).items():
        values = {row.value for row in series.values()}
        if metric in SHARES and len(series) >= LEAST_STEPS and len(values) == 1:
            told = f"{metric} of {task} is {min(values):.4g} at every step with {shots} shots"
            cause = "the same answers whatever the weights: it tells nothing of them"
            yield Finding("note", member, (), told, cause, "")
