"""Several GPUs of a machine: the bits of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranked import on_ranks
from test_half import half
from test_layouts import grow, outcome, settings

from grown import Ground
from ontogeny.suite import RunSettings
from ontogeny.training.layout import Layout
from ontogeny.training.ranks import ALONE

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
RUNS = [settings("fp32"), settings("bf16"), half()]


@pytest.mark.parametrize("layout", [Layout(2), Layout(2, shard="all")], ids=str)
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.training.precision)
def test_two_gpus_have_the_bits_of_one(
    ground: Ground, tmp_path: Path, layout: Layout, run: RunSettings
) -> None:
    if torch.cuda.device_count() < layout.num_ranks:
        pytest.skip("two GPUs are not here; where they are: CUDA_VISIBLE_DEVICES=0,1 pytest -m gpu")
    grow(ALONE, ground.home, tmp_path / "one", run)
    on_ranks(layout, grow, ground.home, tmp_path / "two", run)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")
