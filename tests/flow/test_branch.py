"""Branches: equal to the parent where nothing differs, and different only as stated."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grown import CONTEXT, Enough, Ground, begin, documents, settings, stop_after
from ontogeny.artifact import open_artifact
from ontogeny.checkpoints.store import drop_states, list_states
from ontogeny.digest import digest_json
from ontogeny.errors import CheckpointError
from ontogeny.order.batches import roll
from ontogeny.order.plan import Order, open_order
from ontogeny.questions.materials import open_materials
from ontogeny.results import read_metrics
from ontogeny.stages.branch import begin_branch, plan_branch
from ontogeny.stages.splices import read_spec
from ontogeny.steps import METRICS, list_steps, state_folder, step_folder
from ontogeny.text.documents import Document
from ontogeny.tokens.encode import encode
from ontogeny.tokens.store import open_store
from ontogeny.tokens.vocabulary import train_vocabulary
from ontogeny.training.loop import train
from ontogeny.training.replay import replay
from ontogeny.training.run import Run, open_run
from ontogeny.training.schedule import learning_rate
from spoken import Type

STEPS = [0, 1, 2, 4, 8, 12, 16, 20, 24]


@pytest.fixture
def parent(grown_site: Path) -> Path:
    """A finished run of 24 updates, with full states at 0, 8, 16 and 24."""
    return grown_site / "run"


def spec_file(folder: Path, text: str) -> Path:
    path = folder / "spec.toml"
    path.write_text(text, encoding="utf-8")
    return path


def branch(parent: Path, step: int, spec: object, folder: Path) -> Run:
    """A trained branch."""
    run, batches = begin_branch(plan_branch(parent, step, read_spec(str(spec))), folder)
    train(run, batches)
    return run


def told(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run, but how long it took."""
    rows = [dataclasses.asdict(row) for row in read_metrics(run / METRICS)]
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


def weights(run: Path, step: int) -> tuple[dict[str, Any], str]:
    facts = open_artifact(step_folder(run, step), "checkpoint").facts
    return facts["tensors"], facts["rows_digest"]


def rows_of(run: Path) -> np.ndarray:
    """All rows of a run and of what was before, update by update."""
    batches = open_materials(run).batches
    num_updates = open_run(run).settings.num_updates
    return np.concatenate([batches(update) for update in range(num_updates)])


@pytest.mark.parametrize("step", [0, 8, 11, 12, 23])
def test_an_identity_branch_is_its_parent(parent: Path, tmp_path: Path, step: int) -> None:
    run = branch(parent, step, "identity", tmp_path / "branch")
    assert told(run.path) == told(parent)
    assert list_steps(run.path) == sorted({step, *(kept for kept in STEPS if kept > step)})
    for kept in list_steps(run.path):
        if kept in STEPS:
            assert weights(run.path, kept) == weights(parent, kept)
    assert list_states(run.path) == sorted({step, *(s for s in (8, 16, 24) if s > step)})
    first = open_artifact(step_folder(run.path, step), "checkpoint")
    nearest = open_artifact(step_folder(parent, max(s for s in STEPS if s <= step)), "checkpoint")
    assert first.inputs["parent"] == run.artifact.inputs["parent"] == nearest.digest
    assert run.artifact.inputs["order"] == open_run(parent).artifact.inputs["order"]
    assert run.settings.branch is not None
    assert run.settings.branch.parent == "tiny"
    assert run.settings.branch.tokens == step * 4 * CONTEXT


def test_a_run_that_is_no_branch_says_nothing_of_branches(parent: Path) -> None:
    assert "branch" not in open_run(parent).artifact.config


def test_a_branch_of_a_pruned_run_is_derived_from_its_beginning(
    ground: Ground, parent: Path, tmp_path: Path
) -> None:
    pruned = begin(ground, tmp_path / "pruned", settings())
    train(pruned, ground.batches(4))
    drop_states(pruned.path, frozenset())
    run = branch(pruned.path, 3, "identity", tmp_path / "branch")
    assert told(run.path) == told(parent)
    drop_states(run.path, frozenset())
    with pytest.raises(CheckpointError, match="the state of step 3, which the branch begins from"):
        replay(run, open_materials(run.path).batches, 5)
    again = branch(pruned.path, 3, "identity", tmp_path / "branch")
    assert told(again.path) == told(parent)
    assert replay(again, open_materials(run.path).batches, 5).num_compared == 2


SPLICES = {
    "replace": 'words = {{ stone = "apple", river = "a" }}',
    "drop": 'sources = ["odd"]',
    "repeat": 'documents = ["d1"]',
    "insert": 'texts = ["a canary sings"]\ntimes = 6',
    "seed": "seed = 5",
    "store": 'store = "{held_out}"',
}


@pytest.mark.parametrize("kind", SPLICES)
def test_a_splice_differs_as_it_says(
    ground: Ground, parent: Path, tmp_path: Path, say: Type, kind: str
) -> None:
    values = SPLICES[kind].format(held_out=ground.held_out)
    spec = spec_file(tmp_path, f'[splice]\nkind = "{kind}"\nuntil = 20\n{values}\n')
    words = ("branch", parent, "--at", 10, "--splice", spec, "--out", tmp_path / "branch")
    dry = say(*words, "--dry-run")
    assert dry.code == 0, dry.err
    assert [path.name for path in tmp_path.iterdir()] == ["spec.toml"]
    assert say(*words).code == 0
    run = open_run(tmp_path / "branch")
    before, after = rows_of(parent), rows_of(run.path)
    differs = before != after
    assert not differs[: 10 * 4].any()
    assert not differs[20 * 4 :].any()
    place = next(tmp_path.glob("branch-splice-*"))
    summary = open_artifact(place, "splice").facts["summary"]
    assert summary["windows"] == 40
    assert summary["windows_changed"] == differs.any(1).sum() > 0
    assert summary["tokens_changed"] == differs.sum()
    assert ["tokens", "changed", f"{summary['tokens_changed']:,}"] in [
        line.split() for line in dry.out.splitlines()
    ]
    digest = open_materials(parent).batches.start
    assert weights(run.path, 24)[1] == roll(digest, after)
    assert told(run.path)[:10] == told(parent)[:10]
    assert told(run.path)[-1]["loss"] != told(parent)[-1]["loss"]
    found = replay(run, open_materials(run.path).batches, 17, start=10)
    assert [passed.deviation for passed in found.passed] == [None, None, None]


def test_another_store_is_read_in_an_order_of_its_own(
    ground: Ground, parent: Path, tmp_path: Path
) -> None:
    """Past the end of the parent, as in fine-tuning: more updates of fewer rows, warmed up anew."""
    spec = spec_file(
        tmp_path,
        f'name = "tuned"\n[splice]\nkind = "store"\nstore = "{ground.held_out}"\nseed = 3\n'
        "[recipe]\nlearning_rate = 0.001\nnum_updates = 800\nrows_per_update = 2\n"
        'schedule = "anew"\n',
    )
    planned = plan_branch(parent, 24, read_spec(str(spec)))
    run, batches = begin_branch(planned, tmp_path / "branch")
    assert (run.settings.member, run.settings.num_updates) == ("tuned", 824)
    assert run.settings.steps[:5] == [24, 25, 26, 28, 32]
    assert run.settings.steps[-1] == 824
    assert sorted(run.settings.full_state_steps) == [24, 290, 556, 822, 824]
    rates = [learning_rate(update, run.settings) for update in range(24, 824)]
    alone = settings(tokens=800 * 2 * CONTEXT, rows_per_update=2, learning_rate=1e-3)
    assert rates == [learning_rate(update, alone) for update in range(800)]
    summary = open_artifact(next(tmp_path.glob("branch-splice-*"))).facts["summary"]
    theirs = open_materials(parent).batches.order.num_windows
    assert summary["windows"] == 1600
    assert summary["windows_added"] == 24 * 4 + 1600 - theirs > 0
    order = open_artifact(next(tmp_path.glob("branch-order-*")), "order")
    assert order.facts["num_epochs"] > 1
    assert batches.num_updates >= 824
    seen = {tuple(row) for update in range(24, 824) for row in batches(update).tolist()}
    assert len(seen) >= order.facts["windows_per_epoch"] * 0.9


def test_a_higher_rate_scales_the_schedule(parent: Path, tmp_path: Path) -> None:
    spec = spec_file(tmp_path, '[splice]\nkind = "identity"\n[recipe]\nlearning_rate = 0.02\n')
    run = branch(parent, 9, spec, tmp_path / "branch")
    rates = [row["learning_rate"] for row in told(run.path)]
    theirs = [row["learning_rate"] for row in told(parent)]
    assert rates == theirs[:9] + [pytest.approx(2 * rate) for rate in theirs[9:]]
    assert run.artifact.config["branch"]["recipe"]["learning_rate"] == 0.02
    assert (rows_of(run.path) == rows_of(parent)).all()


def test_other_rows_go_on_where_the_parent_left(parent: Path, tmp_path: Path) -> None:
    """Half the updates of twice the rows: the same tokens, and the schedule goes by those."""
    spec = spec_file(tmp_path, '[splice]\nkind = "identity"\n[recipe]\nrows_per_update = 8\n')
    run = branch(parent, 12, spec, tmp_path / "branch")
    assert run.settings.num_updates == 12 + 6
    assert (rows_of(run.path) == rows_of(parent)).all()
    assert weights(run.path, 18)[1] == weights(parent, 24)[1]
    wide = settings(rows_per_update=8)
    rates = [learning_rate(update, run.settings) for update in range(12, 18)]
    assert rates == [learning_rate(update, wide) for update in range(6, 12)]
    batches = open_materials(run.path).batches
    updates, rows = batches.updates_and_rows(np.arange(96))
    for place in range(96):
        row = batches(int(updates[place]))[int(rows[place])]
        assert row.tolist() == batches.order.rows(place, 1)[0].tolist()
    assert [batches.place(update) for update in (0, 11, 12, 13)] == [0, 44, 48, 56]
    found = replay(run, batches, 15)
    assert found.num_compared == 3


def test_a_branch_of_a_branch(parent: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    one = spec_file(tmp_path / "one", '[splice]\nkind = "drop"\nsources = ["odd"]\nuntil = 14\n')
    first = branch(parent, 6, one, tmp_path / "first")
    same = branch(first.path, 11, "identity", tmp_path / "same")
    assert told(same.path) == told(first.path)
    assert weights(same.path, 24) == weights(first.path, 24)
    two = spec_file(tmp_path, '[splice]\nkind = "replace"\npattern = "the"\nreplacement = "no"\n')
    second = branch(first.path, 15, two, tmp_path / "second")
    plain = branch(parent, 15, two, tmp_path / "plain")
    rows, theirs, swapped = rows_of(second.path), rows_of(first.path), rows_of(plain.path)
    assert (rows[: 15 * 4] == theirs[: 15 * 4]).all()
    assert (rows[15 * 4 :] == swapped[15 * 4 :]).all()
    assert (rows[15 * 4 :] != theirs[15 * 4 :]).any()


def test_documents_of_a_branch_on_another_store(
    ground: Ground, parent: Path, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    one = f'[splice]\nkind = "store"\nstore = "{ground.held_out}"\n'
    first = branch(parent, 8, spec_file(tmp_path / "one", one), tmp_path / "first")
    two = spec_file(tmp_path, '[splice]\nkind = "drop"\nsources = ["odd"]\n')
    second = branch(first.path, 12, two, tmp_path / "second")
    store = open_store(ground.held_out)
    order = open_order(next(tmp_path.glob("first-order-*")), store)
    pieces = order.pieces((12 - 8) * 4, 12 * 4)
    there = set(pieces.documents[pieces.lengths > 0].tolist())
    summary = open_artifact(next(tmp_path.glob("second-splice-*"))).facts["summary"]
    assert summary["documents"] == sum(number % 2 for number in there)
    bounds = np.append(pieces.firsts, len(pieces.documents))
    for row, low, high in zip(rows_of(second.path)[48:], bounds, bounds[1:], strict=False):
        kept: list[int] = []
        for at in range(low, high):
            if pieces.documents[at] % 2 == 0:
                columns = pieces.documents[at], pieces.offsets[at], pieces.lengths[at]
                kept += store.tokens(*map(int, columns)).tolist()
        assert row.tolist() == (kept + [0] * (CONTEXT + 1))[: CONTEXT + 1]


def test_the_arithmetic_of_a_kept_state_goes_along(
    ground: Ground, tmp_path: Path, say: Type
) -> None:
    run = begin(ground, tmp_path / "run", settings())
    train(run, ground.batches(4))
    manifest = state_folder(run.path, 8) / "manifest.json"
    written = json.loads(manifest.read_text())
    written["provenance"]["bits"]["torch"] = "2.0.0"
    written["provenance_digest"] = digest_json(written["provenance"])
    manifest.write_text(json.dumps(written))
    words = ("branch", run.path, "--at", 8, "--splice", "identity", "--out", tmp_path / "branch")
    assert "step 8 was computed with another torch" in say(*words).err
    assert say(*words, "--other-bits").code == 0


def test_a_killed_branch_goes_on(parent: Path, tmp_path: Path) -> None:
    spec = read_spec(str(spec_file(tmp_path, '[splice]\nkind = "seed"\nseed = 1\n')))
    whole, batches = begin_branch(plan_branch(parent, 10, spec), tmp_path / "whole")
    train(whole, batches)
    killed = tmp_path / "killed"
    begin_branch(plan_branch(parent, 10, spec), killed)
    shutil.rmtree(killed / "states")  # as if it had died before its first state was there
    (killed / METRICS).write_text("torn")
    for stop in (11, 13, 22):
        run, batches = begin_branch(plan_branch(parent, 10, spec), killed)
        with pytest.raises(Enough):
            train(run, batches, [stop_after(stop)])
    run, batches = begin_branch(plan_branch(parent, 10, spec), killed)
    train(run, batches)
    assert told(killed) == told(whole.path)
    for step in list_steps(whole.path):
        theirs = open_artifact(step_folder(whole.path, step)).digest
        assert open_artifact(step_folder(killed, step)).digest == theirs
    shutil.rmtree(killed / "states")
    shutil.rmtree(killed / "steps")
    with pytest.raises(CheckpointError, match=r"state of step 10, which the branch begins from"):
        train(open_run(killed), batches)


def test_making_is_apart_from_training(parent: Path, tmp_path: Path, say: Type) -> None:
    words = ("branch", parent, "--at", 8, "--splice", "identity", "--out", tmp_path / "branch")
    made = say(*words, "--no-train")
    assert made.code == 0
    assert "16 updates from step 8" in made.out
    assert list_states(tmp_path / "branch") == [8]
    assert list_steps(tmp_path / "branch") == []
    assert len(told(tmp_path / "branch")) == 8
    early = say("branch", tmp_path / "branch", "--at", 8, "--splice", "identity", "--out", tmp_path)
    assert "no checkpoint up to step 8; try: train the run first" in early.err
    trained = say(*words)
    assert "step 24 of 24" in trained.out
    again = say(*words)
    assert again.code == 0
    other = say(*words[:3], 9, *words[4:])
    assert other.code == 2
    assert "holds a run of another config" in other.err


SEED = 'kind = "seed"\nseed = 3\n'
DROP, INSERT = 'kind = "drop"\n', 'kind = "insert"\n'
REPLACE, STORE = 'kind = "replace"\n', 'kind = "store"\n'
RECIPE = 'kind = "identity"\n[recipe]\n'
BAD = {
    "step beyond": (25, SEED, "no step 25; expected a step from 0 to 24"),
    "nothing left": (24, RECIPE, "less than one update of 64 tokens after the 1536 seen before"),
    "short order": (20, RECIPE + "num_updates = 400", "the parent's order is too short for the"),
    "two lengths": (2, RECIPE + "num_updates = 4\ntokens = 640", "either tokens or num_updates"),
    "recipe key": (2, RECIPE + "learn_rate = 1.0", "did you mean 'learning_rate'?"),
    "unknown kind": (2, 'kind = "replce"', "no splice is called 'replce'; expected one of"),
    "no kind": (2, "seed = 3", "no splice is called 'without a kind'"),
    "unknown key": (2, SEED + "untl = 3", "unknown key 'untl'; expected one of seed, until"),
    "until": (5, SEED + "until = 5", "splice.until: no update 5 to end the splice at"),
    "document": (2, DROP + 'documents = ["d99"]', "no document 'd99'; try: did you mean 'd9'?"),
    "source": (2, DROP + 'sources = ["add"]', "no source 'add'; expected one of even, odd"),
    "no documents": (2, DROP, "name documents or sources"),
    "absent": (23, DROP + 'documents = ["d{absent}"]', "none of the documents is in the windows"),
    "no words": (2, REPLACE, "either words or a pattern"),
    "words twice": (
        2,
        REPLACE + 'words = { He = "x", he = "y" }',
        "differ by more than their case",
    ),
    "pattern": (2, REPLACE + 'pattern = "("', "not a regular expression"),
    "no match": (2, REPLACE + 'pattern = "zebra"', "the splice changes no window"),
    "long text": (2, INSERT + f'texts = ["{"river " * 20}"]', "does not fit a window"),
    "no text": (2, INSERT + 'texts = [""]', "does not fit a window; expected 1 to 16 tokens"),
    "too many": (23, INSERT + 'texts = ["a"]\ntimes = 5', "expected at most 4; found 5"),
    "no store": (2, STORE + 'store = "absent"', "absent: not an artifact"),
    "foreign store": (2, STORE + 'store = "foreign"', "with another vocabulary than the run's"),
    "not TOML": (2, "[splice", "not valid TOML"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_in_a_line(
    parent: Path, tmp_path: Path, say: Type, name: str
) -> None:
    step, text, message = BAD[name]
    if name == "absent":
        order = open_materials(parent).batches.order
        assert isinstance(order, Order)
        pieces = order.pieces(23 * 4, 4)
        there = set(pieces.documents[pieces.lengths > 0].tolist())
        text = text.replace("{absent}", str(min(set(range(60)) - there)))
    if name == "foreign store":
        texts = [Document("x", document.text + " zzz", "s") for document in documents(1)]
        foreign = train_vocabulary((document.text for document in texts), 262)
        encode(texts, foreign, tmp_path / "foreign", config={}, inputs={})
    spec = spec_file(tmp_path, "[splice]\n" + text)
    said = say("branch", parent, "--at", step, "--splice", spec, "--out", tmp_path / "branch")
    assert said.code == 2
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not list(tmp_path.glob("*branch*"))


def test_a_name_that_is_no_splice_is_told_from_a_file(
    parent: Path, tmp_path: Path, say: Type
) -> None:
    words = ("branch", parent, "--at", 3, "--out", tmp_path / "branch", "--splice")
    assert "no splice is called 'idntity'" in say(*words, "idntity").err
    assert "did you mean 'identity'?" in say(*words, "idntity").err
    assert "missing key 'seed'" in say(*words, "seed").err
    assert "no such file" in say(*words, tmp_path / "absent.toml").err
    assert "missing key 'splice'" in say(*words, spec_file(tmp_path, 'name = "x"')).err


def test_a_run_that_is_not_there_yet_cannot_be_left(
    ground: Ground, tmp_path: Path, say: Type
) -> None:
    run = begin(ground, tmp_path / "run", settings())
    with pytest.raises(Enough):
        train(run, ground.batches(4), [stop_after(5)])
    words = ("branch", run.path, "--splice", "identity", "--out", tmp_path / "branch", "--at")
    assert "the run has not come to step 6 yet" in say(*words, 6).err
    assert say(*words, 5, "--no-train").code == 0
