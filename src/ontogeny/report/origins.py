"""Tables of where things come from: the data, the planted truth, the licences, the stages.

In: the artifacts of a suite. Out: tables as data, and the suite as a TOML file that makes it again.
Not here: what was measured on the members (`tables.py`).
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from ontogeny.artifact import Artifact
from ontogeny.digest import SHORT
from ontogeny.errors import DataError
from ontogeny.report.evidence import Evidence
from ontogeny.report.tables import Column, Table, counts, digests, plain
from ontogeny.suite import Suite

DUPLICATE = "duplicate"  # the reason for which a document is in the standard corpus only
# Of a stage: the table of lineage has the first two, the store of scores the last.
SAID_ELSEWHERE = frozenset({"created", "inputs_at", "bits"})
PLANTED_AS = {"copies": "copies: {:g}", "mentions": "mentions: {:g}", "share": "{:.0%} masculine"}


def data(evidence: Evidence) -> Table:
    """What each corpus is made of, source by source, and its total."""
    columns = [
        *plain("corpus", "source"),
        *counts("documents", "bytes", "tokens"),
        Column("share of tokens", ".1%"),
        Column("bytes per token", ".2f"),
    ]
    rows: list[list[Any]] = []
    for name, artifact in evidence.artifacts.items():
        if artifact.kind == "store":
            with _facts(artifact) as facts:
                sources = [
                    [one["name"], one["documents"], one["bytes"], one["tokens"]]
                    for one in facts["sources"]
                ]
                totals = [sum(row[place] for row in sources) for place in (1, 2, 3)]
                expected = facts["num_tokens"]
            if totals[2] != expected:
                problem = "the sources' tokens do not add up"
                raise DataError(problem, where=artifact.path, expected=expected, found=totals[2])
            for source, documents, size, tokens in [*sources, ["all", *totals]]:
                row = [name.removeprefix("stores/"), source, documents, size, tokens]
                rows.append([*row, tokens / totals[2], size / tokens if tokens else None])
    return Table("data", columns, rows)


def removed(evidence: Evidence) -> Table:
    """What is in the standard corpus but not in its twin, and what is in neither, and why."""
    columns = [
        *plain("reason", "source"),
        *counts("documents", "bytes"),
        Column("share of the standard bytes", ".1%"),
    ]
    rows: list[list[Any]] = []
    with _facts(evidence.artifacts["text"]) as facts:
        standard = facts["corpora"]["standard"]
        for reason, gone in facts["removed"].items():
            for source, part in [*gone["sources"].items(), ("all", gone)]:
                whole = standard if source == "all" else standard["sources"].get(source)
                share = part["bytes"] / whole["bytes"] if reason == DUPLICATE else None
                rows.append([reason, source, part["documents"], part["bytes"], share])
    return Table("removed", columns, rows)


def planted(evidence: Evidence) -> Table:
    """The planted documents by kind and by how often each plant was planted."""
    corpora = "standard", "deduped"
    columns = [
        *plain("kind", "planted as"),
        *counts("plants", *(f"documents, {corpus}" for corpus in corpora)),
    ]
    groups: defaultdict[tuple[str, str, float], list[Mapping[str, int]]] = defaultdict(list)
    with _facts(evidence.artifacts["text"]) as facts:
        for truth in facts["planted"]:
            amount = next((name for name in PLANTED_AS if name in truth), "copies")
            groups[truth["kind"], amount, truth[amount]].append(truth["documents"])
        rows = [
            (
                kind,
                PLANTED_AS[amount].format(count),
                len(group),
                *(sum(documents[corpus] for documents in group) for corpus in corpora),
            )
            for (kind, amount, count), group in sorted(groups.items(), key=lambda item: item[0])
        ]
    return Table("planted", columns, rows)


def licences(evidence: Evidence) -> Table:
    """Licence, attribution and exact package of every part of the text."""
    names = ("component", "package", "version", "licence", "attribution")
    with _facts(evidence.artifacts["text"]) as facts:
        rows = [[part[name] for name in (*names, "sha256")] for part in facts["components"]]
    return Table("licences", [*plain(*names), *digests("sha256")], rows)


def lineage(evidence: Evidence) -> Table:
    """Every stage: its digest, what it was made from, when, and in how many seconds."""
    columns = [
        *plain("stage"),
        *digests("digest"),
        *plain("made from", "made at"),
        Column("seconds", ",.1f"),
    ]
    names = {artifact.digest: name for name, artifact in evidence.artifacts.items()}
    for history in evidence.histories:
        last = f"step {history.run.steps[-1]} of runs/{history.member.name}"
        names[history.checkpoints[-1].digest] = last
    rows = []
    for stage in evidence.record.stages:
        if stage.name in evidence.artifacts:
            artifact = evidence.artifacts[stage.name]
            made_from = ", ".join(
                names.get(digest, f"{role}: {digest[:SHORT]}")
                for role, digest in sorted(artifact.inputs.items())
            )
            made_at = artifact.provenance.get("created")
            rows.append((stage.name, stage.digest, made_from, made_at, stage.seconds))
    return Table("lineage", columns, rows)


def machine(evidence: Evidence) -> Table:
    """What the stages were made on, and what decided the bits of the arithmetic of the runs.

    A value that is not every stage's, or not every run's, names whose it is.
    """
    made_on = {name: artifact.provenance for name, artifact in evidence.artifacts.items()}
    computed_with = {
        f"runs/{history.member.name}": history.checkpoints[-1].provenance.get("bits", {})
        for history in evidence.histories
    }
    rows = [*_shared_values(made_on, "all stages"), *_shared_values(computed_with, "all runs")]
    return Table("machine", plain("what", "value", "of"), rows)


def suite_toml(suite: Suite) -> str:
    """The suite, every default spelled out, as the TOML that `ontogeny run` reads."""
    values = suite.resolved()
    members = values.pop("members")
    groups = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = _settings({key: value for key, value in values.items() if key not in groups})
    for name, group in groups.items():
        lines += ["", f"[{name}]", *_settings(group)]
    for row in members:
        lines += ["", "[[members]]", *_settings(row)]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _facts(artifact: Artifact) -> Iterator[Mapping[str, Any]]:
    """The facts an artifact states; DataError where the block finds that one is missing."""
    try:
        yield artifact.facts
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"the manifest lacks the fact {error}",
            where=artifact.path,
            fix=f"remove {artifact.path} and run the suite again",
        ) from error


def _shared_values(
    holders: Mapping[str, Mapping[str, Any]], everyone: str
) -> list[tuple[str, str, str]]:
    """Each value once, with the names of those that hold it."""
    values: dict[tuple[str, str], list[str]] = {}
    for name, held in holders.items():
        for key, value in held.items():
            if key not in SAID_ELSEWHERE:
                words = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
                values.setdefault((key, words), []).append(name)
    return [
        (key, value, everyone if len(names) == len(holders) else ", ".join(names))
        for (key, value), names in sorted(values.items())
    ]


def _settings(group: Mapping[str, Any]) -> list[str]:
    """A line of TOML a setting; a group in the group stands in its line."""
    return [
        f"{key if key.isascii() and key.isidentifier() else _toml(key)} = {_toml(value)}"
        for key, value in group.items()
        if value is not None
    ]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(_settings(value))} }}"
    # A JSON value other than an object is TOML too, apart from null, which is left out above.
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
