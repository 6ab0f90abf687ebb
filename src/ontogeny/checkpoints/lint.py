"""What is wrong with a run's checkpoints, without a manifest: `ontogeny lint`.

Each check answers a fault that users found in a published suite: steps that hold another step's
weights, whole or in one shard; a step under a wrong number; a start from which the run does not
come; one tensor altered; files missing, cut off, of another model. Findings name steps; whatever
could not be looked at is said. Not here: several runs (`lint_runs.py`), manifests (`verify.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ontogeny.artifact import MANIFEST, open_artifact
from ontogeny.checkpoints.lint_copies import find_copies
from ontogeny.checkpoints.lint_folders import (
    Finding,
    compare_forms,
    find_steps,
    missing_steps,
    open_checkpoint,
)
from ontogeny.checkpoints.lint_measure import Linted, Measured, Track, measure
from ontogeny.checkpoints.lint_path import (
    find_noise,
    median,
    place_of,
    sees_noise,
    to_stretches,
)
from ontogeny.errors import OntogenyError
from ontogeny.suite import RunSettings, settings_of


def lint_run(path: Path, track: Track = iter) -> Linted:
    """Look at every checkpoint of a folder. Raises CheckpointError if it holds none."""
    name = str(path)
    opened = [open_checkpoint(name, step, folder) for step, folder in find_steps(path).items()]
    checkpoints, findings = [one for one, _ in opened], [one for _, more in opened for one in more]
    declared = _declared(path, findings)
    steps = [one.step for one in checkpoints]
    absent, known_from = missing_steps(steps, None if declared is None else declared.steps)
    if absent:
        findings.append(
            Finding("alarm", name, tuple(absent), "missing", f"by {known_from}", "fetch them")
        )
    findings += compare_forms(name, checkpoints)
    measured = measure([one for one in checkpoints if one.tensors], track)
    linted = Linted(name, checkpoints, declared, measured, findings)
    for step, tensors in measured.not_finite.items():
        cause = "a damaged copy, a conversion that overflowed, or training that diverged"
        linted.alarm([step], "holds NaN or infinity", cause, tensors)
    wrong = find_copies(linted)
    kept = [at for at, step in enumerate(measured.steps) if step not in wrong]
    wrong |= _off_the_path(linted, kept, absent)
    _tensors_off_the_path(linted, wrong)
    _say_what_was_not_checked(linted, wrong)
    return linted


def _declared(path: Path, findings: list[Finding]) -> RunSettings | None:
    """The settings a run's manifest states, where there is one."""
    if not (path / MANIFEST).is_file():
        return None
    try:
        return settings_of(open_artifact(path, "run"))
    except OntogenyError as error:
        fix = f"ontogeny verify {path}"
        findings.append(Finding("alarm", str(path), (), error.problem, "an altered manifest", fix))
        return None


def _off_the_path(linted: Linted, kept: list[int], absent: list[int]) -> set[int]:
    """Report steps whose weights are all of another step or run; those steps.

    A step out of place makes its neighbours look so too: the one without which most falls into
    place goes first, and the rest is looked at again. Who lies where a step is `absent` from was
    likely moved from there.
    """
    measured, wrong = linted.measured, set[int]()

    for step, alike in _breaks(measured, kept):
        told = f"the weights after it have little in common with it (cosine {alike:.2f})"
        cause = "the later steps come from another start, or this one is of another run"
        linted.alarm([step], told, cause)
        wrong.add(step)
        if step != measured.steps[kept[0]]:
            return wrong  # two runs in one folder have no common path
    kept = [at for at in kept if measured.steps[at] not in wrong]
    while found := _misplaced(measured, kept, absent):
        without = {at: [one for one in kept if one != at] for at in found}
        worst = min(found, key=lambda at: _disorder(measured, without[at], absent, found[at][0]))
        linted.alarm([measured.steps[worst]], *found[worst][1:])
        wrong.add(measured.steps[worst])
        kept = without[worst]
    return wrong


def _misplaced(
    measured: Measured, kept: list[int], absent: list[int]
) -> dict[int, tuple[float, str, str]]:
    """What is wrong and why with each of the kept steps that lies where it should not."""
    steps = [measured.steps[at] for at in kept]
    distances = measured.distances.mean()[np.ix_(kept, kept)]
    rounding = measured.rounding[kept] / measured.distances.number.max(initial=1)
    relabelled = "another step's weights under its number"
    found = {}
    for at in range(1, len(steps) - 1):
        sides = distances[at, at - 1], distances[at, at + 1]
        across = distances[at - 1, at + 1]
        place = place_of(steps, distances, at)
        is_told = 0 < across < np.inf and np.isfinite(sides).all()  # 0: lost among large numbers
        if not is_told or min(sides) ** 2 < 10 * rounding[at]:
            continue
        off = 0.0
        if place is not None:
            octaves = [abs(np.log2((place.step + 1) / (step + 1))) for step in absent]
            off = place.off_best + place.spread + min([1.0, *octaves])
        stretches = to_stretches(distances, at)
        other = int(np.argmin(stretches))
        if stretches[other] < 0.8 * stretches[at - 1]:
            ends = [step for step in steps if step != steps[at]][other : other + 2]
            told = f"its weights lie between those of steps {ends[0]} and {ends[1]}"
            found[kept[at]] = off, told, relabelled
        elif min(sides) > 2.5 * across:
            told = f"{min(sides) / across:.1f} times as far from both neighbours as they are apart"
            found[kept[at]] = off, told, "weights of another run, or damaged"
        elif place is not None and place.contradicts(steps[at]):
            told = f"its weights lie where step {place.step:.0f} or so would"
            found[kept[at]] = off, told, relabelled
    return found


def _disorder(
    measured: Measured, kept: list[int], absent: list[int], own: float
) -> tuple[int, float]:
    """How many of the kept steps lie where they should not, and how far off all are."""
    steps = [measured.steps[at] for at in kept]
    distances = measured.distances.mean()[np.ix_(kept, kept)]
    places = [place_of(steps, distances, at) for at in range(1, len(steps) - 1)]
    off = [place.off_label for place in places if place is not None]
    return len(_misplaced(measured, kept, absent)), own + (float(np.mean(off)) if off else 0.0)


def _breaks(measured: Measured, kept: list[int]) -> Iterator[tuple[int, float]]:
    """The kept steps after which the weights are others altogether."""
    if not measured.alike or len(kept) < 3:
        return
    alike = median(np.stack([*measured.alike.values()])[:, kept[:-1]], axis=0)
    for at, here in enumerate(alike):
        beside = [alike[one] for one in (at - 1, at + 1) if 0 <= one < len(alike)]
        if here < 0.5 and min(beside) > 0.8:
            yield measured.steps[kept[at]], float(here)


def _tensors_off_the_path(linted: Linted, wrong: set[int]) -> None:
    """Report single tensors of single steps that turn back more sharply than training does.

    Steps that are `wrong` as a whole, and those beside them, are left out.
    """
    measured, steps = linted.measured, linted.measured.steps
    beside = {steps[by] for at, step in enumerate(steps) if step in wrong
              for by in range(max(0, at - 1), min(len(steps), at + 2))}  # fmt: skip
    by_step: dict[int, set[str]] = {}
    found = {name: {*away} for name, away in measured.away.items()}
    for name, noisy in zip(measured.turns, find_noise(measured.all_turns()), strict=True):
        found[name] |= {steps[at] for at in np.flatnonzero(noisy)}
    for name, away in found.items():
        for step in away - beside:
            by_step.setdefault(step, set()).add(name)
    cause = "noise or a damaged block in this tensor; a loss spike moves all tensors, and for good"
    for step, names in sorted(by_step.items()):
        what = f"{len(names)} tensors turn" if len(names) > 1 else f"{min(names)} turns"
        linted.alarm([step], f"{what} away from the path and back", cause, sorted(names))


def _say_what_was_not_checked(linted: Linted, wrong: set[int]) -> None:
    measured, steps = linted.measured, linted.measured.steps
    seen = sees_noise(measured.all_turns(), measured.all_turns(noisy=True))
    places = int(np.isfinite(measured.all_turns()).sum())
    say = linted.unchecked.append
    if len(steps) < 3:
        say("whether steps lie on one path: that takes three or more")
    else:
        say(f"whether steps {steps[0]} and {steps[-1]} lie on the path, which ends there")
    if places:
        share = f"{seen.sum() / places:.0%} of {places:,} such places"
        say(f"noise, but in matrices at inner steps; half an update of it would be seen at {share}")
    else:
        say("noise in single tensors: that takes six steps and matrices that move visibly")
    if wrong:
        say("noise in the steps that are wrong as a whole, and in those beside them")
    say("optimizer states, tokenizers, and which data the steps have seen (ontogeny verify)")
