"""`show`: what an artifact is and where it came from, for people and for programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from grown import CONTEXT, SUITE
from ontogeny.artifact import MANIFEST, open_artifact
from ontogeny.digest import digest_json
from ontogeny.model.hf import load
from ontogeny.record import Record, StageRecord, write_record
from ontogeny.steps import step_folder
from ontogeny.suite import load_suite
from spoken import Type


@pytest.fixture
def site(grown_site: Path) -> Path:
    """Ground with a finished run on it: only looked at."""
    return grown_site


def shown(say: Type, path: Path) -> dict[str, Any]:
    said = say("show", path, "--json")
    assert said.code == 0
    answer: dict[str, Any] = json.loads(said.out)
    return answer


def test_a_checkpoint(say: Type, site: Path) -> None:
    folder = step_folder(site / "run", 12)
    found = shown(say, folder)
    model = load(folder)
    assert found["kind"] == "checkpoint"
    assert found["digest"] == open_artifact(folder).digest
    assert found["parameters"] == sum(one.numel() for one in model.state_dict().values())
    assert found["tensors"] == len(model.state_dict())
    assert found["parents"] == [f"tiny/step{step}" for step in (8, 4, 2, 1, 0)]
    assert found["facts"]["tokens"] == 12 * 4 * CONTEXT
    assert found["made"]["bits.device"] == "cpu"
    assert found["made"]["bits.threads"] == 1
    assert found["missing"] == []
    chain = [(one["depth"], one["role"], one["state"]) for one in found["from"]]
    assert chain == [
        (0, "run", "there"),
        (1, "order", "there"),
        (2, "store", "there"),
        (1, "vocabulary", "there"),
    ]
    assert [one["digest"] for one in found["from"]] == [
        open_artifact(site / name).digest for name in ("run", "order", "store", "vocabulary")
    ]


def test_a_run_and_a_store(say: Type, site: Path) -> None:
    found = shown(say, site / "run")
    assert found["steps"] == [0, 1, 2, 4, 8, 12, 16, 20, 24]
    assert found["states"] == [0, 8, 16, 24]
    assert (found["updates"], found["tokens"]) == ("24 of 24", 24 * 4 * CONTEXT)
    assert found["settings"]["training.rows_per_update"] == 4
    assert found["settings"]["shape.hidden_size"] == 16
    found = shown(say, site / "store")
    assert found["facts"]["sources"] == "even, odd"
    assert found["files"]["tokens.bin"] == (site / "store/tokens.bin").stat().st_size


def test_an_imported_model(say: Type, site: Path, tmp_path: Path) -> None:
    assert say("import", step_folder(site / "run", 12), "--out", tmp_path / "model").code == 0
    found = shown(say, tmp_path / "model")
    assert found["tensors"] == len(load(tmp_path / "model").state_dict())
    assert {one["state"] for one in found["from"]} == {"a digest only"}


def test_the_words_fit_the_page(say: Type, site: Path) -> None:
    for name in ("run", "store", "order", "run/steps/step24", "run/states/step8"):
        said = say("show", site / name)
        assert said.code == 0
        lines = said.out.splitlines()
        where = [line for line in lines if str(site) in line or "../" in line]  # paths stay whole
        assert max(len(line) for line in lines if line not in where) <= 100
        assert lines[0].split() == [
            open_artifact(site / name).kind,
            open_artifact(site / name).digest,
        ]
    said = say("show", step_folder(site / "run", 24))
    assert "tiny/step20 <- tiny/step16 <- tiny/step12" in said.out
    assert "tensors     28\n" in said.out


def test_a_checkpoint_whose_inputs_are_gone(say: Type, site: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(step_folder(site / "run", 12), tmp_path / "steps/step12"))
    found = shown(say, alone)
    assert [(one["role"], one["state"]) for one in found["from"]] == [("run", "gone")]
    assert found["parents"] == [f"{tmp_path}/steps/step8 is gone or damaged"]
    (alone / "model.safetensors").unlink()
    assert shown(say, alone)["missing"] == ["model.safetensors"]
    said = say("show", alone)
    assert "gone" in said.out
    assert "missing     model.safetensors" in said.out


def test_inputs_that_are_others(say: Type, site: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(site, tmp_path / "site"))
    shutil.rmtree(copy / "order")
    shutil.copytree(copy / "store", copy / "order")
    (copy / "vocabulary" / MANIFEST).write_text("{")
    found = shown(say, copy / "run")["from"]
    assert [(one["role"], one["state"]) for one in found] == [
        ("order", "another is there"),
        ("vocabulary", "damaged"),
    ]
    shutil.rmtree(step_folder(copy / "run", 4))
    shutil.copytree(step_folder(copy / "run", 2), step_folder(copy / "run", 4))
    parents = shown(say, step_folder(copy / "run", 12))["parents"]
    assert parents == ["tiny/step8", f"{step_folder(copy / 'run', 4)} is another"]


def test_no_manifest_commands_the_terminal(say: Type, site: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(site / "store", tmp_path / "store"))
    written = json.loads((copy / MANIFEST).read_text())
    written["content"]["facts"]["dtype"] = "\x1b]0;title\x07[bold]"
    written["digest"] = digest_json(written["content"])
    (copy / MANIFEST).write_text(json.dumps(written))
    said = say("show", copy)
    assert "\x1b" not in said.out
    assert "dtype=\N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}[bold]" in said.out


def test_a_suite(say: Type, site: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    shutil.copytree(site / "store", tmp_path / "store-1")
    stages = tuple(
        StageRecord(name=name, kind="store", path=path, digest=digest, seconds=1.5)
        for name, path, digest in (
            ("stores/standard", "store-1", open_artifact(site / "store").digest),
            ("stores/deduped", "store-1", "0" * 64),
            ("stores/held-out", "store-2", "0" * 64),
        )
    )
    write_record(tmp_path, Record(suite=load_suite(tmp_path / "suite.toml"), stages=stages))
    found = shown(say, tmp_path)
    assert (found["name"], found["members"]) == ("tiny", ["14m"])
    states = [one["state"] for one in found["stages"]]
    assert states == ["there", "another is there", "gone or damaged"]
    said = say("show", tmp_path)
    assert said.out.startswith("suite tiny\n")
    rows = {line.split()[0]: line.rstrip() for line in said.out.splitlines() if line.strip()}
    assert rows["stores/held-out"].endswith("gone or damaged")


def test_show_of_nothing(say: Type, site: Path, tmp_path: Path) -> None:
    said = say("show", tmp_path)
    assert said.code == 2
    assert "nothing to show; expected a folder with manifest.json or suite.json" in said.err
    assert "no such folder" in say("show", tmp_path / "none").err
    copy = Path(shutil.copytree(site / "store", tmp_path / "store"))
    (copy / MANIFEST).write_text("[]")
    said = say("show", copy)
    assert said.code == 2
    assert "unreadable manifest" in said.err
