"""The report: one static folder whose `index.html` opens from disk, with nothing to fetch.

In: the folder of a finished suite, or a store of scores without one. Out: an artifact of kind
"report": the page, its figures as SVG and PNG, its tables as CSV, a page to explore the scores in,
and of a suite the planted truth as JSON and the suite as TOML. The page of a suite quotes when and
on what each stage was made, so, alone among artifacts, a report made from equal inputs on another
day is not equal to the byte; made twice from the same folder it is. Not here: computing anything.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ontogeny.artifact import Artifact, writing
from ontogeny.record import RECORD, Record, read_record
from ontogeny.report import origins, tables
from ontogeny.report.control import compare, finding
from ontogeny.report.evidence import Evidence, gather
from ontogeny.report.explorer import write_explorer
from ontogeny.report.measured import Measured, read_measured
from ontogeny.report.page import Html, document, element, link, paragraph, table, text
from ontogeny.report.scored import Show, final_scores, pictures
from ontogeny.report.tables import Table
from ontogeny.scores import FOLDER, ScoreStore


def report_origin(
    home: Path, record: Record | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings and inputs of the report on a folder: of a suite, or of a store of scores.

    `record` is of the suite where it is known already. A report is not made from an earlier one.
    """
    if record is None and (home / RECORD).is_file():
        record = read_record(home)
    if record is None:
        store = ScoreStore(home)
        return {}, {member: store.digest(member) for member in store.members()}
    stages = {stage.name: stage.digest for stage in record.stages if stage.kind != "report"}
    return {"suite": record.suite.resolved()}, stages


def build_report(home: Path, folder: Path) -> Artifact:
    """Write the report of the finished suite, or the store of scores, in `home` at `folder`.

    Raises EvaluationError or DataError, and leaves nothing, when anything the page would show is
    missing, unfinished or contradicts another part.
    """
    is_suite = (home / RECORD).is_file()
    evidence = gather(home) if is_suite else None
    store = ScoreStore(home / FOLDER) if is_suite else ScoreStore(home)
    measured = evidence.measured if evidence else read_measured(store)
    name = evidence.record.suite.name if evidence else home.resolve().name
    title = f"Suite {name}" if evidence else f"Scores of {name}"
    shown = pictures(measured, store, evidence.histories if evidence else [])
    written: list[Table] = [tables.scores(measured)]

    def show(one: Table) -> Html:
        written.append(one)
        return table(one)

    if evidence:
        sections = _suite_sections(evidence, shown.told(), show)
        opening = _opening(evidence)
        written.append(tables.updates(evidence))
    else:
        sections = {"Final scores": final_scores(measured, show), "Figures": shown.told()}
        opening = _store_opening(measured)
    page = document(title, opening, sections)
    config, inputs = report_origin(home, evidence.record if evidence else None)
    with writing(folder, "report", config=config, inputs=inputs) as draft:
        num_figures = shown.draw(measured, draft.folder / "figures")
        write_explorer(measured, title, draft.folder)
        (draft.folder / "index.html").write_text(page, encoding="utf-8")
        (draft.folder / "tables").mkdir()
        if evidence:
            _write_suite(evidence, draft.folder)
        for one in written:
            tables.write_csv(one, draft.folder / "tables")
        draft.facts |= {"figures": num_figures, "members": len(measured.models)}
    return draft.artifact


def _write_suite(evidence: Evidence, folder: Path) -> None:
    """The files beside the page that only a suite has."""
    truths = evidence.artifacts["text"].facts["planted"]
    planted = json.dumps(truths, indent=1, ensure_ascii=False) + "\n"
    (folder / "tables" / "planted.json").write_text(planted, encoding="utf-8")
    toml = origins.suite_toml(evidence.record.suite)
    (folder / "suite.toml").write_text(toml, encoding="utf-8")


def _suite_sections(
    evidence: Evidence, drawn: Sequence[Html], show: Show
) -> dict[str, Sequence[Html]]:
    return {
        "Summary": [
            show(tables.summary(evidence)),
            _note(
                "At the last checkpoint. In brackets 95 % intervals over the items; the best value",
                "of each measure in bold. Held-out text is the same for every member.",
                tables.MARKED,
            ),
        ],
        "Figures": drawn,
        "Final scores": final_scores(evidence.measured, show),
        "Members": [
            show(tables.members(evidence)),
            _note(
                "FLOPs are counted in closed form for the whole run, forward and backward,",
                "attention as causal.",
            ),
        ],
        "Data": _data(evidence, show),
        "Proof of control": _control(evidence, show),
        "Lineage": _lineage(evidence, show),
        "Licences": _licences(evidence, show),
        "Time and machine": _time(evidence, show),
        "Check and reproduce": _check(evidence),
    }


def _store_opening(measured: Measured) -> Html:
    tasks = {measure.task for measure in measured.curves}
    return paragraph(
        f"{_count(measured.models, 'model')}, asked up to {_count(tasks, 'task')} each. Every",
        "number is in the file of scores, and every task and measure in the explorer; the figures",
        "show the tasks of the paper, each by its first measure, and what else there is room for.",
    )


def _opening(evidence: Evidence) -> Html:
    suite, histories = evidence.record.suite, evidence.histories
    sizes = dict.fromkeys(history.member.size for history in histories)
    most = max(history.tokens for history in histories)
    saved = [len(history.checkpoints) for history in histories]
    steps = " to ".join(map(str, dict.fromkeys((min(saved), max(saved)))))
    return paragraph(
        f"{_count(histories, 'GPT-NeoX language model')} of {_count(sizes, 'size')}",
        f"({', '.join(sizes)}), grown side by side on up to {most:,} tokens of the",
        f"{' and the '.join(evidence.by_corpus)} corpus by the recipe “{suite.recipe}”.",
        "They share one vocabulary and, on each corpus, one order of the data; what differs",
        "between them is in the table of members and nowhere else.",
        f"Each was saved at {steps} steps and measured at every one, so growth can be read",
        "against the tokens seen. The digests by which all this can be checked are on this page.",
    )


def _data(evidence: Evidence, show: Show) -> list[Html]:
    planted = origins.planted(evidence)
    return [
        paragraph(
            "Documents, bytes of text and tokens of each source. The held-out part was cut from",
            "the text before anything was trained and is the same for every corpus.",
        ),
        show(origins.data(evidence)),
        element("h3", text("Documents removed")),
        paragraph(
            "A duplicate has an equal text before it, so it is in the standard corpus and not in",
            "the deduplicated one. What equals a held-out text, or is empty, is in neither.",
        ),
        show(origins.removed(evidence)),
        element("h3", text("Planted documents")),
        paragraph(
            "Invented text mixed into the rest, whose truth is declared, so that what the members",
            "learn of it can be measured."
            if planted.rows
            else "None: all of the text is as it was found.",
        ),
        show(planted),
        element("p", text("Each plant: "), link("tables/planted.json", "planted.json")),
    ]


def _control(evidence: Evidence, show: Show) -> list[Html]:
    parts = [
        paragraph(
            "Every run logs a digest that rolls over each row it is given. Two members that hold",
            "the same digest after the same number of tokens were given the same rows in the same",
            "order up to there, however many rows they took at a time.",
        )
    ]
    for corpus, histories in evidence.by_corpus.items():
        comparisons = compare(histories)
        verdict, words = finding(corpus, histories, comparisons)
        parts += [
            element("h3", text(f"The {corpus} corpus")),
            paragraph(words, class_=f"proof {verdict}"),
            show(tables.control(corpus, comparisons, histories)),
        ]
    return parts


def _lineage(evidence: Evidence, show: Show) -> list[Html]:
    parts = [
        paragraph(
            "A digest names the content of an artifact: its settings, the digests of what it was",
            "made from, and of what it holds. The first digits are shown; hover for all, or take",
            "the file.",
        ),
        show(origins.lineage(evidence)),
        element("h3", text("Chains of checkpoints")),
        paragraph("Each checkpoint names the one before it as its parent; the chain is unbroken."),
    ]
    for history in evidence.histories:
        chain = tables.checkpoints(evidence, history)
        words = (
            f"{history.member.name}: {len(chain.rows)} checkpoints to step {chain.rows[-1][0]:,}, "
            f"{sum(row[-1] == 'yes' for row in chain.rows)} with full training state"
        )
        parts.append(element("details", element("summary", text(words)), show(chain)))
    return parts


def _licences(evidence: Evidence, show: Show) -> list[Html]:
    listed = origins.licences(evidence)
    real = "The text is real and belongs to others; these are its parts and their terms."
    own = "The text is the user's own; no pinned component is part of it."
    return [paragraph(real if listed.rows else own), show(listed)]


def _time(evidence: Evidence, show: Show) -> list[Html]:
    total = sum(stage.seconds for stage in evidence.record.stages if stage.kind != "report")
    return [
        paragraph(
            f"{total:,.0f} seconds of work, each stage counted when it was made (under Lineage);",
            "members are trained side by side, so the whole takes less.",
        ),
        show(origins.machine(evidence)),
    ]


def _check(evidence: Evidence) -> list[Html]:
    """What to type, with a member of this suite and a step in its middle as the examples."""
    asked = evidence.histories[-1]
    run, step = f"runs/{asked.member.name}", asked.run.num_updates // 2
    truths = evidence.artifacts["text"].facts["planted"]
    planted = next((str(truth["text"]) for truth in truths if "text" in truth), "once upon a time")
    words = shlex.quote(" ".join(planted.split()[:3]))
    commands = {
        "verify .": "every file, chain and row, recomputed",
        f"replay {run} --step {step}": "any step, saved or not, derived again",
        f"batch {run} --step {step}": "the text that step went on with",
        f"seen {run} {words}": "how often a text was seen, and when",
        f"branch {run} --at {step} --splice identity --out branch": "go on as it did, or otherwise",
    }
    width = max(map(len, commands))
    typed = [f"ontogeny {command:{width}}  # {told}" for command, told in commands.items()]
    path = evidence.record.suite.text.path
    return [
        paragraph("In the folder of the suite, of any member:"),
        _typed(typed),
        element(
            "p",
            text("To grow all of it again, from the suite with every setting spelled out, "),
            link("suite.toml", "suite.toml"),
            text(", in the folder of this page:"),
        ),
        _typed(["ontogeny run suite.toml --out again"]),
        paragraph(
            "With equal versions, threads and instruction set the digests under Lineage come out",
            "equal, stage by stage; on another machine the text, tokens and orders still do.",
            f"The text, {path}, is read from where the first suite had it." if path else "",
        ),
    ]


def _typed(lines: Sequence[str]) -> Html:
    return element("pre", element("code", text("\n".join(lines))))


def _note(*sentences: str) -> Html:
    return paragraph(*sentences, class_="note")


def _count(things: Collection[Any], noun: str) -> str:
    return f"{len(things)} {noun}" + "s" * (len(things) != 1)
