"""Half precision by several ranks: all of them skip the same updates, to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ranked import on_ranks
from test_layouts import grow, outcome

import grown
from grown import Ground
from ontogeny.config import build
from ontogeny.suite import RunSettings
from ontogeny.training.layout import Layout
from ontogeny.training.ranks import ALONE

UPDATES = 16


def half(**training: Any) -> RunSettings:
    """Updates of four micro batches that overflow at once, and again later."""
    values: dict[str, Any] = {
        "tokens": UPDATES * 4 * grown.CONTEXT,
        "micro_batch_rows": 1,
        "num_linear": 2,
        "full_state_every": 1,
        "precision": "fp16",
        "loss_scale": {"initial": 2.0**19, "window": 3},
    }
    resolved = grown.settings(**values | training).resolved()
    return build(RunSettings, resolved, "test")


@pytest.fixture(scope="module")
def alone(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "alone"
    grow(ALONE, ground.home, folder, half())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(2), Layout(4, shard="all")], ids=str)
def test_bits_and_skips_do_not_depend_on_the_layout(
    layout: Layout, ground: Ground, alone: Path, tmp_path: Path
) -> None:
    on_ranks(layout, grow, ground.home, tmp_path / "run", half())
    assert outcome(tmp_path / "run") == outcome(alone)
    lines, _ = outcome(alone)
    assert 4 <= sum(line.get("skipped", False) for line in lines) < UPDATES - 4


@pytest.mark.slow
def test_the_scale_goes_on_under_another_layout(
    ground: Ground, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    on_ranks(Layout(2), grow, ground.home, run, half(), 3)  # amid the first overflows
    grow(ALONE, ground.home, run, half())
    assert outcome(run) == outcome(alone)


@pytest.mark.slow
def test_tensor_parallel_ranks_find_the_same_overflows(
    ground: Ground, alone: Path, tmp_path: Path
) -> None:
    layout = Layout(tensor=2)
    on_ranks(layout, grow, ground.home, tmp_path / "run", half(reproducible=False))
    found, expected = outcome(tmp_path / "run")[0][:6], outcome(alone)[0][:6]
    for one, other in zip(found, expected, strict=True):
        assert one.get("skipped") == other.get("skipped")
        assert one["loss_scale"] == other["loss_scale"]
        assert one["loss"] == pytest.approx(other["loss"], rel=3e-3)
