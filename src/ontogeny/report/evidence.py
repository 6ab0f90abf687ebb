"""Everything the report is written from: a finished suite's record, opened and cross-checked.

In: the folder of a suite. Out: one `Evidence`, or an error that says what is missing. A suite of
which a member is unfinished is refused here, so no page is ever half true. Not here: how anything
is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ontogeny.artifact import Artifact, open_artifact
from ontogeny.config import build
from ontogeny.errors import DataError, EvaluationError
from ontogeny.results import SCORES, Score, UpdateMetrics, read_metrics, read_scores
from ontogeny.steps import state_folder, step_folder
from ontogeny.suite import (
    METRICS,
    EvaluationSettings,
    Member,
    Record,
    RunSettings,
    StageRecord,
    read_record,
)

BITS_PER_BYTE = "held-out", "bits_per_byte"
LOG_PROBABILITY = "last-word", "log_probability"
ACCURACY = "last-word", "accuracy"
LAST_WORD = LOG_PROBABILITY, ACCURACY  # not measured where the suite asks for no last words
SOURCE_PREFIX = "held-out/"

Measure = tuple[str, str]  # task and metric


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One link of a member's chain of checkpoints."""

    step: int
    tokens: int
    digest: str
    parent: str | None
    rows_digest: str
    full_state: bool
    bits: Mapping[str, Any]  # what decided the arithmetic's bits, as the run recorded it


@dataclass(frozen=True, slots=True)
class History:
    """How one member grew: its settings, every update, every checkpoint, every score by step."""

    member: Member
    run: RunSettings
    updates: list[UpdateMetrics]
    checkpoints: list[Checkpoint]
    scores: Mapping[Measure, list[Score]]

    @property
    def tokens(self) -> int:
        """What the member was trained on in all."""
        return self.updates[-1].tokens

    def final(self, measure: Measure) -> Score:
        """The score of the last checkpoint."""
        return self.scores[measure][-1]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A finished suite: its record, its artifacts by stage, its members in the table's order."""

    record: Record
    artifacts: Mapping[str, Artifact]
    histories: list[History]

    @property
    def corpora(self) -> list[str]:
        """The corpora members grew on, in the order of the table."""
        return list(dict.fromkeys(history.member.corpus for history in self.histories))

    def has(self, measure: Measure) -> bool:
        """Whether the members were scored on a measure; all were, or none."""
        return measure in self.histories[0].scores

    def grown_on(self, corpus: str) -> list[History]:
        return [history for history in self.histories if history.member.corpus == corpus]


def gather(home: Path) -> Evidence:
    """Open all that the record in `home` names and check that the parts agree with each other.

    Raises EvaluationError when a member is unfinished or a measurement is missing, DataError when
    an artifact is missing, altered or not the one the record names.
    """
    record = read_record(home)
    members = record.suite.table()
    _require_finished(home, record, members)
    stages = [stage for stage in record.stages if stage.kind != "report"]
    artifacts = {stage.name: _open_stage(home, stage) for stage in stages}
    histories = [_history(member, artifacts) for member in members]
    _require_same_measures(histories)
    return Evidence(record, artifacts, histories)


def fact(artifact: Artifact, *names: str) -> Any:
    """The fact at a path of names. Raises DataError if the manifest does not state it."""
    found: Any = artifact.facts
    for name in names:
        if not isinstance(found, Mapping) or name not in found:
            raise DataError(
                f"the manifest lacks the fact {'.'.join(names)!r}",
                where=artifact.path,
                fix=f"remove {artifact.path} and run the suite again",
            )
        found = found[name]
    return found


def _require_finished(home: Path, record: Record, members: list[Member]) -> None:
    corpora = dict.fromkeys(member.corpus for member in members)
    needed = ["text", "vocabulary", "stores/held-out"]
    needed += [f"{room}/{corpus}" for room in ("stores", "orders") for corpus in corpora]
    needed += [f"{room}/{member.name}" for member in members for room in ("runs", "scores")]
    present = {stage.name for stage in record.stages}
    missing = [name for name in needed if name not in present]
    if missing:
        raise EvaluationError(
            f"the suite is not finished: missing {', '.join(missing)}",
            where=home,
            fix=f"ontogeny run SUITE.toml --out {home}",
        )


def _open_stage(home: Path, stage: StageRecord) -> Artifact:
    artifact = open_artifact(home / stage.path, stage.kind)
    if artifact.digest != stage.digest:
        raise DataError(
            f"not the artifact that the record names for {stage.name}",
            where=artifact.path,
            expected=stage.digest,
            found=artifact.digest,
            fix=f"ontogeny run SUITE.toml --out {home}",
        )
    return artifact


def _history(member: Member, artifacts: Mapping[str, Artifact]) -> History:
    artifact = artifacts[f"runs/{member.name}"]
    run = build(RunSettings, artifact.config, artifact.path)
    updates = _updates(artifact.path / METRICS, run)
    checkpoints = [_checkpoint(artifact, step) for step in run.steps]
    _require_unbroken(artifact.path, checkpoints, updates)
    scored = artifacts[f"scores/{member.name}"]
    scores = _scores(scored.path / SCORES, run)
    _require_measures(scores, build(EvaluationSettings, scored.config, scored.path), scored.path)
    return History(member, run, updates, checkpoints, scores)


def _updates(path: Path, run: RunSettings) -> list[UpdateMetrics]:
    if not path.is_file():
        raise EvaluationError("no metrics", where=path, expected="one JSON line an update")
    updates = list(read_metrics(path))
    if len(updates) != run.num_updates:
        raise EvaluationError(
            "the run is not finished",
            where=path,
            expected=f"{run.num_updates} updates",
            found=len(updates),
        )
    for row in updates:
        expected = (row.update + 1) * run.tokens_per_update
        if row.tokens != expected:
            raise EvaluationError(
                f"update {row.update} miscounts its tokens",
                where=path,
                expected=expected,
                found=row.tokens,
            )
    return updates


def _checkpoint(run: Artifact, step: int) -> Checkpoint:
    artifact = open_artifact(step_folder(run.path, step), "checkpoint")
    if artifact.inputs.get("run") != run.digest:
        raise DataError(
            "a checkpoint of another run",
            where=artifact.path,
            expected=run.digest,
            found=artifact.inputs.get("run"),
        )
    return Checkpoint(
        step=int(fact(artifact, "step")),
        tokens=int(fact(artifact, "tokens")),
        digest=artifact.digest,
        parent=artifact.inputs.get("parent"),
        rows_digest=str(fact(artifact, "rows_digest")),
        full_state=state_folder(run.path, step).is_dir(),
        bits=dict(artifact.provenance.get("bits", {})),
    )


def _require_unbroken(
    run: Path, checkpoints: list[Checkpoint], updates: list[UpdateMetrics]
) -> None:
    """Each checkpoint must name the one before it, and the rows the metrics say it consumed."""
    for before, after in pairwise(checkpoints):
        if after.parent != before.digest:
            raise DataError(
                f"step{after.step} does not name step{before.step} as its parent",
                where=run,
                expected=before.digest,
                found=after.parent,
            )
        logged = updates[after.step - 1]
        if (after.tokens, after.rows_digest) != (logged.tokens, logged.rows_digest):
            raise DataError(
                f"step{after.step} and metrics.jsonl disagree on the rows consumed",
                where=run,
                expected=f"{logged.tokens} tokens, digest {logged.rows_digest}",
                found=f"{after.tokens} tokens, digest {after.rows_digest}",
            )


def _scores(path: Path, run: RunSettings) -> dict[Measure, list[Score]]:
    """The member's scores by measure, in the order of steps, every checkpoint there once."""
    rows = sorted(read_scores(path), key=lambda row: (row.task, row.metric, row.step))
    scores: dict[Measure, list[Score]] = {}
    for row in rows:
        measured = (row.value, row.low, row.high) if row.n > 1 else (row.value,)
        if not all(map(_is_finite, measured)) or row.member != run.member:
            raise EvaluationError(
                "not a score of this member", where=path, expected=run.member, found=row
            )
        scores.setdefault((row.task, row.metric), []).append(row)
    for (task, metric), found in scores.items():
        expected = [(step, step * run.tokens_per_update) for step in run.steps]
        _require_equal(
            [(row.step, row.tokens) for row in found], expected, f"{task} {metric}", path
        )
    return scores


def _require_measures(
    scores: Mapping[Measure, list[Score]], settings: EvaluationSettings, path: Path
) -> None:
    """Everything the suite asked to be measured was."""
    for task, metric in (BITS_PER_BYTE, *(LAST_WORD if settings.last_word_items else ())):
        if (task, metric) not in scores:
            raise EvaluationError(f"no score of task {task}, metric {metric}", where=path)
    if not any(task.startswith(SOURCE_PREFIX) for task, _ in scores):
        raise EvaluationError("no score of any held-out source", where=path)


def _require_equal(found: list[Any], expected: list[Any], what: str, path: Path) -> None:
    if found != expected:
        wrong = sorted(set(expected) ^ set(found)) or "a checkpoint scored twice"
        raise EvaluationError(
            f"{what} is not scored once at every checkpoint",
            where=path,
            expected=f"{len(expected)} (step, tokens)",
            found=f"{len(found)}, differing in {wrong}",
        )


def _require_same_measures(histories: Iterable[History]) -> None:
    first, *others = histories
    for other in others:
        differing = sorted(first.scores.keys() ^ other.scores.keys())
        if differing:
            raise EvaluationError(
                f"{first.member.name} and {other.member.name} are not scored on the same tasks",
                found=", ".join(" ".join(measure) for measure in differing),
            )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
