"""Anybody's folder of checkpoints: which steps it holds, where each tensor lies, what is broken.

A step is a folder such as `step1000`, `stage1-step1000-tokens4B` or `checkpoint-1000`, in the
run's folder or its `steps/`, or a revision `step1000` of a hub's cache (`refs/`, `snapshots/`).
Nothing is known of the architecture: tensors are names, shapes and bytes. Files are read by byte
ranges and pickled ones are mapped, so that no checkpoint need fit into memory.
Not here: what the numbers say (`lint.py`).
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ontogeny.checkpoints.verify import Span, tensor_spans
from ontogeny.digest import canonical_json
from ontogeny.errors import CheckpointError, OntogenyError
from ontogeny.model import hf
from ontogeny.model.pickled import read_pickled
from ontogeny.ranges import FileRanges
from ontogeny.steps import STEPS

STEP_NAME = re.compile(r"(?:.*[-_])?(?:step|checkpoint)[-_]?(\d+)(?:[-_].*)?", re.IGNORECASE)
POINTER = b"version https://git-lfs"  # what lies in place of a large file that was not fetched
# Keys of `config.json` that say how the model was saved, not what it is.
INCIDENTAL = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}

FETCH = "fetch these steps again and compare with the source"

Severity = Literal["alarm", "expected", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about steps of a run: what, why most likely, what to do."""

    severity: Severity
    run: str
    steps: tuple[int, ...]
    problem: str
    cause: str
    fix: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor where it lies: a range of a file, or mapped memory."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    mapped: Tensor | None = None

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers in which training makes small steps."""
        return self.torch_dtype.is_floating_point and self.torch_dtype.itemsize > 1

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def read(self, first: int, count: int) -> Tensor:
        """A copy of `count` elements from `first` on, in the order of the file."""
        if self.mapped is not None:
            return self.mapped.reshape(-1)[first : first + count].clone()
        size = self.torch_dtype.itemsize
        data = FileRanges(self.file).read(self.begin + first * size, count * size)
        return torch.frombuffer(bytearray(data), dtype=self.torch_dtype)


@dataclass(slots=True)
class Checkpoint:
    """One step: its folder, its `config.json`, its tensors by name."""

    step: int
    folder: Path
    config: dict[str, Any] | None = None
    tensors: dict[str, Held] = field(default_factory=dict)


def find_steps(run: Path) -> dict[int, Path]:
    """The folder of every step of a run, ascending. Raises CheckpointError where there is none."""
    if not run.is_dir():
        raise CheckpointError("no such folder", where=run, expected="a folder of checkpoints")
    found: dict[int, Path] = {}
    for name, folder in _named_folders(run):
        match = STEP_NAME.fullmatch(name)
        if match is None or name.startswith("."):
            continue
        step = int(match[1])
        if step in found:
            raise CheckpointError(
                f"two folders of step {step}", where=run,
                found=f"{found[step].name} and {folder.name}", fix="one run, one stage a folder",
            )  # fmt: skip
        found[step] = folder
    if not found:
        raise CheckpointError(
            "no checkpoints", where=run, expected="folders called step0, step1, ... or checkpoint-1"
        )
    return dict(sorted(found.items()))


def open_checkpoint(run: str, step: int, folder: Path) -> tuple[Checkpoint, list[Finding]]:
    """Where the tensors of a step lie, and what of it cannot be read."""
    checkpoint, found = Checkpoint(step, folder), list[Finding]()

    def alarm(problem: str, cause: str) -> None:
        found.append(Finding("alarm", run, (step,), problem, cause, "fetch this step again"))

    if (folder / hf.CONFIG).exists():
        try:
            checkpoint.config = hf.read_config(folder)
        except CheckpointError as error:
            alarm(f"{hf.CONFIG} cannot be read: {error.problem}", "a damaged copy")
    try:
        files = hf.weight_files(folder)
    except CheckpointError as error:
        alarm(error.problem, "never uploaded, or not fetched")
        return checkpoint, found
    for file in files:
        if not file.is_file():
            alarm(f"{file.name} is missing", "never uploaded, or not fetched")
            continue
        try:
            checkpoint.tensors |= _tensors_of(file)
        except OntogenyError as error:
            alarm(*_why_unreadable(file, error))
    return checkpoint, found


def _tensors_of(file: Path) -> dict[str, Held]:
    """The tensors of a file by name, without buffers that the model computes."""
    if file.suffix == ".bin":
        held = {
            name: Held(file, str(one.dtype).removeprefix("torch."), tuple(one.shape), mapped=one)
            for name, one in read_pickled(file, mapped=True).items()
        }
    else:
        spans = tensor_spans(FileRanges(file))
        held = {name: _held(file, name, span) for name, span in spans.items()}
    return {name: one for name, one in held.items() if not name.endswith(hf.BUFFERS)}


def _held(file: Path, name: str, span: Span) -> Held:
    held = Held(file, span.dtype, tuple(span.shape), span.begin)
    known = getattr(torch, held.dtype, None)
    sizes = all(isinstance(size, int) and size >= 0 for size in held.shape)
    if not isinstance(known, torch.dtype) or not sizes:
        raise CheckpointError(f"tensor {name} is of unknown form", found=(held.dtype, held.shape))
    if held.num_elements * known.itemsize != span.end - span.begin:
        raise CheckpointError(f"tensor {name} has other bytes than its shape says")
    return held


def _why_unreadable(file: Path, error: OntogenyError) -> tuple[str, str]:
    with file.open("rb") as opened:
        start = opened.read(len(POINTER))
    size = f"{file.name} of {file.stat().st_size:,} bytes"
    if start == POINTER:
        return f"{size} is a pointer, not weights", "git-lfs did not fetch the file"
    if not start.strip(b"\0"):
        return f"{size} is empty or full of zeros", "the copy was cut off"
    return f"{size} cannot be read: {error.problem}", "truncated or damaged: the copy was cut off"


def missing_steps(steps: Sequence[int], declared: Sequence[int] | None) -> tuple[list[int], str]:
    """Steps that a schedule keeps and that are not there, and where the schedule is known from.

    An undeclared one is taken to be powers of two, then multiples of the commonest distance.
    """
    if declared is not None:
        due = [step for step in declared if step <= steps[-1]]
        return sorted({*due} - {*steps}), "the run's manifest"
    gaps = Counter(after - before for before, after in itertools.pairwise(steps))
    spacing, number = max(gaps.items(), key=lambda item: (item[1], item[0]), default=(0, 0))
    powers = {0, *(2**power for power in range(64) if 2**power < (spacing or steps[-1]))}
    if number < 3:  # powers of two alone
        spacing, powers = 0, {power for power in powers if power <= steps[-1]}
    due_powers = powers if 2 * len(powers & {*steps}) >= len(powers) else set()
    multiples = {step for step in steps if spacing and step >= spacing and step % spacing == 0}
    due_multiples = set(range(min(multiples), steps[-1] + 1, spacing)) if multiples else set[int]()
    due_all = due_powers | due_multiples
    if len(due_all & {*steps}) * 2 < len(due_all):
        return [], "no regular schedule"
    return sorted(due_all - {*steps}), "the regularity of the other steps"


def compare_forms(run: str, checkpoints: Sequence[Checkpoint]) -> list[Finding]:
    """Steps whose configuration, tensors, shapes or dtypes are not those of most."""
    configs = {one.step: _essential(one.config) for one in checkpoints}
    odd = {("config", steps): [f"{hf.CONFIG} is not that of the other steps (or absent)"]
           for steps, *_ in _odd(configs)}  # fmt: skip
    whole = [one for one in checkpoints if one.tensors]
    for name in sorted({name for one in whole for name in one.tensors}):
        shapes = {one.step: _shape(one.tensors.get(name)) for one in whole}
        dtypes = {one.step: one.tensors[name].dtype for one in whole if name in one.tensors}
        for what, values in (("shape", shapes), ("dtype", dtypes)):
            for steps, is_, usual in _odd(values):
                odd.setdefault((what, steps), []).append(f"{name} is {is_}, elsewhere {usual}")
    causes = {
        "config": "the configuration of another model, or a changed one",
        "shape": "weights of another model, or a file is missing",
        "dtype": "converted otherwise than the other steps",
    }
    return [
        Finding(
            "alarm", run, steps,
            told[0] + (f"; {len(told) - 1} more tensors likewise" if told[1:] else ""),
            causes[what], "compare with the source, and fetch these steps again",
        )
        for (what, steps), told in odd.items()
    ]  # fmt: skip


def _named_folders(run: Path) -> Iterable[tuple[str, Path]]:
    if (run / "refs").is_dir() and (run / "snapshots").is_dir():
        for ref in sorted((run / "refs").rglob("*")):
            if ref.is_file():
                commit = ref.read_text(encoding="utf-8", errors="replace").strip()
                yield ref.name, run / "snapshots" / Path(commit).name
        return
    home = run / STEPS if (run / STEPS).is_dir() else run
    yield from ((path.name, path) for path in sorted(home.iterdir()) if path.is_dir())


def _essential(config: dict[str, Any] | None) -> str:
    if config is None:
        return "absent"
    try:
        return canonical_json({key: config[key] for key in config.keys() - INCIDENTAL})
    except ValueError:
        return "not JSON"


def _shape(held: Held | None) -> str:
    return "absent" if held is None else f"{list(held.shape)}"


def _odd(values: Mapping[int, str]) -> list[tuple[tuple[int, ...], str, str]]:
    """The steps whose value is not the commonest (of equals the later one), it, and the usual."""
    by_value: dict[str, list[int]] = {}
    for step, value in values.items():
        by_value.setdefault(value, []).append(step)
    ordered = sorted(by_value.items(), key=lambda item: (len(item[1]), item[1]))
    return [(tuple(steps), value, ordered[-1][0]) for value, steps in ordered[:-1]]
