"""What a machine is asked for, and what is said where it does not have it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from grown import CONTEXT, settings
from ontogeny.errors import ConfigError
from ontogeny.model.neox import NeoX
from ontogeny.suite import Precision
from ontogeny.training import machine
from ontogeny.training.objective import Objective
from ontogeny.training.ranks import ALONE

WITHOUT_GPUS = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.mark.slow  # torch imports its compiler to tell it
@pytest.mark.parametrize("before", [None, *machine.WORKSPACES])
def test_one_way_is_for_the_block_only(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.setenv(machine.WORKSPACE, before or "")
    if before is None:
        monkeypatch.delenv(machine.WORKSPACE)
    with machine.one_way():
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ[machine.WORKSPACE] == (before or ":4096:8")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_workspace_that_adds_in_any_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.WORKSPACE, ":0:0")
    with (
        pytest.raises(ConfigError, match="found :0:0; try: unset CUBLAS_WORKSPACE_CONFIG, or"),
        machine.one_way(),
    ):
        pass
    assert not torch.are_deterministic_algorithms_enabled()


@WITHOUT_GPUS
def test_a_rank_without_a_gpu_of_its_own_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no GPU for rank 3 .* expected at most 0 ranks"):
        machine.take_gpu(3)


@WITHOUT_GPUS
def test_nothing_to_compile_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    with pytest.raises(
        ConfigError, match=r"nothing to compile with; expected .*absent; .*training\.compile=false"
    ):
        ALONE.bits(settings(compile=True))
    assert ALONE.bits(settings())["compile"] is False


@WITHOUT_GPUS
def test_the_compiler_is_named_among_what_makes_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\necho 'cc 1.2.3'\necho copyright\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    assert ALONE.bits(settings(compile=True))["compile"] == "cc 1.2.3"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_part_of_a_pass_comes_back_to_the_cpu(precision: Precision) -> None:
    with torch.device("meta"):  # which has no memory, but knows where a tensor is
        model, rows = NeoX(settings().shape), torch.empty(4, CONTEXT + 1, dtype=torch.int64)
    loss = Objective(model)(rows, machine.require_precision(precision), scale=8.0)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert {one.device.type for one in (loss, *gradients) if one is not None} == {"meta"}
    assert all(one is not None and one.dtype is torch.float32 for one in gradients)
