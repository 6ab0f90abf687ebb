"""The published scores of the Pythia suite: all of them are read, and what is wrong is found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ontogeny.evaluation.lint import lint_scores
from ontogeny.evaluation.published import import_scores
from ontogeny.results import SCORES, read_scores
from ontogeny.scores import ScoreStore

pytestmark = pytest.mark.slow

# Items of each task, as the paper's tables and the data sets have them.
ITEMS = {"lambada_openai": 5153, "piqa": 1838, "winogrande": 1267, "wsc": 104, "arc_easy": 2376,
         "arc_challenge": 1172, "sciq": 1000, "logiqa": 651}  # fmt: skip
PAIRS = [
    (size, f"{size}-deduped") for size in ["70m", "160m", "410m", "1.4b", "2.8b", "6.9b", "12b"]
]
MEMBERS = [*(member for pair in PAIRS for member in pair), "1b-bf16", "1b-deduped"]


@pytest.fixture(scope="module")
def evals(reference: Path) -> Path:
    return reference / "pythia" / "evals"


@pytest.fixture(scope="module")
def store(evals: Path, tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    place = tmp_path_factory.mktemp("published") / "scores"
    assert len(list(evals.rglob("*.json"))) == 1172
    assert import_scores(evals, place) == []
    return ScoreStore(place)


def test_every_model_and_step_is_read(store: ScoreStore) -> None:
    assert {*MEMBERS} <= {*store.members()}
    assert {step for member, step in store.places() if member == "12b"} == {
        0, *(2**power for power in range(10)), 1000, 3000, *range(13_000, 143_001, 10_000)
    }  # fmt: skip


def test_the_scores_are_those_that_were_published(store: ScoreStore) -> None:
    final = {"70m": 0.185, "410m": 0.516, "1.4b": 0.616, "12b": 0.705}
    for member, value in final.items():
        rows = read_scores(store.path(member, 143_000) / SCORES)
        read = {(row.task, row.metric): row for row in rows if row.shots == 0}
        lambada = read["lambada_openai", "acc"]
        assert round(lambada.value, 3) == value
        assert lambada.low < lambada.value < lambada.high
        assert {task: read[task, "acc"].n for task in ITEMS} == ITEMS
        assert read["wsc", "acc"].majority == pytest.approx(0.635, abs=5e-4)
    assert {row.shots for row in rows} == {0, 5}


def test_what_is_wrong_with_them_is_found(store: ScoreStore, evals: Path) -> None:
    found = {
        (run, one.steps, one.problem): one.severity
        for one in lint_scores(store.folder).findings
        for run in one.run.split("; ")
    }
    same = "the same scores with 0 shots"
    alarms = {key for key, severity in found.items() if severity == "alarm"}
    twins = "2.8b and 2.8b-deduped"
    assert alarms == {
        *((member, (0, 1), same) for member in MEMBERS),
        (twins, (2, 4, 8, 16, 32, 64, 128, 256, 512, 1000), same),
        (twins, (13_000, 23_000, 33_000, 43_000), "the same scores with 5 shots"),
    }
    assert {*naively_equal(evals)} == alarms
    nearly = "nearly the same scores with 0 shots"
    assert found[twins, (3000, 13_000, 23_000, 33_000, 43_000), nearly] == "note"


def naively_equal(evals: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Result files of the 16 members that are equal, byte by byte of their results."""
    for shots, style in ((0, "zero-shot"), (5, "five-shot")):
        told, results = f"the same scores with {shots} shots", {}
        for member in MEMBERS:
            for path in (evals / "pythia-v1" / f"pythia-{member}" / style).glob("*.json"):
                step = int(re.findall(r"step(\d+)", path.name)[0])
                results[member, step] = json.loads(path.read_bytes())["results"]
        for member in MEMBERS:
            if shots == 0 and results[member, 0] == results[member, 1]:
                yield member, (0, 1), told
        for left, right in PAIRS:
            steps = sorted(step for member, step in results if member == left and step > 1)
            equal = [step for step in steps if results[left, step] == results[right, step]]
            if equal:
                yield f"{left} and {right}", tuple(equal), told
