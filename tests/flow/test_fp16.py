"""Training in half precision: the scale moves, updates are skipped, and all of it comes back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from grown import Enough, Ground, begin, saved, settings, stop_after
from ontogeny.artifact import open_artifact
from ontogeny.config import build
from ontogeny.errors import TrainingError
from ontogeny.model.neox import NeoX
from ontogeny.questions.verify import verify
from ontogeny.results import UpdateMetrics, read_metrics
from ontogeny.stages.branch import begin_branch, plan_branch
from ontogeny.stages.splices import read_spec
from ontogeny.steps import METRICS, list_steps, step_folder
from ontogeny.suite import RecipeName, RunSettings
from ontogeny.training.loop import train
from ontogeny.training.replay import replay
from ontogeny.training.run import Run
from ontogeny.training.schedule import learning_rate
from ontogeny.training.update import State

STEEP = {"initial": 2.0**20, "window": 5}  # overflows at once, and again whenever it has doubled


def half(recipe: RecipeName = "sound", **training: object) -> RunSettings:
    values = settings(**{"precision": "fp16", "loss_scale": STEEP} | training).resolved()
    return build(RunSettings, values | {"recipe": recipe}, "test")


def lines(run: Path) -> list[UpdateMetrics]:
    return [dataclasses.replace(row, seconds=0.0) for row in read_metrics(run / METRICS)]


def proof(run: Run) -> dict[int, str]:
    return {
        step: open_artifact(step_folder(run.path, step), "checkpoint").digest
        for step in list_steps(run.path)
    }


@pytest.fixture(scope="module", params=["sound", "pythia"])
def watched(
    request: pytest.FixtureRequest, ground: Ground, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, list[State]]:
    """A finished run, and the full state before each of its updates."""
    folder = tmp_path_factory.mktemp("half") / "run"
    run, states = begin(ground, folder, half(request.param, rolling_seconds=1e-9)), list[State]()
    train(run, ground.batches(4), [lambda row: states.append(saved(run, row.update))])
    return run, [*states, saved(run, 24)]


def plain_gradient(model: NeoX, rows: Tensor, scale: float) -> dict[str, Tensor]:
    """What torch makes of the scaled loss, divided again."""
    logits = model(rows[:, :-1], torch.float16).float()
    loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()) * scale
    found = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), (one / scale for one in found), strict=True))


def test_a_skipped_update_moves_nothing_but_the_scale(watched: tuple[Run, list[State]]) -> None:
    run, states = watched
    rows = lines(run.path)
    assert sum(row.skipped for row in rows) >= 6
    for row, before, after in zip(rows, states, states[1:], strict=False):
        assert before.scale.value == row.loss_scale
        assert after.progress.rows_digest == row.rows_digest != before.progress.rows_digest
        assert (row.gradient_norm == 0) is row.skipped
        old, new = ({**one.model.state_dict(), **one.named_state()} for one in (before, after))
        moved = {name for name in old if not torch.equal(old[name], new[name])}
        is_counted = "updates" in moved
        assert is_counted is not row.skipped
        if row.skipped:
            assert {"loss_scale.num_skipped"} <= moved
            assert all(name.startswith("loss_scale.") for name in moved)
    counted_before = {"sound": 0, "pythia": 1}[run.settings.recipe]
    num_moved = sum(not row.skipped for row in rows)
    assert states[-1].named_state()["updates"] == counted_before + num_moved


def test_what_was_skipped_waits_in_the_schedule_of_the_original_only(
    watched: tuple[Run, list[State]],
) -> None:
    run, _ = watched
    rows = lines(run.path)
    before = np.cumsum([0, *(row.skipped for row in rows)])
    done = [row.update - before[row.update] * (run.settings.recipe == "pythia") for row in rows]
    assert [row.learning_rate for row in rows] == [learning_rate(n, run.settings) for n in done]


def test_the_norm_is_torchs_and_half_of_it_where_the_original_doubles(
    ground: Ground, watched: tuple[Run, list[State]]
) -> None:
    run, states = watched
    ratios = []
    for row, state in zip(lines(run.path), states, strict=False):
        if row.skipped:
            continue
        tokens = torch.from_numpy(ground.batches(4)(row.update))
        found = plain_gradient(state.model, tokens, row.loss_scale)
        norm = torch.cat([one.flatten() for one in found.values()]).norm()
        ratios.append(row.gradient_norm / float(norm))
    halved = [ratio for ratio in ratios if ratio < 0.6]
    assert len(halved) == {"sound": 0, "pythia": 3}[run.settings.recipe]
    assert all(ratio == pytest.approx(0.5, rel=0.02) for ratio in halved)
    assert all(ratio == pytest.approx(1, rel=0.02) for ratio in ratios if ratio not in halved)


@pytest.mark.parametrize("stops", [[1], [4, 5], [10, 18, 23]])
def test_stopping_anywhere_leaves_no_trace(
    ground: Ground, watched: tuple[Run, list[State]], tmp_path: Path, stops: list[int]
) -> None:
    whole, _ = watched
    run = begin(ground, tmp_path / "run", whole.settings)
    for stop in stops:
        with pytest.raises(Enough):
            train(run, ground.batches(4), [stop_after(stop)])
    train(run, ground.batches(4))
    assert proof(run) == proof(whole)
    assert lines(run.path) == lines(whole.path)


def test_any_step_is_derived_again(ground: Ground, watched: tuple[Run, list[State]]) -> None:
    run, states = watched
    for step, start in ((11, 0), (20, 16)):
        found = replay(run, ground.batches(4), step, start=start)
        assert found.num_compared == step - start
        expected = {**states[step].model.state_dict(), **states[step].named_state()}
        state = {**found.model.state_dict(), **found.moments}
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("schedule", ["continue", "anew"])
def test_a_branch_goes_on_with_the_scale(
    watched: tuple[Run, list[State]], tmp_path: Path, schedule: str
) -> None:
    parent, _ = watched
    spec = tmp_path / "spec.toml"
    recipe = '[recipe]\nschedule = "anew"\nnum_updates = 9\n' * (schedule == "anew")
    spec.write_text(recipe + '[splice]\nkind = "identity"\n')
    run, batches = begin_branch(plan_branch(parent.path, 11, read_spec(str(spec))), tmp_path / "b")
    train(run, batches)
    rows = lines(run.path)
    if schedule == "continue":
        assert rows == lines(parent.path)
        return
    assert rows[11].loss_scale == lines(parent.path)[11].loss_scale
    assert rows[11].learning_rate == learning_rate(11, run.settings)
    assert sum(row.skipped for row in rows[:11]) >= 4  # of which its schedule knows nothing


def test_verify_knows_that_skipped_updates_leave_weights_alone(
    watched: tuple[Run, list[State]],
) -> None:
    run, states = watched
    first, later = (states[step].model.embed_in.weight for step in (0, 4))
    assert torch.equal(first, later)  # steps 0, 1, 2 and 4 are kept
    assert [fault for one in verify(run.path) for fault in one.faults] == []


def test_a_scale_that_cannot_fall_ends_the_run(ground: Ground, tmp_path: Path) -> None:
    rule = {"initial": 2.0**31, "floor": 2.0**30}
    run = begin(ground, tmp_path / "run", half(loss_scale=rule))
    with pytest.raises(TrainingError) as caught:
        train(run, ground.batches(4))
    for words in ("norm nan at update 2 (rows 8 to 11", "at loss scale 1.07374e+09", "step2"):
        assert words in str(caught.value)
    assert [(row.loss_scale, row.skipped) for row in lines(run.path)] == [(2.0**31, True)] * 2


def test_a_loss_that_is_not_finite_is_no_matter_of_the_scale(
    ground: Ground, tmp_path: Path
) -> None:
    run = begin(ground, tmp_path / "run", half(loss_scale={}, learning_rate=1e30))
    with pytest.raises(TrainingError, match=r"loss nan and .* at update 1 .*loss scale 4096"):
        train(run, ground.batches(4))
