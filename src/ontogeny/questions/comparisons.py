"""Who answers the same items better, how far seeds scatter, since when a score is above its level.

Every answer is a data frame. Answers are compared item by item, so only where all were asked the
same; where scores were published without items, what needs them says so. Not here: the statistics
(`intervals.py`), reading the store (`scores.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Unpack

import numpy as np
import pandas as pd

from ontogeny.config import nearest
from ontogeny.errors import EvaluationError
from ontogeny.intervals import emergence, mcnemar, paired_difference, seed_band, stays_above
from ontogeny.questions.scores import ALL, COLUMNS, LAST, Scores, Selection

CELL = ["task", "shots"]
MEASURE = [*CELL, "metric"]


def compare(scores: Scores, a: str, b: str, **only: Unpack[Selection]) -> pd.DataFrame:
    """How two checkpoints answered the same items: one row a task, shots and metric.

    Each is `MEMBER@STEP`; a step that is left out is the other's, or the last that both have.
    `difference` is a's value less b's, `low` to `high` its interval; `only_a` and `only_b` count
    items that only one got right, `p` is McNemar's, NaN of what is not right or wrong. Raises
    EvaluationError, naming the task, where both were not asked the same.
    """
    chosen, asked = _checkpoints(scores, a, b), []
    for member, step in chosen:
        own: Selection = {**only, "member": member, "steps": [step]}
        asked.append(dict(iter(scores.items(**own).groupby(CELL))))
    places = [f"{member}@{step}" for member, step in chosen]
    rows = []
    for task, shots in sorted(asked[0].keys() & asked[1].keys()):
        ours, theirs = (cells[task, shots] for cells in asked)
        _require_alike(scores, pd.concat([ours, theirs]))
        row = {"a": places[0], "b": places[1], "task": task, "shots": shots}
        rows += [row | found for found in _differences(ours, theirs, only.get("metric") or "*")]
    if not rows:
        raise EvaluationError(
            "no items that both answered: asked nothing alike, or published without items",
            where=" and ".join(places),
            fix="ontogeny evaluate, with the same --tasks and --shots",
        )
    return pd.DataFrame(rows).astype({"only_a": "Int64", "only_b": "Int64"})


def emergences(scores: Scores, **only: Unpack[Selection]) -> pd.DataFrame:
    """From which step on scores stay above their level, the higher of chance and majority.

    One row a member, task, shots and metric that has a level. `step` is the first from which on the
    interval is above `level` at all later ones, NA where that is never; `first` to `last` is its
    own interval over the items, `last` NA where it has no end, both where there are no items.
    """
    asked = scores.scores(**only)
    asked = asked.assign(level=asked[["chance", "majority"]].max(axis=1)).dropna(subset="level")
    if not len(asked):
        raise EvaluationError("has no level to be above", expected="accuracies of tasks of choices")
    rows = []
    for (member, task, shots), curves in asked.groupby(["member", *CELL]):
        steps = sorted(set(curves["step"].tolist()))
        items = scores.items(member=member, task=task, shots=shots, steps=steps)
        if len(items):
            _require_alike(scores, items)
        for metric, curve in curves.groupby("metric"):
            row = {"member": member, "task": task, "shots": shots, "metric": metric}
            row |= {"level": curve["level"].iloc[-1]} | _emerged(curve, items)
            rows.append(row | {"last_step": steps[-1], "last_value": curve["value"].iloc[-1]})
    return pd.DataFrame(rows).astype(dict.fromkeys(("step", "first", "last"), "Int64"))


def seed_bands(scores: Scores, **only: Unpack[Selection]) -> pd.DataFrame:
    """How members scatter that differ in their seed alone: one row a step, task, shots and metric.

    `member` is what their names share; `mean` is over `num_seeds`, `lowest` and `highest` are the
    extremes, `low` to `high` the interval of the mean. Only of steps that all of them have.
    """
    is_last = only.get("steps") == LAST
    wanted: Selection = {**only, "steps": ALL} if is_last else only
    names = {
        place.member: place.member.removesuffix(f"-seed{place.init_seed}")
        for place in scores.places.itertuples()
    }
    asked = scores.scores(**wanted)
    asked = asked.assign(family=asked["member"].map(names))
    seeds = asked.groupby("family")["member"].transform("nunique")
    there = asked.groupby(["family", "step"])["member"].transform("nunique")
    asked = asked[(seeds > 1) & (there == seeds)]
    if is_last:
        asked = asked[asked["step"] == asked.groupby("family")["step"].transform("max")]
    rows = []
    for (family, step, *measure), values in asked.groupby(["family", "step", *MEASURE])["value"]:
        if (band := seed_band(values.to_numpy())) is not None:
            row = {"member": family, "step": step} | dict(zip(MEASURE, measure, strict=True))
            rows.append(row | band._asdict())
    if not rows:
        raise EvaluationError("no members that differ in their seed alone, at a step of all")
    return pd.DataFrame(rows)


def _checkpoints(scores: Scores, *names: str) -> list[tuple[str, int]]:
    """The members and steps that two names mean. Raises EvaluationError for what is not there."""
    members, there = scores.store.members(), scores.store.places()
    parts = [name.partition("@") for name in names]
    for member, *_ in parts:
        if member not in members:
            fix = nearest(member, members)
            listed = f"one of {', '.join(members)}"
            raise EvaluationError(f"no member {member!r}", expected=listed, fix=fix)
    shared = set.intersection(*({step for one, step in there if one == name[0]} for name in parts))
    usual = next((step for *_, step in parts if step), max(shared, default="of both"))
    chosen = []
    for member, _, step in parts:
        known = {f"{one}@{number}": (one, number) for one, number in there if one == member}
        wanted = f"{member}@{step or usual}"
        if wanted not in known:
            listed = f"one of {', '.join(known)}"
            raise EvaluationError(f"no scores of {wanted}", expected=listed)
        chosen.append(known[wanted])
    if chosen[0] == chosen[1]:
        raise EvaluationError("a checkpoint compared with itself", found=wanted)
    return chosen


def _require_alike(scores: Scores, items: pd.DataFrame) -> None:
    """Raise EvaluationError unless all checkpoints gave these items of a task, asked alike."""
    task, shots = items[CELL].iloc[0]
    places = items[["member", "step"]].drop_duplicates()
    cells = places.merge(scores.cells, on=["member", "step"])
    cells = cells[(cells["task"] == task.partition("/")[0]) & (cells["shots"] == shots)]
    counts = items["item"].value_counts(sort=False)
    others = counts[counts != len(places)]
    if cells["spec"].nunique() > 1 or len(others):
        given = cells.drop_duplicates("spec")
        told = [f"{one.spec[:8]} of {one.member}@{one.step}" for one in given.itertuples()]
        raise EvaluationError(
            "was not asked alike",
            where=f"{task} at {shots} shots",
            expected="the same items in the same words",
            found=f"item {others.index[0]} of some only" if len(told) < 2 else " and ".join(told),
            fix="ontogeny evaluate, to ask it again",
        )


def _differences(ours: pd.DataFrame, theirs: pd.DataFrame, wanted: str) -> Iterator[dict[str, Any]]:
    """Every measure of the same items, compared."""
    others = _measures(theirs)
    for metric, (a, weights) in _measures(ours).items():
        if metric in others and fnmatchcase(metric, wanted):
            b = others[metric][0]
            is_right = bool(np.isin([a, b], (0, 1)).all())
            only_a, only_b, p = mcnemar(a, b) if is_right else (None, None, math.nan)
            difference, low, high = paired_difference(a, b, weights)
            values = {"value_a": a.sum() / weights.sum(), "value_b": b.sum() / weights.sum()}
            row = {"metric": metric, "n": len(a)} | values | {"difference": difference}
            yield row | {"low": low, "high": high, "only_a": only_a, "only_b": only_b, "p": p}


def _measures(items: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each item gave, and what it weighs, by measure: as score rows count them."""
    own = [name for name in items if name not in COLUMNS["items"]]
    one = np.ones(len(items))
    found = {
        name: (items[name].to_numpy(float), one)
        for name in (*own, "log_likelihood", "margin")
        if items[name].notna().all()
    }
    if (items["num_bytes"] > 0).all():
        bits = -items["log_likelihood"].to_numpy() / math.log(2)
        found["bits_per_byte"] = bits, items["num_bytes"].to_numpy(float)
    return found


def _emerged(curve: pd.DataFrame, items: pd.DataFrame) -> dict[str, int | None]:
    """The step at which a score emerges, and its interval where there are items."""
    steps, level = curve["step"].tolist(), float(curve["level"].iloc[-1])
    metric = curve["metric"].iloc[0]
    found: tuple[int | None, ...] | None
    if metric in items and items["step"].nunique() == len(steps):
        found = emergence(items[metric].to_numpy(float).reshape(len(steps), -1), level)
    else:
        place = int(stays_above(curve["low"].to_numpy()[:, None], level)[0])
        found = (place, None, None) if place < len(steps) else None
    named = (None if place is None else steps[place] for place in found or (None,) * 3)
    return dict(zip(("step", "first", "last"), named, strict=True))
