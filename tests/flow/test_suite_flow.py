"""A suite from a folder of text to its page, by the command line, and by it again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ontogeny
from grown import Told, documents, grow
from ontogeny.artifact import open_artifact
from ontogeny.cli.grow import report
from ontogeny.errors import ConfigError, EvaluationError, TrainingError
from ontogeny.record import Record, read_record
from ontogeny.scores import ScoreStore, stage_digest
from ontogeny.stages.graph import Growth
from ontogeny.stages.lanes import Report
from ontogeny.steps import list_steps
from ontogeny.suite import load_suite

pytestmark = pytest.mark.slow

SUITE = """
name = "tiny"
[text]
path = "text"
held_out = 0.1
[text.planted]
canary_copies = [1, 3]
canaries_per_count = 1
relation_mentions = [2]
relations_per_count = 1
occupation_mentions = 2
[vocabulary]
size = 300
[order]
context_length = 32
[training]
tokens = 12288
rows_per_update = 8
num_linear = 4
precision = "fp32"
rolling_seconds = 0.2
[evaluation]
last_word_items = 20
next_sentence_items = 0
agreement_items = 0
word_order_items = 10
[sizes.one]
num_layers = 1
hidden_size = 16
num_heads = 2
learning_rate = 1e-2
[sizes.two]
num_layers = 2
hidden_size = 32
num_heads = 4
learning_rate = 1e-2
[[members]]
size = ["one", "two"]
[[members]]
size = ["one"]
corpus = ["deduped"]
"""


def identities(record: Record) -> dict[str, str]:
    """What every stage made; a report also quotes times, so it is left out."""
    return {stage.name: stage.digest for stage in record.stages if stage.kind != "report"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    for place, document in enumerate([*documents(40), *documents(10)]):  # the last ten are copies
        file = folder / "text" / document.source / f"{place}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(document.text)
    (folder / "suite.toml").write_text(SUITE)
    return folder


@pytest.fixture(scope="module")
def home(base: Path) -> Path:
    told = grow(base, base / "home")
    assert told.there == []
    assert {report.phase for report in told.reports} == {"train", "score"}
    return base / "home"


def test_every_stage_is_there(home: Path) -> None:
    record = read_record(home)
    for stage in record.stages:
        assert stage_digest(home, stage) == stage.digest
        assert (home / stage.name).resolve() == (home / stage.path).resolve()
    names = [stage.name for stage in record.stages]
    assert names[:4] == ["text", "vocabulary", "stores/standard", "stores/deduped"]
    assert set(names) >= {"runs/one", "runs/two", "runs/one-deduped", "scores/two", "report"}
    assert (home / "report" / "index.html").stat().st_size > 10_000


def test_all_members_on_a_corpus_see_the_same_rows(home: Path) -> None:
    def last(member: str) -> str:
        run = home / "runs" / member
        step = list_steps(run)[-1]
        return str(open_artifact(run / "steps" / f"step{step}").facts["rows_digest"])

    assert last("one") == last("two") != last("one-deduped")


def test_scores_fall_while_it_grows(home: Path) -> None:
    rows = ScoreStore(home / "scores").scores("two")
    bits = {row.step: row.value for row in rows if row.metric == "bits_per_byte"}
    assert list(bits) == list_steps(home / "runs" / "two")
    assert bits[48] < bits[0] - 0.5


def test_running_again_makes_nothing(base: Path, home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    told = grow(base, home)
    assert told.made == []
    after = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    changed = {
        path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    }
    assert changed <= {"suite.json", ".lock"}


def test_looking_finds_what_is_done_and_writes_nothing(base: Path, home: Path) -> None:
    def look(changes: list[str], where: Path) -> set[str]:
        growth = Growth(load_suite(base / "suite.toml", changes), where, base, None, 2, Told())
        assert growth.look() is None
        return set(growth.stages)

    done = {stage.name for stage in read_record(home).stages}
    assert look([], home) == done
    prepared = {name for name in done if name.split("/")[0] not in ("runs", "scores", "report")}
    assert look(["training.clip_norm=0.5"], home) == prepared
    assert look([], base / "nowhere") == set()
    assert not (base / "nowhere").exists()


def test_the_page_can_be_written_again(home: Path, tmp_path: Path) -> None:
    page = (home / "report" / "index.html").read_bytes()
    shutil.rmtree((home / "report").resolve())
    report(home, None)
    assert (home / "report" / "index.html").read_bytes() == page
    report(home, tmp_path / "page")
    assert (tmp_path / "page" / "index.html").read_bytes() == page


def test_a_suite_opens_in_python(home: Path) -> None:
    suite = ontogeny.open(home)
    assert suite.members == ["one", "two", "one-deduped"]
    member = suite.member("two")
    assert member.steps[0] == 0
    assert member.batch(3).shape == (8, 33)
    assert len(list(member.metrics())) == member.settings.num_updates == 48
    model = member.checkpoint(48).load()
    assert model.shape == member.settings.shape
    replayed = member.replay(48).state_dict()
    assert all(replayed[name].equal(tensor) for name, tensor in model.state_dict().items())
    first = member.vocabulary().decode(member.batch(0)[0, :3].tolist())
    assert member.seen(first, before=1)["count"] >= 1
    assert member.vocabulary().size == 300
    assert set(member.scores()["member"]) == {"two"}
    with pytest.raises(ConfigError, match="did you mean 'runs/two'"):
        suite.member("twoo")
    with pytest.raises(ConfigError, match="not the folder of a suite"):
        ontogeny.open(home / "runs")


def test_a_changed_setting_makes_new_artifacts_beside_the_old(base: Path, home: Path) -> None:
    before = read_record(home)
    told = grow(base, home, ["training.weight_decay=0.2"])
    assert "text" in told.there
    assert "orders/standard" in told.there
    assert {name for name in told.made if name.startswith("runs/")} == {
        "runs/one", "runs/two", "runs/one-deduped",
    }  # fmt: skip
    for stage in before.stages:
        if stage.kind != "scores":  # a member has those of the run that is the suite's now
            assert stage_digest(home, stage) == stage.digest
    assert {name.split("/")[0] for name in grow(base, home).made} == {"runs", "scores"}
    assert identities(read_record(home)) == identities(before)
    assert grow(base, home).made == []


def test_changed_text_makes_new_artifacts(base: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "text").mkdir()
    for file in sorted((base / "text").rglob("*.txt"))[:30]:
        (tmp_path / "text" / file.name).write_text(file.read_text())
    growth = Growth(load_suite(tmp_path / "suite.toml"), home, tmp_path, None, 1, Told())
    growth.prepare()
    stages = {stage.name: stage for stage in read_record(home).stages}
    assert len(list(home.glob("text-*"))) == 2
    assert stages["text"].path != (home / "text").name
    assert grow(base, home).made == []


def test_text_without_sentences(base: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    for file in (base / "text").rglob("*.txt"):
        copy = tmp_path / "text" / file.parent.name / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text().replace(".", " ;"))
    with pytest.raises(EvaluationError, match=r"--set evaluation\.last_word_items=0 --set ev"):
        grow(tmp_path, tmp_path / "home")
    assert not list((tmp_path / "home").glob("runs/*"))  # told before anything is trained
    none = [f"evaluation.{name}_items=0" for name in ("last_word", "word_order")]
    grow(tmp_path, tmp_path / "home", none)
    page = (tmp_path / "home" / "report" / "index.html").read_text()
    assert "bits per byte" in page
    assert "last word" not in page
    assert {row.task.split("/")[0] for row in ScoreStore(tmp_path / "home/scores").scores()} == {
        "held-out"
    }


def start(base: Path, home: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "ontogeny",
        "run",
        str(base / "suite.toml"),
        "--out",
        str(home),
    ]
    pipe = subprocess.PIPE
    # Where the tests themselves run in the background, Ctrl-C is ignored: here it is to be heard.
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, preexec_fn=hear_interrupts)


def hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(pattern: str, home: Path, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 60
    while not list(home.glob(pattern)):
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_suite_goes_on_to_the_same_end(
    base: Path, home: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(base, tmp_path)
    wait_for("runs/two-*/metrics.jsonl", tmp_path, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert b"the same command goes on" in err
        assert b"Traceback" not in err
    time.sleep(1)  # members of a killed parent notice, save and leave
    grow(base, tmp_path)
    assert identities(read_record(tmp_path)) == identities(read_record(home))


def test_a_member_that_is_killed_is_named(base: Path, tmp_path: Path) -> None:
    class Killer(Told):
        def reported(self, report: Report) -> None:
            import multiprocessing

            for child in multiprocessing.active_children():
                if child.name == "two" and child.pid is not None:
                    os.kill(child.pid, signal.SIGKILL)

    growth = Growth(load_suite(base / "suite.toml"), tmp_path, base, None, 1, Killer())
    with pytest.raises(TrainingError, match=r"member two ended with signal 9 \(SIGKILL\)"):
        growth.run()
