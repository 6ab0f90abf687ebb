"""Suites: the steps that are kept, the members of the suite files, tables that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.config import build
from ontogeny.errors import ConfigError
from ontogeny.record import Record, StageRecord, read_record, write_record
from ontogeny.shape import SIZES
from ontogeny.steps import checkpoint_spacing, checkpoint_steps
from ontogeny.suite import RunFile, RunSettings, Suite, load_suite

SUITES = Path(__file__).parents[2] / "suites"
# fmt: off
PYTHIAS_STEPS = [
    0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512,
    1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10000, 11000, 12000, 13000, 14000, 15000,
    16000, 17000, 18000, 19000, 20000, 21000, 22000, 23000, 24000, 25000, 26000, 27000, 28000,
    29000, 30000, 31000, 32000, 33000, 34000, 35000, 36000, 37000, 38000, 39000, 40000, 41000,
    42000, 43000, 44000, 45000, 46000, 47000, 48000, 49000, 50000, 51000, 52000, 53000, 54000,
    55000, 56000, 57000, 58000, 59000, 60000, 61000, 62000, 63000, 64000, 65000, 66000, 67000,
    68000, 69000, 70000, 71000, 72000, 73000, 74000, 75000, 76000, 77000, 78000, 79000, 80000,
    81000, 82000, 83000, 84000, 85000, 86000, 87000, 88000, 89000, 90000, 91000, 92000, 93000,
    94000, 95000, 96000, 97000, 98000, 99000, 100000, 101000, 102000, 103000, 104000, 105000,
    106000, 107000, 108000, 109000, 110000, 111000, 112000, 113000, 114000, 115000, 116000, 117000,
    118000, 119000, 120000, 121000, 122000, 123000, 124000, 125000, 126000, 127000, 128000, 129000,
    130000, 131000, 132000, 133000, 134000, 135000, 136000, 137000, 138000, 139000, 140000, 141000,
    142000, 143000,
]
# fmt: on


def demo(*changes: str) -> Suite:
    return load_suite(SUITES / "demo.toml", list(changes))


def runs_of(suite: Suite, vocab_size: int) -> dict[str, RunSettings]:
    return {member.name: suite.run_settings(member, vocab_size) for member in suite.table()}


def test_the_steps_of_pythia() -> None:
    assert len(PYTHIAS_STEPS) == 154
    assert checkpoint_steps(143_000, 143) == PYTHIAS_STEPS


@given(st.integers(1, 200_000), st.integers(1, 300))
def test_laws_of_the_steps(num_updates: int, num_linear: int) -> None:
    steps = checkpoint_steps(num_updates, num_linear)
    spacing = checkpoint_spacing(num_updates, num_linear)
    assert steps[0] == 0
    assert steps[-1] == num_updates
    assert steps == sorted(set(steps))
    assert set(range(0, num_updates + 1, spacing)) <= set(steps)
    for step in steps:
        power = step < spacing and step.bit_count() == 1
        assert step % spacing == 0 or power or step == num_updates
    below = [2**power for power in range(18) if 2**power < min(spacing, num_updates + 1)]
    assert set(below) <= set(steps)
    assert spacing == 1 or abs(spacing - num_updates / num_linear) <= 0.5


def test_golden_steps(golden: Path) -> None:
    """The case that is Pythia's; the others list steps of their own or space them otherwise."""
    cases = json.loads((golden / "checkpoint_steps_and_batch_sizes.json").read_text())
    by_rule = [
        case
        for case in cases["checkpoints"]
        if case["checkpoint_scale"] == "linear" and case["extra_save_iters"][:4] == [0, 1, 2, 4]
    ]
    assert len(by_rule) == 1
    for case in by_rule:
        updates = case["train_iters"]
        steps = checkpoint_steps(updates, updates // case["checkpoint_factor"])
        assert steps == case["all_checkpoints"]


def test_no_update_no_steps() -> None:
    with pytest.raises(ConfigError, match="a run needs at least one update; found 0"):
        checkpoint_steps(0, 12)


def test_the_demo() -> None:
    suite = demo()
    members = suite.table()
    corpora: dict[str, set[str]] = {}
    for member in members:
        corpora.setdefault(member.corpus, set()).add(member.size)
    assert corpora.keys() == {"standard", "deduped"}
    assert corpora["standard"] == corpora["deduped"]
    assert len(corpora["standard"]) >= 3
    assert suite.vocabulary.size is not None
    runs = runs_of(suite, suite.vocabulary.size)
    for name, run in runs.items():
        assert 20 <= len(run.steps) <= 24, name
        assert run.num_updates * run.tokens_per_update == suite.training.tokens == 1_572_864
        assert {0, run.num_updates} <= run.full_state_steps <= set(run.steps)
        assert (run.recipe, run.shape.activation, run.shape.rotary_tables) == (
            "sound", "gelu", "float32",
        )  # fmt: skip
    larger = [run for run in runs.values() if run.training.rows_per_update != 16]
    assert [run.training.rows_per_update for run in larger] == [64]


def test_the_quick_demo_has_the_demos_form() -> None:
    quick, full = load_suite(SUITES / "quick.toml"), demo()
    assert {member.corpus for member in quick.table()} == {member.corpus for member in full.table()}
    assert len({member.size for member in quick.table()}) >= 3
    assert quick.training.tokens * 5 < full.training.tokens


def test_the_sixteen_and_two() -> None:
    suite = load_suite(SUITES / "pythia.toml")
    runs = runs_of(suite, 50_277)
    assert len(runs) == 18
    sizes = ["70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"]
    paired = [name for size in sizes for name in (size, f"{size}-deduped")]
    assert list(runs) == ["14m", "31m", *paired]
    for name, run in runs.items():
        size = SIZES[name.removesuffix("-deduped")]
        assert run.steps == PYTHIAS_STEPS
        assert run.tokens_per_update == 2_097_152
        assert run.training.learning_rate == size.learning_rate
        assert run.shape.num_non_embedding == size.published_non_embedding
        assert run.shape.activation == "gelu_tanh"
        assert run.shape.rotary_tables == "compute"
    padded = {name.partition("-")[0]: run.shape.vocab_size for name, run in runs.items()}
    assert {size for size, vocab in padded.items() if vocab != 50_304} == {"6.9b", "12b"}
    assert (padded["6.9b"], padded["12b"]) == (50_432, 50_688)
    assert {name for name, run in runs.items() if run.init == "normal"} == {
        "6.9b", "6.9b-deduped", "12b", "12b-deduped",
    }  # fmt: skip


def test_learning_rates_as_published() -> None:
    rates = {name: size.learning_rate for name, size in SIZES.items()}
    assert rates == {
        "14m": 1e-3, "31m": 1e-3, "70m": 1e-3, "160m": 6e-4, "410m": 3e-4, "1b": 2.5e-4,
        "1.4b": 2e-4, "2.8b": 1.6e-4, "6.9b": 1.2e-4, "12b": 1.2e-4,
    }  # fmt: skip


def test_one_padded_vocabulary_under_the_sound_recipe() -> None:
    suite = demo('members=[{size=["70m", "6.9b", "12b"]}]')
    assert {run.shape.vocab_size for run in runs_of(suite, 50_277).values()} == {50_304}
    assert runs_of(suite, 50_304)["70m"].shape.vocab_size == 50_304
    assert runs_of(suite, 50_305)["70m"].shape.vocab_size == 50_432


def test_names_say_what_differs() -> None:
    rows = (
        '[{size=["70m"], init_seed=[0, 3]}, {size=["70m"], corpus=["deduped"], rows_per_update=64},'
        ' {size=["14m"], learning_rate=0.01, rows_per_update=16}]'
    )
    suite = demo(f"members={rows}")
    assert [member.name for member in suite.table()] == [
        "70m", "70m-seed3", "70m-deduped-rows64", "14m-rate0.01",
    ]  # fmt: skip
    runs = runs_of(suite, 4096)
    assert [run.init_seed for run in runs.values()] == [0, 3, 0, 0]
    assert [run.training.learning_rate for run in runs.values()] == [1e-3, 1e-3, 1e-3, 0.01]
    assert len({run.training.tokens for run in runs.values()}) == 1


def test_a_suites_rate_goes_before_the_sizes() -> None:
    suite = demo("training.learning_rate=0.5")
    assert {member.learning_rate for member in suite.table()} == {0.5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('members=[{size=["71m"]}]', "unknown size '71m'; did you mean '"),
        ('members=[{size=["zzzz"]}]', "unknown size 'zzzz'; one of .*'12b'"),
        ('members=[{size=["70m", "70m"]}]', "members listed twice: 70m"),
        ("members=[{size=[]}]", "members.0.size: "),
        ('members=[{size=["70m"], init_seed=[]}]', "members.0.init_seed: "),
        ('members=[{size=["70m"], corpus=[]}]', "members.0.corpus: "),
        ('members=[{size=["70m"], corpus=["other"]}]', r"members\.0\.corpus\.0: Input should be"),
        ("sizes.2m.num_heads=7", "not divisible by num_heads 7"),
        ("name=a/b", "name: String should match pattern"),
        ("text.path=somewhere", "give either path"),
        ("text.held_out=0.5", "text.held_out: Input should be less than 0.5"),
        ("vocabulary={}", "vocabulary: give size .to train one. or file"),
        ("vocabulary.size=257", "vocabulary.size: Input should be greater than or equal to 258"),
    ],
)
def test_tables_that_cannot_be(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        demo(change)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["training.micro_batch_rows=5"], "micro_batch_rows 5 does not divide rows_per_update 16"),
        (["training.tokens=2047"], "training.tokens 2047 is less than one update of 2048 tokens"),
    ],
)
def test_runs_that_cannot_be(changes: list[str], said: str) -> None:
    suite = demo(*changes)
    with pytest.raises(ConfigError, match=f"member .*: {said}"):
        runs_of(suite, 4096)


def test_a_run_file(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "store": "stores/a", "vocabulary": "vocabulary", "size": "14m", "init_seed": 4,
        "order": {"context_length": 64}, "training": {"tokens": 1024, "rows_per_update": 8},
    }  # fmt: skip
    member = build(RunFile, values, "run.toml").the_member()
    assert (member.name, member.init_seed, member.rows_per_update) == ("14m-seed4", 4, 8)
    with pytest.raises(ConfigError, match=r"run\.toml: .*unknown size '14mm'; did you mean '14m'"):
        build(RunFile, values | {"size": "14mm"}, "run.toml")


def test_the_record_is_read_as_written(tmp_path: Path) -> None:
    stage = StageRecord(name="text", kind="text", path="text-1", digest="0" * 64, seconds=1.5)
    record = Record(suite=demo(), stages=(stage,))
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert {path.name for path in tmp_path.iterdir()} == {"suite.json", ".lock"}
    assert record.stage("text") == stage
    with pytest.raises(ConfigError, match="no stage 'txt'; try: did you mean 'text'"):
        record.stage("txt")


@given(place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_record(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    home = tmp_path_factory.mktemp("record")
    stage = StageRecord(name="text", kind="text", path="text-1", digest="0" * 64, seconds=1.5)
    write_record(home, Record(suite=demo(), stages=(stage,)))
    data = bytearray((home / "suite.json").read_bytes())
    data[place % len(data)] ^= 1 << bit
    (home / "suite.json").write_bytes(bytes(data))
    with pytest.raises(ConfigError):
        read_record(home)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", '{"suite": 1}', "\x00"])
def test_a_folder_of_no_suite(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "suite.json").write_text(text)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_record(tmp_path)
