"""The sweep: tasks asked of checkpoints, cell by cell, into a score store.

The unit of work is a checkpoint with the tasks that are missing of it. Any process can do it
(`workers.py`) and leaves an artifact of kind "cells"; who holds the store takes its rows over, so a
killed sweep loses at most the checkpoints that were being scored. A cell is found again by its key
alone: digests of weights, vocabulary, requests and data, the arithmetic, and the harness. While a
checkpoint is scored a thread reads the next one. Not here: which checkpoints and tasks
(`stages/evaluate.py`), where weights lie (`weights.py`), what is asked (`catalog.py`).
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ontogeny.artifact import Artifact, keyed, writing
from ontogeny.errors import EvaluationError
from ontogeny.evaluation.catalog import TaskRef, load_task
from ontogeny.evaluation.tasks import Scorer, Spec, UnansweredError
from ontogeny.evaluation.weights import Checkpoint, checkpoint_inputs, open_scorer
from ontogeny.model.arithmetic import bits, threads
from ontogeny.results import Item, Score, read_rows, write_rows
from ontogeny.scores import Cell, ScoreStore
from ontogeny.workers import Task, Workers

KIND = "cells"
WORK = ".work"  # of a member in a store: what is finished but not taken over yet


@dataclass(frozen=True, slots=True)
class Asked:
    """A checkpoint and what it is asked: tasks, each with the cell that its answers will fill.

    `then` is the checkpoint that the same process is likely to be given next.
    """

    checkpoint: Checkpoint
    cells: Mapping[TaskRef, Cell]
    threads: int
    device: str
    then: Checkpoint | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """The rows of a checkpoint, the tasks that gave no numbers, and what decided the bits."""

    scores: list[Score]
    items: list[Item]
    failures: list[dict[str, Any]]
    bits: dict[str, Any]

    @property
    def problems(self) -> list[str]:
        return [str(failure["problem"]) for failure in self.failures]


def cell_of(checkpoint: Checkpoint, spec: Spec) -> Cell:
    """The cell of a task, as it is specified, asked of a checkpoint."""
    return Cell(
        task=spec.name,
        shots=spec.shots,
        weights=checkpoint.weights,
        vocabulary=checkpoint.vocabulary,
        spec=spec.digest,
        data=spec.data,
        dtype=checkpoint.dtype,
        harness=spec.harness,
    )


def missing(
    store: ScoreStore, checkpoint: Checkpoint, tasks: Sequence[TaskRef]
) -> dict[TaskRef, Cell]:
    """The tasks whose cells the store does not have of a checkpoint, with those cells."""
    there = store.cells(checkpoint.place.member, checkpoint.place.step)
    wanted = {ref: cell_of(checkpoint, load_task(ref).spec) for ref in tasks}
    return {ref: cell for ref, cell in wanted.items() if cell not in there}


def fill(
    store: ScoreStore,
    asked: Sequence[Asked],
    workers: Workers,
    observe: Callable[[Answers], None],
) -> None:
    """Ask checkpoints and put their answers into a store, each as soon as it is there.

    To be called under the store's lock. `observe` is given those of every checkpoint.
    """
    ahead = [one.checkpoint for one in asked[workers.num_processes :]]
    works = [replace(one, then=then) for one, then in zip(asked, ahead, strict=False)]
    works += asked[len(works) :]
    if workers == Workers():  # nobody else has to be told what came of it
        answered: Iterator[tuple[int, Answers]] = enumerate(map(ask, works))
    else:
        tasks = [Task(_work_place(store, one), partial(ask_apart, one)) for one in works]
        answered = ((number, _read(made)) for number, made in workers.each(tasks))
    for number, answers in answered:
        _add(store, works[number], answers)
        observe(answers)
    for member in {one.checkpoint.place.member for one in asked}:
        shutil.rmtree(store.of_member(member) / WORK, ignore_errors=True)


def ask(asked: Asked) -> Answers:
    """Ask a checkpoint all its tasks; one that gives no numbers does not keep the others."""
    checkpoint = asked.checkpoint
    with threads(asked.threads):
        opening = _opening(checkpoint, asked.device)
        _opening.cache_clear()  # so that it is let go when it is done with, or was at fault
        scorer = opening.result()
        if asked.then is not None:
            _opening(asked.then, asked.device)
        answers = Answers([], [], [], bits(asked.device))
        for ref, cell in asked.cells.items():
            task = load_task(ref)
            if cell_of(checkpoint, task.spec) != cell:
                fix = "the same command again"
                raise EvaluationError("the task changed meanwhile", where=ref.name, fix=fix)
            try:
                scores, items = task.measure(scorer, checkpoint.place)
            except UnansweredError as error:
                told = f"{checkpoint.path}: {error}"
                failure = {"task": cell.task, "shots": cell.shots, "problem": told}
                answers.failures.append(failure)
                continue
            answers.scores.extend(scores)
            answers.items.extend(items)
    return answers


def ask_apart(asked: Asked, folder: Path) -> Artifact:
    """`ask`, with the answers in an artifact at `folder` for another process to read."""
    answers = ask(asked)
    bits = {"bits": answers.bits}
    with writing(folder, KIND, **_identity(asked), provenance=bits) as draft:
        write_rows(draft.folder, answers.scores, answers.items)
        draft.facts["failures"] = answers.failures
    return draft.artifact


def _read(made: Artifact) -> Answers:
    return Answers(*read_rows(made.path), made.facts["failures"], made.provenance["bits"])


def _add(store: ScoreStore, asked: Asked, answers: Answers) -> None:
    """Put answers into the store, in place of those of other weights."""
    checkpoint, place = asked.checkpoint, asked.checkpoint.place
    old = store.cells(place.member, place.step)
    if any(cell.weights != checkpoint.weights for cell in old):
        shutil.rmtree(store.path(place.member, place.step))
    failed = {(one["task"], one["shots"]) for one in answers.failures}
    cells = [cell for cell in asked.cells.values() if (cell.task, cell.shots) not in failed]
    if cells:
        inputs = checkpoint_inputs(checkpoint)
        store.add(place, cells, answers.scores, answers.items, inputs, answers.bits)


def _identity(asked: Asked) -> Mapping[str, Any]:
    """The settings and inputs of the artifact that a checkpoint's answers are."""
    cells = [asdict(cell) for cell in asked.cells.values()]
    config = {"place": asdict(asked.checkpoint.place), "cells": cells}
    return {"config": config, "inputs": {"weights": asked.checkpoint.weights}}


def _work_place(store: ScoreStore, asked: Asked) -> Path:
    place = asked.checkpoint.place
    folder = store.of_member(place.member) / WORK / f"step={place.step}"
    return keyed(folder, KIND, **_identity(asked))


@functools.lru_cache(maxsize=1)
def _opening(checkpoint: Checkpoint, device: str) -> Future[Scorer]:
    """A checkpoint as it is read by a thread; of the one that is likely next it is kept."""
    return _thread().submit(open_scorer, checkpoint, device)


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)
