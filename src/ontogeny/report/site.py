"""The report: one static folder whose `index.html` opens from disk, with nothing to fetch.

In: the folder of a finished suite. Out: an artifact of kind "report": the page, its figures as SVG
and PNG, its tables as CSV, the planted truth as JSON, the suite as TOML. The page quotes when and
on what each stage was made, so, alone among artifacts, a report made from equal inputs on another
day is not equal to the byte; made twice from the same folder it is. Not here: computing anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontogeny.artifact import Artifact, writing
from ontogeny.report import figures, origins, tables
from ontogeny.report.control import Comparison, compare, statement
from ontogeny.report.evidence import (
    ACCURACY,
    LOG_PROBABILITY,
    Evidence,
    History,
    Measure,
    gather,
)
from ontogeny.report.page import (
    Html,
    document,
    element,
    figure,
    join,
    link,
    paragraph,
    section,
    table,
    text,
)
from ontogeny.report.tables import Table
from ontogeny.suite import Record


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure of the page: what draws it, where its numbers are, and what it measures, if one."""

    draw: Callable[[Sequence[History]], Any]
    table: str
    caption: str
    measure: Measure | None = None


INTERVALS = "Bands are 95 % intervals over the items."
FIGURES = {
    "held-out": Drawing(
        figures.held_out,
        "scores",
        "Bits per byte of held-out text that no member was trained on; lower is better. "
        + INTERVALS,
    ),
    "last-word-log-probability": Drawing(
        figures.last_word_log_probability,
        "scores",
        "Mean log-probability of the last word of a held-out passage, given what comes before it; "
        "higher is better. " + INTERVALS,
        LOG_PROBABILITY,
    ),
    "last-word-accuracy": Drawing(
        figures.last_word_accuracy,
        "scores",
        "Share of last words whose every token is the model's first choice. " + INTERVALS,
        ACCURACY,
    ),
    "training-loss": Drawing(
        figures.training_loss,
        "updates",
        "Training loss of the model before each update, smoothed: the mean of the updates in each "
        f"of {figures.NUM_BINS} equal intervals of the log axis, so that the first updates stand "
        "alone. The file holds every update.",
    ),
    "sources": Drawing(
        figures.sources,
        "scores",
        "Bits per byte of the held-out text of each source, on one scale. " + INTERVALS,
    ),
}


def report_inputs(record: Record) -> dict[str, str]:
    """The digests a report is made from: every stage's but an earlier report's."""
    return {stage.name: stage.digest for stage in record.stages if stage.kind != "report"}


def report_config(record: Record) -> dict[str, Any]:
    """The settings a report is made with: the suite as it stands."""
    return {"suite": record.suite.resolved()}


def build_report(home: Path, folder: Path) -> Artifact:
    """Write the report of the finished suite in `home` as an artifact at `folder`.

    Raises EvaluationError or DataError, and leaves nothing, when anything the page would show is
    missing, unfinished or contradicts another part.
    """
    evidence = gather(home)
    record = evidence.record
    page, written = _page(evidence)
    inputs, config = report_inputs(record), report_config(record)
    with writing(folder, "report", config=config, inputs=inputs) as draft:
        for name in ("figures", "tables"):
            (draft.folder / name).mkdir()
        drawings = _drawings(evidence)
        for name, drawing in drawings.items():
            figures.draw(drawing.draw, evidence.histories, draft.folder / "figures", name)
        for one in written:
            tables.write_csv(one, draft.folder / "tables")
        truth = json.dumps(origins.truths(evidence), indent=1, ensure_ascii=False)
        (draft.folder / "tables" / "planted.json").write_text(truth + "\n", encoding="utf-8")
        toml = origins.suite_toml(record.suite)
        (draft.folder / "suite.toml").write_text(toml, encoding="utf-8")
        (draft.folder / "index.html").write_text(page, encoding="utf-8")
        draft.facts |= {"figures": len(drawings), "members": len(evidence.histories)}
    return draft.artifact


def _page(evidence: Evidence) -> tuple[str, list[Table]]:
    """The page, and every table that it shows or links to."""
    written: list[Table] = [tables.scores(evidence), tables.updates(evidence)]

    def show(one: Table) -> Html:
        written.append(one)
        return table(one)

    title = f"Suite {evidence.record.suite.name}"
    sections = {
        "Summary": _summary(evidence, show),
        "Figures": _figures(evidence),
        "Members": _members(evidence, show),
        "Data": _data(evidence, show),
        "Proof of control": _control(evidence, show),
        "Lineage": _lineage(evidence, show),
        "Licences": _licences(evidence, show),
        "Time and machine": _time(evidence, show),
        "Reproduce": _reproduce(evidence),
    }
    opening = join((element("h1", text(title)), paragraph(*_opening(evidence))))
    return document(f"{title}: report", opening, sections), written


def _drawings(evidence: Evidence) -> dict[str, Drawing]:
    """The figures of what was measured."""
    return {
        name: drawing
        for name, drawing in FIGURES.items()
        if drawing.measure is None or evidence.has(drawing.measure)
    }


Show = Callable[[Table], Html]


def _opening(evidence: Evidence) -> list[str]:
    suite, histories = evidence.record.suite, evidence.histories
    sizes = list(dict.fromkeys(history.member.size for history in histories))
    most = max(history.tokens for history in histories)
    return [
        f"{_count(histories, 'GPT-NeoX language model')} of {_count(sizes, 'size')} "
        f"({', '.join(sizes)}), "
        f"grown side by side on up to {most:,} tokens of the {_and(evidence.corpora)} corpus "
        f"by the recipe “{suite.recipe}”.",
        "They share one vocabulary and, on each corpus, one order of the data; what differs "
        "between them is in the table of members and nowhere else.",
        f"Each was saved at {_range(len(history.checkpoints) for history in histories)} steps and "
        "measured at every one, so growth can be read against the tokens seen.",
        "The digests by which all this can be checked are on this page.",
    ]


def _summary(evidence: Evidence, show: Show) -> Html:
    note = (
        "At the last checkpoint. In brackets 95 % intervals over the items; the best value of "
        "each measure in bold. Held-out text is the same for every member."
    )
    return section("summary", "Summary", show(tables.summary(evidence)), _note(note))


def _figures(evidence: Evidence) -> Html:
    guide = (
        "The horizontal axis counts the tokens a member has seen, on a log scale; the untrained "
        "model, step 0, stands left of the break. One colour is one size, the darker the larger. "
        "Solid lines are the standard corpus, dashed lines the deduplicated one, dotted lines "
        "members that differ in rows per update, learning rate or seed."
    )
    drawn = [
        figure(name, drawing.caption, table=drawing.table)
        for name, drawing in _drawings(evidence).items()
    ]
    return section("figures", "Figures", paragraph(guide), *drawn)


def _members(evidence: Evidence, show: Show) -> Html:
    note = (
        "FLOPs are counted in closed form for the whole run, forward and backward, attention as "
        "causal."
    )
    return section("members", "Members", show(tables.members(evidence)), _note(note))


def _data(evidence: Evidence, show: Show) -> Html:
    return section(
        "data",
        "Data",
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
        *_planted(evidence, show),
    )


def _planted(evidence: Evidence, show: Show) -> list[Html]:
    summary = origins.planted(evidence)
    heading = element("h3", text("Planted documents"))
    if not summary.rows:
        return [heading, paragraph("None: all of the text is as it was found."), show(summary)]
    explanation = paragraph(
        "Invented text mixed into the rest, whose truth is declared, so that what the members",
        "learn of it can be measured.",
    )
    every = element("p", text("Each plant: "), link("tables/planted.json", "planted.json"))
    return [heading, explanation, show(summary), every]


def _control(evidence: Evidence, show: Show) -> Html:
    parts = [
        paragraph(
            "Every run logs a digest that rolls over each row it is given. Two members that hold",
            "the same digest after the same number of tokens were given the same rows in the same",
            "order up to there, however many rows they took at a time.",
        )
    ]
    for corpus in evidence.corpora:
        histories = evidence.grown_on(corpus)
        comparisons = compare(histories)
        verdict = _verdict(comparisons)
        parts += [
            element("h3", text(f"The {corpus} corpus")),
            paragraph(statement(corpus, histories, comparisons), class_=f"proof {verdict}"),
            show(tables.control(corpus, comparisons, histories)),
        ]
        if verdict == "equal":
            last = next(iter(comparisons[-1].digests.values()))
            code = element("code", text(last), class_="long")
            said = text(f"After {comparisons[-1].tokens:,} tokens, in full: ")
            parts.append(element("p", said, code))
    return section("proof-of-control", "Proof of control", *parts)


def _verdict(comparisons: Sequence[Comparison]) -> str:
    """The style of a statement: equal, different, or plain where nothing is compared."""
    if not comparisons or len(comparisons[0].digests) == 1:
        return ""
    return "equal" if all(one.is_equal for one in comparisons) else "different"


def _lineage(evidence: Evidence, show: Show) -> Html:
    chains = [
        element(
            "details",
            element("summary", text(_chain_summary(history))),
            show(tables.checkpoints([history], f"checkpoints-{history.member.name}")),
        )
        for history in evidence.histories
    ]
    return section(
        "lineage",
        "Lineage",
        paragraph(
            "A digest names the content of an artifact: its settings, the digests of what it was",
            "made from, and of what it holds. The first digits are shown; hover for all, or take",
            "the file.",
        ),
        show(origins.lineage(evidence)),
        element("h3", text("Chains of checkpoints")),
        paragraph("Each checkpoint names the one before it as its parent; the chain is unbroken."),
        *chains,
    )


def _chain_summary(history: History) -> str:
    num_full = sum(link.full_state for link in history.checkpoints)
    last = history.checkpoints[-1]
    return (
        f"{history.member.name}: {len(history.checkpoints)} checkpoints to step {last.step:,}, "
        f"{num_full} with full training state"
    )


def _licences(evidence: Evidence, show: Show) -> Html:
    listed = origins.licences(evidence)
    if listed.rows:
        words = "The text is real and belongs to others; these are its parts and their terms."
    else:
        words = "The text is the user's own; no pinned component is part of it."
    return section("licences", "Licences", paragraph(words), show(listed))


def _time(evidence: Evidence, show: Show) -> Html:
    total = sum(stage.seconds for stage in evidence.record.stages if stage.kind != "report")
    return section(
        "time-and-machine",
        "Time and machine",
        paragraph(
            f"{total:,.0f} seconds of work, each stage counted when it was made; members are",
            "trained side by side, so the whole takes less.",
        ),
        show(origins.timing(evidence)),
        element("h3", text("Machine and versions")),
        show(origins.machine(evidence)),
    )


def _reproduce(evidence: Evidence) -> Html:
    commands = "ontogeny run suite.toml --out again\nontogeny report again\n"
    return section(
        "reproduce",
        "Reproduce",
        element(
            "p",
            text("The suite with every setting spelled out is "),
            link("suite.toml", "suite.toml"),
            text(" beside this page. In its folder:"),
        ),
        element("pre", element("code", text(commands))),
        paragraph(*_promise(evidence)),
    )


def _promise(evidence: Evidence) -> list[str]:
    path = evidence.record.suite.text.path
    sentences = [
        "With equal versions, threads and instruction set the digests under Lineage come out",
        "equal, stage by stage; on another machine the text, tokens and orders still do.",
    ]
    if path is not None:
        sentences.append(f"The text itself, {path}, is read from where the first suite had it.")
    return sentences


def _note(words: str) -> Html:
    return paragraph(words, class_="note")


def _count(things: Sequence[Any], noun: str) -> str:
    return f"{len(things)} {noun}" + "s" * (len(things) != 1)


def _and(names: Sequence[str]) -> str:
    return " and the ".join(names)


def _range(numbers: Any) -> str:
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
