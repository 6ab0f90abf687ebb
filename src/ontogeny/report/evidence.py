"""Everything the report is written from: a finished suite's record, opened and cross-checked.

In: the folder of a suite. Out: one `Evidence`, or an error that says what is missing. What is
unfinished, or would make the page contradict itself, is refused here. Not here: how anything is
shown; reading files and rows again to compare them with what is on record (`ontogeny verify`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from ontogeny.artifact import Artifact, open_artifact
from ontogeny.errors import DataError, EvaluationError
from ontogeny.record import Record, StageRecord, read_record
from ontogeny.report.measured import (
    BITS_PER_BYTE,
    HELD_OUT,
    LAST_WORD,
    LOG_LIKELIHOOD,
    PACK,
    Measure,
    Measured,
    read_measured,
)
from ontogeny.results import UpdateMetrics, read_metrics
from ontogeny.scores import FOLDER, KIND, ScoreStore, stage_digest
from ontogeny.steps import METRICS, step_folder
from ontogeny.suite import Member, RunSettings, settings_of


@dataclass(frozen=True, slots=True)
class History:
    """How one member grew: its settings, every update, every checkpoint."""

    member: Member
    run: RunSettings
    updates: list[UpdateMetrics]
    checkpoints: list[Artifact]  # of the steps of `run`

    @property
    def tokens(self) -> int:
        """What the member was trained on in all."""
        return self.updates[-1].tokens


@dataclass(frozen=True, slots=True)
class Evidence:
    """A finished suite: its record, its artifacts by stage, its members in the table's order.

    For the scores of a member stands the artifact of its last checkpoint's.
    """

    record: Record
    artifacts: Mapping[str, Artifact]
    histories: list[History]
    measured: Measured

    @property
    def by_corpus(self) -> dict[str, list[History]]:
        """The members by the corpus they grew on, in the order of the table."""
        groups: dict[str, list[History]] = {}
        for history in self.histories:
            groups.setdefault(history.member.corpus, []).append(history)
        return groups


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
    measured = read_measured(
        ScoreStore(home / FOLDER), [history.member.name for history in histories]
    )
    last_word = (LOG_LIKELIHOOD, LAST_WORD) if record.suite.evaluation.last_word_items else ()
    _require_measures(histories, measured, {BITS_PER_BYTE, *last_word})
    return Evidence(record, artifacts, histories, measured)


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
        path = store.path(
            member, max((step for name, step in store.places() if name == member), default=0)
        )
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
    run = settings_of(artifact)
    updates = _updates(artifact.path / METRICS, run)
    checkpoints = _chain(artifact, run, updates)
    return History(member, run, updates, checkpoints)


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


def _require_measures(histories: list[History], measured: Measured, asked: set[Measure]) -> None:
    """Every member is scored on the same tasks of the held-out text, at each of its checkpoints.

    Whatever else a checkpoint was asked, it was asked at a step of its run.
    """
    asked |= {one for one in measured.curves if one.task.partition("/")[0] in (HELD_OUT, *PACK)}
    for history in histories:
        name, run = history.member.name, history.run
        every = {(step, step * run.tokens_per_update) for step in run.steps}
        for measure in sorted(asked | measured.curves.keys()):
            curve = measured.curves.get(measure, {}).get(name, [])
            found = {(row.step, row.tokens) for row in curve}
            if found - every or (measure in asked and every - found):
                raise EvaluationError(
                    f"{name} is not scored on {measure.task} {measure.metric} at the checkpoints "
                    "it has",
                    expected=f"{len(every)} (step, tokens)",
                    found=f"{len(found)}, differing in {sorted(every ^ found)}",
                )
