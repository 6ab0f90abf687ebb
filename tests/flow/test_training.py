"""The loop: where a run stops and goes on again leaves no trace in what it makes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from grown import CONTEXT, Enough, Ground, begin, settings, stop_after
from ontogeny.artifact import open_artifact
from ontogeny.checkpoints.store import (
    OPTIMIZER,
    drop_states,
    list_states,
    load_checkpoint,
    read_tensors,
)
from ontogeny.config import build
from ontogeny.errors import CheckpointError, ConfigError, OrderError, Stopped, TrainingError
from ontogeny.model import hf
from ontogeny.model.init import initial_model
from ontogeny.order.batches import roll
from ontogeny.results import UpdateMetrics, read_metrics
from ontogeny.steps import METRICS, list_steps, step_folder
from ontogeny.suite import RunSettings
from ontogeny.training.loop import train
from ontogeny.training.metrics import tensorboard_sink
from ontogeny.training.optimizer import AdamW
from ontogeny.training.run import Run, locked
from ontogeny.training.schedule import learning_rate
from spoiled import flip, forge_bits

NUM_UPDATES = 24
STEPS = [0, 1, 2, 4, 8, 12, 16, 20, 24]


def proof(run: Run) -> dict[int, str]:
    """The identity of every checkpoint, and with it of all that led there."""
    return {
        step: open_artifact(step_folder(run.path, step), "checkpoint").digest
        for step in list_steps(run.path)
    }


def lines(run: Run) -> list[tuple[int, float, float, str]]:
    rows = read_metrics(run.path / METRICS)
    return [(row.update, row.loss, row.gradient_norm, row.rows_digest) for row in rows]


@pytest.fixture(scope="module")
def undisturbed(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = begin(ground, tmp_path_factory.mktemp("undisturbed") / "run", settings())
    train(run, ground.batches(4))
    return run


def test_a_run_keeps_its_steps_and_learns(undisturbed: Run) -> None:
    assert list_steps(undisturbed.path) == STEPS
    assert list_states(undisturbed.path) == [0, 8, 16, 24]
    losses = [loss for _, loss, _, _ in lines(undisturbed)]
    assert len(losses) == NUM_UPDATES
    assert losses[0] == pytest.approx(np.log(384), abs=0.5)
    assert np.mean(losses[-4:]) < losses[0] - 1


def test_checkpoints_chain_and_count(undisturbed: Run, ground: Ground) -> None:
    batches, digest, parent = ground.batches(4), ground.batches(4).start, None
    for update in range(NUM_UPDATES + 1):
        if update in STEPS:
            checkpoint = open_artifact(step_folder(undisturbed.path, update), "checkpoint")
            assert checkpoint.facts["tokens"] == update * 4 * CONTEXT
            assert checkpoint.facts["rows_digest"] == digest
            assert checkpoint.inputs.get("parent") == parent
            assert checkpoint.inputs["run"] == undisturbed.artifact.digest
            parent = checkpoint.digest
        if update < NUM_UPDATES:
            digest = roll(digest, batches(update))


def test_the_loop_is_adamw_on_the_mean_loss(undisturbed: Run, ground: Ground) -> None:
    run_settings = undisturbed.settings
    model = initial_model(run_settings.shape, "small-wang", 0)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    for update in range(4):
        rows = torch.from_numpy(ground.batches(4)(update))
        logits = model(rows[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update, run_settings)
        optimizer.step()
    kept = load_checkpoint(undisturbed.path, 4).state_dict()
    for name, tensor in model.state_dict().items():
        if name.endswith("query_key_value.bias"):
            continue  # a bias of the keys has no gradient but rounding, which Adam makes large
        torch.testing.assert_close(kept[name], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("stops", [[1], [9], [23], [5, 6, 17], [8, 8, 12]])
def test_stopping_anywhere_leaves_no_trace(
    ground: Ground, undisturbed: Run, tmp_path: Path, stops: list[int]
) -> None:
    run = begin(ground, tmp_path / "run", settings())
    for stop in stops:
        with pytest.raises(Enough):
            train(run, ground.batches(4), [stop_after(stop)])
    train(run, ground.batches(4))
    assert proof(run) == proof(undisturbed)
    assert lines(run) == lines(undisturbed)


def test_a_rolling_state_bounds_what_is_lost(
    ground: Ground, undisturbed: Run, tmp_path: Path
) -> None:
    always = settings(rolling_seconds=1e-9)
    run = begin(ground, tmp_path / "run", always)
    with pytest.raises(Enough):
        train(run, ground.batches(4), [stop_after(11)])
    assert list_states(run.path) == [0, 8, 10]
    seen: list[int] = []
    train(run, ground.batches(4), [lambda row: seen.append(row.update)])
    assert seen[0] == 10
    assert list_states(run.path) == [0, 8, 16, 24]
    assert lines(run) == lines(undisturbed)


def test_a_state_without_its_checkpoint_is_passed_over(
    ground: Ground, undisturbed: Run, tmp_path: Path
) -> None:
    run = begin(ground, tmp_path / "run", settings())
    with pytest.raises(Enough):
        train(run, ground.batches(4), [stop_after(18)])
    assert list_states(run.path) == [0, 8, 16]
    shutil.rmtree(step_folder(run.path, 16))  # as a kill between the two would leave it
    assert list_states(run.path) == [0, 8]
    train(run, ground.batches(4))
    assert proof(run) == proof(undisturbed)
    assert list_states(run.path) == [0, 8, 16, 24]


@pytest.mark.parametrize("damage", ["torn", "lost", "garbage"])
def test_metrics_are_mended(ground: Ground, undisturbed: Run, tmp_path: Path, damage: str) -> None:
    run = begin(ground, tmp_path / "run", settings())
    with pytest.raises(Enough):
        train(run, ground.batches(4), [stop_after(18)])
    path = run.path / METRICS
    whole = path.read_bytes().splitlines(keepends=True)
    broken = {
        "torn": b"".join(whole[:17]) + whole[17][:20],
        "lost": b"".join(whole[:10]),  # fewer lines than the newest state has updates
        "garbage": b"".join(whole) + b"\xff\xfe not json\n",
    }
    path.write_bytes(broken[damage])
    train(run, ground.batches(4))
    assert lines(run) == lines(undisturbed)
    assert proof(run) == proof(undisturbed)


def test_micro_batches_change_only_the_last_bits(
    ground: Ground, undisturbed: Run, tmp_path: Path
) -> None:
    run = begin(ground, tmp_path / "run", settings(micro_batch_rows=2))
    train(run, ground.batches(4))
    for place in (1, 2):  # losses, norms of the gradient
        told = np.array([[row[place] for row in lines(one)] for one in (run, undisturbed)])
        np.testing.assert_allclose(told[0], told[1], rtol=2e-4 * place)
    assert [row[3] for row in lines(run)] == [row[3] for row in lines(undisturbed)]


def test_rows_per_update_keeps_the_order(ground: Ground, undisturbed: Run, tmp_path: Path) -> None:
    run = begin(ground, tmp_path / "run", settings(rows_per_update=8))
    train(run, ground.batches(8))
    larger = {row.tokens: row.rows_digest for row in read_metrics(run.path / METRICS)}
    smaller = {row.tokens: row.rows_digest for row in read_metrics(undisturbed.path / METRICS)}
    assert len(larger) == NUM_UPDATES // 2
    assert all(smaller[tokens] == digest for tokens, digest in larger.items())


def test_bf16_follows_fp32(ground: Ground, undisturbed: Run, tmp_path: Path) -> None:
    run = begin(ground, tmp_path / "run", settings(precision="bf16"))
    train(run, ground.batches(4))
    losses = np.array([[row[1] for row in lines(one)] for one in (run, undisturbed)])
    assert np.abs(losses[0] - losses[1]).max() < 0.05
    assert load_checkpoint(run.path, 24).embed_in.weight.dtype == torch.float32


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(
    ground: Ground, undisturbed: Run, tmp_path: Path, number: signal.Signals
) -> None:
    run = begin(ground, tmp_path / "run", settings())

    def interrupt(row: UpdateMetrics) -> None:
        if row.update == 10:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match="stopped at step 11"):
        train(run, ground.batches(4), [interrupt])
    assert list_states(run.path) == [0, 8, 11]
    train(run, ground.batches(4))
    assert proof(run) == proof(undisturbed)


def test_a_loss_that_is_not_finite_stops_the_run(ground: Ground, tmp_path: Path) -> None:
    run = begin(ground, tmp_path / "run", settings(learning_rate=1e30))
    with pytest.raises(TrainingError) as caught:
        train(run, ground.batches(4))
    message = str(caught.value)
    assert "at update 1" in message
    assert "rows 4 to 7" in message
    assert "last good checkpoint step1, last full state step0" in message
    assert [row.update for row in read_metrics(run.path / METRICS)] == [0]


def test_a_run_folder_of_another_config_is_refused(ground: Ground, tmp_path: Path) -> None:
    begin(ground, tmp_path / "run", settings())
    with pytest.raises(CheckpointError, match=r"training\.learning_rate is 0\.01 there, 0\.02"):
        begin(ground, tmp_path / "run", settings(learning_rate=0.02))


def test_a_second_writer_is_refused(ground: Ground, tmp_path: Path) -> None:
    run = begin(ground, tmp_path / "run", settings())
    with locked(run.path), pytest.raises(CheckpointError, match="another process is writing"):
        train(run, ground.batches(4))


def test_a_step_computed_again_must_come_out_the_same(ground: Ground, tmp_path: Path) -> None:
    run = begin(ground, tmp_path / "run", settings())
    with pytest.raises(Enough):
        train(run, ground.batches(4), [stop_after(13)])
    other = begin(ground, tmp_path / "other", settings(learning_rate=0.02))
    train(other, ground.batches(4))
    shutil.rmtree(step_folder(run.path, 12))
    shutil.copytree(step_folder(other.path, 12), step_folder(run.path, 12))
    with pytest.raises(CheckpointError, match="step 12 has other tensors"):
        train(run, ground.batches(4))


def test_other_arithmetic_is_refused_unless_asked_for(ground: Ground, tmp_path: Path) -> None:
    run = begin(ground, tmp_path / "run", settings())
    with pytest.raises(Enough):
        train(run, ground.batches(4), [stop_after(9)])
    forge_bits(run.path / "states" / "step8", "torch", "2.0.0")
    with pytest.raises(
        CheckpointError, match=r"step 8 was .* another torch; expected 2\.0\.0; found"
    ):
        train(run, ground.batches(4))
    train(run, ground.batches(4), other_bits=True)
    assert list_steps(run.path)[-1] == NUM_UPDATES


def test_a_damaged_state_is_refused(ground: Ground, tmp_path: Path) -> None:
    run = begin(ground, tmp_path / "run", settings())
    with pytest.raises(Enough):
        train(run, ground.batches(4), [stop_after(9)])
    flip(run.path / "states" / "step8" / "optimizer.safetensors", -1)
    with pytest.raises(CheckpointError, match=r"damaged state .*optimizer\.safetensors"):
        train(run, ground.batches(4))


def test_damaged_weights_are_refused(undisturbed: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(undisturbed.path, copy)
    flip(step_folder(copy, 24) / "model.safetensors", -1)
    with pytest.raises(CheckpointError, match="is not the one recorded"):
        load_checkpoint(copy, 24)
    with pytest.raises(CheckpointError, match="one of the steps 0, 1, 2, 4"):
        load_checkpoint(copy, 3)


def test_pruning_keeps_the_lineage(undisturbed: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(undisturbed.path, copy)
    before = {step: open_artifact(step_folder(copy, step)).digest for step in list_steps(copy)}
    size = sum(path.stat().st_size for path in (copy / "states").rglob("*") if path.is_file())
    assert drop_states(copy, frozenset()) == size
    assert list_states(copy) == []
    assert before == proof(undisturbed)
    assert load_checkpoint(copy, 24).shape == undisturbed.settings.shape


def test_the_pythia_recipe_moves_nothing_first(ground: Ground, tmp_path: Path) -> None:
    values = settings().resolved() | {"recipe": "pythia"}
    run_settings = build(RunSettings, values, "test")
    run = begin(ground, tmp_path / "run", run_settings)
    with pytest.raises(Enough):
        train(run, ground.batches(4), [stop_after(3)])
    first, second, third = (load_checkpoint(run.path, step).state_dict() for step in (0, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(second[name], third[name]) for name in first)


def test_the_optimizer_comes_back(ground: Ground) -> None:
    model = initial_model(settings().shape, "small-wang", 0)
    optimizer = AdamW(model, settings())
    gradients = {name: torch.ones_like(one) for name, one in model.named_parameters()}
    optimizer.step(gradients, 1e-3)
    state = {name: tensor.clone() for name, tensor in optimizer.named_state().items()}
    fresh = AdamW(model, settings())
    fresh.restore(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in fresh.named_state().items())


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    hf.write_tensors({"a": torch.ones(3), "b": torch.ones(1)}, tmp_path / OPTIMIZER)
    there = {"a": torch.zeros(3)}
    read_tensors(tmp_path, there)
    assert there["a"].tolist() == [1.0, 1.0, 1.0]
    for name in ("a", "b"):  # either would spread to the shape asked for
        told = rf"tensor {name} does not fit the model; expected \[2, 3\]; found \[[31]\]"
        with pytest.raises(CheckpointError, match=told):
            read_tensors(tmp_path, {name: torch.zeros(2, 3)})
    with pytest.raises(CheckpointError, match="missing tensor c"):
        read_tensors(tmp_path, {"c": torch.zeros(1)})
    (tmp_path / OPTIMIZER).write_bytes(b"not one")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path, there)


def test_tensorboard_gets_every_update(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = tensorboard_sink(tmp_path)
    for update in range(3):
        sink(UpdateMetrics(update, 5.0 - update, 1e-3, 1.0, 64 * (update + 1), "00", 0.1))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("loss")] == [5.0, 4.0, 3.0]


def test_what_does_not_fit_is_refused_before_it_starts(ground: Ground, tmp_path: Path) -> None:
    too_long = begin(ground, tmp_path / "long", settings(tokens=10_000 * 4 * CONTEXT))
    with pytest.raises(OrderError, match="too short for the run; expected 10000 updates; found"):
        train(too_long, ground.batches(4))
    values = settings().resolved()
    values["shape"]["vocab_size"] = 256
    narrow = begin(ground, tmp_path / "narrow", build(RunSettings, values, "test"))
    with pytest.raises(ConfigError, match="larger than the model's; expected at most 256 ids"):
        train(narrow, ground.batches(4))
    assert not (tmp_path / "long" / METRICS).exists()
