"""Everything that an artifact, a run or a whole suite has on record, recomputed and compared.

Jobs run in as many threads as there are cores: hashing and reading leave the others free to run.
Not here: what there is to check (`subjects.py`), folders without manifests (`checkpoints/lint.py`),
deriving anything anew (`training/replay.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ontogeny.artifact import MANIFEST, parse_manifest
from ontogeny.checkpoints.verify import recorded_tensors, tensor_problem, tensor_spans
from ontogeny.config import nearest
from ontogeny.errors import CheckpointError, DataError, Fault, OntogenyError
from ontogeny.questions.subjects import (
    AGAIN,
    DAMAGED,
    Job,
    Subject,
    artifact_subjects,
    scores_subject,
)
from ontogeny.ranges import open_ranges
from ontogeny.record import RECORD, Record, StageRecord, read_record
from ontogeny.scores import KIND, stage_digest
from ontogeny.workers import num_cores

Watch = Callable[[int, int], None]  # how many jobs are done, and of how many
DEPTH = 3  # folders down in which artifacts are looked for
GROW = "ontogeny run again, into the same folder: it makes what is missing"


def verify(path: Path, watch: Watch | None = None) -> list[Subject]:
    """Recompute what is on record of a checkpoint, run, store, any artifact, or all in a folder.

    Raises DataError where there is nothing with a manifest.
    """
    subjects = plan(path)
    total, done = sum(len(subject.jobs) for subject in subjects), 0
    pool = ThreadPoolExecutor(num_cores())
    try:
        running = [[pool.submit(_findings, job) for job in one.jobs] for one in subjects]
        for subject, futures in zip(subjects, running, strict=True):
            for future in futures:
                subject.faults += future.result()
                done += 1
                if watch is not None:
                    watch(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    for subject in subjects:  # what was found first at a place says it most exactly
        first = {fault.place: fault for fault in reversed(subject.faults)}
        subject.faults = [one for one in subject.faults if first[one.place] is one]
    return subjects


def verify_tensor(place: str, name: str) -> Subject:
    """Check one tensor of a checkpoint, here or on a server, by reading its range alone.

    `place` is the checkpoint's folder or its safetensors file. Raises OntogenyError when it cannot
    be read or has no such tensor.
    """
    folder, wanted = place.rstrip("/"), ""
    if folder.endswith(".safetensors"):
        folder, _, wanted = folder.rpartition("/")
        folder = folder or "."
    manifest = open_ranges(f"{folder}/{MANIFEST}")
    artifact = parse_manifest(manifest.read(0, manifest.size), Path(folder))
    moved, known = manifest.moved, list[str]()
    for file in sorted(artifact.files):
        if file.endswith(".safetensors") and wanted in ("", file):
            weights = open_ranges(f"{folder}/{file}")
            spans = tensor_spans(weights)
            known += spans
            if name in spans:
                span = spans[name]
                subject = Subject(f"{file} {name}", "tensor", 1, 1, span.end - span.begin)
                problem = tensor_problem(weights, span, recorded_tensors(artifact).get(name))
                if problem is not None:
                    told = f"tensor {name} is not the one recorded; {problem}"
                    subject.faults.append(Fault(weights.name, told, DAMAGED, "fetch it again"))
                subject.notes.append(f"{moved + weights.moved:,} bytes read")
                return subject
            moved += weights.moved
    problem = f"no tensor {name!r}" if known else "its manifest knows of no such weights"
    raise CheckpointError(problem, where=place, fix=nearest(name, known))


def plan(path: Path) -> list[Subject]:
    """What there is to check at a path. Raises DataError where that is nothing."""
    if (path / RECORD).is_file():
        return list(_suite_subjects(path))
    if (path / MANIFEST).is_file():
        return list(artifact_subjects(path, path.resolve().name))
    found = list(artifacts_under(path)) if path.is_dir() else []
    if not found:
        lint = "ontogeny lint, for checkpoints without manifests"
        raise DataError(
            "nothing to verify" if path.exists() else "no such folder",
            where=path,
            expected=f"a folder with {MANIFEST} or {RECORD}, or one that holds such folders",
            fix="the folder it is in" if path.is_file() else lint if path.exists() else None,
        )
    return [
        subject
        for one in found
        for subject in artifact_subjects(one, one.relative_to(path).as_posix())
    ]


def artifacts_under(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The artifacts in a folder and the folders in it; links and hidden ones are left out."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name.startswith(".") or not path.is_dir():
            continue
        if (path / MANIFEST).is_file():
            yield path
        elif depth > 1:
            yield from artifacts_under(path, depth - 1)


def _suite_subjects(home: Path) -> Iterator[Subject]:
    """What `suite.json` lists, in its order, and then what else lies there."""
    subject = Subject(RECORD, "suite", 1, 0, (home / RECORD).stat().st_size)
    yield subject
    listed: dict[Path, StageRecord] = {}
    try:
        record = read_record(home)
    except OntogenyError as error:
        subject.faults.append(error.fault(DAMAGED, GROW))
    else:
        listed = {home / stage.path: stage for stage in record.stages}
        subject.faults += _record_faults(home, record)
        members = [f"runs/{member.name}" for member in record.suite.table()]
        missing = sorted({*members, "report"} - {stage.name for stage in listed.values()})
        if missing:
            subject.notes.append(f"in progress: no {', '.join(missing)} yet")
    for path, stage in listed.items():
        if stage.kind == KIND and path.is_dir():
            yield scores_subject(path, stage.name)
        elif (path / MANIFEST).is_file():
            yield from artifact_subjects(path, stage.name)
    for path in artifacts_under(home):
        if not {path, path.parent} & listed.keys():
            for one in artifact_subjects(path, path.relative_to(home).as_posix()):
                one.notes.append(f"not in {RECORD}: not done, of other settings, or made by hand")
                yield one


def _record_faults(home: Path, record: Record) -> Iterator[Fault]:
    """Stages that are not where the record says, or not what it says, and links that go astray."""
    for stage in record.stages:
        path, link = home / stage.path, home / stage.name
        try:
            found = stage_digest(home, stage)
        except OntogenyError as error:
            yield error.fault("removed, damaged, or never copied", GROW)
            continue
        if found != stage.digest:
            problem = f"not the {stage.name} of the suite; expected {stage.digest}; found {found}"
            yield Fault(str(path), problem, "replaced by another", GROW)
        if os.path.realpath(link) != os.path.realpath(path):
            problem = f"does not lead to {path.name}"
            cause = "some ways of copying lose links"
            yield Fault(str(link), problem, cause, f"ln -sfn {path.name} {link}")


def _findings(job: Job) -> list[Fault]:
    """What a job finds, also where it cannot go on."""
    try:
        return list(job())
    except OntogenyError as error:
        return [error.fault(DAMAGED, AGAIN)]
    except OSError as error:
        told = error.strerror or "cannot be read"
        return [Fault(str(error.filename), told, "a failing disk, or removed meanwhile", AGAIN)]
