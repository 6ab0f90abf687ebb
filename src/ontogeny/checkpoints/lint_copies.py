"""Steps that have the same weights, whole or in part, and to which of them these belong.

Byte for byte, but for the sign of zeros. The rightful step is the one that lies on the run's path.
Not here: steps out of place that are no copies (`lint.py`), copies among runs (`lint_runs.py`).
"""

from __future__ import annotations

import numpy as np

from ontogeny.checkpoints.lint_folders import FETCH, Finding, Severity
from ontogeny.checkpoints.lint_measure import Linted, Measured, copies, follow
from ontogeny.checkpoints.lint_path import place_of
from ontogeny.suite import RECIPES, RunSettings


def find_copies(linted: Linted) -> set[int]:
    """Report steps that have the same weights, whole or in part; the steps with wrong ones."""
    measured, constant = linted.measured, linted.measured.constant()
    wrong, repeated = set[int](), set[int]()
    for group in copies(linted.whole):
        owner = _owner(measured, group)
        repeated |= {*group[1:]}
        _report_copy(linted, group, owner, "all weights", ())
        first_is_kept = owner is None and follow(group, measured.steps)
        wrong |= {*group} - {group[0] if first_is_kept else owner}
    parts: dict[tuple[int, ...], list[str]] = {}
    for name in measured.digests.keys() - constant:
        there = {s: d for s, d in measured.digests[name].items() if s not in repeated}
        for group in copies(there):
            if len(group) < len(there):
                parts.setdefault(group, []).append(name)
    still, steps = set[str](), set[int]()
    for group, names in sorted(parts.items()):
        what, is_copy = _part(linted, group, {*names}, repeated)
        if is_copy:
            _report_copy(linted, group, _owner(measured, group), what, tuple(sorted(names)))
        else:
            still |= {*names}
            steps |= {*group}
    if still:
        told = f"{len(still)} of {len(measured.digests)} tensors do not change here and there"
        cause = "changes too small for the numbers of the files, or no gradient"
        where = tuple(sorted(steps))
        linted.findings.append(
            Finding("note", linted.name, where, told, cause, "", tuple(sorted(still)))
        )
    return wrong


def _report_copy(
    linted: Linted, group: tuple[int, ...], owner: int | None, what: str, names: tuple[str, ...]
) -> None:
    severity: Severity = "alarm"
    steps, told, fix = group, f"{what} are the same", FETCH
    cause = "a copy under a second number; which is the right one cannot be told"
    if not names and group == first_still(linted.declared):
        severity, fix = "expected", ""
        cause = f"the manifest's recipe gives update {group[0]} a learning rate of 0"
    elif owner is not None:
        steps = tuple(step for step in group if step != owner)
        told, cause = f"{what} are those of step {owner}", "that step was served in their place"
    elif group == (0, 1):
        cause = "one is a copy of the other, or the first update had a learning rate of 0"
    linted.findings.append(Finding(severity, linted.name, steps, told, cause, fix, names))


def first_still(settings: RunSettings | None) -> tuple[int, ...]:
    """The two steps that are alike since the first update of a declared recipe has rate 0."""
    if settings is None or not RECIPES[settings.recipe].first_rate_is_zero:
        return ()
    return settings.origin, settings.origin + 1


def _part(
    linted: Linted, group: tuple[int, ...], names: set[str], repeated: set[int]
) -> tuple[str, bool]:
    """What of a model some tensors are, and whether chance cannot have made them the same.

    By chance, or for want of a gradient, numbers of 16 bits or vectors may stay or come back.
    """
    last = next(one for one in reversed(linted.checkpoints) if one.step in group)
    moving, by_file = last.tensors.keys() - linted.measured.constant(), dict[str, set[str]]()
    for name in moving:
        by_file.setdefault(last.tensors[name].file.name, set()).add(name)
    shards = sorted(file for file, held in by_file.items() if held <= names)
    if shards and len(by_file) > 1:
        return f"the tensors of {', '.join(shards)}", True
    stays = follow(group, [step for step in linted.measured.steps if step not in repeated])
    exact = {name for name in names if last.tensors[name].torch_dtype.itemsize > 2}
    matrices = names & linted.measured.alike.keys()
    is_copy = bool(exact & matrices) or (not stays and bool(exact | matrices))
    return f"{len(names)} of {len(moving)} tensors", is_copy or 2 * len(names) > len(moving)


def _owner(measured: Measured, group: tuple[int, ...]) -> int | None:
    """The one step of a group where the weights they share lie on the path, if it can be told."""
    holding = [one for one in measured.of_copies.items() if {*group} <= {*one[0]}]
    steps, fits = measured.steps, dict[int, float]()
    if not holding or (group[0] == steps[0] and follow(group, steps)):
        return None  # of a start that is there twice either may be the copy
    doubled, sums = max(holding, key=lambda one: one[1].number.max())
    distances = sums.mean()
    for label in group:
        keep = [at for at, step in enumerate(steps) if step == label or step not in doubled]
        near, at = distances[np.ix_(keep, keep)], keep.index(steps.index(label))
        place = place_of([steps[one] for one in keep], near, at)
        if np.argmin(np.delete(near[at], at)) in (at - 1, at):
            fits[label] = np.inf if place is None else place.off_label
    best = sorted(fits, key=lambda label: fits[label])
    if not best or fits[best[0]] > 0.5 or np.inf in fits.values():
        return None
    return best[0] if len(best) == 1 or fits[best[1]] > fits[best[0]] + 0.15 else None
