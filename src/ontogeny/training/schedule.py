"""The learning rate of every update: linear warm-up, then cosine.

The `pythia` recipe is GPT-NeoX v1.0's: update 0 has rate 0, the cosine runs towards 0 over all
updates and is clipped at the floor. The `sound` recipe starts above 0 and ends on the floor.
The schedule goes by tokens: what a branch's parent saw counts as updates of the branch's own size.
Source: gpt-neox v1.0, megatron/learning_rates.py.
"""

from __future__ import annotations

import math

from ontogeny.suite import RECIPES, RunSettings


def learning_rate(update: int, settings: RunSettings) -> float:
    """The rate of an update, counted from 0."""
    training = settings.training
    assert training.learning_rate is not None
    peak, floor = training.learning_rate, training.learning_rate * training.min_rate_ratio
    rate = _neox_rate if RECIPES[settings.recipe].first_rate_is_zero else _sound_rate
    # 0 for all but branches; nor is there a shift at the parent's rows per update.
    shift = _before(settings) - settings.first_step
    return rate(update + shift, settings.num_updates + shift, training.warmup, peak, floor)


def _before(settings: RunSettings) -> float:
    """Updates the schedule counts as done at the run's first step."""
    branch = settings.branch
    if branch is None or branch.recipe.schedule == "anew":
        return 0
    return branch.tokens / settings.tokens_per_update


def _neox_rate(update: float, total: float, warmup: float, peak: float, floor: float) -> float:
    warm = warmup * total  # a fraction of an update is kept
    done = min(update, total - warm)
    if update <= warm and warm > 0:
        return peak * done / warm
    return max(peak / 2 * (1 + math.cos(math.pi * (done - warm) / total)), floor)


def _sound_rate(update: float, total: float, warmup: float, peak: float, floor: float) -> float:
    warm = max(1, round(warmup * total))
    if update < warm:
        return peak * (update + 1) / warm
    share = (update + 1 - warm) / max(1, total - warm)
    return floor + (peak - floor) / 2 * (1 + math.cos(math.pi * share))
