"""`lint`: the faults of published suites, put into toy runs, are named with their steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from faulty import EMBEDDING, add_noise, alter, copy_of, many_steps, matrices, put, rounded, shard
from grown import Ground
from ontogeny.artifact import MANIFEST
from ontogeny.checkpoints.lint import lint_run
from ontogeny.checkpoints.lint_folders import Finding, find_steps
from ontogeny.checkpoints.lint_runs import lint_together
from ontogeny.results import read_metrics
from ontogeny.steps import METRICS, step_folder
from spoken import Said, Type

STEPS = [0, 1, 2, *range(4, 121, 4)]
FIRST = "model-00001-of-00002.safetensors"
WEIGHTS = "model.safetensors"
BIAS = "gpt_neox.final_layer_norm.bias"
SPIKE = range(61, 65)


@pytest.fixture(scope="module")
def clean(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_steps(
        ground, tmp_path_factory.mktemp("lint") / "clean", num_updates=120, num_linear=30
    )


@pytest.fixture(scope="module")
def other(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run like `clean`, of another seed."""
    return many_steps(
        ground, tmp_path_factory.mktemp("lint") / "other", seed=1, num_updates=120, num_linear=30
    )


@pytest.fixture(scope="module")
def spiky(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a loss spike that begins between two checkpoints."""
    home = tmp_path_factory.mktemp("lint")
    return many_steps(
        ground,
        home / "spiky",
        seed=2,
        spike=SPIKE,
        learning_rate=2e-2,
        num_updates=120,
        num_linear=30,
    )


@pytest.fixture(scope="module")
def early(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a spike among its first steps, where the steps' numbers double."""
    home, spike = tmp_path_factory.mktemp("lint"), range(10, 14)
    return many_steps(ground, home / "early", spike=spike, learning_rate=2e-2, num_linear=40)


@pytest.fixture
def copied(clean: Path, tmp_path: Path) -> Path:
    """A copy of `clean` without manifests, to be spoilt."""
    return copy_of(clean, tmp_path / "copied")


def alarms(run: Path) -> list[Finding]:
    return [one for one in lint_run(run).findings if one.severity == "alarm"]


def told(said: Said) -> str:
    """What was printed, without the breaks of its lines."""
    return " ".join(said.out.split())


def the_alarm(run: Path) -> Finding:
    found = alarms(run)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("name", ["clean", "other", "spiky", "early"])
def test_no_alarm_on_clean_runs(name: str, request: pytest.FixtureRequest, say: Type) -> None:
    run = request.getfixturevalue(name)
    last = list(find_steps(run))[-1]
    said = say("lint", run)
    assert said.code == 0, said.out
    assert said.out.endswith("no alarm\n")
    assert f"{len(find_steps(run))} steps (0 to {last}), 28 tensors" in told(said)
    assert f"not checked: whether steps 0 and {last} lie on the path" in told(said)


def test_the_spike_is_one(spiky: Path) -> None:
    losses = [row.loss for row in read_metrics(spiky / METRICS)]
    before = np.mean(losses[SPIKE.start - 8 : SPIKE.start])
    assert max(losses[SPIKE.start : SPIKE.stop + 8]) > 1.5 * before


@pytest.mark.slow
def test_76_of_154_steps_replaced_by_the_final_weights(
    ground: Ground, tmp_path: Path, say: Type
) -> None:
    run = many_steps(ground, tmp_path / "run", num_updates=604, num_linear=151)
    copied = copy_of(run, tmp_path / "copied")
    steps = list(find_steps(copied))
    wrong = [*steps[:54], *steps[60:-4:4]][:76]
    assert (len(steps), len(wrong)) == (154, 76)
    for step in wrong:
        put(copied, step, step_folder(run, 604))
    found = the_alarm(copied)
    assert list(found.steps) == wrong
    assert found.problem == "all weights are those of step 604"
    said = say("lint", copied)
    assert said.code == 1
    assert "(76 in all)" in said.out
    assert "not checked: noise in the steps that are wrong as a whole" in told(said)


@pytest.mark.parametrize(("wrong", "right"), [([0, 1, 2, 12, 60], 120), ([8, 100], 40)])
def test_steps_with_the_weights_of_another(
    clean: Path, copied: Path, wrong: list[int], right: int
) -> None:
    for step in wrong:
        put(copied, step, step_folder(clean, right))
    found = the_alarm(copied)
    assert (list(found.steps), found.tensors) == (wrong, ())
    assert found.problem == f"all weights are those of step {right}"


def test_the_first_shard_of_two_steps_is_the_last_steps(copied: Path) -> None:
    for step in STEPS:
        shard(copied, step)
    for step in (40, 56):
        shutil.copyfile(copied / "step120" / FIRST, copied / f"step{step}" / FIRST)
    found = the_alarm(copied)
    assert found.steps == (40, 56)
    assert found.problem == f"the tensors of {FIRST} are those of step 120"
    assert EMBEDDING in found.tensors


def test_step0_copied_from_step1(clean: Path, copied: Path) -> None:
    put(copied, 0, step_folder(clean, 1))
    found = the_alarm(copied)
    assert found.steps == (0, 1)
    assert "learning rate of 0" in found.cause


def test_the_pythia_recipes_first_update_is_expected(
    ground: Ground, tmp_path: Path, say: Type
) -> None:
    run = many_steps(ground, tmp_path / "run", num_updates=40, num_linear=5, recipe="pythia")
    said = say("lint", run)
    assert said.code == 0
    assert said.out.startswith("expected  ")
    assert "steps 0, 1: all weights are the same" in told(said)
    (run / MANIFEST).unlink()
    assert the_alarm(run).steps == (0, 1)


@pytest.mark.parametrize("declared", ["manifests", "words"])
def test_a_run_that_has_the_step0_of_another_seed(
    clean: Path, other: Path, tmp_path: Path, say: Type, declared: str
) -> None:
    runs = [copy_of(clean, tmp_path / "a"), copy_of(other, tmp_path / "b")]
    put(runs[1], 0, step_folder(clean, 0))
    words = ["--other-seed", "a,b"]
    if declared == "manifests":
        words = []
        for run, source in zip(runs, (clean, other), strict=True):
            for path in source.iterdir():
                if path.is_file():
                    shutil.copyfile(path, run / path.name)
    said = say("lint", *runs, *words, "--json")
    found = [one for one in json.loads(said.out)["findings"] if one["severity"] == "alarm"]
    assert said.code == 1
    assert {tuple(one["steps"]) for one in found} == {(0,)}
    assert {one["run"] for one in found} == {str(runs[1])}
    assert any("goes on from another" in one["problem"] for one in found)


def test_a_run_that_goes_on_from_the_step0_of_another_seed(
    clean: Path, other: Path, tmp_path: Path, say: Type
) -> None:
    runs = [copy_of(clean, tmp_path / "a"), copy_of(clean, tmp_path / "b")]
    put(runs[1], 0, step_folder(other, 0))

    def change(tensors: dict[str, Tensor]) -> None:
        for tensor in tensors.values():
            tensor.mul_(1.0001)  # like a run on other data: the files are not the same

    for step in STEPS[1:]:
        alter(runs[1], step, change)
    said = say("lint", *runs, "--other-seed", "a,b", "--json")
    found = [one for one in json.loads(said.out)["findings"] if one["severity"] == "alarm"]
    assert {(one["run"], tuple(one["steps"])) for one in found} == {(str(runs[1]), (0,))}
    assert any(f"goes on from the step0 of {runs[0]}" in one["problem"] for one in found)


def test_members_of_one_seed_that_do_not_share_step0(clean: Path, other: Path, say: Type) -> None:
    said = say("lint", clean, other, "--same-seed", "clean,other")
    assert said.code == 1
    assert "step 0: do not share step0: 10 of 28 tensors differ" in told(said)


def test_members_that_share_step0_undeclared_are_noted(
    clean: Path, other: Path, tmp_path: Path, say: Type
) -> None:
    runs = [copy_of(clean, tmp_path / "a"), copy_of(other, tmp_path / "b")]
    for step in STEPS[1:]:
        shutil.rmtree(runs[1] / f"step{step}")
    put(runs[1], 0, step_folder(clean, 0))
    said = say("lint", *runs)
    assert said.code == 0
    assert "--same-seed or --other-seed" in told(said)


def test_two_members_with_the_same_files(clean: Path, other: Path, tmp_path: Path) -> None:
    runs = [copy_of(clean, tmp_path / "a"), copy_of(other, tmp_path / "b")]
    for step in (2, 4, 8, 60):
        put(runs[1], step, step_folder(clean, step))
    found = lint_together([lint_run(run) for run in runs])
    assert [(one.severity, one.steps) for one in found] == [("alarm", (2, 4, 8, 60))]
    assert found[0].problem == "have the same weights"


def test_numbers_that_are_none_say_nothing_of_starts(
    clean: Path, other: Path, tmp_path: Path
) -> None:
    """Nor are they counted with: a warning would be an error here."""
    runs = [copy_of(clean, tmp_path / "a"), copy_of(other, tmp_path / "b")]

    def spoil(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.double().fill_(float("inf"))

    for step in (0, 12):
        alter(runs[0], step, spoil)
    assert lint_together([lint_run(run) for run in runs]) == []


def test_a_step_without_weights(copied: Path, say: Type) -> None:
    (copied / "step32" / WEIGHTS).unlink()
    said = say("lint", copied)
    assert said.code == 1
    assert "step 32: no weights" in said.out
    assert the_alarm(copied).steps == (32,)


@pytest.mark.parametrize("name", ["clean", "spiky"])
@pytest.mark.parametrize("step", [2, 12, 64, 68, 104])
def test_noise_of_half_an_update_in_one_tensor_of_one_step(
    name: str, step: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    copied = copy_of(request.getfixturevalue(name), tmp_path / "copied")
    tensor = matrices(copied)[step % 10]
    add_noise(copied, step, tensor)
    found = the_alarm(copied)
    assert (found.steps, found.tensors) == ((step,), (tensor,))


@pytest.mark.parametrize("rows", [slice(1, 6), slice(None)], ids=["rows", "vector"])
def test_damage_that_the_sample_does_not_show(copied: Path, rows: slice) -> None:
    name = EMBEDDING if rows.stop else BIAS

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name][rows] += 5.0

    alter(copied, 60, change)
    found = the_alarm(copied)
    assert (found.steps, found.tensors) == ((60,), (name,))


@pytest.mark.parametrize(
    ("name", "step", "severity"),
    [(EMBEDDING, 60, "alarm"), (EMBEDDING, 44, "alarm"), (BIAS, 60, "alarm"), (BIAS, 44, "note")],
)
def test_a_tensor_that_two_steps_share(copied: Path, name: str, step: int, severity: str) -> None:
    shared = load_file(copied / "step40" / WEIGHTS)[name]

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = shared

    alter(copied, step, change)
    found = [one for one in lint_run(copied).findings if one.tensors == (name,)]
    assert found[0].severity == severity
    assert "1 of 28 tensors" in found[0].problem
    assert step in found[0].steps


@pytest.mark.parametrize("is_moved", [False, True])
@pytest.mark.parametrize(("served", "number"), [(8, 16), (16, 8), (24, 48), (48, 24), (40, 80)])
def test_a_step_under_twice_or_half_its_number(
    clean: Path, copied: Path, served: int, number: int, is_moved: bool
) -> None:
    put(copied, number, step_folder(clean, served))
    if is_moved:
        shutil.rmtree(copied / f"step{served}")
    found = {one.problem: one.steps for one in alarms(copied)}
    if is_moved:
        assert found.pop("missing") == (served,)
        assert list(found.values()) == [(number,)]
        assert "its weights lie" in next(iter(found))
    else:
        assert found == {f"all weights are those of step {served}": (number,)}


def test_weights_that_differ_in_the_sign_of_zeros_are_the_same(copied: Path) -> None:
    def zero(sign: float) -> Callable[[dict[str, Tensor]], None]:
        def change(tensors: dict[str, Tensor]) -> None:
            tensors[EMBEDDING][-1, 0] = 0.0 * sign

        return change

    put(copied, 40, copied / "step80")
    alter(copied, 40, zero(1.0))
    alter(copied, 80, zero(-1.0))
    assert the_alarm(copied).problem == "all weights are those of step 80"


def truncate(folder: Path) -> None:
    file = folder / WEIGHTS
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[: len(data) // 2])


def leave_pointer(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def fill_with_zeros(folder: Path) -> None:
    size = (folder / WEIGHTS).stat().st_size
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes(bytes(size))


def lose_shard(folder: Path) -> None:
    shard(folder.parent, 40)
    (folder / FIRST).unlink()


def change_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))


def spoil_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").write_text("{")


def halve(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    alter(folder.parent, 40, change)


def reshape(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[EMBEDDING] = tensors[EMBEDDING][:-8].clone()

    alter(folder.parent, 40, change)


def overflow(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[EMBEDDING][3, 3] = float("inf")

    alter(folder.parent, 40, change)


def ask_for_code(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"a": Path()}, folder / "pytorch_model.bin")


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "cannot be read"),
    "pointer": (leave_pointer, "is a pointer, not weights"),
    "zeros": (fill_with_zeros, "is empty or full of zeros"),
    "shard": (lose_shard, f"{FIRST} is missing"),
    "config": (change_config, "config.json is not that of the other steps"),
    "spoilt config": (spoil_config, "config.json cannot be read"),
    "dtype": (halve, "is float16, elsewhere float32; 27 more tensors likewise"),
    "shape": (reshape, "is [376, 16], elsewhere [384, 16]"),
    "infinity": (overflow, "holds NaN or infinity"),
    "code": (ask_for_code, "not loaded, as it could run code"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_what_they_should_be(copied: Path, name: str) -> None:
    spoil, problem = FILES[name]
    spoil(copied / "step40")
    found = alarms(copied)
    assert {one.steps for one in found} == {(40,)}
    assert any(problem in one.problem for one in found), found


def test_missing_steps_are_named(clean: Path, copied: Path, tmp_path: Path) -> None:
    for run in (copied, shutil.copytree(clean, tmp_path / "declared")):
        for step in (2, 40, 44):
            shutil.rmtree(find_steps(run)[step])
        assert (the_alarm(run).problem, the_alarm(run).steps) == ("missing", (2, 40, 44))


def as_hub_cache(copied: Path) -> None:
    for step in STEPS:
        ref, commit = copied / "refs" / f"step{step}", f"{step:040x}"
        ref.parent.mkdir(exist_ok=True)
        ref.write_text(commit)
        (copied / "snapshots").mkdir(exist_ok=True)
        (copied / f"step{step}").rename(copied / "snapshots" / commit)


def as_bin(copied: Path) -> None:
    for step in STEPS:
        folder = copied / f"step{step}"
        torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()


def renamed(form: str) -> Callable[[Path], None]:
    def rename(copied: Path) -> None:
        for step in STEPS:
            (copied / f"step{step}").rename(copied / form.format(step))

    return rename


@pytest.mark.parametrize(
    "change",
    [as_hub_cache, as_bin, renamed("stage1-step{}-tokens4B"), renamed("checkpoint-{}")],
    ids=["hub", "bin", "stage", "checkpoint"],
)
def test_other_peoples_folders(clean: Path, copied: Path, change: Callable[[Path], None]) -> None:
    put(copied, 48, step_folder(clean, 80))
    change(copied)
    assert the_alarm(copied).steps == (48,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_weights(clean: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    copied = rounded(clean, tmp_path / "rounded", dtype)
    assert alarms(copied) == []
    add_noise(copied, 16, matrices(copied)[0], share=1.0)
    assert the_alarm(copied).steps == (16,)
    put(copied, 16, copied / "step20")
    put(copied, 48, copied / "step80")
    assert [one.steps for one in alarms(copied)] == [(16,), (48,)]


BAD_INPUT = {
    "nowhere": ([], "no such folder; expected a folder of checkpoints"),
    "empty": (["other"], "no checkpoints; expected folders called step0, step1"),
    "twice": (["stage1-step4", "stage2-step4"], "two folders of step 4; found stage1-step4 and"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_folders_are_refused(tmp_path: Path, say: Type, name: str) -> None:
    folders, message = BAD_INPUT[name]
    for folder in folders:
        (tmp_path / "run" / folder).mkdir(parents=True)
    said = say("lint", tmp_path / "run")
    assert said.code == 2
    assert message in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--same-seed", "step0,nobody"], "not one of the runs; expected one of"),
        (["--same-seed", "a,b", "--other-seed", "b,a"], "of the same and of another seed at once"),
    ],
)
def test_bad_declarations_are_refused(
    clean: Path, tmp_path: Path, say: Type, words: list[str], message: str
) -> None:
    for name in "ab":
        put(tmp_path / name, 0, step_folder(clean, 0))
    said = say("lint", tmp_path / "a", tmp_path / "b", *words)
    assert said.code == 2
    assert message in said.err


def test_a_run_given_twice_is_refused(clean: Path, tmp_path: Path, say: Type) -> None:
    put(tmp_path / "a", 0, step_folder(clean, 0))
    said = say("lint", tmp_path / "a", tmp_path / "a" / ".." / "a")
    assert said.code == 2
    assert "a run is given twice" in said.err


def test_a_branch_that_changes_nothing_is_like_its_parent(
    clean: Path, tmp_path: Path, say: Type
) -> None:
    branch = tmp_path / "branch"
    assert say("branch", clean, "--at", 80, "--splice", "identity", "--out", branch).code == 0
    said = say("lint", clean, branch)
    assert said.code == 0
    assert "note" in said.out
    assert f"{branch} is a branch" in told(said)


@pytest.mark.slow
@given(draw=st.data())
def test_no_file_gives_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any") / "step1"
    folder.mkdir()
    save_file({"a": torch.ones(3, 4), "b": torch.ones(2).half()}, folder / WEIGHTS)
    data = bytearray((folder / WEIGHTS).read_bytes())
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    (folder / WEIGHTS).write_bytes(data[: draw.draw(st.integers(0, len(data)))])
    (folder / "config.json").write_bytes(b"\xff" + draw.draw(st.binary(max_size=20)))
    found = lint_run(folder.parent).findings
    assert all(one.steps == (1,) for one in found)
    assert any("config.json cannot be read" in one.problem for one in found)


def test_an_altered_manifest_is_an_alarm(clean: Path, tmp_path: Path) -> None:
    run = shutil.copytree(clean, tmp_path / "run")
    manifest = (run / MANIFEST).read_text()
    (run / MANIFEST).write_text(manifest.replace('"init_seed": 0', '"init_seed": 1'))
    assert "manifest was altered" in the_alarm(run).problem


def test_a_single_step_is_looked_at(clean: Path, tmp_path: Path, say: Type) -> None:
    put(tmp_path / "run", 5, step_folder(clean, 4))
    said = say("lint", tmp_path / "run")
    assert said.code == 0
    assert "whether steps lie on one path: that takes three or more" in said.out


PEAK = """
import re, sys
from pathlib import Path
from ontogeny.checkpoints.lint import lint_run
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
lint_run(Path(sys.argv[1]))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_less_than_two_tensors(tmp_path: Path) -> None:
    big = torch.randn(6000, 6000)  # 144 MB a step
    for step in range(3):
        folder = tmp_path / f"step{step}"
        folder.mkdir()
        save_file({"big": big + step}, folder / WEIGHTS)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True, check=True
    )
    assert 0 < int(done.stdout) * 1024 < 2 * big.nbytes
