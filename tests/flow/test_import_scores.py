"""`import-scores` and `lint --scores`, as they are typed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from spoken import Type


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Result files of one member, whose first two steps are the same."""
    folder, numbers = tmp_path / "published", random.Random(0)
    folder.mkdir()
    results = {}
    for step in (0, 1, 2, 4):
        if step != 1:
            results = {f"task{i}": {"ppl": numbers.random()} for i in range(9)}
        config = {"model_args": f"pretrained=EleutherAI/pythia-70m,revision=step{step}"}
        (folder / f"70m_step{step}.json").write_text(
            json.dumps({"results": results, "config": config})
        )
    return folder


def test_scores_are_imported_and_linted(say: Type, published: Path, tmp_path: Path) -> None:
    place = tmp_path / "scores"
    said = say("import-scores", published, "--out", place)
    assert (said.code, said.err) == (0, "")
    assert "36 scores of 4 checkpoints, 1 members; 0 faults" in said.out
    assert f"next, ontogeny lint {place} --scores" in said.out
    said = say("lint", place, "--scores")
    assert said.code == 1
    assert "alarm     70m: steps 0, 1: the same scores with 0 shots" in said.out
    assert "the first update had a learning rate of 0" in said.out
    assert said.out.endswith("1 alarm\n")
    said = say("lint", place, "--scores", "--json")
    assert said.code == 1
    assert json.loads(said.out)["findings"][0]["steps"] == [0, 1]


def test_each_unreadable_file_is_named_and_the_rest_imported(
    say: Type, published: Path, tmp_path: Path
) -> None:
    (published / "70m_step1.json").write_text("{")
    (published / "70m_step8.json").write_text("[]")
    said = say("import-scores", published, "--out", tmp_path / "scores")
    assert said.code == 1
    first, second = said.err.splitlines()
    assert "70m_step1.json: cannot be read; found" in first
    assert "70m_step8.json: holds no scores; expected results of lm-eval" in second
    assert "27 scores of 3 checkpoints, 1 members; 2 faults" in said.out
    said = say("lint", tmp_path / "scores", "--scores")
    assert (said.code, said.out.splitlines()[-1]) == (0, "no alarm")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import-scores", "nowhere", "--out", "new"], "nowhere: no scores that can be read"),
        (
            ["lint", "nowhere", "--scores"],
            "nowhere: no such folder; expected a suite or run that was",
        ),
        (["lint", "nowhere", "--scores", "--same-seed", "a,b"], "say nothing about scores"),
    ],
)
def test_bad_input_is_one_line(say: Type, words: list[str], message: str) -> None:
    said = say(*words)
    assert (said.code, said.out) == (2, "")
    (line,) = said.err.splitlines()
    assert message in line
