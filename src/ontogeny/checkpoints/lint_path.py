"""The path of a run through weight space, and the steps that do not lie on it.

Two measurements, both on a sample of each tensor. *Turns*: training goes on in the direction in
which it went, noise turns back at once. To see it, directions in which the tensor hardly moves
around a step are magnified (rows and columns are whitened by the moves near by), since noise fills
all directions alike. *Distances* between all steps tell where on the path a step lies, whatever its
folder is called: around any step they follow a law of the number of updates between two steps.
A rise of the loss moves weights too, but they stay moved, and all tensors move at once.
Not here: files and digests (`lint_folders.py`), what is concluded (`lint.py`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SIDE = 64  # rows and columns of a tensor that are sampled
AROUND = 4  # moves on each side of a step that say in which directions the tensor moves
RIDGE = 0.01  # least share of the mean energy that a direction is taken to have
NOISE = 0.5  # of the shorter move: the noise whose visibility is reported
WINDOW = 5  # steps on each side that say how sharply a tensor usually turns
# A turn so many standard deviations (within bounds) sharper than usual, not rather on than back, is
# noise. Turns of clean runs were up to six of them sharper, at loss spikes.
DEVIATIONS, LEAST_SHARPER, MOST_SHARPER = 7.0, 0.15, 0.45
BACK, STRAIGHT_BACK = 0.2, -0.5
POWER = 0.6  # distance grows about so with the number of updates, between a walk and a line
FAR = 5.0  # times the step before: across wider gaps the law of distances does not hold
PEAK = -1.6  # of runs without a spike -1.2 and more was seen, with one -2.1 and less
OCTAVES = 0.4  # a step misplaced by less is not told from an uneven pace


def sample_places(rows: int, columns: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Evenly spread rows and columns of a matrix; of a vector, [1, columns], more of it."""
    across = SIDE if rows > 1 else SIDE * SIDE
    return _spread(rows, SIDE), _spread(columns, across)


def turns(path: Floats, rounding: Floats) -> tuple[Floats, Floats]:
    """How a matrix turns at each inner step of its path [steps, rows, columns].

    From -1 (straight back) to 1 (straight on); and what that would be with noise of half the
    shorter of the two moves. `rounding` is the squared error of each step by the form of its
    numbers: directions in which there is little else are not magnified.
    """
    moves = np.diff(path, axis=0)
    lengths = np.sqrt(np.einsum("kij,kij->k", moves, moves))
    units = moves / np.maximum(lengths, np.finfo(float).tiny)[:, None, None]
    rounded = (rounding[:-1] + rounding[1:]) / np.maximum(lengths**2, np.finfo(float).tiny)
    left = np.einsum("kij,klj->kil", units, units)
    right = np.einsum("kij,kil->kjl", units, units)
    cosine, noisy = np.zeros(len(moves) - 1), np.zeros(len(moves) - 1)
    for at in range(len(moves) - 1):
        near = [*range(max(0, at - AROUND), at), *range(at + 2, min(len(moves), at + 2 + AROUND))]
        # Magnified on both sides, what is only rounded stays below a tenth of what moves.
        ridge = max(RIDGE, np.sqrt(10 * rounded[[*near, at, at + 1]].max()))
        rows, columns = (_whitener(one[near].mean(0), ridge) for one in (left, right))
        before, after = (rows @ moves[one] @ columns for one in (at, at + 1))
        energy = NOISE**2 * lengths[at : at + 2].min() ** 2 * np.mean(rows**2) * len(rows)
        energy *= np.mean(columns**2) * len(columns)
        inner, squares = np.vdot(before, after), (np.vdot(before, before), np.vdot(after, after))
        cosine[at] = _cosine(inner, *squares)
        noisy[at] = _cosine(inner - energy, squares[0] + energy, squares[1] + energy)
    return cosine, noisy


def find_noise(cosines: Floats) -> Flags:
    """Where tensors turn as only noise makes them turn: `cosines` is [tensors, steps], or NaN.

    Beside noise turns look sharper too: of neighbours only the sharpest counts, unless it points
    straight back.
    """
    excess = sharper_than_usual(cosines)
    noisy = (excess > _threshold(excess)) & (cosines < BACK)
    worst = np.pad(np.where(noisy, excess, 0), ((0, 0), (1, 1)))
    beside = np.maximum(worst[:, :-2], worst[:, 2:])
    return noisy & ((excess >= beside) | (cosines < STRAIGHT_BACK))


def sees_noise(cosines: Floats, noisy: Floats) -> Flags:
    """Where noise would be found that turned a tensor to `noisy`."""
    excess = sharper_than_usual(cosines)
    seen: Flags = (excess + cosines - noisy > _threshold(excess)) & (noisy < BACK)
    return seen


def sharper_than_usual(cosines: Floats) -> Floats:
    """By how much each tensor turns more sharply than it does near by, and than the others do."""
    usual = np.full_like(cosines, np.nan)
    for at in range(cosines.shape[1]):
        near = np.r_[max(0, at - WINDOW) : at, at + 1 : min(cosines.shape[1], at + WINDOW + 1)]
        usual[:, at] = median(cosines[:, near], axis=1)
    drop = usual - cosines
    shared = median(drop, axis=0) if len(drop) > 3 else np.zeros(drop.shape[1])
    return drop - np.maximum(np.nan_to_num(shared), 0)


def squared_distances(path: Floats) -> Floats:
    """The squared distance of every two steps of a path [steps, ...]."""
    points = path.reshape(len(path), -1)
    points = points - points[len(points) // 2]
    products = points @ points.T
    squares = np.diag(products)
    return np.maximum(squares[:, None] + squares[None] - 2 * products, 0)


@dataclass(frozen=True, slots=True)
class Place:
    """Where on the path a step lies: the most likely step, and how far off each guess is.

    `off_label` and `off_best` are root mean squares of the logarithm of distances; `spread` is that
    of the law itself among the other steps, `bend` its second-order term: a loss spike, which takes
    the steps before it far from those after it, is a peak of the pace.
    """

    step: float
    off_label: float
    off_best: float
    spread: float
    bend: float

    def contradicts(self, label: int) -> bool:
        """Whether the weights are clearly of another step than the one they are given as."""
        return (
            abs(np.log2((self.step + 1) / (label + 1))) > OCTAVES
            and self.off_label > max(0.25, 1.6 * self.off_best)
            and self.spread < 0.2
            and self.bend > PEAK
        )


def place_of(steps: list[int], distances: Floats, at: int) -> Place | None:
    """Where the step at an index lies by its distances to two on each side, if that can be told.

    The first and last step go by three on their one side.
    """
    reach = 3 if at in (0, len(steps) - 1) else 2
    sides = [*range(max(0, at - reach), at), *range(at + 1, min(len(steps), at + reach + 1))]
    when = np.array(steps, dtype=float) + 1
    sides = [one for one in sides if steps[one]]
    near = when[min([at, *sides]) : max([at, *sides]) + 1]
    if len(sides) < 3 or (near[1:] / near[:-1]).max() > FAR:
        return None
    pairs = [(i, j) for i in sides for j in sides if i < j]
    lengths = np.array([distances[pair] for pair in pairs])
    ends = np.array([[when[i], when[j]] for i, j in pairs])
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        return None
    logs = np.log(lengths)
    degree = 2 if sides[0] < at < sides[-1] and len(sides) == 4 else 1
    weights = np.array([1 / (1 + sides.index(j) - sides.index(i)) for i, j in pairs])
    law = _fit(ends, logs, weights, when[at], degree)
    spread = float(np.sqrt(np.average((_law(law, ends, when[at]) - logs) ** 2, weights=weights)))
    bend = float(law[2]) if degree == 2 else -np.inf  # unknown: no ground for an alarm
    seen = np.log(np.maximum(distances[at, sides], np.finfo(float).tiny))

    def off(guess: float) -> float:
        ends = np.array([sorted((guess, when[one])) for one in sides])
        return float(np.sqrt(np.mean((_law(law, ends, when[at]) - seen) ** 2)))

    low = when[at - 1] if at else when[0] / 2
    high = when[at + 1] if at + 1 < len(when) else when[-1] * 2
    is_wide = high > low * 2**OCTAVES  # else no guess is far from the label
    best = min(np.geomspace(low, high, 130)[1:-1] if is_wide else when[at : at + 1], key=off)
    return Place(float(best) - 1, off(when[at]), off(float(best)), spread, bend)


def to_stretches(distances: Floats, at: int) -> Floats:
    """How far a step is from each straight stretch between two others that follow one another.

    Stretch number `at - 1` is the step's own.
    """
    others = [one for one in range(len(distances)) if one != at]
    squares = np.minimum(distances, 1e30)[np.ix_([at, *others], others)] ** 2
    before, after = squares[0, :-1], squares[0, 1:]
    lengths = np.maximum(np.diag(squares[1:], 1), np.finfo(float).tiny)
    share = np.clip((before + lengths - after) / (2 * lengths), 0, 1)
    heights = (1 - share) * before + share * after - share * (1 - share) * lengths
    roots: Floats = np.sqrt(np.maximum(heights, 0))
    return roots


def median(values: Floats, axis: int) -> Floats:
    """The median of what is known; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where nothing is known
        medians: Floats = np.nanmedian(values, axis=axis)
    return medians


def _spread(length: int, number: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, length - 1, min(number, length)).astype(np.int64))


def _whitener(covariance: Floats, ridge: float) -> Floats:
    energies, directions = np.linalg.eigh(covariance)
    floor = ridge * max(energies.mean(), np.finfo(float).tiny)
    return (directions / np.sqrt(np.maximum(energies, 0) + floor)) @ directions.T


def _threshold(excess: Floats) -> float:
    """How much sharper than usual is too sharp, by how much turns of this run differ."""
    known = np.abs(excess[np.isfinite(excess)])
    deviation = 1.48 * float(np.median(known)) if known.size else 0.0
    return min(max(DEVIATIONS * deviation, LEAST_SHARPER), MOST_SHARPER)


def _cosine(inner: float, left: float, right: float) -> float:
    return float(inner / np.sqrt(max(left * right, np.finfo(float).tiny)))


def _fit(ends: Floats, logs: Floats, weights: Floats, origin: float, degree: int) -> Floats:
    """The pace, as a polynomial of the logarithm of the step, that gives the distances."""
    terms = _terms(ends, origin, degree) * np.sqrt(weights)[:, None]
    paces = (logs - POWER * np.log(ends[:, 1] - ends[:, 0])) * np.sqrt(weights)
    ridge = 1e-3 * np.diag([0.0] + [1.0] * degree)
    return np.linalg.solve(terms.T @ terms + ridge, terms.T @ paces).astype(np.float64)


def _law(law: Floats, ends: Floats, origin: float) -> Floats:
    paces = _terms(ends, origin, len(law) - 1) @ law
    return paces + POWER * np.log(np.maximum(ends[:, 1] - ends[:, 0], 1e-9))


def _terms(ends: Floats, origin: float, degree: int) -> Floats:
    middles = np.log(ends).mean(axis=1) - np.log(origin)
    return np.stack([middles**power for power in range(degree + 1)], axis=1)
