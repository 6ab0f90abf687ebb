"""The model against vectors of the original programs: m1, and the rotary tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ontogeny.model import hf
from ontogeny.model.loss import linear_cross_entropy
from ontogeny.model.neox import NeoX, rotary_tables
from ontogeny.shape import RotaryTables, Shape


@pytest.fixture(params=["config.json", "config_classic_keys.json"])
def folder(request: pytest.FixtureRequest, golden: Path, tmp_path: Path) -> Path:
    """m1 in a folder of its own, under one of the two spellings of its configuration."""
    source = golden / "m1_hf_gpt_neox_h64"
    shutil.copy(source / "model.safetensors", tmp_path)
    shutil.copy(source / str(request.param), tmp_path / "config.json")
    return tmp_path


@pytest.fixture
def m1(folder: Path) -> NeoX:
    return hf.load(folder)


@pytest.fixture
def tokens(golden: Path) -> torch.Tensor:
    with np.load(golden / "m1_hf_gpt_neox_h64" / "io.npz") as arrays:
        return torch.from_numpy(arrays["input_ids"])


def test_m1_logits(m1: NeoX, tokens: torch.Tensor, golden: Path) -> None:
    with np.load(golden / "m1_hf_gpt_neox_h64" / "io.npz") as arrays:
        expected = torch.from_numpy(arrays["logits"])
    torch.testing.assert_close(m1(tokens).detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_m1_loss_and_gradients(m1: NeoX, tokens: torch.Tensor, golden: Path, fused: bool) -> None:
    expected = json.loads((golden / "m1_hf_gpt_neox_h64" / "golden.json").read_text())
    targets = tokens[:, 1:].flatten()
    if fused:
        hidden = m1.hidden(tokens[:, :-1]).flatten(0, 1)
        loss = linear_cross_entropy(hidden, m1.embed_out.weight, targets)
    else:
        loss = F.cross_entropy(m1(tokens[:, :-1]).flatten(0, 1), targets)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected["loss"], rel=1e-5)
    norms = {
        hf.to_file_name(name): float(parameter.grad.norm())
        for name, parameter in m1.named_parameters()
        if parameter.grad is not None
    }
    assert norms == pytest.approx(expected["grad_l2_norm_per_parameter"], rel=1e-5)


def test_m1_with_the_other_activation_differs(
    folder: Path, tokens: torch.Tensor, golden: Path
) -> None:
    """The tolerance above is tight enough to tell the two forms of GELU apart."""
    config = json.loads((folder / "config.json").read_text()) | {"hidden_act": "gelu_new"}
    (folder / "config.json").write_text(json.dumps(config))
    with np.load(golden / "m1_hf_gpt_neox_h64" / "io.npz") as arrays:
        expected = torch.from_numpy(arrays["logits"])
    assert float((hf.load(folder)(tokens).detach() - expected).abs().max()) > 1e-4


def tables(size: int, mode: RotaryTables, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines at all 2,048 positions, for heads of a size."""
    shape = Shape(
        num_layers=1, hidden_size=size, num_heads=1, vocab_size=8, context_length=2048,
        rotary_tables=mode,
    )  # fmt: skip
    found = rotary_tables(shape, 2048, dtype, torch.device("cpu"))
    assert {part.dtype for part in found} == {dtype}
    return found


def off_by(golden: Path, case: str, found: tuple[torch.Tensor, torch.Tensor]) -> float:
    """The largest difference from the golden tables, which list some of the positions."""
    with np.load(golden / "rotary_tables.npz") as arrays:
        positions = torch.from_numpy(arrays["positions"])
        expected = [torch.from_numpy(arrays[f"{case}|{part}"]) for part in ("cos", "sin")]
    pairs = zip(found, expected, strict=True)
    return max(float((ours[positions].float() - theirs).abs().max()) for ours, theirs in pairs)


@pytest.mark.parametrize("size", [64, 128])
def test_rotary_tables_in_half_precision(golden: Path, size: int) -> None:
    assert off_by(golden, f"head{size}_fp16", tables(size, "compute", torch.float16)) < 5e-4


@pytest.mark.parametrize("mode", ["compute", "float32"])
def test_rotary_tables_in_single_precision(golden: Path, mode: RotaryTables) -> None:
    assert off_by(golden, "head64_fp32", tables(64, mode, torch.float32)) == 0


@pytest.mark.parametrize("size", [64, 128])
def test_half_precision_tables_are_another_function(golden: Path, size: int) -> None:
    """They are off the exact ones by what the notes of the golden tables say."""
    exact, half = (tables(size, "compute", dtype)[0] for dtype in (torch.float32, torch.float16))
    notes = json.loads((golden / "rotary_tables.json").read_text())["rows"][f"head{size}_fp16"]
    error = float((half.float() - exact).abs().max())
    assert error == pytest.approx(notes["max_abs_err_of_cos_vs_fp32"], abs=1e-3)
    assert off_by(golden, f"head{size}_fp16", tables(size, "float32", torch.float16)) > 0.05
