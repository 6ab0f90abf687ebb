"""A tiny corpus, its store and order, and runs on it: real artifacts in a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ontogeny.artifact import open_artifact
from ontogeny.checkpoints.store import list_states
from ontogeny.config import build
from ontogeny.order.batches import Batches
from ontogeny.order.plan import build_order, open_order
from ontogeny.results import UpdateMetrics
from ontogeny.stages.graph import Growth
from ontogeny.stages.lanes import Report
from ontogeny.suite import OrderSettings, RunSettings, VocabularySettings, load_suite
from ontogeny.text.documents import Document, json_line
from ontogeny.tokens.encode import encode
from ontogeny.tokens.store import open_store
from ontogeny.tokens.vocabulary import (
    TOKENIZER,
    TOKENIZER_CONFIG,
    build_vocabulary,
    open_vocabulary,
)
from ontogeny.training.ranks import ALONE
from ontogeny.training.run import Run, create_run
from ontogeny.training.update import State, resumed

CONTEXT = 16
WORDS = ("the", "a", "river", "stone", "old", "small", "house", "door", "sees", "finds", "keeps")
# A suite file, whose text is a folder beside it.
SUITE = """name = "tiny"
[text]
path = "text"
[vocabulary]
size = 300
[order]
context_length = 32
[training]
tokens = 1024
rows_per_update = 8
[[members]]
size = ["14m"]
"""
# A suite that is grown in seconds, by two members that differ in their seed.
SMALL_SUITE = """
name = "tiny"
[text]
path = "text"
held_out = 0.2
[vocabulary]
size = 300
[order]
context_length = 32
[training]
tokens = 4096
rows_per_update = 8
num_linear = 4
precision = "fp32"
[evaluation]
held_out_tokens = 512
last_word_items = 5
next_sentence_items = 0
agreement_items = 0
word_order_items = 5
[sizes.one]
num_layers = 1
hidden_size = 16
num_heads = 2
learning_rate = 1e-2
[[members]]
size = ["one"]
init_seed = [0, 1]
"""


def write_suite(folder: Path) -> Path:
    """The file of the small suite, with its text beside it."""
    (folder / "text").mkdir()
    for document in documents(40):
        (folder / "text" / f"{document.id}.txt").write_text(document.text)
    (folder / "suite.toml").write_text(SMALL_SUITE)
    return folder / "suite.toml"


class Told:
    """Remembers which stages of a suite were made and which were there."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.there: list[str] = []
        self.reports: list[Report] = []

    def began(self, stage: str) -> None:
        pass

    def ended(self, stage: str, seconds: float, was_there: bool) -> None:
        (self.there if was_there else self.made).append(stage)

    def reported(self, report: Report) -> None:
        self.reports.append(report)


def grow(base: Path, home: Path, changes: list[str] | None = None) -> Told:
    """Grow the suite whose file is in `base`, by two lanes."""
    told = Told()
    Growth(load_suite(base / "suite.toml", changes), home, base, None, 2, told).run()
    return told


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write documents as JSON Lines, compressed if the name ends in `.gz` or `.zst`."""
    path.parent.mkdir(exist_ok=True)
    with pa.output_stream(path) as file:
        for document in documents:
            file.write(json_line(document))


def documents(number: int = 60, seed: int = 0) -> list[Document]:
    """Sentences of a few words, in two sources."""
    random = np.random.RandomState(seed)
    texts = [
        " ".join(
            " ".join(WORDS[index] for index in random.randint(0, len(WORDS), 24)).capitalize() + "."
            for _ in range(4)
        )
        for _ in range(number)
    ]
    return [
        Document(f"d{place}", text, "even" if place % 2 == 0 else "odd")
        for place, text in enumerate(texts)
    ]


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the artifacts are that runs grow on."""

    home: Path

    @property
    def store(self) -> Path:
        return self.home / "store"

    @property
    def held_out(self) -> Path:
        return self.home / "held-out"

    @property
    def vocabulary(self) -> Path:
        return self.home / "vocabulary"

    def batches(self, rows_per_update: int) -> Batches:
        return Batches(open_order(self.home / "order", open_store(self.store)), rows_per_update)


def prepare(home: Path) -> Ground:
    """Make vocabulary, stores and order in `home`."""
    ground = Ground(home)
    texts = documents()
    build_vocabulary(
        VocabularySettings(size=270),
        (document.text for document in texts),
        ground.vocabulary,
        inputs={},
        base=home,
    )
    vocabulary = open_vocabulary(ground.vocabulary)
    encode(texts, vocabulary, ground.store, config={}, inputs={})
    encode(documents(8, seed=1), vocabulary, ground.held_out, config={}, inputs={})
    settings = OrderSettings(context_length=CONTEXT)
    store = open_store(ground.store)
    build_order(store, settings, recipe="sound", num_windows=400, folder=home / "order")
    return ground


def settings(**training: object) -> RunSettings:
    """A run of 24 updates of 4 rows, with a checkpoint at 9 steps and 5 full states."""
    values = {
        "tokens": 24 * 4 * CONTEXT,
        "rows_per_update": 4,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "num_linear": 6,
        "full_state_every": 2,
    }
    shape = {
        "num_layers": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "vocab_size": 384,
        "context_length": CONTEXT,
    }
    run = {"member": "tiny", "recipe": "sound", "shape": shape, "init": "small-wang"}
    return build(RunSettings, run | {"init_seed": 0, "training": values | training}, "test")


def begin(ground: Ground, folder: Path, run_settings: RunSettings) -> Run:
    """A run at `folder`, or the one that is there."""
    inputs = {
        "order": open_artifact(ground.home / "order", "order"),
        "vocabulary": open_artifact(ground.vocabulary, "vocabulary"),
    }
    files = {name: ground.vocabulary / name for name in (TOKENIZER, TOKENIZER_CONFIG)}
    return create_run(folder, run_settings, inputs, tokenizer_files=files)


def saved(run: Run, step: int) -> State:
    """The full state of a step as the run keeps it, once it is written."""
    while step not in list_states(run.path):
        time.sleep(0.001)
    return resumed(run, run.saved(step), ALONE)


class Enough(Exception):  # noqa: N818
    """Raised by a sink: the process dies here, as far as the run can tell."""


def stop_after(updates: int) -> Callable[[UpdateMetrics], None]:
    """A sink that stops a run once so many updates are done."""

    def sink(row: UpdateMetrics) -> None:
        if row.update + 1 == updates:
            raise Enough

    return sink
