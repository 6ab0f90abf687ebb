"""Several runs side by side: which start from the same weights, which share more than that.

Members of one seed must share `step0`, members of other seeds must not, and no two may have the
same weights later on. Seeds are told on the command line or by the runs' manifests. Not here: what
can be seen in one run alone (`lint.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from ontogeny.checkpoints.lint_copies import first_still
from ontogeny.checkpoints.lint_folders import FETCH, Finding
from ontogeny.checkpoints.lint_measure import Linted
from ontogeny.errors import ConfigError


def lint_together(
    runs: Sequence[Linted], same: Sequence[Sequence[str]] = (), apart: Sequence[Sequence[str]] = ()
) -> list[Finding]:
    """What is wrong among runs.

    `same` and `apart` are groups of them, by path or name, that are of one seed and of other seeds.
    Raises ConfigError when they name others, or contradict.
    """
    told: dict[frozenset[str], bool] = {}
    for is_same, groups in ((True, same), (False, apart)):
        for group in groups:
            for pair in combinations([_named(name, runs).name for name in group], 2):
                if told.setdefault(frozenset(pair), is_same) != is_same or len({*pair}) == 1:
                    raise ConfigError("of the same and of another seed at once", found=pair)
    found = list[Finding]()
    names = [Path(run.name).resolve() for run in runs]
    if len({*names}) < len(names):
        raise ConfigError("a run is given twice", found=", ".join(map(str, names)))
    for left, right in combinations(runs, 2):
        declared = _declared_same(left, right)
        found += _of_pair(left, right, told.get(frozenset((left.name, right.name)), declared))
    return found


def _named(name: str, runs: Sequence[Linted]) -> Linted:
    found = [one for one in runs if name in (one.name, Path(one.name).name)]
    if len(found) != 1:
        known = ", ".join(Path(one.name).name for one in runs)
        raise ConfigError("not one of the runs", expected=f"one of {known}", found=name)
    return found[0]


def _declared_same(left: Linted, right: Linted) -> bool | None:
    """Whether two manifests say that their runs start from the same weights, if they do say."""
    one, other = left.declared, right.declared
    if one is None or other is None or one.branch or other.branch or one.shape != other.shape:
        return None
    return (one.init, one.init_seed) == (other.init, other.init_seed)


def _of_pair(left: Linted, right: Linted, is_same: bool | None) -> Iterator[Finding]:
    names = f"{left.name} and {right.name}"
    ours, theirs = left.whole, right.whole
    shared = tuple(step for step in ours if ours[step] == theirs.get(step))
    still = {*first_still(left.declared), *first_still(right.declared)} if 0 in shared else set()
    starts = tuple(step for step in shared if step in {0, *still})
    if 0 in ours and 0 in theirs:
        if is_same and 0 not in shared:
            yield _differing_starts(left, right, names)
        elif is_same is False and 0 in shared:
            yield _shared_start(left, right)
        elif is_same is None and 0 in shared:
            yield Finding("note", names, starts, "start from the same weights",
                          "the same seed", "say so with --same-seed or --other-seed")  # fmt: skip
    later = tuple(step for step in shared if step not in starts)
    if later:
        told, cause = "have the same weights", "one member's files were published as the other's"
        branches = [run for run in (left, right) if run.declared and run.declared.branch]
        if branches:
            cause = f"{branches[0].name} is a branch: one that changes nothing, or nothing here"
        yield Finding("note" if branches else "alarm", names, later, told, cause, FETCH)
    elsewhere = {digest: step for step, digest in theirs.items() if step not in starts}
    for step, digest in ours.items():
        if step not in starts and elsewhere.get(digest, step) != step:
            told = f"step {step} of {left.name} is step {elsewhere[digest]} of {right.name}"
            cause = "one member's files were published as the other's, under another number"
            yield Finding("alarm", names, (step, elsewhere[digest]), told, cause, FETCH)
    yield from _foreign_start(left, right)
    yield from _foreign_start(right, left)


def _differing_starts(left: Linted, right: Linted, names: str) -> Finding:
    ours, theirs = left.measured.digests, right.measured.digests
    differ = [name for name in ours if ours[name].get(0) != theirs.get(name, {}).get(0)]
    told = f"do not share step0: {len(differ)} of {len(ours)} tensors differ"
    cause = "one of them was initialised otherwise, or its step0 is of another run"
    return Finding("alarm", names, (0,), told, cause, FETCH, tuple(sorted(differ)))


def _shared_start(left: Linted, right: Linted) -> Finding:
    """Two runs of other seeds with one start, foreign to the one that does not go on from it."""
    foreign, own = sorted((left, right), key=lambda run: _likeness(run, run))
    told, cause = f"has the step0 of {own.name}, and goes on from another", "a copied step0"
    if _likeness(foreign, foreign) > 0.5:
        told = f"starts from the very step0 of {own.name}"
        cause = "initialised with the other's seed"
    return Finding("alarm", foreign.name, (0,), told, cause, FETCH)


def _foreign_start(run: Linted, other: Linted) -> Iterator[Finding]:
    """Whether a run goes on from the start of another instead of its own."""
    if _likeness(run, run) < 0.5 < 0.8 < _likeness(other, run):
        told = f"goes on from the step0 of {other.name}, not from its own"
        yield Finding("alarm", run.name, (0,), told, "the start of another seed", FETCH)


def _likeness(first: Linted, second: Linted) -> float:
    """The median cosine of the first step of a run and the second of another, by matrix; or 0."""
    before, after = first.measured.starts, second.measured.starts
    pairs = [(before[name][0], after[name][1]) for name in before.keys() & after.keys()]
    cosines = [
        float(one @ two / max(np.linalg.norm(one) * np.linalg.norm(two), 1e-30))
        for one, two in pairs
        if one.shape == two.shape
    ]
    return float(np.median(cosines)) if cosines else 0.0
