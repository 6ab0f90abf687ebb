"""Replay: any step comes out as it was, from wherever it is derived, or it is said what differs."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grown import Ground, begin, saved, settings
from ontogeny.artifact import faults, open_artifact
from ontogeny.checkpoints.store import (
    OPTIMIZER,
    drop_states,
    load_checkpoint,
)
from ontogeny.config import build
from ontogeny.digest import digest_file
from ontogeny.errors import CheckpointError, ConfigError, OrderError
from ontogeny.model import arithmetic, hf
from ontogeny.order.batches import Batches
from ontogeny.questions.materials import open_materials
from ontogeny.results import UpdateMetrics, parse_metrics
from ontogeny.stages.plan import MemberPlan
from ontogeny.steps import METRICS, state_folder, step_folder
from ontogeny.suite import Member, RunSettings, SizeSettings
from ontogeny.training.loop import train
from ontogeny.training.replay import Replayed, replay
from ontogeny.training.run import Run, locked, open_run
from spoiled import flip, forge, forge_bits, no_change
from spoken import Type

NUM_UPDATES = 24
STEPS = [0, 1, 2, 4, 8, 12, 16, 20, 24]
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def run(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with full states of steps 0, 8, 16 and 24; never written to."""
    begun = begin(ground, tmp_path_factory.mktemp("replayed") / "run", settings())
    train(begun, ground.batches(4))
    return begun


@pytest.fixture(scope="module")
def truth(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> dict[int, State]:
    """Weights and moments after every update, as training itself saved them."""
    folder = tmp_path_factory.mktemp("truth") / "run"
    begun = begin(ground, folder, settings(rolling_seconds=1e-9))
    states: dict[int, State] = {}

    def look(row: UpdateMetrics) -> None:  # what is newest is written during this update
        states[row.update] = loaded(begun, row.update)

    train(begun, ground.batches(4), [look])
    return states | {NUM_UPDATES: loaded(begun, NUM_UPDATES)}


def loaded(run: Run, step: int) -> State:
    state = saved(run, step)
    return {**state.model.state_dict(), **state.named_state()}


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    """A copy of the run, to be damaged; its inputs are out of its reach."""
    shutil.copytree(run.path, tmp_path / "copy")
    return open_run(tmp_path / "copy")


def is_true(found: Replayed, truth: dict[int, State], step: int) -> bool:
    state = {**found.model.state_dict(), **found.moments}
    assert found.progress.step == step
    assert state.keys() == truth[step].keys()
    return all(torch.equal(state[name], tensor) for name, tensor in truth[step].items())


def forge_weights(run: Run, step: int, name: str, noise: torch.Tensor) -> None:
    """Add noise to a tensor of a checkpoint, whose manifest then says that this is right."""
    folder = step_folder(run.path, step)
    model = load_checkpoint(run.path, step)
    with torch.no_grad():
        model.get_parameter(name).add_(noise)
    hf.save(model, folder)
    forge(folder, no_change)
    assert not faults(open_artifact(folder))


@pytest.mark.parametrize("step", [0, 1, 24, *random.Random(0).sample(range(2, 24), 5)])
def test_any_step_comes_out_bit_for_bit(
    run: Run, ground: Ground, truth: dict[int, State], step: int
) -> None:
    found = replay(run, ground.batches(4), step)
    assert is_true(found, truth, step)
    assert found.start == step // 8 * 8
    assert [one.step for one in found.passed] == [s for s in STEPS if found.start <= s <= step]
    assert all(one.deviation is None for one in found.passed)
    assert (found.num_compared, found.loss_deviation) == (step - found.start, 0.0)


def test_every_start_leads_to_the_same_state(
    run: Run, ground: Ground, truth: dict[int, State]
) -> None:
    states = [replay(run, ground.batches(4), 19, start=start) for start in (0, 8, 16)]
    assert [state.start for state in states] == [0, 8, 16]
    assert all(is_true(state, truth, 19) for state in states)
    assert len({state.digest for state in states}) == 1
    assert states[0].digest != replay(run, ground.batches(4), 18).digest


@pytest.mark.parametrize("recipe", ["sound", "pythia"])
def test_without_states_it_starts_from_the_settings(
    ground: Ground, tmp_path: Path, recipe: str
) -> None:
    values = settings().resolved() | {"recipe": recipe}
    begun = begin(ground, tmp_path / "run", build(RunSettings, values, "test"))
    train(begun, ground.batches(4))
    last = loaded(begun, NUM_UPDATES)
    drop_states(begun.path, frozenset())
    found = replay(begun, ground.batches(4), NUM_UPDATES)
    assert (found.start, found.is_from_settings) == (0, True)
    assert [one.step for one in found.passed] == STEPS
    assert is_true(found, {NUM_UPDATES: last}, NUM_UPDATES)


def test_a_replay_only_reads(run: Run, ground: Ground) -> None:
    def contents() -> dict[Path, tuple[int, str]]:
        files = [path for path in run.path.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, digest_file(path)) for path in files}

    with locked(run.path), arithmetic.threads(2):  # more than the run computes with
        before = contents()
        replay(run, ground.batches(4), 11)
        assert contents() == before
        assert torch.get_num_threads() == 2


def test_a_run_is_replayed_while_it_trains(
    ground: Ground, truth: dict[int, State], tmp_path: Path
) -> None:
    begun = begin(ground, tmp_path / "run", settings(rolling_seconds=1e-9))
    moments, done = random.Random(1), []

    def look_back(row: UpdateMetrics) -> None:
        step = moments.randint(row.update // 2, row.update + 1)
        if row.update % 3 == 2:
            done.append(is_true(replay(begun, ground.batches(4), step), truth, step))

    train(begun, ground.batches(4), [look_back])
    assert done == [True] * 8
    assert is_true(replay(begun, ground.batches(4), 23), truth, 23)


def test_a_branch_is_replayed_from_where_it_begins(
    say: Type, run: Run, truth: dict[int, State], tmp_path: Path
) -> None:
    folder = tmp_path / "branch"
    assert say("branch", run.path, "--at", 10, "--splice", "identity", "--out", folder).code == 0
    branch = open_materials(folder)
    found = replay(branch.run, branch.batches, 15)
    assert is_true(found, truth, 15)
    assert (found.start, [one.step for one in found.passed]) == (10, [10, 12])
    assert is_true(replay(branch.run, branch.batches, 23, start=10), truth, 23)
    with pytest.raises(ConfigError, match="no step 9; expected a step from 10 to 24"):
        replay(branch.run, branch.batches, 9)
    drop_states(folder, frozenset())
    with pytest.raises(CheckpointError, match="the state of step 10, which the branch begins from"):
        replay(branch.run, branch.batches, 15)


@pytest.mark.parametrize(
    ("name", "other"),
    [("torch", "2.0.0"), ("device", "a GPU"), ("instruction_set", "AVX2"), ("threads", 2),
     ("bf16_instructions", "no"), ("compile", True), ("extensions", ["kernel"])],
)  # fmt: skip
def test_other_arithmetic_is_refused_by_name(
    copy: Run, ground: Ground, truth: dict[int, State], name: str, other: object
) -> None:
    forge_bits(state_folder(copy.path, 8), name, other)
    with pytest.raises(
        CheckpointError, match=rf"step 8 was computed with another {name}"
    ) as caught:
        replay(copy, ground.batches(4), 10)
    assert f"expected {other}" in str(caught.value)
    assert "--tolerance" in str(caught.value)
    assert is_true(replay(copy, ground.batches(4), 10, tolerant=True), truth, 10)
    assert is_true(replay(copy, ground.batches(4), 10, start=0), truth, 10)


def test_arithmetic_of_the_checkpoint_after_counts_too(copy: Run, ground: Ground) -> None:
    forge_bits(step_folder(copy.path, 12), "torch", "2.0")
    with pytest.raises(CheckpointError, match=r"step 12 was computed with another torch"):
        replay(copy, ground.batches(4), 10)
    assert replay(copy, ground.batches(4), 8).progress.step == 8  # nothing is computed
    assert replay(copy, ground.batches(4), 17).start == 16


def test_another_checkpoint_is_refused_or_measured(copy: Run, ground: Ground) -> None:
    name = "layers.1.mlp.dense_h_to_4h.weight"
    recorded = load_checkpoint(copy.path, 12).get_parameter(name).detach()
    noise = 1e-3 * torch.randn(recorded.shape, generator=torch.Generator().manual_seed(0))
    forge_weights(copy, 12, name, noise)
    with pytest.raises(CheckpointError, match=f"step 12 has another gpt_neox.{name} than"):
        replay(copy, ground.batches(4), 14)
    found = replay(copy, ground.batches(4), 14, tolerant=True)
    assert [one.step for one in found.passed] == [8, 12]
    assert found.passed[0].deviation is None
    deviation = found.passed[1].deviation
    assert deviation is not None
    assert deviation.worst_tensor == f"gpt_neox.{name}"
    assert deviation.absolute == pytest.approx(noise.abs().max().item(), rel=1e-3)
    norm = (recorded + noise).norm()
    assert deviation.worst == pytest.approx((noise.norm() / norm).item(), rel=1e-3)
    everything = torch.cat([one.flatten() for one in load_checkpoint(copy.path, 12).parameters()])
    whole = (noise.norm() / everything.norm()).item()
    assert deviation.relative == pytest.approx(whole, rel=1e-3)


def test_other_metrics_are_refused_or_measured(copy: Run, ground: Ground) -> None:
    path = copy.path / METRICS
    lines = path.read_text().splitlines(keepends=True)
    row = parse_metrics(lines[9])
    assert row is not None
    lines[9] = replace(row, loss=row.loss + 0.25).line()
    path.write_text("".join(lines))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:10: replayed, update 9 comes out"):
        replay(copy, ground.batches(4), 10)
    found = replay(copy, ground.batches(4), 10, tolerant=True)
    assert found.loss_deviation == pytest.approx(0.25)


def test_metrics_that_are_not_there_are_not_compared(copy: Run, ground: Ground) -> None:
    path = copy.path / METRICS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:30])
    assert replay(copy, ground.batches(4), 7).num_compared == 5
    path.unlink()
    assert replay(copy, ground.batches(4), 7).num_compared == 0


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize("has_metrics", [True, False])
def test_another_order_is_refused(
    copy: Run, ground: Ground, tolerant: bool, has_metrics: bool
) -> None:
    if not has_metrics:
        (copy.path / METRICS).unlink()
    shifted = Batches(ground.batches(4).order, 4, first_update=0, first_place=4)
    with pytest.raises(OrderError, match="the rows read are not those the run consumed") as caught:
        replay(copy, shifted, 12, start=8, tolerant=tolerant)
    assert ("metrics.jsonl:9" if has_metrics else "step12") in str(caught.value)


def test_a_damaged_state_is_refused_and_another_will_do(
    copy: Run, ground: Ground, truth: dict[int, State]
) -> None:
    flip(state_folder(copy.path, 8) / OPTIMIZER, -7, 4)
    with pytest.raises(CheckpointError, match=r"damaged state .*optimizer\.safetensors"):
        replay(copy, ground.batches(4), 10)
    assert is_true(replay(copy, ground.batches(4), 10, start=0), truth, 10)


def test_a_start_that_is_not_kept_is_refused(copy: Run, ground: Ground) -> None:
    with pytest.raises(
        CheckpointError, match=r"no full state of step 9 to come to step 10 from; .* steps 0, 8$"
    ):
        replay(copy, ground.batches(4), 10, start=9)
    with pytest.raises(CheckpointError, match="no full state of step 16 to come to step 10"):
        replay(copy, ground.batches(4), 10, start=16)


@pytest.mark.parametrize("step", [-1, 25])
def test_a_step_the_run_does_not_have_is_refused(run: Run, ground: Ground, step: int) -> None:
    with pytest.raises(ConfigError, match=f"no step {step}; expected a step from 0 to 24"):
        replay(run, ground.batches(4), step)


def test_the_checkpoint_written_is_the_runs_own(say: Type, run: Run, tmp_path: Path) -> None:
    said = say("replay", run.path, "--step", 12, "--out", tmp_path / "c", "--state", tmp_path / "s")
    own = open_artifact(step_folder(run.path, 12), "checkpoint")
    written = open_artifact(tmp_path / "c", "checkpoint")
    assert written.content == own.content
    assert written.provenance["replayed_from"] == 8
    assert written.provenance["bits"] == own.provenance["bits"]
    words = said.out.split()
    assert {f"{tmp_path / 'c'},", own.digest, f"{tmp_path / 's'},"} <= set(words)
    assert ["step12", own.digest[:8], "equal"] == words[words.index("step12") :][:3]
    assert "4 updates from the full state of step 8" in said.out
    assert "the losses of 4 of them are on record: equal" in said.out


def test_an_unsaved_step_is_written_and_gone_on_from(
    say: Type, ground: Ground, copy: Run, run: Run, truth: dict[int, State], tmp_path: Path
) -> None:
    checkpoint, state = tmp_path / "c", tmp_path / "s"
    assert say("replay", run.path, "--step", 10, "--out", checkpoint, "--state", state).code == 0
    written = open_artifact(checkpoint, "checkpoint")
    assert not faults(written)
    assert written.inputs["parent"] == open_artifact(step_folder(run.path, 8)).digest
    weights = hf.load(checkpoint).state_dict()
    assert all(torch.equal(truth[10][name], tensor) for name, tensor in weights.items())
    moments = load_file(state / OPTIMIZER)
    assert all(torch.equal(truth[10][name], tensor) for name, tensor in moments.items())
    drop_states(copy.path, frozenset())
    for step in (12, 16, 20, 24):
        shutil.rmtree(step_folder(copy.path, step))
    shutil.copytree(state, state_folder(copy.path, 10))
    seen: list[int] = []
    train(copy, ground.batches(4), [lambda row: seen.append(row.update)])
    assert seen[0] == 10
    assert artifacts(copy) == artifacts(run)


def artifacts(run: Run) -> list[str]:
    return [open_artifact(step_folder(run.path, step)).digest for step in STEPS]


def test_the_command_tells_what_deviates(say: Type, run: Run, copy: Run) -> None:
    shutil.move(copy.path, run.path.with_name("beside"))  # where its inputs are found
    beside = open_run(run.path.with_name("beside"))
    try:
        forge_weights(beside, 12, "embed_in.weight", torch.full((384, 16), 0.5))
        drop_states(beside.path, frozenset())
        assert say("replay", beside.path, "--step", 13).refused("step 12 has another", "--tolera")
        said = say("replay", beside.path, "--step", 13, "--tolerance")
        assert said.code == 0
        row = next(line.split() for line in said.out.splitlines() if line.startswith("step12 "))
        assert (row[2], row[4], row[5]) == ("differs", "0.5", "gpt_neox.embed_in.weight")
        assert float(row[3]) < float(row[6])
        assert "13 updates from the initial model (no full state of it is kept)" in said.out
    finally:
        shutil.rmtree(beside.path)


def test_the_command_refuses_in_one_line(say: Type, run: Run, tmp_path: Path) -> None:
    words = ("replay", run.path, "--step")
    assert say(*words, 3, "--out", tmp_path).refused("already exists", "another folder")
    assert say(*words, 3, "--state", tmp_path).refused("already exists", "another folder")
    place = tmp_path / "new"
    assert say(*words, 3, "--out", place, "--state", place).refused("the checkpoint goes there")
    inside = step_folder(run.path, 3)
    assert say(*words, 3, "--out", inside).refused(str(inside), "writes nothing into the run")
    assert say(*words, 30).refused("no step 30", "a step from 0 to 24")
    assert say(*words, 3, "--from", 2).refused("no full state of step 2", "one of the steps 0")
    assert say("replay", tmp_path, "--step", 3).refused("not an artifact")


def test_the_plan_states_what_a_run_takes_on_disk(run: Run) -> None:
    size = SizeSettings(num_layers=2, hidden_size=16, num_heads=2, learning_rate=1e-2)
    plan = MemberPlan(Member("tiny", "tiny", "standard", 0, 4, 1e-2, size), run.settings)
    assert on_disk(run, "steps") == pytest.approx(plan.checkpoint_bytes, rel=0.1)
    rolling = 12 * run.settings.shape.num_parameters
    assert on_disk(run, "states") == pytest.approx(plan.state_bytes - rolling, rel=0.1)


def on_disk(run: Run, folder: str) -> int:
    return sum(path.stat().st_size for path in (run.path / folder).rglob("*.safetensors"))
