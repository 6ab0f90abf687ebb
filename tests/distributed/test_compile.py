"""Blocks that torch compiles: nearly the numbers of those it does not, the same by two ranks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from ranked import on_ranks
from test_layouts import grow, outcome

import grown
from grown import Ground
from ontogeny.config import build
from ontogeny.suite import RunSettings
from ontogeny.training.layout import Layout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "g++")) is None, reason="no compiler of C++ here"
    ),
]


def settings(*, compiled: bool) -> RunSettings:
    resolved = grown.settings(
        tokens=4 * 4 * grown.CONTEXT, micro_batch_rows=2, num_linear=2, full_state_every=1,
        compile=compiled, precision="bf16",
    ).resolved()  # fmt: skip
    resolved["shape"]["num_layers"] = 1
    return build(RunSettings, resolved, "test")


def test_compiled_blocks_compute_nearly_the_same_however_they_are_cut(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    plain, compiled, by_two = (tmp_path / name for name in ("plain", "compiled", "by-two"))
    on_ranks(Layout(), grow, ground.home, plain, settings(compiled=False))
    on_ranks(Layout(), grow, ground.home, compiled, settings(compiled=True), seconds=280)
    on_ranks(
        Layout(2, recompute=True), grow, ground.home, by_two, settings(compiled=True), seconds=280
    )
    assert outcome(by_two) == outcome(compiled)
    pairs = zip(outcome(plain)[0], outcome(compiled)[0], strict=True)
    for one, other in pairs:
        assert other["loss"] == pytest.approx(one["loss"], rel=3e-3)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-2)
