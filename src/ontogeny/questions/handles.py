"""A grown suite in Python: `ontogeny.open("demo").member("2m").checkpoint(48).load()`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd

from ontogeny.checkpoints.store import load_checkpoint
from ontogeny.model.neox import NeoX
from ontogeny.questions.comparisons import compare, emergences, seed_bands
from ontogeny.questions.materials import open_materials
from ontogeny.questions.scores import Scores, Selection, open_scores
from ontogeny.questions.seen import Memory
from ontogeny.questions.sources import open_source
from ontogeny.record import Record, read_record
from ontogeny.results import UpdateMetrics, read_metrics
from ontogeny.steps import METRICS, list_steps, step_folder
from ontogeny.suite import RunSettings
from ontogeny.tokens.store import DocumentStore, open_store
from ontogeny.tokens.vocabulary import TOKENIZER, Vocabulary, load_vocabulary
from ontogeny.training.replay import replay
from ontogeny.training.run import open_run


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """The state of a member after `step` updates."""

    run: Path
    step: int

    @property
    def path(self) -> Path:
        """A folder that `transformers` loads too."""
        return step_folder(self.run, self.step)

    def load(self) -> NeoX:
        """The model; every tensor is checked against its recorded digest."""
        return load_checkpoint(self.run, self.step)


@dataclass(frozen=True, slots=True)
class OpenMember:
    """One model of a suite, through its growth."""

    suite: OpenSuite
    name: str

    @property
    def run(self) -> Path:
        return self.suite.path(f"runs/{self.name}")

    @property
    def settings(self) -> RunSettings:
        return open_run(self.run).settings

    @property
    def steps(self) -> list[int]:
        """The steps there are checkpoints of."""
        return list_steps(self.run)

    def checkpoint(self, step: int) -> OpenCheckpoint:
        return OpenCheckpoint(self.run, step)

    def vocabulary(self) -> Vocabulary:
        return load_vocabulary(self.run / TOKENIZER)

    def metrics(self) -> Iterator[UpdateMetrics]:
        """What was logged of every update."""
        return read_metrics(self.run / METRICS)

    def scores(self, **only: Unpack[Selection]) -> pd.DataFrame:
        """What was measured of it; chosen as of a suite."""
        own: Selection = {**only, "member": self.name}
        return self.suite.scores(**own)

    def batch(self, update: int) -> np.ndarray:
        """The rows that took the member from step `update` to the next: int64 [rows, T + 1]."""
        return open_materials(self.run).batches(update)

    def replay(self, step: int) -> NeoX:
        """The model after `step` updates, saved or not; all that is passed is compared."""
        materials = open_materials(self.run)
        return replay(materials.run, materials.batches, step).model

    def seen(self, text: str, before: int | None = None, limit: int = 1000) -> dict[str, Any]:
        """How often and where a text was seen before a step; an index is built at first."""
        memory = Memory(open_source(self.run), lambda folder: lambda done, total: None)
        return memory.text(text, before, 0, limit)


@dataclass(frozen=True, slots=True)
class OpenSuite:
    """A suite that has been grown in the folder `home`."""

    home: Path
    record: Record

    @property
    def members(self) -> list[str]:
        return [member.name for member in self.record.suite.table()]

    def member(self, name: str) -> OpenMember:
        """A member by its name. Raises ConfigError naming the nearest if there is none."""
        self.record.stage(f"runs/{name}")
        return OpenMember(self, name)

    @property
    def measured(self) -> Scores:
        """Its scores as they are now, to be asked for; see `ontogeny.questions.scores`."""
        return open_scores(self.home)

    def scores(self, **only: Unpack[Selection]) -> pd.DataFrame:
        """Score rows; names or patterns of `member`, `task`, `metric` choose, `steps`, `shots`."""
        return self.measured.scores(**only)

    def items(self, **only: Unpack[Selection]) -> pd.DataFrame:
        """What every item gave, chosen likewise: a column for each metric."""
        return self.measured.items(**only)

    def sql(self, query: str) -> pd.DataFrame:
        """What a query makes of `scores`, `items`, `places` and `cells`."""
        return self.measured.sql(query)

    def compare(self, a: str, b: str, **only: Unpack[Selection]) -> pd.DataFrame:
        """How two members, or `MEMBER@STEP`, answered the same items, and whether it differs."""
        return compare(self.measured, a, b, **only)

    def emergence(self, **only: Unpack[Selection]) -> pd.DataFrame:
        """From which step on scores stay above chance and the commonest answer."""
        return emergences(self.measured, **only)

    def seeds(self, **only: Unpack[Selection]) -> pd.DataFrame:
        """How members scatter that differ in their seed alone."""
        return seed_bands(self.measured, **only)

    def store(self, corpus: str) -> DocumentStore:
        """The tokens of `standard`, `deduped` or `held-out`."""
        return open_store(self.path(f"stores/{corpus}"))

    def path(self, stage: str) -> Path:
        """The folder of a stage's artifact."""
        return self.home / self.record.stage(stage).path


def open_suite(home: str | Path) -> OpenSuite:
    """Open the folder a suite was grown in. Raises ConfigError if it is not one."""
    return OpenSuite(Path(home), read_record(Path(home)))
