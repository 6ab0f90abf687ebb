"""From log-likelihoods to rows: what one item gave, and what all items of a task give together.

The choice by log-likelihood (`acc`) and by log-likelihood a byte (`acc_norm`), and their names, are
those of lm-eval's multiple choice; beside them stand measures that move long before a choice does.
Not here: how log-likelihoods are computed (`score.py`), what is asked (`pack.py`, `harness.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ontogeny.evaluation.tasks import NotFiniteError, Spec
from ontogeny.intervals import mean_interval, ratio_interval
from ontogeny.results import Item, Score
from ontogeny.scores import Place

ACC, ACC_NORM = "acc", "acc_norm"
LOG_LIKELIHOOD, MARGIN, BITS_PER_BYTE = "log_likelihood", "margin", "bits_per_byte"


def option_item(
    place: Place,
    task: str,
    shots: int,
    item: str,
    gold: int,
    log_likelihoods: Sequence[float],
    num_bytes: Sequence[int],
    metrics: Mapping[str, float] | None = None,
) -> Item:
    """The row of an item whose options have these log-likelihoods (nats) and bytes of text.

    A single option is a text: nothing is chosen. Without `metrics` an item with options gets the
    two accuracies. Raises NotFiniteError where a log-likelihood is no number.
    """
    if not all(map(math.isfinite, log_likelihoods)):
        raise NotFiniteError(
            "an answer is no number",
            where=f"item {item} of {task}",
            found=", ".join(f"{value:g}" for value in log_likelihoods),
        )
    is_choice = len(log_likelihoods) > 1
    chosen = int(np.argmax(log_likelihoods))
    if metrics is None and is_choice:
        by_byte = int(np.argmax(np.asarray(log_likelihoods) / np.maximum(num_bytes, 1)))
        metrics = {ACC: float(chosen == gold), ACC_NORM: float(by_byte == gold)}
    others = [value for option, value in enumerate(log_likelihoods) if option != gold]
    return Item(
        member=place.member,
        step=place.step,
        task=task,
        shots=shots,
        item=item,
        gold=gold if is_choice else None,
        chosen=chosen if is_choice else None,
        log_likelihood=float(log_likelihoods[gold]),
        margin=float(log_likelihoods[gold] - max(others)) if is_choice else None,
        num_bytes=num_bytes[gold],
        metrics=dict(metrics or {}),
    )


def score_rows(
    place: Place, spec: Spec, items: Sequence[Item], task: str | None = None
) -> list[Score]:
    """Every measure of a task's items (at least one), or of the part of them called `task`.

    The items' own metrics come first, in the order of the first item's, then the mean
    log-likelihood, the mean margin of items with options, and bits per byte where all have bytes.
    """
    measured = {
        name: mean_interval(np.array([item.metrics[name] for item in items]))
        for name in items[0].metrics
    }
    log_likelihoods = np.array([item.log_likelihood for item in items])
    measured[LOG_LIKELIHOOD] = mean_interval(log_likelihoods)
    margins = [item.margin for item in items if item.margin is not None]
    if len(margins) == len(items):
        measured[MARGIN] = mean_interval(np.array(margins))
    num_bytes = np.array([item.num_bytes for item in items], float)
    if num_bytes.all():
        measured[BITS_PER_BYTE] = ratio_interval(-log_likelihoods / math.log(2), num_bytes)
    return [
        Score(
            place.member,
            place.step,
            place.tokens,
            task or spec.name,
            metric,
            *interval,
            n=len(items),
            shots=spec.shots,
            # Only of choices is it known what guessing gives.
            chance=spec.chance if metric.startswith(ACC) else None,
            majority=spec.majority if metric.startswith(ACC) else None,
            differs=spec.differs,
        )
        for metric, interval in measured.items()
    ]
