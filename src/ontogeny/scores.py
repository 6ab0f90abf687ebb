"""The scores of a suite, a run or published models on disk: one artifact a checkpoint.

A store is a folder `member=M/step=N/` of artifacts, each with the score rows and the item rows of
all that was asked of one checkpoint. What was asked is told by its cells: a task with a number of
worked examples, under a key of everything that decides the answers. Cells are added to a checkpoint
by writing its artifact anew, and the cell of a task that is asked again in another way (other
weights, data or arithmetic) replaces the one before: a checkpoint never has two answers to a task.
Not here: how anything is measured (`evaluation`) or drawn (`report`).
"""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from ontogeny.artifact import Artifact, Input, open_artifact, read_manifest, writing
from ontogeny.digest import digest_json
from ontogeny.errors import EvaluationError
from ontogeny.results import (
    ITEMS,
    SCORES,
    Item,
    Score,
    read_items,
    read_scores,
    write_items,
    write_scores,
)

KIND = "scores"
PLACE = re.compile(r"member=(?P<member>[^/]+)/step=(?P<step>\d+)")


@dataclass(frozen=True, slots=True)
class Place:
    """Which checkpoint was asked: a member after `step` updates, which consumed `tokens`.

    `size` names its width and depth and `num_parameters` counts it without embeddings; members that
    differ only in `init_seed` are seeds of one another.
    """

    member: str
    step: int
    tokens: int
    size: str
    num_parameters: int
    corpus: str = "standard"
    init_seed: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """A task as it was asked of a checkpoint, and the digests of what decides the answers.

    `spec` is of every request, right answer and measure, `data` of the files behind them, `weights`
    and `vocabulary` of the model's; `harness` names what made requests and measures, with its
    version, and `dtype` the arithmetic. Empty where a source of published scores does not say it.
    """

    task: str
    shots: int
    weights: str
    vocabulary: str
    spec: str
    data: str
    dtype: str
    harness: str

    @property
    def key(self) -> str:
        return digest_json(astuple(self))

    def holds(self, row: Score | Item) -> bool:
        """Whether a row is of this cell, or of a part of it, such as one source of the held-out."""
        return row.shots == self.shots and row.task.partition("/")[0] == self.task


@dataclass(frozen=True, slots=True)
class ScoreStore:
    """The scores below a folder, which need not be there yet."""

    folder: Path

    def places(self) -> list[tuple[str, int]]:
        """Every member and step that was asked anything, sorted."""
        found = (PLACE.search(path.as_posix()) for path in self.folder.glob("member=*/step=*"))
        return sorted((match["member"], int(match["step"])) for match in found if match)

    def members(self) -> list[str]:
        return sorted({member for member, _ in self.places()})

    def path(self, member: str, step: int) -> Path:
        """Where the artifact of a checkpoint is, or will be."""
        return self.folder / f"member={member}" / f"step={step}"

    def artifact(self, member: str, step: int) -> Artifact:
        """The artifact of a checkpoint that was asked something."""
        return open_artifact(self.path(member, step), KIND)

    def place(self, member: str, step: int) -> Place:
        return Place(**read_manifest(self.path(member, step)).config["place"])

    def cells(self, member: str, step: int) -> list[Cell]:
        """What a checkpoint was asked; nothing where it is not in the store."""
        path = self.path(member, step)
        _mend(path)
        if not path.exists():
            return []
        return [Cell(**values) for values in read_manifest(path).config["cells"]]

    def scores(self) -> list[Score]:
        """Every score row, by member and step."""
        return [row for place in self.places() for row in read_scores(self.path(*place) / SCORES)]

    def items(self, member: str, step: int) -> list[Item]:
        """The item rows of a checkpoint; none where its scores were published without."""
        return read_items(self.path(member, step) / ITEMS)

    def digest(self, member: str) -> str:
        """The identity of all that is known of a member."""
        steps = [step for name, step in self.places() if name == member]
        return digest_json({str(step): self.artifact(member, step).digest for step in steps})

    def add(
        self,
        place: Place,
        cells: Sequence[Cell],
        scores: Sequence[Score],
        items: Sequence[Item],
        inputs: Mapping[str, Input],
    ) -> Artifact:
        """Add cells and their rows to a checkpoint, or put them in place of those before.

        `inputs` is what the checkpoint itself is. Under `locked` only, by one process.
        """
        path = self.path(place.member, place.step)
        asked = {(cell.task, cell.shots) for cell in cells}
        kept = [
            cell
            for cell in self.cells(place.member, place.step)
            if (cell.task, cell.shots) not in asked
        ]
        old_scores = read_scores(path / SCORES) if kept else []
        old_items = read_items(path / ITEMS) if kept else []
        all_scores, all_items, all_cells = [], [], []
        for cell in sorted([*kept, *cells], key=lambda cell: (cell.task, cell.shots)):
            is_new = (cell.task, cell.shots) in asked
            all_cells.append(asdict(cell))
            all_scores += [row for row in (scores if is_new else old_scores) if cell.holds(row)]
            all_items += [row for row in (items if is_new else old_items) if cell.holds(row)]
        config = {"place": asdict(place), "cells": all_cells}
        aside = path.with_name(f".{path.name}.new")
        shutil.rmtree(aside, ignore_errors=True)
        with writing(aside, KIND, config=config, inputs=inputs) as draft:
            write_scores(draft.folder / SCORES, all_scores)
            write_items(draft.folder / ITEMS, all_items)
            draft.facts.update(num_scores=len(all_scores), num_items=len(all_items))
        _put(aside, path)
        return self.artifact(place.member, place.step)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store to add cells. Raises EvaluationError while another process does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise EvaluationError(
                    "another process is adding scores",
                    where=self.folder,
                    fix="wait for it, stop it, or keep these elsewhere with --out",
                ) from error
            yield


def _put(aside: Path, path: Path) -> None:
    """Exchange an artifact for a newer one; a kill in between loses neither (`_mend`)."""
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    aside.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _mend(path: Path) -> None:
    """Put back what `_put` was killed over."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
