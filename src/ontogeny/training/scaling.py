"""The dynamic loss scale of half precision: a state that each update takes one step further.

Half precision knows nothing below 6e-8, where many a gradient lies. So the loss is multiplied
before gradients are rounded, by as much as goes without overflow. An update whose gradient does
overflow is skipped: its rows are consumed, weights and moments stay as they are.
Source: the scaler of GPT-NeoX v1.0's engine (DeeperSpeed, ZeRO stage 1). Not here: who finds the
overflow, and how the scale is divided out again (`update.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ontogeny.suite import LossScaleSettings, RunSettings

NEVER = -1


@dataclass(frozen=True, slots=True)
class LossScale:
    """What the loss of the next update is multiplied by, and what decides how that moves.

    Without a `rule` it is 1 and stays. `patience` is how many overflows it takes until the scale
    falls, `last_overflow` an update. `num_skipped` counts from where the run's schedule begins.
    """

    rule: LossScaleSettings | None = None
    value: float = 1.0
    patience: int = 1
    last_overflow: int = NEVER
    num_skipped: int = 0

    @property
    def can_fall(self) -> bool:
        """Whether an overflow is met by a smaller scale, now or after more of them."""
        return self.rule is not None and (self.patience > 1 or self.value > self.rule.floor)

    def after(self, update: int, *, overflows: bool) -> LossScale:
        """The scale after an update; one that overflows where it cannot fall has no after."""
        rule = self.rule
        if rule is None:
            return self
        if overflows:
            falls = self.patience == 1
            return replace(
                self,
                value=max(self.value / 2, rule.floor) if falls else self.value,
                patience=self.patience - (not falls),
                last_overflow=update,
                num_skipped=self.num_skipped + 1,
            )
        if (update - self.last_overflow) % rule.window:
            return self
        return replace(self, value=self.value * 2, patience=rule.hysteresis)

    def named_state(self) -> dict[str, Tensor]:
        """What a full state keeps of it, as a flat table of tensors; nothing without a rule."""
        if self.rule is None:
            return {}
        return {
            key: torch.tensor(getattr(self, name), dtype=torch.float64)
            for name, key in KEYS.items()
        }


KEYS = {
    name: f"loss_scale.{name}" for name in ("value", "patience", "last_overflow", "num_skipped")
}


def loss_scale(settings: RunSettings, step: int, state: Mapping[str, Tensor]) -> LossScale:
    """The scale of a run at a step: from its full state, or as it begins where that is empty.

    What was skipped before the step its schedule begins at no longer counts.
    """
    if settings.training.precision != "fp16":
        return LossScale()
    rule = settings.training.loss_scale
    if not state:
        return LossScale(rule, rule.initial, rule.hysteresis)
    value, *others = (state[key].item() for key in KEYS.values())
    patience, last_overflow, num_skipped = map(int, others)
    num_skipped = 0 if step == settings.origin else num_skipped
    return LossScale(rule, value, patience, last_overflow, num_skipped)
