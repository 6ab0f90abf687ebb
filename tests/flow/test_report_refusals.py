"""What the report refuses, each with its reason, and what it accepts although it is unusual."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_suite import grow, rename_digest, suite

from ontogeny.artifact import open_artifact, writing
from ontogeny.errors import ConfigError, DataError, EvaluationError
from ontogeny.record import Record, read_record, write_record
from ontogeny.report import origins
from ontogeny.report.evidence import gather
from ontogeny.report.measured import Measure
from ontogeny.report.site import build_report
from ontogeny.report.tables import summary_rows
from ontogeny.results import SCORES, Score, read_metrics, read_scores
from ontogeny.scores import ScoreStore
from ontogeny.suite import PlantedSettings, TextSettings
from ontogeny.text.corpus import build_text


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("report") / "suite"
    grow(home, suite())
    return home


@pytest.fixture
def home(grown: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to spoil; whatever is spoilt, no report and no trace of one may be left."""
    copy = tmp_path / "suite"
    shutil.copytree(grown, copy)
    yield copy
    assert not list(copy.glob("*report*"))


def test_unfinished_suite_is_refused_with_what_is_missing(home: Path) -> None:
    record = read_record(home)
    left = [s for s in record.stages if s.name not in ("runs/3m", "scores/3m", "scores/1m")]
    write_record(home, Record(suite=record.suite, stages=tuple(left)))
    with pytest.raises(EvaluationError, match=r"missing scores/1m, runs/3m, scores/3m; try: onto"):
        build_report(home, home / "report")


def test_folder_without_a_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no scores; expected the folder of a suite, or memb"):
        build_report(tmp_path, tmp_path / "report")
    (tmp_path / "suite.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the folder of a suite"):
        build_report(tmp_path, tmp_path / "report")


def test_short_metrics_are_refused(home: Path) -> None:
    path = home / "runs" / "1m" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(EvaluationError, match=r"finished run; expected 20 of 2048 .*; found 19"):
        build_report(home, home / "report")
    path.unlink()
    with pytest.raises(EvaluationError, match="no metrics"):
        build_report(home, home / "report")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 5}, r"not the updates of a finished run; .* found .*tokens=5,"),
        ({"rows_digest": "0" * 64}, "step4: not the rows it must have"),
    ],
)
def test_metrics_of_other_updates_are_refused(
    home: Path, changes: dict[str, Any], message: str
) -> None:
    path = home / "runs" / "1m" / "metrics.jsonl"
    updates = list(read_metrics(path))
    updates[3] = replace(updates[3], **changes)
    path.write_text("".join(update.line() for update in updates))
    with pytest.raises((EvaluationError, DataError), match=message):
        build_report(home, home / "report")


def test_loss_that_is_no_number_is_refused(home: Path) -> None:
    path = home / "runs" / "1m" / "metrics.jsonl"
    loss = next(read_metrics(path)).loss
    path.write_text(path.read_text().replace(str(loss), "NaN", 1))
    with pytest.raises(EvaluationError, match="expected one JSON line for update 0; found"):
        build_report(home, home / "report")


def test_missing_checkpoint_is_refused(home: Path) -> None:
    shutil.rmtree(home / "runs" / "1m" / "steps" / "step2")
    with pytest.raises(DataError, match=r"step2: not an artifact"):
        build_report(home, home / "report")


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ("parent", "step2: not the parent it must have"),
        ("run", "step2: not the run it must have"),
    ],
)
def test_checkpoint_with_another_origin_is_refused(home: Path, role: str, message: str) -> None:
    path = home / "runs" / "1m" / "steps" / "step2"
    found = open_artifact(path)
    shutil.rmtree(path)
    inputs = dict(found.inputs) | {role: "0" * 64}
    with writing(path, "checkpoint", config=found.config, inputs=inputs) as draft:
        draft.facts |= found.facts
    with pytest.raises(DataError, match=message):
        build_report(home, home / "report")


def change_scores(
    home: Path, member: str, change: Callable[[Score], Score | None], step: int | None = None
) -> None:
    """Put other rows in place of a member's, and their digest in the record."""
    store = ScoreStore(home / "scores")
    for name, at in store.places():
        if name == member and step in (None, at):
            rows = [row for one in read_scores(store.path(member, at) / SCORES)
                    if (row := change(one)) is not None]  # fmt: skip
            found, place = store.artifact(member, at), store.place(member, at)
            items, cells = store.items(member, at), store.cells(member, at)
            store.add(place, cells, rows, items, dict(found.inputs))
    rename_digest(home, f"scores/{member}", store.digest(member))


@pytest.mark.parametrize(
    ("task", "step", "message"),
    [
        ("last-word", 4, "last-word acc at the checkpoints .* differing in .*4, 8192"),
        ("last-word", None, "3m is not scored on last-word acc at the checkpoints it has"),
        ("held-out/code", None, "3m is not scored on held-out/code bits_per_byte"),
    ],
)
def test_missing_scores_are_refused(home: Path, task: str, step: int | None, message: str) -> None:
    change_scores(home, "3m", lambda row: None if row.task == task else row, step)
    with pytest.raises(EvaluationError, match=message):
        build_report(home, home / "report")


def test_benchmarks_may_be_asked_of_some_checkpoints(home: Path) -> None:
    change_scores(home, "3m", lambda row: None if row.task == "sciq" else row)
    assert "3m" not in gather(home).measured.curves[Measure("sciq", "acc")]


@pytest.mark.parametrize(
    "changes", [{"value": math.nan}, {"low": math.nan}, {"member": "1m"}, {"tokens": 5}]
)
def test_score_that_is_no_number_of_its_place_is_refused(
    home: Path, changes: dict[str, Any]
) -> None:
    change_scores(home, "3m", lambda row: replace(row, **changes))
    with pytest.raises(EvaluationError, match="not a score of this checkpoint; expected a number"):
        build_report(home, home / "report")


def test_score_at_another_step_than_the_runs_is_refused(home: Path) -> None:
    store = ScoreStore(home / "scores")
    place = replace(store.place("3m", 4), step=7, tokens=7 * 2048)
    score = Score("3m", 7, place.tokens, "piqa", "acc", 0.5, 0.4, 0.6, 9)
    store.add(place, [replace(store.cells("3m", 4)[0], task="piqa")], [score], [], {})
    rename_digest(home, "scores/3m", store.digest("3m"))
    with pytest.raises(EvaluationError, match=r"3m is not scored on .*differing in .*\(7, 14336\)"):
        build_report(home, home / "report")


def test_single_item_has_no_interval(home: Path) -> None:
    nan = float("nan")
    change_scores(home, "3m", lambda row: replace(row, low=nan, high=nan, n=1))
    header, summary = summary_rows(gather(home))
    shown = {row[0]: row[header.index("last word: accuracy")] for row in summary}
    assert shown["3m"].endswith("% [one item]")


def test_artifact_that_is_not_the_recorded_one_is_refused(home: Path) -> None:
    rename_digest(home, "stores/standard", "0" * 64)
    with pytest.raises(DataError, match="not the artifact that the record names for stores/standa"):
        build_report(home, home / "report")


def replace_facts(home: Path, stage: str, facts: dict[str, Any]) -> None:
    """Put an artifact of other facts in place of a stage's, and in the record."""
    path = home / stage
    found = open_artifact(path)
    shutil.rmtree(path)
    with writing(path, found.kind, config=found.config, inputs=found.inputs) as draft:
        draft.facts |= facts
    rename_digest(home, stage, draft.artifact.digest)


@pytest.mark.parametrize(
    ("stage", "fact"),
    [
        ("text", "planted"),
        ("text", "removed"),
        ("stores/deduped", "sources"),
        ("stores/deduped", "num_tokens"),
    ],
)
def test_missing_fact_is_refused(home: Path, stage: str, fact: str) -> None:
    facts = dict(open_artifact(home / stage).facts)
    del facts[fact]
    replace_facts(home, stage, facts)
    with pytest.raises(DataError, match=f"the manifest lacks the fact '{fact}'"):
        build_report(home, home / "report")


def test_sources_that_do_not_add_up_are_refused(home: Path) -> None:
    facts = dict(open_artifact(home / "stores" / "deduped").facts)
    replace_facts(home, "stores/deduped", facts | {"num_tokens": facts["num_tokens"] + 1})
    with pytest.raises(DataError, match="the sources' tokens do not add up"):
        build_report(home, home / "report")


def test_text_as_the_text_stage_writes_it_is_told(home: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    for work in range(20):
        (texts / "essays").mkdir(parents=True, exist_ok=True)
        (texts / "essays" / f"{work}.txt").write_text(f"Essay {work % 15} on small things.\n" * 9)
    planted = PlantedSettings(canary_copies=(3,), relation_mentions=(2,))
    settings = TextSettings(path="texts", planted=planted, held_out=0.1)
    shutil.rmtree(home / "text")
    text = build_text(settings, home / "text", cache=None, base=tmp_path)
    rename_digest(home, "text", text.digest)
    evidence = gather(home)
    removed = {(row[0], row[1]): row for row in origins.removed(evidence).rows}
    assert removed["duplicate", "planted"][2] == 4 * 2
    assert {row[0] for row in origins.planted(evidence).rows} == {
        "canary",
        "relation",
        "occupation",
    }
    assert ("canary", "copies: 3", 4, 12, 4) in origins.planted(evidence).rows
    assert origins.licences(evidence).rows == []
