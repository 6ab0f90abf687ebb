"""The scores of a suite, a run or published models on disk: one artifact a checkpoint.

A store is a folder `member=M/step=N/` of artifacts, each with the score rows and the item rows of
all that was asked of one checkpoint. What was asked is told by its cells: a task with a number of
worked examples, under a key of everything that decides the answers. Cells are added to a checkpoint
by writing its artifact anew, and the cell of a task that is asked again in another way (other
weights, data or arithmetic) replaces the one before: a checkpoint never has two answers to a task.
In a suite's record the scores of a member are a stage with a digest, though no single artifact.
Not here: how anything is measured (`evaluation`) or drawn (`report`).
"""

from __future__ import annotations

import fcntl
import glob
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from ontogeny.artifact import Artifact, Input, open_artifact, read_manifest, writing
from ontogeny.digest import digest_json
from ontogeny.errors import EvaluationError
from ontogeny.record import StageRecord
from ontogeny.results import (
    ITEMS,
    SCORES,
    Item,
    Score,
    read_items,
    read_rows,
    read_scores,
    write_rows,
)
from ontogeny.workers import held

KIND = "scores"  # of the artifact of a checkpoint, and of a stage: those of a member
FOLDER = "scores"  # of a suite, for its store
PLACE = re.compile(r"member=(?P<member>[^/]+)/step=(?P<step>\d+)")
LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Place:
    """Which checkpoint was asked: a member after `step` updates, which consumed `tokens`.

    `tokens` is 0 where that is not known, as of weights that came without a word about it.
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


@dataclass(frozen=True, slots=True)
class ScoreStore:
    """The scores below a folder, which need not be there yet."""

    folder: Path

    def places(self) -> list[tuple[str, int]]:
        """Every member and step that was asked anything, sorted."""
        paths = (path.relative_to(self.folder) for path in self.folder.glob("member=*/step=*"))
        found = (PLACE.fullmatch(path.as_posix()) for path in paths)
        return sorted((match["member"], int(match["step"])) for match in found if match)

    def members(self) -> list[str]:
        return sorted({member for member, _ in self.places()})

    def path(self, member: str, step: int) -> Path:
        """Where the artifact of a checkpoint is, or will be."""
        return self.of_member(member) / f"step={step}"

    def artifact(self, member: str, step: int) -> Artifact:
        """The artifact of a checkpoint that was asked something."""
        return open_artifact(self.path(member, step), KIND)

    def place(self, member: str, step: int) -> Place:
        return Place(**read_manifest(self.path(member, step)).config["place"])

    def cells(self, member: str, step: int) -> list[Cell]:
        """What a checkpoint was asked; nothing where it is not in the store."""
        path = self.path(member, step)
        if not path.exists():
            return []
        return [Cell(**values) for values in read_manifest(path).config["cells"]]

    def scores(self, member: str | None = None, step: int | None = None) -> list[Score]:
        """Every score row, by member and step, or those of one member, or of one step."""
        places = (
            one for one in self.places() if member in (None, one[0]) and step in (None, one[1])
        )
        return [row for place in places for row in read_scores(self.path(*place) / SCORES)]

    def items(self, member: str, step: int) -> list[Item]:
        """The item rows of a checkpoint; none where its scores were published without."""
        return read_items(self.path(member, step) / ITEMS)

    def of_member(self, member: str) -> Path:
        """The folder of all that is known of a member."""
        return self.folder / f"member={member}"

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
        bits: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Add cells and their rows to a checkpoint, or put them in place of those before.

        `inputs` is what the checkpoint itself is, `bits` what decides those of the new answers; it
        is kept for each cell. Under `locked` only, by one process.
        """
        path = self.path(place.member, place.step)
        there = {_asked(cell): cell for cell in self.cells(place.member, place.step)}
        new = set(map(_asked, cells))
        kept = {asked: cell for asked, cell in there.items() if asked not in new}
        old_bits = read_manifest(path).provenance.get("bits", []) if kept else []
        how = {key: group["bits"] for group in old_bits for key in group["cells"]}
        how = {cell.key: how.get(cell.key) for cell in kept.values()}
        how |= {cell.key: bits for cell in cells}
        old_scores, old_items = read_rows(path) if kept else ([], [])
        all_scores = [*(row for row in old_scores if _asked(row) in kept), *scores]
        all_items = [*(row for row in old_items if _asked(row) in kept), *items]
        all_cells = sorted([*kept.values(), *cells], key=_asked)
        config = {"place": asdict(place), "cells": [asdict(cell) for cell in all_cells]}
        aside = path.with_name(f".{path.name}.new")
        shutil.rmtree(aside, ignore_errors=True)
        with writing(
            aside, KIND, config=config, inputs=inputs, provenance={"bits": _grouped(how)}
        ) as draft:
            write_rows(draft.folder, sorted(all_scores, key=_asked), sorted(all_items, key=_asked))
            draft.facts.update(num_scores=len(all_scores), num_items=len(all_items))
        _put(aside, path)
        return self.artifact(place.member, place.step)

    @contextmanager
    def locked(self, member: str | None = None, *, patiently: bool = False) -> Iterator[None]:
        """Hold the store, or a member's part of it, to add cells.

        Raises EvaluationError while another process holds any of it, unless it is to wait
        `patiently`. What a killed process left half exchanged is mended first.
        """
        with ExitStack() as stack:
            whole = fcntl.LOCK_EX if member is None else fcntl.LOCK_SH
            stack.enter_context(_held(self.folder, whole, patiently))
            if member is not None:
                stack.enter_context(_held(self.of_member(member), fcntl.LOCK_EX, patiently))
            of_member = "*" if member is None else glob.escape(member)
            for old in self.folder.glob(f"member={of_member}/.step=*.old"):
                _mend(old)
            yield


def find_scores(path: Path) -> ScoreStore:
    """The scores of a suite or of a run outside of one, or those in a folder itself.

    Raises EvaluationError where there are none.
    """
    beside = path.absolute().with_name(f"{path.absolute().name}-{FOLDER}")  # of a run
    for folder in (path / FOLDER, path, beside):
        if (store := ScoreStore(folder)).places():
            return store
    home, fix = path.absolute().parent.parent, None
    if path.is_dir():
        of_suite = ScoreStore(home / FOLDER).places()
        fix = f"ontogeny scores {home} --member M" if of_suite else f"ontogeny evaluate {path}"
    raise EvaluationError(
        "no scores" if path.is_dir() else "no such folder",
        where=path,
        expected="a suite or run that was evaluated, or a folder of member=M/step=N",
        fix=fix,
    )


def stage_digest(home: Path, stage: StageRecord) -> str:
    """The identity of what lies where a suite's stage is. Raises DataError if it is damaged."""
    path = home / stage.path
    if stage.kind == KIND and path.is_dir():
        return ScoreStore(path.parent).digest(path.name.removeprefix("member="))
    return read_manifest(path).digest


def _held(folder: Path, how: int, patiently: bool) -> AbstractContextManager[None]:
    folder.mkdir(parents=True, exist_ok=True)
    busy = EvaluationError(
        "another process is adding scores",
        where=folder,
        fix="wait for it, stop it, or keep these elsewhere with --out",
    )
    return held(folder / LOCK, None if patiently else busy, how)


def _asked(row: Cell | Score | Item) -> tuple[str, int]:
    """The task and shots of a cell, or of the one a row is of, be it of a part: `held-out/web`."""
    return row.task.partition("/")[0], row.shots


def _grouped(how: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What decided the bits of cells, each such thing once with the keys of its cells."""
    groups: dict[str, dict[str, Any]] = {}
    for key, bits in how.items():
        if bits is not None:
            group = groups.setdefault(digest_json(bits), {"bits": bits, "cells": []})
            group["cells"].append(key)
    return list(groups.values())


def _put(aside: Path, path: Path) -> None:
    """Exchange an artifact for a newer one; a kill in between loses neither (`_mend`)."""
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    aside.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _mend(old: Path) -> None:
    """Finish what `_put` was killed over."""
    path = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
    if path.exists():
        shutil.rmtree(old)
    else:
        old.rename(path)
