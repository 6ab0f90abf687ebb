"""What is imported against the originals: all of Pythia's settings, and converted checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ontogeny.config import build, read_toml
from ontogeny.errors import ConfigError
from ontogeny.model import hf
from ontogeny.shape import PYTHIA_VOCABULARY, SIZES
from ontogeny.stages.imported import import_layers, rows_per_update, run_file_of, toml_of
from ontogeny.stages.neox_yaml import NeoxSettings, read_neox_yaml
from ontogeny.suite import RunFile, RunSettings
from ontogeny.training.schedule import learning_rate
from spoken import Type

NAMES = [name for size in SIZES for name in (size, f"{size}-deduped")]
NEVER_DEDUPED = {"14m-deduped", "31m-deduped"}
BROKEN = {"12b", "12b-deduped"}
# Rows of the embeddings, as published for each size.
VOCABULARIES = {"6.9b": 50432, "12b": 50688}


@pytest.fixture(params=[name for name in NAMES if name not in NEVER_DEDUPED])
def published(request: pytest.FixtureRequest, reference: Path) -> Path:
    """Each of the settings files of Pythia."""
    return file_of(reference, request.param)


def file_of(reference: Path, name: str) -> Path:
    size = name.removesuffix("-deduped").upper()
    return reference / "pythia" / "models" / size / f"pythia-{name}.yml"


def name_of(path: Path) -> str:
    return path.stem.removeprefix("pythia-")


def run_file(path: Path) -> RunFile:
    file = read_neox_yaml(path, repair=name_of(path) in BROKEN)
    return run_file_of(file, num_gpus=None, store="s", vocabulary="v")


def run_of(path: Path) -> RunSettings:
    file = run_file(path)
    return file.run_settings(file.the_member(), PYTHIA_VOCABULARY)


def test_every_file_of_pythia_is_here(reference: Path) -> None:
    there = {path.stem for path in (reference / "pythia" / "models").glob("*/*.yml")}
    assert there == {f"pythia-{name}" for name in NAMES if name not in NEVER_DEDUPED}
    assert len(there) == 18


def test_settings_are_those_of_our_table(published: Path) -> None:
    name = name_of(published).removesuffix("-deduped")
    size, run = SIZES[name], run_of(published)
    assert run.member == name  # a size of the table, not one of the file's own
    assert (run.shape.num_layers, run.shape.hidden_size, run.shape.num_heads, run.init) == (
        size.num_layers, size.hidden_size, size.num_heads, size.init)  # fmt: skip
    assert run.shape.vocab_size == VOCABULARIES.get(name, 50304)
    assert (run.shape.activation, run.shape.rotary_tables) == ("gelu_tanh", "compute")
    assert run.training.learning_rate == size.learning_rate
    assert run.training.rows_per_update == size.rows_per_update == 1024
    assert run.num_updates == 143_000
    assert run.training.tokens == 299_892_736_000


def test_settings_of_training_are_the_originals(published: Path) -> None:
    file, training = run_file(published), run_file(published).training
    assert (file.order.context_length, file.order.seed, file.recipe) == (2048, 1234, "pythia")
    assert (training.beta1, training.beta2, training.epsilon) == (0.9, 0.95, 1e-8)
    assert (training.weight_decay, training.clip_norm, training.warmup) == (0.1, 1.0, 0.01)
    assert (training.min_rate_ratio, training.precision) == (0.1, "fp16")
    scale = training.loss_scale
    assert (scale.initial, scale.window, scale.hysteresis, scale.floor) == (4096, 1000, 2, 1)


def test_the_run_file_says_the_same_when_read_again(published: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(toml_of(run_file(published)))
    assert build(RunFile, read_toml(path), path) == run_file(published)


def test_steps_and_rates_are_the_originals(reference: Path, golden: Path) -> None:
    run = run_of(file_of(reference, "70m"))
    kept = json.loads((golden / "checkpoint_steps_and_batch_sizes.json").read_text())
    assert run.steps == kept["checkpoints"][0]["all_checkpoints"]
    rates = json.loads((golden / "lr_schedule.json").read_text())["pythia_70m"]["lr_after_k_steps"]
    found = {update: learning_rate(int(update), run) for update in rates}
    assert found == pytest.approx(rates, rel=1e-12, abs=0)


def test_schedules_of_checkpoints(reference: Path, golden: Path) -> None:
    """What GPT-NeoX keeps is known; a schedule that ours would lose a step of is refused."""
    kept = json.loads((golden / "checkpoint_steps_and_batch_sizes.json").read_text())["checkpoints"]
    linear = [case for case in kept if case["checkpoint_scale"] == "linear"]
    assert len(linear) == 2
    for case in linear:
        keys = ("train_iters", "checkpoint_factor", "extra_save_iters")
        settings = settings_with(reference, {key: case[key] for key in keys})
        assert sorted(settings.steps) == case["all_checkpoints"]


def test_batch_sizes(reference: Path, golden: Path) -> None:
    cases = json.loads((golden / "checkpoint_steps_and_batch_sizes.json").read_text())
    names = {"micro": "train_micro_batch_size_per_gpu", "gas": "gradient_accumulation_steps",
             "train_batch": "train_batch_size"}  # fmt: skip
    assert len(cases["batch_sizes"]) == 6
    for case in cases["batch_sizes"]:
        said = {names[key]: value for key, value in case["given"].items() if value is not None}
        layout = {key.split("_")[0]: value for key, value in case.items() if "parallel" in key}
        said |= {"model_parallel_size": layout["tensor"], "pipe_parallel_size": layout["pipe"]}
        settings = settings_with(reference, said)
        if isinstance(case["result"], str):
            with pytest.raises(ConfigError, match="train_batch_size is another number"):
                rows_per_update(settings, case["gpus"], "here")
        else:
            rows = rows_per_update(settings, case["gpus"], "here")
            assert rows == case["result"]["train_batch_size"]


def settings_with(reference: Path, changes: dict[str, Any]) -> NeoxSettings:
    """The settings of 70M with some changed."""
    settings = read_neox_yaml(file_of(reference, "70m")).settings.resolved()
    changes = {"lr_decay_iters": changes.get("train_iters", 143_000)} | changes
    return build(NeoxSettings, settings | changes, "here")


@pytest.mark.parametrize(
    ("name", "fault", "mended"),
    [
        ("12b", "line 19 ends without a comma", "--repair to add the comma"),
        ("12b-deduped", "num_layers 40 and num_attention_heads 36 are swapped", "swap them back"),
    ],
)
def test_the_broken_files_are_mended_only_when_asked(
    reference: Path, say: Type, tmp_path: Path, name: str, fault: str, mended: str
) -> None:
    path, made = file_of(reference, name), tmp_path / "run.toml"
    said = say("import", path, "--out", made)
    assert said.code == 2
    assert f"{path}: " in said.err
    assert fault in said.err
    assert mended in said.err
    assert not made.exists()
    said = say("import", path, "--out", made, "--repair")
    assert said.code == 0
    assert "mended: " in said.out
    assert fault in said.out
    assert "differences: none" in said.out
    file = build(RunFile, read_toml(made), made)
    assert (file.size, file.training.rows_per_update) == ("12b", 1024)


@pytest.mark.parametrize("case", ["n1_neox_tp1", "n2_neox_tp2"])
def test_merged_layers_are_what_the_original_converter_makes(
    golden: Path, tmp_path: Path, case: str
) -> None:
    """Bit for bit, its sums of biases in half precision included."""
    import_layers(golden / case / "global_step7", tmp_path / "model", num_heads=4)
    ours = load_file(tmp_path / "model" / "model.safetensors")
    theirs = load_file(golden / case / "hf" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype == torch.float16
        assert ours[name].numpy().tobytes() == tensor.numpy().tobytes(), name


# The converter's rounded sums are not what two ranks computed with.
TOLERANCES = {("n1_neox_tp1", "gelu_tanh"): 5e-6, ("n1_neox_tp1", "gelu"): 5e-6,
              ("n2_neox_tp2", "gelu_tanh"): 2e-4, ("n2_neox_tp2", "gelu"): 5e-6}  # fmt: skip


@pytest.mark.parametrize(("case", "activation"), TOLERANCES)
def test_merged_layers_compute_what_the_originals_do(
    golden: Path, tmp_path: Path, case: str, activation: str
) -> None:
    """As trained, with the tanh form, which is ours; and with the exact one, as hubs say."""
    import_layers(golden / case / "global_step7", tmp_path / "model", num_heads=4)
    trained = hf.load(tmp_path / "model").float()
    assert trained.shape.activation == "gelu_tanh"
    shape = trained.shape.model_copy(update={"activation": activation})
    weights = {hf.to_file_name(name): tensor for name, tensor in trained.state_dict().items()}
    theirs = {"gelu_tanh": "neox_logits_fp32_tanh_gelu", "gelu": "hf_logits_fp32_erf_gelu"}
    with np.load(golden / case / "io.npz") as arrays:
        tokens = torch.from_numpy(arrays["input_ids"])[:, :-1]
        expected = torch.from_numpy(arrays[theirs[activation]])
    found = hf.assembled(shape, weights, "here")(tokens).detach()
    assert float((found - expected).abs().max()) < TOLERANCES[case, activation]
