"""The steps of a run: which are kept, where they lie, the one at which a branch leaves another run.

Not here: the settings of a whole run (`suite.py`), what a branch sees (`order/splice.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ontogeny.config import Settings
from ontogeny.errors import ConfigError

STEPS, STATES = "steps", "states"  # where a run keeps its checkpoints and full states
METRICS = "metrics.jsonl"  # of a run, one line an update


class RecipeChanges(Settings):
    """What a branch trains otherwise than its parent; None: no change.

    `learning_rate` is the peak of the schedule, `tokens` or `num_updates` what to train from the
    branch's first step on. A `continued` schedule is that of a run which had all of this from its
    own first update, at equal tokens; one `anew` warms up and decays from the branch's first step
    on, and the steps kept are counted from there.
    """

    learning_rate: float | None = Field(default=None, gt=0)
    rows_per_update: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    num_updates: int | None = Field(default=None, ge=1)
    schedule: Literal["continued", "anew"] = "continued"

    @model_validator(mode="after")
    def _one_length(self) -> RecipeChanges:
        if self.tokens is not None and self.num_updates is not None:
            raise ValueError("give either tokens or num_updates, not both")
        return self


class BranchSettings(Settings):
    """Where a run left another: after `step` updates of the member `parent`."""

    parent: str
    step: int = Field(ge=0)
    tokens: int = Field(ge=0)  # seen by then
    recipe: RecipeChanges = RecipeChanges()


def checkpoint_spacing(num_updates: int, num_linear: int) -> int:
    """Updates between the evenly spaced checkpoints."""
    return max(1, round(num_updates / num_linear))


def checkpoint_steps(num_updates: int, num_linear: int) -> list[int]:
    """The steps kept: 0, powers of two below the spacing, its multiples, and the last.

    With 143000 updates and 143 evenly spaced these are Pythia's 154.
    """
    if num_updates < 1 or num_linear < 1:
        raise ConfigError("a run needs at least one update", found=num_updates)
    spacing = checkpoint_spacing(num_updates, num_linear)
    powers = {2**power for power in range(spacing.bit_length()) if 2**power < spacing}
    multiples = set(range(0, num_updates + 1, spacing))
    return sorted(step for step in powers | multiples | {num_updates} if step <= num_updates)


def step_folder(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return run / STEPS / f"step{step}"


def state_folder(run: Path, step: int) -> Path:
    """Where a run keeps the full state of a step."""
    return run / STATES / f"step{step}"


def list_steps(run: Path) -> list[int]:
    """The steps a run holds checkpoints of, ascending."""
    return numbered_steps(run / STEPS)


def numbered_steps(folder: Path) -> list[int]:
    """The numbers of the `stepN` in a folder, ascending; none where there is no folder."""
    if not folder.is_dir():
        return []
    matches = (re.fullmatch(r"step(\d+)", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)
