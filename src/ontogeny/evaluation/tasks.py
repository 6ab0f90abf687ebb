"""What a task is, whoever made it: requests to a model, and rows made of its answers.

A task is asked of a `Scorer`, a model with its vocabulary, and gives the item rows and the score
rows of one checkpoint. Not here: which tasks there are (`catalog.py`), how answers are computed
(`score.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ontogeny.errors import EvaluationError
from ontogeny.evaluation.score import Answer, Request
from ontogeny.results import Item, Score
from ontogeny.scores import Place
from ontogeny.tokens.vocabulary import Vocabulary


class UnansweredError(EvaluationError):
    """A task that a checkpoint gives no numbers of; other tasks and checkpoints go on."""


class NotFiniteError(UnansweredError):
    """An answer that is no number: the item is named, whoever asked adds the checkpoint."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a task asks, by digests, and the levels that cost nothing to reach.

    `digest` is of every request, right answer and measure, `data` of the files they are made of;
    `harness` names what made them, with its version. `differs` says how the task departs from the
    published one of its name; empty: it does not.
    """

    name: str
    shots: int
    digest: str
    data: str
    harness: str
    chance: float | None
    majority: float | None
    differs: str


class Scorer(Protocol):
    """A model that can be asked, with its vocabulary."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def context_length(self) -> int: ...

    def answer(self, requests: Sequence[Request], *, greedy: bool = False) -> list[Answer]:
        """Log-likelihoods of the targets, in the order given."""
        ...


class Task(Protocol):
    """A task with its items at hand."""

    @property
    def spec(self) -> Spec: ...

    def measure(self, scorer: Scorer, place: Place) -> tuple[list[Score], list[Item]]:
        """Ask all items of a checkpoint's model. Raises NotFiniteError naming an item."""
        ...
