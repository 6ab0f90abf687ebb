"""What is asked of whom: from paths to checkpoints, their tasks, and the stores of their scores.

A path leads to the members of a suite, to a run, to one checkpoint of it, or to weights that were
trained elsewhere. Whoever is a member of a suite is scored into the suite's store, and the record
of the suite is told. Not here: asking (`evaluation/sweep.py`), what a grown suite is asked by
itself (`graph.py`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from ontogeny.artifact import MANIFEST, Artifact, key, key_of, open_artifact, read_manifest
from ontogeny.config import build
from ontogeny.errors import CheckpointError, ConfigError, EvaluationError
from ontogeny.evaluation.catalog import TaskRef, resolve
from ontogeny.evaluation.foreign import GGUF
from ontogeny.evaluation.pack import TASKS
from ontogeny.evaluation.sweep import Answers, Asked, fill, missing
from ontogeny.evaluation.weights import (
    Checkpoint,
    Dtype,
    foreign_checkpoint,
    foreign_name,
    own_checkpoint,
)
from ontogeny.model import hf
from ontogeny.record import RECORD, Record, change_record, read_record
from ontogeny.scores import FOLDER, ScoreStore, stage_digest
from ontogeny.steps import STEPS, list_steps, step_folder
from ontogeny.suite import Member, RunSettings
from ontogeny.training.machine import device
from ontogeny.workers import Workers, num_cores

TASKS_STAGE = "tasks"  # of a suite: its own pack
POLL_SECONDS = 1.0  # between two looks at a run that is followed
# What a run is called that is of no suite, after its run file (`suite.SharedSettings.member`).
NAME = re.compile(r"(?P<size>.+?)(?P<deduped>-deduped)?(-rows\d+)?(-rate[^-]+)?(-seed\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be asked. No tasks: those of the suite's own pack."""

    tasks: tuple[str, ...] = ()
    shots: tuple[int, ...] = (0,)
    steps: str = "all"  # `all`, `log`, `last`, or numbers with commas
    data: tuple[str, ...] = ()
    dtype: Dtype = "auto"
    limit: int | None = None
    threads: int = 1  # of a process
    out: Path | None = None
    workers: Workers = field(default_factory=Workers)


class Watch(Protocol):
    """What wants to know how a sweep is doing."""

    def planned(self, asked: int) -> None:
        """So many checkpoints are to be asked something."""

    def filled(self, answers: Answers) -> None:
        """A checkpoint is done."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is asked: a run, or weights that were trained elsewhere at `path`.

    `home` is the folder of the suite it is a member of, `steps` those that the path itself names.
    """

    path: Path
    run: Artifact | None = None
    size: str = ""
    corpus: str = "standard"
    home: Path | None = None
    steps: tuple[int, ...] | None = None


@dataclass(slots=True)
class Swept:
    """A store after a sweep: who was asked, which tasks, and what came of it."""

    store: ScoreStore
    home: Path | None
    checkpoints: list[Checkpoint]
    tasks: list[TaskRef]
    num_found: int = 0
    num_computed: int = 0
    failures: list[str] = field(default_factory=list)

    def with_more(self, more: Swept) -> Swept:
        """This and what was asked later of the same run."""
        return replace(
            more,
            checkpoints=self.checkpoints + more.checkpoints,
            num_found=self.num_found + more.num_found,
            num_computed=self.num_computed + more.num_computed,
            failures=self.failures + more.failures,
        )


def subjects(path: Path) -> list[Subject]:
    """Who a path leads to. Raises ConfigError or CheckpointError where that is nobody."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 (links keep their names)
    if (path / RECORD).is_file():
        return _members(path)
    if (path / MANIFEST).is_file():
        found = read_manifest(path)
        if found.kind == "run":
            return [_of_run(path)]
        if found.kind == "checkpoint" and path.parent.name == STEPS:
            return [replace(_of_run(path.parent.parent), steps=(int(found.config["step"]),))]
    if (path / hf.CONFIG).is_file() or (path.suffix == GGUF and path.is_file()):
        return [Subject(path)]
    raise CheckpointError(
        "nothing that can be asked" if path.exists() else "no such folder",
        where=path,
        expected="the folder of a suite, a run or a checkpoint, or weights that transformers loads",
    )


def evaluate(
    who: Sequence[Subject], wish: Wish, watch: Watch, *, patiently: bool = False
) -> list[Swept]:
    """Ask all that is missing; a store a suite, or a run, that was asked.

    Raises EvaluationError, before anything is asked, for tasks or data that are not there, weights
    that are not what was recorded, and, unless it is to wait `patiently`, for a store that another
    process fills.
    """
    swept = _planned(who, wish)
    with ExitStack() as held:
        for one in swept:
            for member in dict.fromkeys(point.place.member for point in one.checkpoints):
                held.enter_context(one.store.locked(member, patiently=patiently))
        works = [unasked(one.store, one.checkpoints, one.tasks, wish.threads) for one in swept]
        for one, asked in zip(swept, works, strict=True):
            one.num_computed = sum(len(work.cells) for work in asked)  # less those that fail
            one.num_found = len(one.checkpoints) * len(one.tasks) - one.num_computed
        watch.planned(sum(map(len, works)))
        for one, asked in zip(swept, works, strict=True):
            try:
                fill(one.store, asked, wish.workers, partial(_note, one, watch))
            finally:
                if one.home is not None:  # also where a killed sweep did not come to that
                    members = {point.place.member for point in one.checkpoints}
                    change_record(one.home, partial(_with_scores, one.home, members))
    return swept


def follow(subject: Subject, wish: Wish, watch: Watch) -> list[Swept]:
    """Ask the checkpoints of a run as they appear, until it is finished."""
    assert subject.run is not None
    settings = build(RunSettings, dict(subject.run.config), subject.path)
    chosen = chosen_steps(wish.steps, settings.steps, subject.path)
    everything = replace(wish, steps="all")
    done: list[int] = []
    swept: Swept | None = None
    while True:
        is_finished = step_folder(subject.path, settings.num_updates).is_dir()
        new = [step for step in list_steps(subject.path) if step in chosen and step not in done]
        if new:
            now = replace(subject, steps=tuple(new))
            (more,) = evaluate([now], everything, watch, patiently=True)
            swept = more if swept is None else swept.with_more(more)
            done += new
        if is_finished:
            return [] if swept is None else [swept]
        time.sleep(POLL_SECONDS)


def unasked(
    store: ScoreStore, checkpoints: Sequence[Checkpoint], tasks: Sequence[TaskRef], threads: int
) -> list[Asked]:
    """What the store does not have yet, a unit of work a checkpoint; the largest models first."""
    where, found = str(device()), []
    for one in sorted(checkpoints, key=lambda one: -one.place.num_parameters):
        if cells := missing(store, one, tasks):
            found.append(Asked(one, cells, threads, where))
    return found


def chosen_steps(words: str, there: Sequence[int], where: Path) -> list[int]:
    """The steps of those there that are meant: `all`, `log`, `last`, or numbers with commas.

    `log` are the first, the last, and the first at or after every power of two.
    """
    if not there:
        raise CheckpointError("no checkpoints", where=where, fix="ontogeny evaluate RUN --follow")
    if words == "all":
        return list(there)
    if words == "last":
        return [there[-1]]
    if words == "log":
        powers = [2**power for power in range(there[-1].bit_length())]
        later = (next(step for step in there if step >= power) for power in powers)
        return sorted({there[0], there[-1], *later})
    if not re.fullmatch(r"\d{1,15}(,\d{1,15})*", words):
        raise ConfigError(
            "not steps", where="--steps", expected="all, log, last, or 0,512,1000", found=words
        )
    wanted = sorted(set(map(int, words.split(","))))
    for step in wanted:
        if step not in there:
            nearest = min(there, key=lambda one: abs(one - step))
            raise CheckpointError(
                f"no checkpoint of step {step}", where=where, fix=f"the nearest, {nearest}"
            )
    return wanted


def _members(home: Path) -> list[Subject]:
    """The members of a suite that are grown."""
    record = read_record(home)
    stages = {stage.name: home / stage.path for stage in record.stages}
    found = [
        Subject(path, open_artifact(path, "run"), member.size, member.corpus, home)
        for member in record.suite.table()
        if (path := stages.get(f"runs/{member.name}")) is not None
    ]
    if not found:
        raise ConfigError("no member is grown yet", where=home, fix="ontogeny evaluate HOME/runs/M")
    return found


def _of_run(path: Path) -> Subject:
    """A run, as a member of the suite whose folder it lies in if that is what it is."""
    run = open_artifact(path, "run")
    settings = build(RunSettings, dict(run.config), path)
    home = path.resolve().parent.parent
    if path.resolve().parent.name == "runs" and (home / RECORD).is_file():
        record = read_record(home)
        for member in record.suite.table():
            if member.name == settings.member and _key_in(home, record, member, settings) == key(
                run
            ):
                return Subject(path, run, member.size, member.corpus, home)
    named = NAME.fullmatch(settings.member)
    assert named is not None
    return Subject(path, run, named["size"], "deduped" if named["deduped"] else "standard")


def _key_in(home: Path, record: Record, member: Member, settings: RunSettings) -> str | None:
    """The key that the run of a member has in a suite as it is set now."""
    stages = {stage.name: stage for stage in record.stages}
    if not stages.keys() >= {"vocabulary", f"orders/{member.corpus}"}:
        return None
    order, vocabulary = stages[f"orders/{member.corpus}"], stages["vocabulary"]
    size = int(read_manifest(home / vocabulary.path).facts["size"])
    config = record.suite.run_settings(member, size, settings.training.precision).resolved()
    return key_of("run", config, {"order": order.digest, "vocabulary": vocabulary.digest})


def _planned(who: Sequence[Subject], wish: Wish) -> list[Swept]:
    """Whom to ask what, by the store that it goes to."""
    groups: dict[Path, list[Subject]] = {}
    for subject in who:
        groups.setdefault(wish.out or _store_folder(subject), []).append(subject)
    found = []
    for folder, group in groups.items():
        named: dict[tuple[str, int], Checkpoint] = {}
        for one in (one for subject in group for one in _checkpoints(subject, wish)):
            other = named.setdefault((one.place.member, one.place.step), one)
            if other.path.resolve() != one.path.resolve():
                raise ConfigError(
                    f"two checkpoints are called {one.place.member} at step {one.place.step}",
                    where=one.path,
                    found=other.path,
                    fix="ask them one by one, with --out",
                )
        home = group[0].home if wish.out is None else None
        found.append(Swept(ScoreStore(folder), home, [*named.values()], _tasks(group, wish)))
    return found


def _store_folder(subject: Subject) -> Path:
    if subject.home is not None:
        return subject.home / FOLDER
    folder = subject.path if subject.run is not None else foreign_name(subject.path)[0]
    return folder.with_name(f"{folder.name}-scores")


def _checkpoints(subject: Subject, wish: Wish) -> list[Checkpoint]:
    """Those of a subject that are meant; their files are read, several at a time."""
    path, run, dtype = subject.path, subject.run, wish.dtype
    if run is None:
        chosen_steps(wish.steps, [foreign_name(path)[1]], path)
        return [foreign_checkpoint(path, dtype)]
    there = list_steps(path) if subject.steps is None else subject.steps

    def look(step: int) -> Checkpoint:
        return own_checkpoint(run, step, subject.size, subject.corpus, dtype)

    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(look, chosen_steps(wish.steps, there, path)))


def _tasks(group: Sequence[Subject], wish: Wish) -> list[TaskRef]:
    """The tasks meant, or else all of the pack of the suite that somebody is of."""
    homes = {one.home for one in group if one.home is not None}
    stages = [(home, stage) for home in homes for stage in read_record(home).stages]
    packs = [home / stage.path for home, stage in stages if stage.name == TASKS_STAGE]
    if len(packs) > 1:
        raise ConfigError("members of several suites", fix="ask one suite at a time")
    pack = next(iter(packs), None)
    names = wish.tasks or (() if pack is None else pack_tasks(pack))
    if not names:
        raise EvaluationError(
            "which tasks? Only a suite has some of its own",
            where=group[0].path,
            fix="--tasks NAME,NAME; ontogeny evaluate --list names them",
        )
    return resolve(names, wish.shots, pack=pack, data=wish.data, limit=wish.limit)


def pack_tasks(pack: Path) -> tuple[str, ...]:
    """The tasks that a suite's pack has."""
    there = read_manifest(pack).facts
    return tuple(name for name in TASKS if name in there)


def _note(swept: Swept, watch: Watch, answers: Answers) -> None:
    swept.failures += answers.problems
    swept.num_computed -= len(answers.problems)
    watch.filled(answers)


def _with_scores(home: Path, members: Collection[str], record: Record) -> Record:
    """The record of a suite with the digests of members' scores as they are now."""
    names = {f"{FOLDER}/{member}" for member in members}
    stages = [stage for stage in record.stages if stage.name in names]
    return record.with_stages(
        *(stage.model_copy(update={"digest": stage_digest(home, stage)}) for stage in stages)
    )
