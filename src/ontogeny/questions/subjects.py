"""What an artifact or a run has on record, as lines of an answer and jobs that recompute it.

The plan is made from manifests alone; the jobs read the bytes. The rolling digest of the rows is
recomputed between neighbouring checkpoints, each stretch from what the one before it recorded.
Not here: running the jobs, whole suites (`verify.py`), the chain itself (`checkpoints/verify.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ontogeny.artifact import MANIFEST, Artifact, file_fault, input_place, read_manifest
from ontogeny.checkpoints.store import list_states
from ontogeny.checkpoints.verify import chain_faults, recorded_tensors, weight_faults
from ontogeny.errors import CheckpointError, Fault, MissingInputError, OntogenyError
from ontogeny.order.batches import Batches, roll
from ontogeny.questions.materials import open_materials
from ontogeny.results import parse_metrics
from ontogeny.scores import KIND
from ontogeny.steps import METRICS, STATES, STEPS, list_steps, state_folder, step_folder
from ontogeny.suite import RunSettings, settings_of
from ontogeny.training.run import LOCK

Job = Callable[[], Iterable[Fault]]
GROWING = {METRICS, LOCK, STEPS, STATES, "tensorboard"}  # what gathers beside a run's manifest
KEPT = re.compile(rf"/{STEPS}/step([0-9]+)$")  # a checkpoint that is in a run
DIGEST = re.compile("[0-9a-f]{64}")
DAMAGED = "flipped bits or an edit"
AGAIN = "fetch it again, or remove it and make it again"


@dataclass(slots=True)
class Subject:
    """One line of the answer: what it is, how much of it there is, what was found."""

    name: str
    kind: str
    num_files: int = 0
    num_tensors: int = 0
    num_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def hold(self, artifact: Artifact, steps: Mapping[tuple[str, str], int] | None = None) -> None:
        """Take on an artifact's files, and its tensors where it records them."""
        self.num_files += 1 + len(artifact.files)
        self.num_bytes += sum(entry["bytes"] for entry in artifact.files.values())
        try:
            self.num_tensors += len(recorded_tensors(artifact))
        except OntogenyError as error:
            self.faults.append(error.fault(DAMAGED, AGAIN))
        else:
            self.jobs.append(partial(weight_faults, artifact, steps or {}))
        self.jobs += [partial(_file, artifact, name) for name in artifact.files]
        self.faults += _strangers(artifact)


def artifact_subjects(path: Path, name: str) -> Iterator[Subject]:
    """What an artifact has on record; several lines where it is a run."""
    try:
        artifact = read_manifest(path)
    except OntogenyError as error:
        yield Subject(name, "unreadable", 1, faults=[error.fault(DAMAGED, AGAIN)])
        return
    subject = Subject(name, artifact.kind)
    subject.hold(artifact)
    for role, digest in artifact.inputs.items():
        place = input_place(artifact, role)
        if place is not None and not (place / MANIFEST).is_file():
            subject.notes.append(f"its {role} is not there any more, at {place}")
        elif place is not None:
            subject.faults += _input_faults(artifact, role, digest, place)
    yield subject
    if artifact.kind == "run":
        yield from _run_subjects(artifact, subject)
    elif found := KEPT.search(path.resolve().as_posix()):
        yield from _place_in_run(artifact, int(found[1]), subject)


def scores_subject(folder: Path, name: str) -> Subject:
    """What is on record of the scores in a member's folder, an artifact a checkpoint, as one."""
    subject = Subject(name, KIND)
    for path in sorted(folder.glob("step=*"), key=lambda path: (len(path.name), path.name)):
        for one in artifact_subjects(path, path.name):
            subject.num_files += one.num_files
            subject.num_bytes += one.num_bytes
            subject.faults += one.faults
            subject.notes += [f"{path.name}: {note}" for note in one.notes]
            subject.jobs += one.jobs
    return subject


def _run_subjects(run: Artifact, subject: Subject) -> Iterator[Subject]:
    """The checkpoints, states and rows of a run, after its own line."""
    try:
        settings = settings_of(run)
    except OntogenyError as error:
        subject.faults.append(error.fault("made by another version, or forged", AGAIN))
        return
    steps = Subject(f"{subject.name}/{STEPS}", "checkpoints")
    folders = {step: step_folder(run.path, step) for step in list_steps(run.path)}
    checkpoints = _manifests(folders, steps)
    seen = _metrics(run, settings, max(checkpoints, default=0), subject)
    steps.faults += chain_faults(run, settings, checkpoints)
    whole = {step: one for step, one in checkpoints.items() if one is not None}
    tensors = _tensor_steps(whole)
    for one in whole.values():
        steps.hold(one, tensors)
    yield steps
    if list_states(run.path):
        yield _states(run, subject.name, seen)
    yield _rows(run, subject.name, whole, seen)


def _manifests(folders: Mapping[int, Path], subject: Subject) -> dict[int, Artifact | None]:
    """The manifests of checkpoints or states by their step, None where one cannot be read."""
    found: dict[int, Artifact | None] = {}
    for step, folder in folders.items():
        try:
            found[step] = read_manifest(folder)
        except OntogenyError as error:
            found[step] = None
            if folder.is_dir():  # a run that goes on drops its rolling state meanwhile
                subject.faults.append(error.fault(DAMAGED, AGAIN))
    return found


def _tensor_steps(checkpoints: Mapping[int, Artifact]) -> dict[tuple[str, str], int]:
    """The first step at which each tensor was recorded, by its name and digest."""
    steps: dict[tuple[str, str], int] = {}
    for step, one in checkpoints.items():
        with suppress(CheckpointError):  # told where the checkpoint is taken on
            for name, entry in recorded_tensors(one).items():
                steps.setdefault((name, entry["sha256"]), step)
    return steps


def _place_in_run(checkpoint: Artifact, step: int, subject: Subject) -> Iterator[Subject]:
    """The chain up to a checkpoint of a run, and the rows since its parent."""
    try:
        run = read_manifest(checkpoint.path.resolve().parent.parent)
        settings = settings_of(run)
    except OntogenyError as error:
        subject.faults.append(error.fault("its run is damaged or gone", "ontogeny verify RUN"))
        return
    before = (one for one in list_steps(run.path) if one < step)
    chain = _manifests({one: step_folder(run.path, one) for one in before}, subject)
    chain[step] = checkpoint
    subject.faults += chain_faults(run, settings, chain)
    whole = {step: one for step, one in chain.items() if one is not None}
    yield _rows(run, subject.name, dict(list(whole.items())[-2:]), [])


def _metrics(run: Artifact, settings: RunSettings, last: int, subject: Subject) -> list[str]:
    """Check the lines of a run's metrics; the digest of the rows seen by the end of each update."""
    path, finished = run.path / METRICS, last == settings.num_updates
    seen: list[str] = []
    fix = "fetch it again; a run that goes on writes anew what follows its full state"
    subject.num_files += path.is_file()
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines):
        subject.num_bytes += len(line)
        row = parse_metrics(line.decode("utf-8", errors="replace"))
        is_whole = line.endswith(b"\n")
        if not is_whole and not finished and number >= last:
            break  # being written, or torn by a kill: mended when the run goes on
        if row is None or row.update != number or not is_whole:
            problem = f"line {number + 1} is not what was written for update {number}"
            subject.faults.append(Fault(str(path), problem, DAMAGED, fix))
            return seen
        seen.append(row.rows_digest)
    if len(seen) < last or (finished and len(seen) > last):
        problem = f"not one line an update; expected {last}; found {len(seen)}"
        subject.faults.append(Fault(str(path), problem, "cut short, or of another run", fix))
    if not finished:
        subject.notes.append(f"in progress: step {len(seen)} of {settings.num_updates}")
    return seen


def _states(run: Artifact, name: str, seen: list[str]) -> Subject:
    """The full states of a run: which step each is of, and its files."""
    subject = Subject(f"{name}/{STATES}", "states")
    folders = {step: state_folder(run.path, step) for step in list_states(run.path)}
    for step, state in _manifests(folders, subject).items():
        if state is None:
            continue
        subject.hold(state)
        digest = seen[step - 1] if 0 < step <= len(seen) else state.facts.get("rows_digest")
        for what, expected, found in (
            ("run", run.digest, state.inputs.get("run")),
            ("step", step, state.config.get("step")),
            ("rows_digest", digest, state.facts.get("rows_digest")),
        ):
            if expected != found:
                problem = f"not the {what} it must have; expected {expected}; found {found}"
                cause = "a copy of another state, or of another run's"
                subject.faults.append(Fault(str(state.path), problem, cause, "remove it"))
    return subject


def _rows(
    run: Artifact, name: str, checkpoints: Mapping[int, Artifact], seen: list[str]
) -> Subject:
    """The rows between neighbouring checkpoints, and after the last, read again from the store."""
    subject = Subject(f"{name}/rows", "rows")
    try:
        batches = open_materials(run.path).batches
    except MissingInputError as error:
        subject.notes.append(f"rows were not read again: {error.where}: {error.problem}")
        return subject
    except OntogenyError as error:
        fix = "ontogeny verify, on the order and the store"
        subject.faults.append(error.fault("the order or the store is damaged", fix))
        return subject
    ends = [(step, str(one.facts.get("rows_digest"))) for step, one in checkpoints.items()]
    if len(seen) > max(checkpoints, default=0):
        ends.append((len(seen), seen[-1]))
    begin, updates = (0, batches.start), 0
    for end in ends:
        if seen or begin[0] or end[0] == 0:  # of a single checkpoint, the rows since its parent
            subject.jobs.append(partial(_stretch, run.path, batches, begin, end, seen))
            updates += end[0] - begin[0]
        begin = end if DIGEST.fullmatch(end[1]) else begin
    subject.kind = f"rows of {updates:,} updates"
    return subject


def _stretch(
    run: Path, batches: Batches, begin: tuple[int, str], end: tuple[int, str], seen: list[str]
) -> Iterator[Fault]:
    """Roll over the rows from one step to another and compare with what both sides recorded."""
    (first, digest), (last, recorded) = begin, end
    place = step_folder(run, last)
    for update in range(first, last):
        digest = roll(digest, batches(update))
        if update < len(seen) and seen[update] != digest:
            told = f"expected {digest}; found {seen[update]}"
            problem = f"update {update} is on record with other rows; {told}"
            cause = "the order or the store is another, or the metrics are of another run"
            yield Fault(str(run / METRICS), problem, cause, "ontogeny verify, on order and store")
            return
    if digest != recorded:
        cause = "the order or the store is another, or the checkpoint is of another run"
        if recorded in seen:
            cause = f"these are the rows of step{seen.index(recorded) + 1}: it was relabelled"
        problem = f"has not seen the rows before it; expected {digest}; found {recorded}"
        yield Fault(str(place), problem, cause, "ontogeny replay, to derive the step anew")


def _file(artifact: Artifact, name: str) -> list[Fault]:
    """What is wrong with a file, unless a run that goes on has dropped the state it is of."""
    try:
        fault = file_fault(artifact, name)
    except FileNotFoundError:
        fault = None
    return [fault] if fault is not None and artifact.path.is_dir() else []


def _strangers(artifact: Artifact) -> Iterator[Fault]:
    """Files that the manifest does not know."""
    known = {artifact.path / name for name in (*artifact.files, MANIFEST)}
    beside = {artifact.path / name for name in GROWING if artifact.kind == "run"}
    for folder, folders, files in os.walk(artifact.path):  # it bears with what is dropped meanwhile
        folders[:] = sorted(name for name in folders if Path(folder, name) not in beside)
        for path in sorted({Path(folder, name) for name in files} - known - beside):
            cause = "put there after the artifact was made"
            yield Fault(str(path), "a file that the manifest does not know", cause, "remove it")


def _input_faults(artifact: Artifact, role: str, digest: str, place: Path) -> Iterator[Fault]:
    try:
        found = read_manifest(place).digest
    except OntogenyError as error:
        yield error.fault(f"damaged; {artifact.path} was made from it", AGAIN)
        return
    if found != digest:
        problem = f"not the {role} that {artifact.path} was made from"
        told = f"{problem}; expected {digest}; found {found}"
        yield Fault(str(place), told, "replaced, or made anew with other settings", AGAIN)
