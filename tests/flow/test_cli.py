"""The command line as a user types it: what comes out, and one clear line for every mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ontogeny
from grown import SUITE, Ground, begin, settings
from ontogeny.cli.app import print_json, print_table
from ontogeny.training.loop import train
from spoken import Type

SUITES = Path(ontogeny.__file__).parent / "suites"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    (tmp_path / "suite.toml").write_text(SUITE)
    return tmp_path / "suite.toml"


def test_models_prints_the_published_table(say: Type) -> None:
    said = say("models")
    assert said.code == 0
    rows = {line.split()[0]: line for line in said.out.splitlines() if line.strip()}
    assert "85,056,000" in rows["160m"]
    assert "162,322,944" in rows["160m"]
    assert "OPT-125M" in rows["160m"]
    assert rows["12b"].split()[1:3] == ["11,327,027,200", "11,846,072,320"]
    assert len(rows) == 11


def test_a_dry_run_plans_and_writes_nothing(say: Type, tmp_path: Path) -> None:
    said = say("run", SUITES / "pythia.toml", "--out", tmp_path / "out", "--dry-run")
    assert said.code == 0
    assert "18 members" in said.out
    lines = {line.split()[0]: line for line in said.out.splitlines() if line.strip()}
    assert "11,327,027,200" in lines["12b-deduped"]
    assert " 154 " in lines["70m"]
    assert not (tmp_path / "out").exists()


def test_too_little_disk_is_refused_before_the_start(say: Type, tmp_path: Path) -> None:
    said = say("run", SUITES / "pythia.toml", "--out", tmp_path / "out")
    assert said.refused("too little disk space", "GB free", "--out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_already_needs_no_space(say: Type, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "weights").open("wb") as file:
        file.truncate(10**12)  # a hole: on disk it is nothing
    words = ("run", SUITES / "pythia.toml", "--set", "members=[{size=['1b']}]", "--out")
    assert say(*words, tmp_path / "other").refused("too little disk space")
    said = say(*words, tmp_path / "out")
    assert said.refused("pile", "no such file or folder")


def test_fetching_ahead_heeds_changes(say: Type) -> None:
    assert say("demo", "--prefetch", "--set", "txt.path=x").refused("unknown key 'txt'")


def test_no_such_suite(say: Type, tmp_path: Path) -> None:
    assert say("run", tmp_path / "none.toml", "--out", tmp_path / "o").refused(
        "none.toml", "no such file"
    )


def test_a_missing_option(say: Type, suite: Path) -> None:
    said = say("run", suite)
    assert said.code == 2
    assert "--out" in said.err


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("trainin.tokens=5", ["unknown key 'trainin'", "did you mean 'training'?"]),
        ("training.token=5", ["unknown key 'training.token'", "did you mean 'tokens'?"]),
        ("training.tokens=many", ["training.tokens", "integer", "'many'"]),
        ("members=[{size=['70mm']}]", ["unknown size '70mm'", "did you mean '70m'?"]),
        ("order.context_length=0", ["order.context_length", "greater than or equal to 1"]),
        ("nonsense", ["--set nonsense", "key=value"]),
        (
            "sizes.x={num_layers=40, hidden_size=5120, num_heads=36, learning_rate=1e-3}",
            ["5120 is not divisible by num_heads 36", "swapped"],
        ),
    ],
)
def test_a_wrong_setting(say: Type, suite: Path, change: str, parts: list[str]) -> None:
    said = say("run", suite, "--out", suite.parent / "out", "--set", change)
    assert said.refused(*parts)
    assert not (suite.parent / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', ["a.jsonl:2", "JSON"]),
        ("a.txt", b"caf\xe9 and more", ["a.txt", "UTF-8"]),
        ("a.jsonl", b'{"body": "x"}\n', ["a.jsonl:1", "text"]),
        ("a.jsonl", b"", ["empty"]),
        (None, b"", ["text"]),
    ],
)
def test_wrong_text(
    say: Type, suite: Path, name: str | None, content: bytes, parts: list[str]
) -> None:
    if name is not None:
        (suite.parent / "text" / name).write_bytes(content)
    assert say("run", suite, "--out", suite.parent / "out").refused(*parts)
    assert not list((suite.parent / "out").glob("text*"))
    assert not list((suite.parent / "out").glob(".*writing*"))


def test_missing_text(say: Type, suite: Path) -> None:
    (suite.parent / "text").rmdir()
    assert say("run", suite, "--out", suite.parent / "out").refused(
        "text", "no such file or folder"
    )


def run_file(folder: Path, ground: Ground) -> Path:
    lines = [
        f'store = "{ground.store}"',
        f'vocabulary = "{ground.vocabulary}"',
        'size = "one"',
        "[order]",
        "context_length = 16",
        "[training]",
        "tokens = 1536",
        "rows_per_update = 4",
        'precision = "fp32"',
        "num_linear = 6",
        "[sizes.one]",
        "num_layers = 1",
        "hidden_size = 16",
        "num_heads = 2",
        "learning_rate = 1e-2",
    ]
    path = folder / "run.toml"
    path.write_text("\n".join(lines))
    return path


def test_train_generate_prune(say: Type, ground: Ground, tmp_path: Path) -> None:
    file, run = run_file(tmp_path, ground), tmp_path / "run"
    assert say("train", file, "--out", run).code == 0
    assert (run / "steps" / "step24" / "model.safetensors").is_file()
    assert "step 24 of 24" in say("train", file, "--out", run).out

    said = say("generate", run, "The river", "--step", 24, "--tokens", 8)
    assert said.code == 0
    assert said.out.startswith("The river")
    assert said.out == say("generate", run, "The river", "--step", 24, "--tokens", 8).out
    assert say("generate", run, "x", "--step", 3).refused("no checkpoint of step 3", "0, 1, 2, 4")

    assert say("generate", run, "\udcff", "--step", 24).refused("the text is not Unicode")
    assert say("generate", run, "x", "--step", 24, "--seed", 2**63).code == 2

    assert "freed" in say("prune", run).out
    assert not list((run / "states").iterdir())
    assert say("generate", run, "The river", "--step", 24, "--tokens", 8).out == said.out

    assert say("train", file, "--out", run, "--set", "training.clip_norm=0.5").refused(
        "holds a run of another config",
        "training.clip_norm is 1.0 there, 0.5 here",
    )
    assert say("train", file, "--out", run, "--set", "sise=1").refused(
        "'sise'", "did you mean 'size'?"
    )


def test_a_run_file_with_a_damaged_store(say: Type, ground: Ground, tmp_path: Path) -> None:
    shutil.copytree(ground.store, tmp_path / "store")
    with (tmp_path / "store" / "tokens.bin").open("ab") as tokens:
        tokens.write(b"\0\0")
    file = run_file(tmp_path, ground)
    said = say("train", file, "--out", tmp_path / "run", "--set", f"store={tmp_path / 'store'}")
    assert said.refused("tokens.bin", "truncated or altered", "bytes")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run(say: Type, tmp_path: Path) -> None:
    assert say("generate", tmp_path, "x", "--step", 1).refused("not an artifact", "manifest.json")
    assert say("report", tmp_path, "--out", tmp_path / "r").refused("no scores")


def test_a_folder_that_may_not_be_written(say: Type, suite: Path) -> None:
    (suite.parent / "text" / "a.txt").write_text("A text. " * 50)
    assert say("run", suite, "--out", "/sys/ontogeny").refused("/sys/ontogeny", "--out")


def test_a_full_disk_leaves_the_run_whole(
    say: Type, ground: Ground, tmp_path: Path, small_disk: Path
) -> None:
    file, run = run_file(tmp_path, ground), small_disk / "run"
    said = say("train", file, "--out", run)
    assert said.refused("o space left")
    assert not list(run.rglob(".*writing*"))
    whole = sorted(path.name for path in (run / "steps").iterdir())
    assert whole
    for name in whole:
        json.loads((run / "steps" / name / "manifest.json").read_text())
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert "step 24 of 24" in say("train", file, "--out", run).out


def test_a_folder_that_cannot_be(say: Type, ground: Ground, tmp_path: Path) -> None:
    file = run_file(tmp_path, ground)
    for place, told in (
        (file / "run", "a file is where a folder should be"),
        (tmp_path / ("a" * 300), "a shorter one"),
        ("..", "a name of its own"),
    ):
        assert say("train", file, "--out", place).refused(told)


def test_a_folder_in_the_way_of_a_link(say: Type, suite: Path) -> None:
    for name in ("a", "b"):
        (suite.parent / "text" / name).with_suffix(".txt").write_text(f"A text of {name}. " * 50)
    (suite.parent / "out" / "text").mkdir(parents=True)
    said = say("run", suite, "--out", suite.parent / "out")
    assert said.refused("out/text: is where a link goes; found no link; try: move it")


def test_tables_are_as_wide_as_their_words_and_harmless(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(["id", "text"], [["a\x1b[31m", "漢字" * 30], ["b\x9b", "x"]])
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.split() == ["a\N{REPLACEMENT CHARACTER}[31m", "漢字" * 30]
    assert second.split() == ["b\N{REPLACEMENT CHARACTER}", "x"]


def test_an_error_is_harmless(say: Type, tmp_path: Path) -> None:
    said = say("show", tmp_path / "\x1b[31m")
    assert said.refused("\N{REPLACEMENT CHARACTER}[31m: no such folder")
    assert "\x1b" not in said.err


def test_json_keeps_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"漢": "\x9b\x7f"})
    printed = capsys.readouterr().out
    assert printed == '{"漢": "\\u009b\\u007f"}\n'
    assert json.loads(printed) == {"漢": "\x9b\x7f"}


def test_a_bug_keeps_its_traceback(
    say: Type, ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(ground, tmp_path / "run", settings())
    train(run, ground.batches(4))
    monkeypatch.setattr("ontogeny.checkpoints.store.drop_states", None)
    with pytest.raises(TypeError):
        say("prune", run.path)


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys, ontogeny.cli.main; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_questions_about_data_do_without_torch(ground: Ground, tmp_path: Path) -> None:
    run = begin(ground, tmp_path / "run", settings())
    for words in (["batch", str(run.path), "--update", "3"], ["seen", str(run.path), "the"]):
        code = (
            "import contextlib, sys\n"
            "from ontogeny.cli.main import main\n"
            f"sys.argv = ['ontogeny', *{words!r}]\n"
            "with contextlib.suppress(SystemExit):\n"
            "    main()\n"
            "sys.exit(7 if 'torch' in sys.modules else 0)"
        )
        asked = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True
        )
        assert asked.returncode == 0, asked.stderr
