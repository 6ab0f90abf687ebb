"""One run measured, tensor by tensor: digests and sums of everything, a sample for the geometry.

Every byte is read once. A tensor goes through in blocks: a block of all steps, one after another,
with the one before it in memory; so memory does not grow with the model. What comes out is small:
a digest of each tensor of each step, how each tensor turns, how far all steps are from each other.
Not here: what is concluded (`lint.py`), the geometry itself (`lint_path.py`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ontogeny.checkpoints.lint_folders import FETCH, Checkpoint, Finding, Held
from ontogeny.checkpoints.lint_path import Floats, sample_places, squared_distances, turns
from ontogeny.digest import digest_json
from ontogeny.suite import RunSettings

Track = Callable[[list[str]], Iterable[str]]

BLOCK = 1 << 20  # elements of a tensor in memory at a time, of a step and the one before it
LEAST_SIDE = 8  # rows and columns of a tensor whose turns mean something
LEAST_STEPS = 6
SEEN = 100.0  # times the square of its rounding error, a move is clearly a move
# Root mean square of the rounding error of a number, as a share of it.
ROUNDING = {"float64": 0.0, "float32": 2.5e-8, "float16": 2e-4, "bfloat16": 1.6e-3}


class Distances:
    """Sums over tensors of the squared distance of every two steps, in units of a usual move."""

    def __init__(self, num_steps: int) -> None:
        self.total = np.zeros((num_steps, num_steps))
        self.number = np.zeros((num_steps, num_steps), dtype=np.int64)

    def add(self, path: Floats, at: NDArray[np.int64], usual: NDArray[np.bool_]) -> float:
        """Add a tensor's, in units of the median of its usual moves; that unit."""
        squares = squared_distances(path)
        moves = np.diag(squares[np.ix_(usual, usual)], 1)
        scale = float(np.median(moves[moves > 0])) if (moves > 0).any() else 0.0
        if scale:
            self.total[np.ix_(at, at)] += squares / scale
            self.number[np.ix_(at, at)] += 1
        return scale

    def mean(self) -> Floats:
        """The distance of every two steps; infinite where no tensor tells it."""
        means = np.where(self.number > 0, self.total / np.maximum(self.number, 1), np.inf)
        roots: Floats = np.sqrt(means)
        return roots


@dataclass(slots=True)
class Measured:
    """What lint knows of a run. Tables by tensor are [steps], NaN where nothing is known."""

    steps: list[int]
    distances: Distances
    rounding: Floats
    digests: dict[str, dict[int, str]] = field(default_factory=dict)
    not_finite: dict[int, list[str]] = field(default_factory=dict)
    # Steps it moves to from afar, and back.
    away: dict[str, list[int]] = field(default_factory=dict)
    turns: dict[str, Floats] = field(default_factory=dict)
    noisy: dict[str, Floats] = field(default_factory=dict)
    alike: dict[str, Floats] = field(default_factory=dict)  # cosine of a step and the next one
    starts: dict[str, Floats] = field(default_factory=dict)  # samples of the first two steps
    of_copies: dict[tuple[int, ...], Distances] = field(default_factory=dict)
    bytes_read: int = 0

    def all_turns(self, *, noisy: bool = False) -> Floats:
        """How every matrix turns, or would with noise: [matrices, steps]."""
        table = self.noisy if noisy else self.turns
        return np.stack([*table.values()]) if table else np.zeros((0, len(self.steps)))

    def constant(self) -> set[str]:
        """Tensors that are the same at every step."""
        return {
            name for name, found in self.digests.items() if len({*found.values()}) == 1 < len(found)
        }


@dataclass(slots=True)
class Linted:
    """A run that was looked at."""

    name: str
    checkpoints: list[Checkpoint]
    declared: RunSettings | None
    measured: Measured
    findings: list[Finding]
    unchecked: list[str] = field(default_factory=list)

    def alarm(
        self, steps: Iterable[int], problem: str, cause: str, tensors: Iterable[str] = ()
    ) -> None:
        """Add an alarming finding."""
        self.findings.append(
            Finding("alarm", self.name, tuple(steps), problem, cause, FETCH, tuple(tensors))
        )

    @property
    def checked(self) -> str:
        """What was looked at, in words."""
        steps, measured = self.measured.steps, self.measured
        span = f" ({steps[0]} to {steps[-1]})" if steps else ""
        return (
            f"{len(steps)} steps{span}, {len(measured.digests)} tensors, "
            f"{measured.bytes_read / 1e9:.3g} GB, each byte once: files, shapes, dtypes, copies, "
            "NaN, order of the steps, turns of each matrix"
        )

    @property
    def whole(self) -> dict[int, str]:
        """The digest of all tensors of each step that has any."""
        steps: dict[int, dict[str, str]] = {}
        for name, digests in self.measured.digests.items():
            for step, digest in digests.items():
                steps.setdefault(step, {})[name] = digest
        return {step: digest_json(found) for step, found in sorted(steps.items())}


def measure(checkpoints: Sequence[Checkpoint], track: Track = iter) -> Measured:
    """Measure every tensor of a run, at all steps that hold it in its usual shape.

    `track` goes through the tensors' names, and may tell how far it is.
    """
    steps = [one.step for one in checkpoints]
    measured = Measured(steps, Distances(len(steps)), np.zeros(len(steps)))
    names = dict.fromkeys(name for one in checkpoints for name in one.tensors)
    for name in track([*names]):
        held = {at: one.tensors[name] for at, one in enumerate(checkpoints) if name in one.tensors}
        shapes = [one.shape for one in held.values()]
        usual = max(reversed(shapes), key=shapes.count)
        _measure_tensor(measured, name, {at: one for at, one in held.items() if one.shape == usual})
    return measured


def copies(digests: dict[int, str]) -> list[tuple[int, ...]]:
    """The groups of steps that have the same digest."""
    groups: dict[str, list[int]] = {}
    for step, digest in digests.items():
        groups.setdefault(digest, []).append(step)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def follow(group: tuple[int, ...], steps: list[int]) -> bool:
    """Whether the steps of a group follow one another among `steps`."""
    first = steps.index(group[0])
    return tuple(steps[first : first + len(group)]) == group


def _measure_tensor(measured: Measured, name: str, held: dict[int, Held]) -> None:
    one = next(iter(held.values()))
    columns = one.shape[-1] if one.shape else 1
    rows = one.num_elements // max(columns, 1)
    if not one.num_elements:
        return
    rows_at, columns_at = sample_places(rows, columns)
    sampled = (rows_at[:, None] * columns + columns_at).ravel()
    path, finite, squares, products = _read(measured, name, held, sampled)
    if not all(part.is_number for part in held.values()):
        return
    steps, at = measured.steps, np.array(list(held))
    for index in at[~finite]:
        measured.not_finite.setdefault(steps[index], []).append(name)
    path[~finite] = 0  # of these nothing else is told
    rounding = np.array([ROUNDING[part.dtype] for part in held.values()]) ** 2 * (path**2).sum(1)
    shorter = np.minimum(squares[:-1], squares[1:])
    away = squares[:-1] + squares[1:] + 2 * products < 0.1 * shorter
    away &= shorter > SEEN * rounding[1:-1] * (one.num_elements / len(sampled))
    measured.away[name] = [steps[index] for index in at[1:-1][away]]
    groups = [group for group in copies(measured.digests[name]) if len(group) < len(held)]
    is_constant = len({*measured.digests[name].values()}) == 1
    if is_constant or min(rows, columns) < LEAST_SIDE:
        return
    doubled = {steps.index(step) for group in groups for step in group[follow(group, steps) :]}
    good = finite & ~np.isin(at, [*doubled])
    _add_geometry(measured, name, path.reshape(len(at), len(rows_at), -1), at, good, rounding)
    for group in groups:
        known = measured.of_copies.setdefault(group, Distances(len(steps)))
        known.add(path[finite], at[finite], good[finite])
    if at[0] == 0 and len(at) > 1 and finite[:2].all():
        measured.starts[name] = path[:2]


def _read(
    measured: Measured, name: str, held: dict[int, Held], sampled: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.bool_], Floats, Floats]:
    """A tensor read once: its sample at each step and whether all of it is finite there.

    And of the whole tensor the squares of its moves, and the products of those that follow.
    """
    parts = list(held.values())
    hashes = [hashlib.sha256() for _ in parts]
    path, finite = np.zeros((len(parts), len(sampled))), np.ones(len(parts), dtype=bool)
    squares, products = np.zeros(len(parts) - 1), np.zeros(max(0, len(parts) - 2))
    for first in range(0, parts[0].num_elements, BLOCK):
        count = min(BLOCK, parts[0].num_elements - first)
        begin, end = np.searchsorted(sampled, (first, first + count))
        before = move_before = None
        for at, part in enumerate(parts):
            values = part.read(first, count)
            measured.bytes_read += values.nbytes
            if part.is_number:
                values.add_(0)  # turns -0 into 0, which is the same number
            hashes[at].update(values.view(torch.uint8).numpy().data)
            if not part.is_number:
                continue
            wide = values.float()
            if not math.isfinite(torch.dot(wide, wide).item()):  # faster than to look at each
                finite[at] &= bool(torch.isfinite(wide).all())
            path[at, begin:end] = wide.numpy()[sampled[begin:end] - first]
            if before is not None:
                move = wide - before
                squares[at - 1] += torch.dot(move, move).item()
                if move_before is not None:
                    products[at - 2] += torch.dot(move, move_before).item()
                move_before = move
            before = wide
    measured.digests[name] = {
        measured.steps[at]: one.hexdigest() for at, one in zip(held, hashes, strict=True)
    }
    squares, products = (np.where(np.isfinite(one), one, 0) for one in (squares, products))
    return path, finite, squares, products


def _add_geometry(
    measured: Measured,
    name: str,
    path: Floats,
    at: NDArray[np.int64],
    good: NDArray[np.bool_],
    rounding: Floats,
) -> None:
    number, there = len(measured.steps), at[good]
    scale = measured.distances.add(path[good], there, np.ones(len(there), dtype=bool))
    if not scale:
        return
    measured.rounding[there] += rounding[good] / scale
    flat = path[good].reshape(len(there), -1)
    units = flat / np.maximum(np.linalg.norm(flat, axis=1), 1e-30)[:, None]
    measured.alike[name] = np.full(number, np.nan)
    measured.alike[name][there[:-1]] = (units[:-1] * units[1:]).sum(1)
    if len(there) < LEAST_STEPS:
        return
    cosine, noisy = turns(path[good], rounding[good])
    lengths = (np.diff(flat, axis=0) ** 2).sum(1)
    is_seen = np.minimum(lengths[:-1], lengths[1:]) > SEEN * rounding[good][1:-1]
    for table, values in ((measured.turns, cosine), (measured.noisy, noisy)):
        table[name] = np.full(number, np.nan)
        table[name][there[1:-1][is_seen]] = values[is_seen]
