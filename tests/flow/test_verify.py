"""`verify` of a run: every way of not being what was recorded is found, and named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from grown import CONTEXT, Ground, begin, settings
from ontogeny.artifact import MANIFEST, open_artifact
from ontogeny.digest import digest_json
from ontogeny.questions.verify import verify
from ontogeny.results import read_metrics
from ontogeny.steps import METRICS, step_folder
from ontogeny.training.loop import train
from spoiled import (
    EMBEDDING,
    WEIGHTS,
    faults,
    flip,
    flips_missed,
    forge,
    no_change,
    payload_files,
)

STEPS = [0, 1, 2, 4, 8, 12, 16, 20, 24]
STATES = [0, 8, 16, 24]


@pytest.fixture
def run(site: Path) -> Path:
    return site / "run"


def test_what_is_whole(site: Path) -> None:
    subjects = {subject.name: subject for subject in verify(site)}
    assert all(not subject.faults for subject in subjects.values())
    assert list(subjects) == [
        "held-out", "order", "run", "run/steps", "run/states", "run/rows", "store", "vocabulary",
    ]  # fmt: skip
    steps = subjects["run/steps"]
    per_step = len(load_file(step_folder(site / "run", 0) / WEIGHTS))
    assert steps.num_files == 3 * len(STEPS)
    assert steps.num_tensors == per_step * len(STEPS)
    files = [path for path in payload_files(site / "run/steps") if path.name != MANIFEST]
    assert steps.num_bytes == sum(path.stat().st_size for path in files)
    assert len(subjects["run/rows"].jobs) == len(STEPS)
    kinds = [one.kind for one in verify(step_folder(site / "run", 16))]
    assert kinds == ["checkpoint", "rows of 4 updates"]
    for path in (site / "store", site / "run", *(step_folder(site / "run", s) for s in STEPS)):
        assert faults(path) == []


def test_checkpoints_name_their_settings(run: Path) -> None:
    config = digest_json(json.loads((run / MANIFEST).read_text())["content"]["config"])
    found = {step: open_artifact(step_folder(run, step)).facts for step in STEPS}
    assert all(facts["config"] == config for facts in found.values())
    assert [step for step, facts in found.items() if facts["full_state"]] == STATES


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_bit_in_any_file_of_a_run(run: Path, seed: int) -> None:
    assert flips_missed(run, payload_files(run), seed) == []


@pytest.mark.parametrize("name", ["store", "order", "vocabulary", "held-out"])
def test_a_flipped_bit_in_any_file_of_the_data(site: Path, name: str) -> None:
    assert flips_missed(site / name, payload_files(site / name), 0) == []


def test_a_flipped_bit_names_its_tensor(run: Path) -> None:
    path = step_folder(run, 12) / WEIGHTS
    header = int.from_bytes(path.read_bytes()[:8], "little")
    places = json.loads(path.read_bytes()[8 : 8 + header])
    for name in (EMBEDDING, "embed_out.weight", "gpt_neox.final_layer_norm.bias"):
        flip(path, 8 + header + places[name]["data_offsets"][0] + 3)
        first = faults(run)[0]
        assert first.place == str(path)
        assert first.problem.startswith(f"tensor {name} is not the one recorded; expected sha256")
        assert "flipped bits" in first.cause
        flip(path, 8 + header + places[name]["data_offsets"][0] + 3)
    assert faults(run) == []


def test_a_tensor_of_another_dtype_or_shape(run: Path) -> None:
    path = step_folder(run, 12) / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"shape":[384,16]', b'"shape":[16,384]', 1))
    assert "expected ['float32', [384, 16]]; found" in faults(run)[0].problem
    path.write_bytes(data.replace(b'"F32"', b'"I32"', 1))
    assert "found ['int32'" in faults(run)[0].problem


def test_a_truncated_and_a_missing_file(run: Path) -> None:
    path = step_folder(run, 16) / WEIGHTS
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    first = faults(run)[0]
    assert first.place == str(path)
    assert f"expected {size} bytes; found {size - 5} bytes" in first.problem
    assert "cut short" in first.cause
    path.unlink()
    assert faults(step_folder(run, 16))[0].problem == "missing file"


def test_a_file_that_nobody_knows(run: Path) -> None:
    (run / "notes.txt").write_text("x")
    (step_folder(run, 4) / "old.bin").write_text("x")
    assert [Path(fault.place).name for fault in faults(run)] == ["notes.txt", "old.bin"]


def test_the_weights_of_another_step(run: Path) -> None:
    shutil.copyfile(step_folder(run, 8) / WEIGHTS, step_folder(run, 12) / WEIGHTS)
    first = faults(run)[0]
    assert first.place == str(step_folder(run, 12) / WEIGHTS)
    assert "other tensors" not in first.cause
    assert first.cause == "it is the tensor of step8: that step's file was put here"
    assert "more of its tensors" in first.problem


def test_the_folder_of_another_step(run: Path) -> None:
    shutil.rmtree(step_folder(run, 12))
    shutil.copytree(step_folder(run, 8), step_folder(run, 12))
    for path in (run, step_folder(run, 12)):
        first = faults(path)[0]
        assert first.place == str(step_folder(run, 12))
        assert first.problem == "not the step it must have; expected 12; found 8"
        assert first.cause == "the folder of step8 was copied or renamed"
        assert f"ontogeny replay {run} --step 12 --out DIR" in first.fix


@pytest.mark.parametrize("step", [12, 24])
def test_a_relabelled_checkpoint_that_is_true_to_itself(run: Path, step: int) -> None:
    shutil.copyfile(step_folder(run, 8) / WEIGHTS, step_folder(run, step) / WEIGHTS)
    forge(step_folder(run, step), no_change)
    open_artifact(step_folder(run, step), "checkpoint")
    first, *others = faults(run)
    assert first.place == str(step_folder(run, step))
    assert first.problem == "has the very weights of step8"
    descends = [fault for fault in others if fault.problem.startswith("not the parent")]
    assert [fault.place for fault in descends] == [str(step_folder(run, 16))] * (step == 12)


def test_a_whole_checkpoint_relabelled(run: Path) -> None:
    def relabel(content: dict[str, Any]) -> None:
        content["config"]["step"] = content["facts"]["step"] = 24
        content["facts"]["tokens"] = 24 * 4 * CONTEXT
        content["facts"]["full_state"] = True
        content["inputs"]["parent"] = open_artifact(step_folder(run, 20)).digest

    weights = load_file(step_folder(run, 16) / WEIGHTS)
    weights[EMBEDDING] += 1e-3  # not even the weights of another step
    shutil.rmtree(step_folder(run, 24))
    shutil.copytree(step_folder(run, 16), step_folder(run, 24))
    save_file(weights, step_folder(run, 24) / WEIGHTS, metadata={"format": "pt"})
    forge(step_folder(run, 24), relabel)
    first = faults(run)[0]
    assert first.place == str(step_folder(run, 24))
    assert first.problem.startswith("has not seen the rows before it")
    assert first.cause == "these are the rows of step16: it was relabelled"


def test_a_checkpoint_of_another_run(run: Path, site: Path) -> None:
    other = begin(Ground(site), site / "other", settings(learning_rate=0.02))
    train(other, Ground(site).batches(4))
    shutil.rmtree(step_folder(run, 4))
    shutil.copytree(step_folder(other.path, 4), step_folder(run, 4))
    first = faults(run)[0]
    assert first.place == str(step_folder(run, 4))
    assert first.problem.startswith("not the run it must have")
    assert "of another run" in first.cause

    def claim(content: dict[str, Any]) -> None:
        content["inputs"] |= {
            "run": open_artifact(run).digest,
            "parent": open_artifact(step_folder(run, 2)).digest,
        }

    forge(step_folder(run, 4), claim)
    assert faults(run)[0].problem.startswith("not the config it must have")
    config = open_artifact(step_folder(run, 2)).facts["config"]
    forge(step_folder(run, 4), lambda content: content["facts"].update(config=config))
    first = faults(run)[0]
    assert first.place == str(step_folder(run, 8))
    assert "not the parent it must have" in first.problem


def test_a_missing_and_a_surplus_checkpoint(run: Path) -> None:
    shutil.copytree(step_folder(run, 12), step_folder(run, 13))
    first = faults(run)[0]
    assert first.place == str(step_folder(run, 13))
    assert first.problem == "a step that the settings of its run do not keep"
    shutil.rmtree(step_folder(run, 13))
    shutil.rmtree(step_folder(run, 12))
    first = faults(run)[0]
    assert (first.place, first.problem) == (str(step_folder(run, 12)), "missing checkpoint")


def test_a_damaged_manifest_is_one_fault(run: Path) -> None:
    (step_folder(run, 12) / MANIFEST).write_text("{")
    found = faults(run)
    assert [Path(fault.place).parent.name for fault in found] == ["step12"]
    assert "unreadable manifest" in found[0].problem
    (run / MANIFEST).write_text("{")
    assert "unreadable manifest" in faults(run)[0].problem


@pytest.mark.parametrize(
    "facts",
    [
        {"rows_digest": "not a digest"},
        {"rows_digest": None},
        {"tensors": [1]},
        {"tensors": {EMBEDDING: {"sha256": "0", "dtype": "float32", "shape": ["a"]}}},
        {"tensors": {}},
        {"step": "12"},
        {"tokens": []},
    ],
)
def test_a_forged_manifest_never_breaks_verify(run: Path, facts: dict[str, Any]) -> None:
    forge(step_folder(run, 12), lambda content: content["facts"].update(facts))
    for path in (run, step_folder(run, 12)):
        assert any("step12" in fault.place for fault in faults(path))


GHOST = {"dtype": "float32", "shape": [1], "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"member": "other"}, "not the member it must have; expected tiny; found other"),
        ({"full_state": False}, "not the full state it must have; expected True; found False"),
        ({"tensors": {"ghost": GHOST}}, "no file holds the tensor ghost"),
    ],
)
def test_the_last_checkpoint_forged(run: Path, change: dict[str, Any], problem: str) -> None:
    def forged(content: dict[str, Any]) -> None:
        tensors = content["facts"]["tensors"] | change.get("tensors", {})
        content["facts"] |= change | {"tensors": tensors}

    forge(step_folder(run, 24), forged)
    for path in (run, step_folder(run, 24)):
        assert [(fault.place, fault.problem) for fault in faults(path)] == [
            (str(step_folder(run, 24)), problem)
        ]


def test_a_header_that_reaches_beyond_its_file(run: Path) -> None:
    path = step_folder(run, 12) / WEIGHTS
    data = path.read_bytes()
    end = str(max(one["data_offsets"][1] for one in json.loads(
        data[8 : 8 + int.from_bytes(data[:8], "little")]
    ).values() if "data_offsets" in one))  # fmt: skip
    path.write_bytes(data.replace(f"{end}]".encode(), b"9" * len(end) + b"]", 1))
    first = faults(run)[0]
    assert "lies outside the file" in first.problem
    assert "its header was damaged" in first.cause


def test_metrics_that_are_not_the_runs(run: Path, site: Path) -> None:
    path = run / METRICS
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert faults(run)[0].problem == "not one line an update; expected 24; found 23"
    path.write_text(whole.rstrip("\n"))
    assert faults(run)[0].problem == "line 24 is not what was written for update 23"
    path.write_text(whole)
    path.write_text(whole + replace(list(read_metrics(path))[-1], update=24).line())
    assert faults(run)[0].problem == "not one line an update; expected 24; found 25"
    path.write_text("".join([*lines[:5], *lines[6:]]))
    assert faults(run)[0].problem == "line 6 is not what was written for update 5"
    path.write_text(whole)
    rows = list(read_metrics(path))
    rows[9] = replace(rows[9], rows_digest="0" * 64)
    path.write_text("".join(row.line() for row in rows))
    first = faults(run)[0]
    assert first.place == str(path)
    assert first.problem.startswith("update 9 is on record with other rows")


def test_a_state_of_another_step(run: Path) -> None:
    shutil.rmtree(run / "states/step16")
    shutil.copytree(run / "states/step8", run / "states/step16")
    first = faults(run)[0]
    assert first.place == str(run / "states/step16")
    assert first.problem == "not the step it must have; expected 16; found 8"
