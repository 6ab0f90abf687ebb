"""Tables of where things come from: the data, the planted truth, the licences, the stages.

In: the artifacts of a suite. Out: tables as data, and the suite as a TOML file that makes it again.
Not here: what was measured on the members (`tables.py`).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ontogeny.artifact import Artifact
from ontogeny.digest import SHORT
from ontogeny.errors import DataError
from ontogeny.report.evidence import Evidence, fact
from ontogeny.report.tables import Column, Table
from ontogeny.suite import Suite

DUPLICATE = "duplicate"  # the reason for which a document is in the standard corpus only
STORE_PREFIX = "stores/"
SAID_ELSEWHERE = frozenset({"created", "package_source"})  # in the page's tables of their own
PLANT_COUNTS = ("copies", "mentions", "share")  # how much of a plant there is, by kind


def data(evidence: Evidence) -> Table:
    """What each corpus is made of, source by source, and its total."""
    columns = [
        Column("corpus"),
        Column("source"),
        Column("documents", "count"),
        Column("bytes", "count"),
        Column("tokens", "count"),
        Column("share of tokens", "percent"),
        Column("bytes per token", "number", ".2f"),
    ]
    rows: list[list[Any]] = []
    for name, artifact in evidence.artifacts.items():
        if name.startswith(STORE_PREFIX):
            rows += _store_rows(name.removeprefix(STORE_PREFIX), artifact)
    return Table("data", columns, rows)


def removed(evidence: Evidence) -> Table:
    """What is in the standard corpus but not in its twin, and what is in neither, and why."""
    columns = [
        Column("reason"),
        Column("source"),
        Column("documents", "count"),
        Column("bytes", "count"),
        Column("share of the standard bytes", "percent"),
    ]
    text = evidence.artifacts["text"]
    rows: list[list[Any]] = []
    for reason in fact(text, "removed"):
        for source in [*fact(text, "removed", reason, "sources"), "all"]:
            place = () if source == "all" else ("sources", source)
            num_bytes = fact(text, "removed", reason, *place, "bytes")
            share = None
            if reason == DUPLICATE:
                share = num_bytes / fact(text, "corpora", "standard", *place, "bytes")
            num_documents = fact(text, "removed", reason, *place, "documents")
            rows.append([reason, source, num_documents, num_bytes, share])
    return Table("removed", columns, rows)


def planted(evidence: Evidence) -> Table:
    """The planted documents by kind and by how often each plant was planted."""
    columns = [
        Column("kind"),
        Column("planted as"),
        Column("plants", "count"),
        Column("documents, standard", "count"),
        Column("documents, deduped", "count"),
    ]
    groups: defaultdict[tuple[str, str, float], list[Mapping[str, int]]] = defaultdict(list)
    for truth in truths(evidence):
        name = next((name for name in PLANT_COUNTS if name in truth), "")
        groups[str(truth["kind"]), name, float(truth.get(name, 0))].append(truth["documents"])
    rows = [
        (
            kind,
            _amount(name, count),
            len(group),
            *(sum(counts[corpus] for counts in group) for corpus in ("standard", "deduped")),
        )
        for (kind, name, count), group in sorted(groups.items(), key=lambda item: item[0])
    ]
    return Table("planted", columns, rows)


def truths(evidence: Evidence) -> list[dict[str, Any]]:
    """The declared truth about every plant, as the text artifact records it."""
    text = evidence.artifacts["text"]
    found = fact(text, "planted")
    if not all(
        isinstance(truth, dict) and {"kind", "documents"} <= truth.keys() for truth in found
    ):
        raise DataError("a planted truth lacks its kind or documents", where=text.path)
    return list(found)


def licences(evidence: Evidence) -> Table:
    """Licence, attribution and exact package of every part of the text."""
    names = ("component", "package", "version", "licence", "attribution")
    text = evidence.artifacts["text"]
    try:
        rows = [
            [*(part[name] for name in names), part["sha256"]] for part in fact(text, "components")
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"a component lacks {error}", where=text.path) from error
    columns = [*(Column(name) for name in names), Column("sha256", "digest")]
    return Table("licences", columns, rows)


def lineage(evidence: Evidence) -> Table:
    """Every stage: its kind, its digest, and the stages it was made from, by role."""
    columns = [Column("stage"), Column("kind"), Column("digest", "digest"), Column("made from")]
    names = {artifact.digest: name for name, artifact in evidence.artifacts.items()}
    for history in evidence.histories:
        last = history.checkpoints[-1]
        names[last.digest] = f"step {last.step} of runs/{history.member.name}"
    rows = [
        (name, artifact.kind, artifact.digest, _inputs(artifact.inputs, names))
        for name, artifact in evidence.artifacts.items()
    ]
    return Table("lineage", columns, rows)


def timing(evidence: Evidence) -> Table:
    """When each stage was made and how long it took."""
    columns = [
        Column("stage"),
        Column("seconds", "number", ",.1f"),
        Column("made at"),
        Column("package source", "digest"),
    ]
    rows = []
    for stage in evidence.record.stages:
        if stage.name in evidence.artifacts:
            provenance = evidence.artifacts[stage.name].provenance
            made = provenance.get("created"), provenance.get("package_source")
            rows.append((stage.name, stage.seconds, *made))
    return Table("timing", columns, rows)


def machine(evidence: Evidence) -> Table:
    """What the stages were made on, and what decided the bits of the arithmetic of the runs.

    A value that is not every stage's, or not every run's, names whose it is.
    """
    made_on = {name: artifact.provenance for name, artifact in evidence.artifacts.items()}
    computed_with = {
        f"runs/{history.member.name}": history.checkpoints[-1].bits
        for history in evidence.histories
    }
    rows = [*_shared_values(made_on, "all stages"), *_shared_values(computed_with, "all runs")]
    return Table("machine", [Column("what"), Column("value"), Column("of")], rows)


def _shared_values(
    holders: Mapping[str, Mapping[str, Any]], everyone: str
) -> list[tuple[str, str, str]]:
    """Each value once, with the names of those that hold it."""
    values: dict[tuple[str, str], list[str]] = {}
    for name, held in holders.items():
        for key, value in held.items():
            if key not in SAID_ELSEWHERE:
                plain = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
                values.setdefault((key, plain), []).append(name)
    return [
        (key, value, everyone if len(names) == len(holders) else ", ".join(names))
        for (key, value), names in sorted(values.items())
    ]


def suite_toml(suite: Suite) -> str:
    """The suite, every default spelled out, as the TOML that `ontogeny run` reads."""
    lines: list[str] = []
    _write_group(lines, "", suite.resolved())
    return "\n".join(lines).strip() + "\n"


def _store_rows(corpus: str, store: Artifact) -> list[list[Any]]:
    num_tokens = fact(store, "num_tokens")
    rows: list[list[Any]] = []
    try:
        counts = [
            (source["name"], source["documents"], source["bytes"], source["tokens"])
            for source in fact(store, "sources")
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"a source of the store lacks {error}", where=store.path) from error
    totals = [sum(row[place] for row in counts) for place in (1, 2, 3)]
    if totals[2] != num_tokens:
        raise DataError(
            "the sources' tokens do not add up", where=store.path, expected=num_tokens, found=totals
        )
    for name, documents, num_bytes, tokens in [*counts, ("all", *totals)]:
        row = [corpus, name, documents, num_bytes, tokens]
        rows.append([*row, tokens / num_tokens, num_bytes / tokens if tokens else None])
    return rows


def _amount(name: str, count: float) -> str:
    match name:
        case "share":
            return f"{count:.0%} masculine"
        case "":
            return "once"
        case _:
            return f"{name}: {count:g}"


def _inputs(inputs: Mapping[str, str], names: Mapping[str, str]) -> str:
    parts = []
    for role, digest in sorted(inputs.items()):
        name = names.get(digest, digest[:SHORT])
        parts.append(name if name == role else f"{role}: {name}")
    return ", ".join(parts)


def _write_group(lines: list[str], name: str, group: Mapping[str, Any]) -> None:
    """Write plain values first: in TOML they would belong to a table that came before them."""
    tables = {key: value for key, value in group.items() if isinstance(value, dict)}
    rows = {key: value for key, value in group.items() if _is_rows(value)}
    for key, value in group.items():
        if value is not None and key not in tables and key not in rows:
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    for key, table in tables.items():
        inner = f"{name}{_toml_key(key)}"
        has_values = any(not isinstance(value, dict) for value in table.values())
        lines += ["", f"[{inner}]"] if has_values else []
        _write_group(lines, f"{inner}.", table)
    for key, tables_in_row in rows.items():
        for row in tables_in_row:
            lines += ["", f"[[{name}{_toml_key(key)}]]"]
            _write_group(lines, f"{name}{_toml_key(key)}.", row)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _toml_value(value: Any) -> str:
    # A JSON value other than an object is TOML too, apart from null, which is left out above.
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
