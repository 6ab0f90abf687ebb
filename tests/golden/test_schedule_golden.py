"""The learning rate: the original's values under `pythia`, and the laws of `sound`."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.config import build
from ontogeny.suite import RunSettings
from ontogeny.training.schedule import learning_rate

LIKE_PYTHIAS = ["pythia_70m", "tiny_cosine", "tiny_cosine_no_floor"]


def run_of(recipe: str, num_updates: int, peak: float, floor: float, warmup: float) -> RunSettings:
    """A run of so many updates, of one token each."""
    values = {
        "member": "m",
        "recipe": recipe,
        "shape": {
            "num_layers": 1, "hidden_size": 8, "num_heads": 1, "vocab_size": 8, "context_length": 1,
        },
        "init": "normal",
        "init_seed": 0,
        "training": {
            "tokens": num_updates, "rows_per_update": 1, "learning_rate": peak,
            "min_rate_ratio": floor / peak, "warmup": warmup,
        },
    }  # fmt: skip
    return build(RunSettings, values, "run")


def case_of(golden: Path, name: str) -> tuple[dict[str, Any], RunSettings, dict[int, float]]:
    case = json.loads((golden / "lr_schedule.json").read_text())[name]
    run = run_of(
        "pythia", case["train_iters"], case["start_lr"], case["min_lr"], case["warmup_fraction"]
    )
    return case, run, {int(update): rate for update, rate in case["lr_after_k_steps"].items()}


@pytest.mark.parametrize("name", LIKE_PYTHIAS)
def test_golden_rates(golden: Path, name: str) -> None:
    _, run, expected = case_of(golden, name)
    found = {update: learning_rate(update, run) for update in expected}
    assert found == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("name", LIKE_PYTHIAS)
def test_golden_floor(golden: Path, name: str) -> None:
    case, run, _ = case_of(golden, name)
    first = case["first_k_at_min"]
    if first is None:
        assert learning_rate(run.num_updates, run) > case["min_lr"]
    else:
        assert learning_rate(first - 1, run) > learning_rate(first, run)
        rest = [learning_rate(update, run) for update in range(first, run.num_updates, 97)]
        assert rest == pytest.approx([case["min_lr"]] * len(rest), rel=1e-12)


def test_the_corrected_formula_is_another(golden: Path) -> None:
    _, run, corrected = case_of(golden, "not_pythia_corrected_70m")
    ratios = [learning_rate(update, run) / rate for update, rate in corrected.items() if rate]
    assert max(abs(ratio - 1) for ratio in ratios) > 0.1


def test_the_first_update_of_pythia_moves_nothing() -> None:
    assert learning_rate(0, run_of("pythia", 100, 1.0, 0.1, 0.1)) == 0
    assert learning_rate(0, run_of("pythia", 100, 1.0, 0.1, 0.0)) == 1.0


@given(
    num_updates=st.integers(1, 400),
    warmup=st.floats(0, 0.9),
    ratio=st.floats(0, 1),
)
def test_laws_of_the_sound_schedule(num_updates: int, warmup: float, ratio: float) -> None:
    run = run_of("sound", num_updates, 2.0, 2.0 * ratio, warmup)
    rates = [learning_rate(update, run) for update in range(num_updates)]
    top = rates.index(max(rates))
    assert rates[0] > 0 or (num_updates == 1 and ratio == 0)
    assert max(rates) == pytest.approx(2.0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    falling = rates[top:]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(falling))
    if top < num_updates - 1:
        assert rates[-1] == pytest.approx(2.0 * ratio, abs=1e-12)
