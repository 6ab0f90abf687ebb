"""Which tasks there are, by name: those of the embedded pack, and the harness's with their groups.

A reference to a task is a few plain values, so that other processes load the same one. Not here:
what a task asks (`pack.py`, `harness.py`), nor where its data lies (`packs.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ontogeny.errors import EvaluationError
from ontogeny.evaluation.pack import TASKS, open_task
from ontogeny.evaluation.tasks import Task


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A task by name and where what it is made of lies.

    `pack` is the embedded pack's folder, needed by its own tasks alone; `data` are folders of
    benchmark files, or `hub`; none: the cache of fetched ones. `limit` keeps the first items of a
    harness task.
    """

    name: str
    shots: int
    pack: Path | None
    data: tuple[str, ...]
    limit: int | None


def resolve(
    names: Sequence[str],
    shots: Sequence[int],
    *,
    pack: Path | None,
    data: Sequence[str] = (),
    limit: int | None = None,
) -> list[TaskRef]:
    """References to the named tasks, groups expanded, with every number of worked examples.

    Those that take no worked examples are asked without, once. Raises EvaluationError for a name
    that nobody knows, giving the nearest, and for such a task where 0 is not among `shots`.
    """
    for number in shots:
        if number < 0:
            raise EvaluationError(
                "worked examples cannot be fewer than none",
                where="--shots",
                expected="0 or more",
                found=number,
            )
    found: dict[TaskRef, None] = {}
    for name in names:
        members = {name: False} if name in TASKS else _harness().expand(name, TASKS)
        for member, takes_shots in members.items():
            for number in shots if takes_shots else _none_of(shots, member):
                found[TaskRef(member, number, pack, tuple(data), limit)] = None
    return list(found)


def _none_of(shots: Sequence[int], name: str) -> list[int]:
    if 0 not in shots:
        raise EvaluationError(
            f"{name} takes no worked examples",
            where="--shots",
            expected="0",
            found=", ".join(map(str, shots)),
            fix="--shots 0, or leave the task out",
        )
    return [0]


@functools.cache
def load_task(ref: TaskRef) -> Task:
    """The task with its items at hand, loaded once in a process.

    Raises EvaluationError for data that is missing, of other bytes than known, or no such items.
    """
    if ref.name not in TASKS:
        return _harness().load_harness_task(ref.name, ref.shots, ref.data, ref.limit)
    if ref.pack is None:
        raise EvaluationError(
            "this task is made from a suite's held-out text, and none is given",
            where=ref.name,
            fix="ontogeny evaluate SUITE, or name tasks of the harness",
        )
    return open_task(ref.pack, ref.name)


def _harness() -> ModuleType:
    """The harness's tasks, which are a matter of seconds to import and an extra to install."""
    try:
        return import_module("ontogeny.evaluation.benchmarks")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ontogeny"):
            raise
        raise EvaluationError(
            "benchmark tasks need lm-eval, which is not installed",
            found=f"no {error.name}",
            fix='pip install "ontogeny[eval]"',
        ) from error
