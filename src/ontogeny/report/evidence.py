"""Everything the report is written from: a finished suite's record, opened and cross-checked.

In: the folder of a suite. Out: one `Evidence`, or an error that says what is missing. What is
unfinished, or would make the page contradict itself, is refused here. Not here: how anything is
shown; reading files and rows again to compare them with what is on record (`ontogeny verify`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from ontogeny.artifact import Artifact, open_artifact
from ontogeny.config import build
from ontogeny.errors import DataError, EvaluationError
from ontogeny.record import Record, StageRecord, read_record
from ontogeny.results import Score, UpdateMetrics, read_metrics
from ontogeny.scores import KIND, ScoreStore, stage_digest
from ontogeny.steps import METRICS, step_folder
from ontogeny.suite import Member, RunSettings

Measure = tuple[str, str]  # task and metric

BITS_PER_BYTE = "held-out", "bits_per_byte"
LOG_PROBABILITY = "last-word", "log_likelihood"
ACCURACY = "last-word", "acc"
SOURCE_PREFIX = "held-out/"


@dataclass(frozen=True, slots=True)
class History:
    """How one member grew: its settings, every update, every checkpoint, every score by step."""

    member: Member
    run: RunSettings
    updates: list[UpdateMetrics]
    checkpoints: list[Artifact]  # of the steps of `run`
    scores: Mapping[Measure, list[Score]]

    @property
    def tokens(self) -> int:
        """What the member was trained on in all."""
        return self.updates[-1].tokens


@dataclass(frozen=True, slots=True)
class Evidence:
    """A finished suite: its record, its artifacts by stage, its members in the table's order."""

    record: Record
    artifacts: Mapping[str, Artifact]
    histories: list[History]

    @property
    def by_corpus(self) -> dict[str, list[History]]:
        """The members by the corpus they grew on, in the order of the table."""
        groups: dict[str, list[History]] = {}
        for history in self.histories:
            groups.setdefault(history.member.corpus, []).append(history)
        return groups

    @property
    def measures(self) -> Collection[Measure]:
        """What every member was scored on."""
        return self.histories[0].scores.keys()


def gather(home: Path) -> Evidence:
    """Open all that the record in `home` names and check that the parts agree with each other.

    Raises EvaluationError when a member is unfinished or a measurement is missing, DataError when
    an artifact is missing, altered or not the one the record names.
    """
    record = read_record(home)
    _require_finished(home, record)
    stages = [stage for stage in record.stages if stage.kind != "report"]
    artifacts = {stage.name: _open_stage(home, stage) for stage in stages}
    histories = [_history(member, artifacts) for member in record.suite.table()]
    last_word = (LOG_PROBABILITY, ACCURACY) if record.suite.evaluation.last_word_items else ()
    _require_measures(histories, {BITS_PER_BYTE, *last_word})
    return Evidence(record, artifacts, histories)


def _require_finished(home: Path, record: Record) -> None:
    needed = ["text", "vocabulary", "stores/held-out"]
    for member in record.suite.table():
        needed += [f"stores/{member.corpus}", f"orders/{member.corpus}"]
        needed += [f"runs/{member.name}", f"scores/{member.name}"]
    present = {stage.name for stage in record.stages}
    missing = [name for name in dict.fromkeys(needed) if name not in present]
    if missing:
        raise EvaluationError(
            f"the suite is not finished: missing {', '.join(missing)}",
            where=home,
            fix=f"ontogeny run SUITE.toml --out {home}",
        )


def _open_stage(home: Path, stage: StageRecord) -> Artifact:
    """The artifact of a stage; of a member's scores, that of its last checkpoint."""
    path = home / stage.path
    if stage.kind == KIND:
        store, member = ScoreStore(path.parent), stage.name.rpartition("/")[2]
        path = store.path(member, max(step for name, step in store.places() if name == member))
    artifact, found = open_artifact(path, stage.kind), stage_digest(home, stage)
    if found != stage.digest:
        raise DataError(
            f"not the artifact that the record names for {stage.name}",
            where=home / stage.path,
            expected=stage.digest,
            found=found,
            fix=f"ontogeny run SUITE.toml --out {home}",
        )
    return artifact


def _history(member: Member, artifacts: Mapping[str, Artifact]) -> History:
    artifact = artifacts[f"runs/{member.name}"]
    run = build(RunSettings, artifact.config, artifact.path)
    updates = _updates(artifact.path / METRICS, run)
    checkpoints = _chain(artifact, run, updates)
    scores = _scores(artifacts[f"scores/{member.name}"].path.parent, run)
    return History(member, run, updates, checkpoints, scores)


def _updates(path: Path, run: RunSettings) -> list[UpdateMetrics]:
    if not path.is_file():
        raise EvaluationError("no metrics", where=path, expected="one JSON line an update")
    updates = list(read_metrics(path))
    expected = (step * run.tokens_per_update for step in range(1, run.num_updates + 1))
    for row, tokens in zip_longest(updates, expected):
        if row is None or row.tokens != tokens:
            raise EvaluationError(
                "not the updates of a finished run",
                where=path,
                expected=f"{run.num_updates} of {run.tokens_per_update} tokens each",
                found=row or len(updates),
            )
    return updates


def _chain(run: Artifact, settings: RunSettings, updates: list[UpdateMetrics]) -> list[Artifact]:
    """The checkpoints of a run: each from the one before it, by the rows the metrics record."""
    chain: list[Artifact] = []
    for step in settings.steps:
        one = open_artifact(step_folder(run.path, step), "checkpoint")
        rows = one.facts.get("rows_digest")
        parent = chain[-1].digest if chain else None
        for what, expected, found in (
            ("run", run.digest, one.inputs.get("run")),
            ("parent", parent, one.inputs.get("parent")),
            ("rows", updates[step - 1].rows_digest if step else rows, rows),
        ):
            if found != expected:
                raise DataError(
                    f"not the {what} it must have",
                    where=one.path,
                    expected=expected,
                    found=found,
                    fix=f"ontogeny verify {run.path}",
                )
        chain.append(one)
    return chain


def _scores(path: Path, run: RunSettings) -> dict[Measure, list[Score]]:
    """The member's scores by measure, in the order of steps, every checkpoint there once."""
    scores: dict[Measure, list[Score]] = {}
    rows = ScoreStore(path.parent).scores(run.member)
    for row in sorted(rows, key=lambda row: (row.task, row.metric, row.step)):
        measured = (row.value, row.low, row.high) if row.n > 1 else (row.value,)
        if row.member != run.member or not all(map(math.isfinite, measured)):
            raise EvaluationError(
                "not a score of this member", where=path, expected=run.member, found=row
            )
        scores.setdefault((row.task, row.metric), []).append(row)
    expected = [(step, step * run.tokens_per_update) for step in run.steps]
    for measure, rows in scores.items():
        found = [(row.step, row.tokens) for row in rows]
        if found != expected:
            raise EvaluationError(
                f"{' '.join(measure)} is not scored once at every checkpoint",
                where=path,
                expected=f"{len(expected)} (step, tokens)",
                found=f"{len(found)}, differing in {sorted(set(expected) ^ set(found))}",
            )
    return scores


def _require_measures(histories: list[History], asked: set[Measure]) -> None:
    """Every member is scored on all that was asked, and on the same tasks as the first."""
    for history in histories:
        found = history.scores.keys()
        differing = sorted((histories[0].scores.keys() ^ found) | (asked - found))
        if differing:
            raise EvaluationError(
                f"{history.member.name} is not scored on what the others are, or was asked",
                found=", ".join(" ".join(measure) for measure in differing),
            )
