"""The loss scale against GPT-NeoX's own: every change it made, and where it gave up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ontogeny.suite import LossScaleSettings
from ontogeny.training.scaling import LossScale

NUM_CASES = 5


@pytest.fixture
def case(request: pytest.FixtureRequest, golden: Path) -> dict[str, Any]:
    cases = json.loads((golden / "loss_scale.json").read_text())["cases"]
    assert len(cases) == NUM_CASES
    return cases[request.param]


@pytest.mark.parametrize("case", range(NUM_CASES), indirect=True)
def test_every_change_is_the_originals(case: dict[str, Any]) -> None:
    rule = LossScaleSettings(
        initial=case["initial_scale"],
        window=case["scale_window"],
        hysteresis=case["hysteresis"],
        floor=case["min_scale"],
    )
    scale, changes, gave_up = LossScale(rule, rule.initial, rule.hysteresis), [], None
    for update in range(case["updates"]):
        overflows = update in case["overflow_at"]
        if overflows and not scale.can_fall:
            gave_up = update
            break
        after = scale.after(update, overflows=overflows)
        if after.value != scale.value:
            changes.append([update, scale.value, after.value])
        scale = after
    assert changes == case["scale_changes_as_update_before_after"]
    assert scale.value == case["final_scale"]
    assert gave_up == (case["raises"] and case["raises"]["at_update"])
