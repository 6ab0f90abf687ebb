"""`ontogeny import`: what it makes of settings and weights, and what it refuses and how."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grown import CONTEXT, Ground
from ontogeny.artifact import faults, open_artifact
from ontogeny.digest import digest_file
from ontogeny.errors import CheckpointError
from ontogeny.model import hf
from ontogeny.model.init import initial_model
from ontogeny.shape import Shape
from spoiled import flip
from spoken import Type

SETTINGS = f"""{{
  # batch size (trained on 2 gpus)
  "num-layers": 2, "hidden-size": 16, "num-attention-heads": 2, "seq-length": {CONTEXT},
  "pos-emb": "rotary", "rotary-pct": 0.25, "no-weight-tying": true, "gpt-j-residual": true,
  "bias-gelu-fusion": true, "hidden-dropout": 0, "attention-dropout": 0,
  "init_method": "small_init", "output_layer_init_method": "wang_init",
  "optimizer": {{"type": "Adam", "params": {{"lr": 0.01, "betas": [0.9, 0.95]}}}},
  "min_lr": 0.001, "lr-decay-style": "cosine", "attention-config": [[["flash"], 2]],
  "train_micro_batch_size_per_gpu": 2, "gas": 7,
  "train-iters": 24, "checkpoint-factor": 4, "extra-save-iters": [0, 1, 2], "launcher": "slurm"
}}
"""
SHAPE = Shape(num_layers=2, hidden_size=16, num_heads=2, vocab_size=48, context_length=CONTEXT)


@pytest.fixture
def yml(tmp_path: Path) -> Path:
    path = tmp_path / "small.yml"
    path.write_text(SETTINGS)
    return path


def test_settings_become_a_run_that_trains(
    say: Type, ground: Ground, yml: Path, tmp_path: Path
) -> None:
    made = tmp_path / "runs" / "small.toml"
    said = say("import", yml, "--out", made, "--store", ground.store, "--vocabulary",
               ground.vocabulary)  # fmt: skip
    assert said.code == 0, said.err
    assert "rows/update" in said.out
    assert "GPUs: 2, as a comment in the file says" in said.out
    assert "checkpoints: 9 steps to 24" in said.out
    assert "no effect here: gas, launcher" in said.out
    said = say("train", made, "--out", tmp_path / "run")
    assert (said.code, said.err) == (0, "")
    run = open_artifact(tmp_path / "run", "run")
    assert run.config["recipe"] == "pythia"
    assert run.config["shape"]["hidden_size"] == 16
    assert run.config["training"]["rows_per_update"] == 4
    assert run.config["training"]["precision"] == "fp32"
    steps = {path.name for path in (tmp_path / "run" / "steps").iterdir()}
    assert steps == {f"step{step}" for step in (0, 1, 2, 4, 8, 12, 16, 20, 24)}


def test_what_differs_from_our_sizes_is_named(say: Type, yml: Path, tmp_path: Path) -> None:
    text = SETTINGS
    for key, old, new in (("layers", 2, 6), ("size", 16, 128), ("heads", 2, 4), ('flash"]', 2, 6)):
        text = re.sub(rf"({re.escape(key)}\W+){old}\b", rf"\g<1>{new}", text)
    yml.write_text(text.replace('"gas": 7', '"model-parallel-size": 2'))
    said = say("import", yml, "--out", tmp_path / "run.toml")
    assert "differences: learning rate, rows/update, vocabulary padded to" in said.out
    assert 'size = "small"' in (tmp_path / "run.toml").read_text()  # not Pythia's 14m


def change(old: str, new: str) -> str:
    assert old in SETTINGS
    return SETTINGS.replace(old, new)


UNREADABLE = {
    "no file": (None, "cannot be read"),
    "not YAML": ("{a: [}", "not valid YAML (while parsing"),
    "a list": ("[1, 2]", "no settings by name; expected a file of GPT-NeoX"),
    "a key twice": (change('"gas": 7', '"gas": 7, "gas": 8'), "gas is given twice"),
    "two spellings": (change('"gas": 7', '"num_layers": 2'), "num_layers is given in two"),
    "an alias": ("a: &b 1\nc: *b", "aliases are not read"),
    "unknown": (change('"gas"', '"num-layer"'), "unknown key 'num_layer'; expected one of"),
    "unknown, nearest": (change('"gas"', '"num-layer"'), "did you mean 'num_layers'?"),
    "missing": (change('"train-iters": 24,', ""), "missing key 'train_iters'"),
    "not a number": (change("0.01,", "1e-2,"), "should be a valid number; found '1e-2'"),
    "one form only": (change('"rotary"', '"alibi"'), "pos_emb is not supported; expected rotary; "
                      "found alibi"),
    "left out": (change('"gpt-j-residual": true,', ""), "gpt_j_residual is not supported; expected "
                 "True; found nothing, which means False"),
    "initialisers": (change('"wang_init"', '"normal"'), "init_method small_init with "
                     "output_layer_init_method normal is not supported"),
    "optimizer": (change('"Adam"', '"sm3"'), "optimizer.type: Input should be 'Adam'"),
    "attention": (change('"flash"], 2', '"flash"], 3'), "attention_config names [3] layers of 2"),
    "heads": (change('heads": 2', 'heads": 3'), "heads must divide the width"),
    "decay": (change('"gas": 7', '"lr-decay-iters": 9'), "lr_decay_iters 9 must equal train_iters"),
    "floor": (change('"min_lr": 0.001', '"min_lr": 0.1'), "min_lr 0.1 is above the rate 0.01"),
    "a fixed scale": (change('"gas": 7', '"fp16": {"enabled": true, "loss_scale": 128}'), "fp16 "
                      "with the fixed loss_scale 128 is not supported"),
    "a huge scale": (change('"gas": 7', '"fp16": {"enabled": true, "initial_scale_power": 1025}'),
                     "fp16.initial_scale_power: "),
    "a low scale": (change('"gas": 7', '"fp16": {"enabled": true, "initial_scale_power": 0, '
                    '"min_loss_scale": 2}'), "initial 1 is below the floor 2"),
    "GPUs": (change("# batch size (trained on 2 gpus)", ""), "does not say how many rows an "
             "update takes; expected train_micro_batch_size_per_gpu, and"),
    "ranks": (change('"gas": 7', '"model-parallel-size": 4'), "2 GPUs cannot be shared out"),
    "lost steps": (change("[0, 1, 2]", "[0, 1, 3]"), "checkpoints of 1 steps cannot be kept"),
    "two corpora": (change('"gas": 7', '"train-data-paths": [a, b]'), "train_data_paths: List "
                    "should have at most 1 item"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_settings_that_are_refused(say: Type, yml: Path, tmp_path: Path, name: str) -> None:
    text, problem = UNREADABLE[name]
    yml.unlink() if text is None else yml.write_text(text)
    said = say("import", yml, "--out", tmp_path / "run.toml")
    assert said.code == 2
    assert said.err.startswith(f"error: {yml}: ")
    assert problem in said.err
    assert not (tmp_path / "run.toml").exists()


def test_the_number_of_gpus_can_be_given(say: Type, yml: Path, tmp_path: Path) -> None:
    said = say("import", yml, "--out", tmp_path / "run.toml", "--gpus", "6")
    assert "GPUs: 6\n" in said.out
    assert "rows_per_update = 12" in (tmp_path / "run.toml").read_text()


@pytest.mark.parametrize(
    ("said", "precision"),
    [
        ('"enabled": true, "loss_scale": 0', "fp16"),
        ('"enabled": true, "type": "bfloat16"', "bf16"),
        ('"enabled": false', "fp32"),
    ],
)
def test_precision_is_what_the_file_says_or_named(
    say: Type, yml: Path, tmp_path: Path, said: str, precision: str
) -> None:
    yml.write_text(change('"gas": 7', f'"fp16": {{{said}}}'))
    told = say("import", yml, "--out", tmp_path / "run.toml").out
    assert f'precision = "{precision}"' in (tmp_path / "run.toml").read_text()
    assert ("fp16, which CPUs are slow in" in told) == (precision == "fp16")


def test_the_loss_scale_is_the_files_own(say: Type, yml: Path, tmp_path: Path) -> None:
    said = '"enabled": true, "initial_scale_power": 7, "hysteresis": 3, "min_loss_scale": 2'
    yml.write_text(change('"gas": 7', f'"fp16": {{{said}}}'))
    say("import", yml, "--out", tmp_path / "run.toml")
    expected = "[training.loss_scale]\ninitial = 128.0\nwindow = 1000\nhysteresis = 3\nfloor = 2.0"
    assert expected in (tmp_path / "run.toml").read_text()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder as hubs hold it."""
    folder = tmp_path / "weights"
    folder.mkdir()
    hf.save(initial_model(SHAPE, "normal", 0), folder, torch.float16)
    return folder


def pickled(folder: Path, num_shards: int) -> None:
    """Turn the safetensors file of a folder into pickled files."""
    tensors = load_file(folder / hf.WEIGHTS)
    (folder / hf.WEIGHTS).unlink()
    if num_shards == 1:
        torch.save(tensors, folder / hf.PICKLED)
        return
    places = {name: f"pytorch_model-{place % num_shards}.bin" for place, name in enumerate(tensors)}
    for file in set(places.values()):
        torch.save({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
    (folder / hf.PICKLED_SHARDS).write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("num_shards", [0, 1, 3])
def test_a_folder_of_a_hub_becomes_a_model(
    say: Type, weights: Path, tmp_path: Path, num_shards: int
) -> None:
    expected = load_file(weights / hf.WEIGHTS)
    if num_shards:
        pickled(weights, num_shards)
    said = say("import", weights, "--out", tmp_path / "model")
    assert said.code == 0, said.err
    assert "28 tensors, float16" in said.out
    model = open_artifact(tmp_path / "model", "model")
    assert faults(model) == []
    read = {"config.json", *(path.name for path in hf.weight_files(weights))}
    assert model.inputs == {name: digest_file(weights / name) for name in read}
    loaded = hf.load(tmp_path / "model")
    assert loaded.shape == SHAPE
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[hf.to_file_name(name)])
    assert load_file(tmp_path / "model" / hf.WEIGHTS).keys() == expected.keys()


def test_pickles_that_share_memory_become_whole_tensors(weights: Path, tmp_path: Path) -> None:
    tensors = load_file(weights / hf.WEIGHTS)
    name = "gpt_neox.embed_in.weight"
    both = torch.cat([tensors[name], tensors["embed_out.weight"]])
    tensors[name], tensors["embed_out.weight"] = both[:48], both[20:68]
    torch.save(tensors, weights / hf.PICKLED)
    (weights / hf.WEIGHTS).unlink()
    hf.save(hf.load(weights), tmp_path)
    saved = load_file(tmp_path / hf.WEIGHTS)
    assert all(torch.equal(saved[name], tensors[name]) for name in tensors)
    assert (tmp_path / hf.WEIGHTS).stat().st_size < 2 * sum(t.nbytes for t in saved.values())


class Attack:
    """An object that makes a folder when it is unpickled carelessly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(
    say: Type, weights: Path, tmp_path: Path, zipped: bool
) -> None:
    tensors = load_file(weights / hf.WEIGHTS) | {"attack": Attack(tmp_path / "pwned")}
    (weights / hf.WEIGHTS).unlink()
    torch.save(tensors, weights / hf.PICKLED, _use_new_zipfile_serialization=zipped)
    said = say("import", weights, "--out", tmp_path / "model")
    assert said.code == 2
    assert said.err == (
        f"error: {weights / hf.PICKLED}: not loaded, as it could run code; expected nothing but "
        "tensors; found a call of posix.mkdir; try: fetch the safetensors form of these weights\n"
    )
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "model").exists()
    torch.load(weights / hf.PICKLED, weights_only=False)
    assert (tmp_path / "pwned").exists()  # the attack is a real one


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([1, 2], "not a table of tensors by name"),
        ({"a": 3}, "not a table of tensors by name"),
        ({"a": torch.ones(2).to_sparse()}, "not a table of tensors by name"),
        ({"a": torch.nn.Linear(2, 2)}, "found a call of torch.nn.modules.linear.Linear"),
        (b"no pickle", "unreadable weights ("),
    ],
)
def test_pickles_that_are_no_weights(weights: Path, content: object, problem: str) -> None:
    (weights / hf.WEIGHTS).unlink()
    if isinstance(content, bytes):
        (weights / hf.PICKLED).write_bytes(content)
    else:
        torch.save(content, weights / hf.PICKLED)
    with pytest.raises(CheckpointError) as caught:
        hf.load(weights)
    assert str(caught.value).startswith(f"{weights / hf.PICKLED}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd.bin", "code.py", ""])
def test_shards_are_files_beside_their_index(weights: Path, name: str) -> None:
    pickled(weights, 2)
    index = weights / hf.PICKLED_SHARDS
    index.write_text(json.dumps({"weight_map": {"embed_out.weight": name}}))
    with pytest.raises(CheckpointError, match="names a shard that is no file beside it"):
        hf.load(weights)


def test_a_tensor_in_two_shards_is_refused(weights: Path) -> None:
    pickled(weights, 2)
    shutil.copy(weights / "pytorch_model-0.bin", weights / "pytorch_model-1.bin")
    with pytest.raises(CheckpointError, match=r"1\.bin: tensor .* is in two files"):
        hf.load(weights)


def test_an_altered_model_is_found_out(say: Type, weights: Path, tmp_path: Path) -> None:
    assert say("import", weights, "--out", tmp_path / "model").code == 0
    flip(tmp_path / "model" / hf.WEIGHTS, -1)
    said = say("verify", tmp_path / "model")
    assert said.code == 1
    assert "is not the one recorded; expected sha256" in " ".join(said.out.split())


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """The layer files of a model on two ranks; `SHAPE`, in half precision."""
    folder = tmp_path / "global_step7"
    folder.mkdir()
    model = initial_model(SHAPE, "normal", 0).half()
    write_layers(folder, {hf.to_file_name(k): v for k, v in model.state_dict().items()})
    return folder


def write_layers(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Cut a model over two ranks, as GPT-NeoX holds it."""
    positions = {"embed_in": (0, "word_embeddings"), "embed_out": (6, "final_linear"),
                 "final_layer_norm": (5, "norm")}  # fmt: skip
    files: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    for name, tensor in weights.items():
        words = name.removeprefix("gpt_neox.").split(".")
        if words[0] == "layers":
            position, key = int(words[1]) + 2, ".".join(words[2:])
        else:
            position, module = positions[words[0]]
            key = f"{module}.{words[1]}"
        is_row = key in ("attention.dense.weight", "mlp.dense_4h_to_h.weight")
        is_shared = "norm" in key or key in ("attention.dense.bias", "mlp.dense_4h_to_h.bias")
        for rank in range(2):
            part = tensor if is_shared else tensor.chunk(2, dim=1 if is_row else 0)[rank]
            files.setdefault((position, rank), {})[key] = part.clone()
    for (position, rank), tensors in files.items():
        torch.save(tensors, folder / f"layer_{position:02}-model_{rank:02}-model_states.pt")


def test_layer_files_become_a_model(say: Type, layers: Path, yml: Path, tmp_path: Path) -> None:
    yml.write_text(change('"gas": 7', '"model-parallel-size": 2'))
    said = say("import", layers, "--out", tmp_path / "model", "--config", yml)
    assert said.code == 0, said.err
    model = hf.load(tmp_path / "model")
    trained = SHAPE.model_copy(update={"activation": "gelu_tanh", "rotary_tables": "compute"})
    assert model.shape == trained
    for name, tensor in initial_model(SHAPE, "normal", 0).half().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    read = open_artifact(tmp_path / "model").inputs
    assert len(read) == 11
    assert read["small.yml"] == digest_file(yml)


def alter(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


def removed(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"layer_{name}-model_states.pt").unlink()


def as_one(folder: Path) -> None:
    """Make one layer as a run on one rank would have it."""
    path = folder / "layer_03-model_00-model_states.pt"
    alter(path, lambda found: found.update({"mlp.dense_h_to_4h.bias": torch.zeros(64).half()}))


def other_norm(folder: Path) -> None:
    path = folder / "layer_05-model_01-model_states.pt"
    alter(path, lambda found: found["norm.bias"].add_(0.5))


def no_matrix(folder: Path) -> None:
    for rank in range(2):
        path = folder / f"layer_00-model_0{rank}-model_states.pt"
        alter(path, lambda found: found.pop("word_embeddings.weight"))


MIXED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a rank": (lambda at: removed(at, "03-model_01"), "missing layer_03-model_01-model_states.pt; "
               "expected 2 ranks of every layer"),
    "a rank in front": (lambda at: removed(at, "03-model_00"), "missing layer_03-model_00"),
    "a block": (lambda at: removed(at, "03-model_00", "03-model_01"), "missing layer_03-model_00"),
    "the last": (lambda at: removed(at, "06-model_00", "06-model_01"), "missing layer_06"),
    "the first": (lambda at: removed(at, "00-model_00", "00-model_01"), "missing layer_00"),
    "another TP": (as_one, "layer_03-model_01-model_states.pt: mlp.dense_h_to_4h.bias is not as "
                   "in layer_03-model_00-model_states.pt; expected ([64], torch.float16); found"),
    "another step": (other_norm, "layer_05-model_00-model_states.pt: ranks disagree about "
                     "norm.bias by up to 0.5"),
    "no embedding": (no_matrix, "no matrix gpt_neox.embed_in.weight"),
    "not a pickle": (lambda at: (at / "layer_02-model_00-model_states.pt").write_bytes(b"x" * 99),
                     "layer_02-model_00-model_states.pt: unreadable weights"),
    "a stray": (lambda at: shutil.copy(at / "layer_03-model_00-model_states.pt",
                                       at / "layer_09-model_00-model_states.pt"),
                "missing layer_09-model_01"),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_layer_files_that_are_not_of_one_checkpoint(
    say: Type, layers: Path, tmp_path: Path, name: str
) -> None:
    spoil, problem = MIXED[name]
    spoil(layers)
    said = say("import", layers, "--out", tmp_path / "model", "--heads", 2, "--context", CONTEXT)
    assert said.code == 2
    assert said.err.startswith(f"error: {layers}")
    assert problem in said.err
    assert not (tmp_path / "model").exists()


def test_a_stray_layer_on_every_rank_is_named(say: Type, layers: Path, tmp_path: Path) -> None:
    for rank in range(2):
        shutil.copy(layers / f"layer_03-model_0{rank}-model_states.pt",
                    layers / f"layer_09-model_0{rank}-model_states.pt")  # fmt: skip
    said = say("import", layers, "--out", tmp_path / "model", "--heads", 2)
    assert "layer 9 has no place in a model of 2 blocks" in said.err


def test_norms_are_averaged_when_asked(say: Type, layers: Path, tmp_path: Path) -> None:
    other_norm(layers)
    say("import", layers, "--out", tmp_path / "m", "--heads", 2, "--average-norms")
    assert hf.load(tmp_path / "m").final_layer_norm.bias.tolist() == [0.25] * 16


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "do not say how many heads the model has; try: --config with its YAML file, or"),
        (["--heads", "1"], "1 heads do not fit the frequencies in the files; expected 2"),
        (["--heads", "3"], "heads must divide the width"),
        (["--heads", "2", "--gpus", "2"], "--gpus says nothing about layer files"),
        (["--config", "small.yml"], "model_parallel_size is another in small.yml; expected 1; "
         "found 2"),
    ],
)  # fmt: skip
def test_layer_files_with_wrong_words(
    say: Type, layers: Path, yml: Path, tmp_path: Path, words: list[str], problem: str
) -> None:
    for rank in range(2):
        path = layers / f"layer_02-model_0{rank}-model_states.pt"
        alter(path, lambda found: found.update({"attention.rotary_emb.inv_freq": torch.ones(1)}))
    words = [str(yml) if word == yml.name else word for word in words]
    said = say("import", layers, "--out", tmp_path / "model", *words)
    assert said.code == 2
    assert problem in said.err


def test_other_sources_are_refused(say: Type, weights: Path, yml: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "new"]
    assert "nothing that can be imported; expected a .yml file" in say("import", "no", *out).err
    assert "unreadable config.json" in say("import", tmp_path, *out).err
    said = say("import", weights, *out, "--heads", 2)
    assert "--heads says nothing about a folder in the Hugging Face layout" in said.err
    assert "--config says nothing about YAML" in say("import", yml, *out, "--config", yml).err
    said = say("import", yml, "--out", yml)
    assert "already exists; try: choose another place with --out" in said.err
    assert said.code == 2
