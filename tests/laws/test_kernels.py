"""The attention kernel beside torch: as exact, causal, and the same on any number of threads."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ontogeny.model import arithmetic
from ontogeny.model.attention import KERNEL_HEADS, causal_attention, is_for_kernel
from ontogeny.model.kernels import load
from ontogeny.training import machine

ROOT = Path(__file__).parents[2]
EDGES = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200]
Problem = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def kernel() -> None:
    if "attention-1" not in load.features():
        pytest.skip(
            "no kernel here: no compiler when installed, or a processor without AVX512-BF16"
        )


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ONTOGENY_KERNELS", "0")
    load.library.cache_clear()
    load.features.cache_clear()
    yield
    load.library.cache_clear()
    load.features.cache_clear()


def problem(batch: int, time: int, heads: int, size: int, rotary: int, scale: float = 1) -> Problem:
    """qkv, the tables, and the gradient of the output, in bfloat16."""
    generator = torch.Generator().manual_seed(time + size)
    qkv = torch.randn(batch, time, heads, 3 * size, generator=generator)
    qkv[..., : 2 * size] *= scale
    grad = torch.randn(batch, time, heads, size, generator=generator)
    angles = torch.arange(time)[:, None] / 100 ** torch.linspace(0, 1, rotary // 2)
    tables = (table.repeat(1, 2) for table in (angles.cos(), angles.sin()))
    qkv, cos, sin, grad = (part.to(torch.bfloat16) for part in (qkv, *tables, grad))
    return qkv, cos, sin, grad


def solved(given: Problem, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """The output and the gradient of qkv."""
    qkv, cos, sin, grad = (part.to(dtype) for part in given)
    qkv.requires_grad_()
    out = causal_attention(qkv, cos, sin)
    return out.detach(), torch.autograd.grad(out, qkv, grad)[0]


def solved_by_torch(given: Problem) -> tuple[Tensor, Tensor]:
    """The same through products of torch alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ontogeny.model.attention.is_for_kernel", lambda qkv: False)
        return solved(given)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def assert_as_exact_as_torch(given: Problem) -> None:
    """Within 1.5 times torch's distance from float64, for the output and each gradient.

    Of few rows the two distances differ by chance as well, by about 1 / sqrt of how many: a weight
    that is rounded moves all of its row.
    """
    assert is_for_kernel(given[0])
    exact = solved(given, torch.float64)
    for ours, theirs, truth in zip(solved(given), solved_by_torch(given), exact, strict=True):
        parts = 3 if truth.shape[-1] == given[0].shape[-1] else 1
        for part in range(parts):
            mine, other, true = (x.chunk(parts, dim=-1)[part] for x in (ours, theirs, truth))
            chance = 2**-7 / math.sqrt(true.numel() / true.shape[-1])
            # A gradient of queries and keys may be 0, and then both sides' is of rounding alone.
            if float(true.norm()) > 1e-2 * float(truth.norm()):
                assert error(mine, true) <= 1.5 * error(other, true) + chance


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("time", EDGES)
def test_as_exact_as_torch_at_the_edges_of_blocks(time: int) -> None:
    assert_as_exact_as_torch(problem(2, time, 2, 32, 8))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", [16, 48, 64, 80, 112, 128, 256])
def test_as_exact_as_torch_for_heads_of_every_kind(size: int) -> None:
    assert_as_exact_as_torch(problem(1, 70, 2, size, size // 4))


@pytest.mark.usefixtures("kernel")
@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 150),
    heads=st.integers(1, 3),
    size=st.sampled_from(KERNEL_HEADS[:6]),
    quarters=st.integers(0, 4),
)
def test_as_exact_as_torch(batch: int, time: int, heads: int, size: int, quarters: int) -> None:
    assert_as_exact_as_torch(problem(batch, time, heads, size, size * quarters // 4))


@pytest.mark.usefixtures("kernel")
def test_large_scores_choose_one_key() -> None:
    given = problem(1, 130, 2, 32, 0, scale=300)
    out, grad = solved(given)
    assert bool(out.isfinite().all())
    assert bool(grad.isfinite().all())
    assert error(out, solved(given, torch.float64)[0]) < 0.01


@pytest.mark.usefixtures("kernel")
def test_threads_do_not_count() -> None:
    given, found = problem(2, 150, 5, 48, 12), []
    for number in (1, 2, 3):
        with arithmetic.threads(number):
            found.append(solved(given))
    for out, grad in found[1:]:
        assert torch.equal(out, found[0][0])
        assert torch.equal(grad, found[0][1])


@pytest.mark.usefixtures("kernel")
def test_the_layout_in_memory_and_gradients_do_not_count() -> None:
    qkv, cos, sin, grad = problem(2, 70, 3, 16, 4)
    out, d_qkv = solved((qkv, cos, sin, grad))
    moved = qkv.transpose(1, 2).contiguous().transpose(1, 2)
    strided = grad.repeat_interleave(2, dim=-1)[..., ::2]
    assert not moved.is_contiguous()
    again, d_again = solved((moved, cos, sin, strided))
    with torch.no_grad():
        assert torch.equal(causal_attention(qkv, cos, sin), out)
    assert torch.equal(again, out)
    assert torch.equal(d_again, d_qkv)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("changed", [1, 15, 63, 64, 65, 100])
def test_the_future_does_not_count(changed: int) -> None:
    qkv, cos, sin, _ = problem(1, 130, 2, 32, 8)
    other = qkv.clone()
    other[:, changed:] = 3 * qkv[:, changed:].flip(1)
    before, after = causal_attention(qkv, cos, sin), causal_attention(other, cos, sin)
    assert torch.equal(after[:, :changed], before[:, :changed])
    assert not torch.equal(after[:, changed], before[:, changed])


def row_by_row(qkv: Tensor) -> Tensor:
    """The output of one unrotated head, a row at a time from its past alone, in float64."""
    q, k, v = qkv[0, :, 0].double().chunk(3, dim=-1)
    scale = q.shape[1] ** -0.5
    rows = (
        torch.softmax(scale * k[: t + 1] @ q[t], dim=0) @ v[: t + 1] for t in range(qkv.shape[1])
    )
    return torch.stack(list(rows))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("place", [0, 70, 129])
def test_what_is_not_finite_is_not_hidden(value: float, part: str, place: int) -> None:
    qkv, cos, sin, grad = problem(1, 130, 1, 32, 0)
    qkv[0, place, 0, 32 * ["query", "key", "value"].index(part) + 20] = value
    out, d_qkv = solved((qkv, cos, sin, grad))
    lost = ~row_by_row(qkv).isfinite()
    assert bool(lost.any()) or part == "key"  # an infinite score may be a weight of 0
    assert bool((~out[0, :, 0].isfinite())[lost].all())
    assert bool((~d_qkv.isfinite()).any()) or not bool(lost.any())
    assert bool(out[0, : place // 16 * 16].isfinite().all())


def test_other_numbers_and_heads_are_left_to_torch() -> None:
    assert not is_for_kernel(torch.zeros(1, 2, 1, 96))
    assert not is_for_kernel(torch.zeros(1, 2, 1, 96, dtype=torch.float16))
    assert not is_for_kernel(torch.zeros(1, 2, 1, 24 * 3, dtype=torch.bfloat16))
    assert not is_for_kernel(torch.zeros(1, 2, 1, 272 * 3, dtype=torch.bfloat16))
    assert not is_for_kernel(torch.zeros(1, 2, 1, 96, dtype=torch.bfloat16, device="meta"))


@pytest.mark.usefixtures("kernel")
def test_tables_of_another_length_are_refused() -> None:
    qkv, cos, sin, _ = problem(1, 20, 1, 32, 8)
    with pytest.raises(AssertionError):
        causal_attention(qkv, cos[:19], sin[:19])


@pytest.mark.usefixtures("kernel")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
@pytest.mark.slow
def test_torchs_compiler_takes_it_whole() -> None:
    given = problem(2, 70, 2, 32, 8)
    qkv, cos, sin, grad = given
    compiled = torch.compile(causal_attention, backend="aot_eager", fullgraph=True)
    out = compiled(qkv.requires_grad_(), cos, sin)
    expected = solved(given)
    assert torch.equal(out, expected[0])
    assert torch.equal(torch.autograd.grad(out, qkv, grad)[0], expected[1])


def test_what_runs_here_is_recorded() -> None:
    assert machine.bits()["extensions"] == load.features()


@pytest.mark.usefixtures("without_kernels")
def test_turned_off() -> None:
    given = problem(1, 20, 1, 32, 8)
    assert load.library() is None
    assert machine.bits()["extensions"] == []
    assert not is_for_kernel(given[0])
    assert bool(solved(given)[0].isfinite().all())


def test_a_library_that_is_missing_broken_or_old_is_not_used(tmp_path: Path) -> None:
    assert load.find(tmp_path) is None
    (tmp_path / f"_kernels{EXTENSION_SUFFIXES[0]}").write_bytes(b"built for another machine")
    assert load.find(tmp_path) is None
    assert load.runnable(None) == []
    assert load.runnable(ctypes.CDLL(None)) == []  # a library, but of other functions


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["cc", "no-such-compiler"])
def test_installs_with_and_without_a_compiler(tmp_path: Path, compiler: str) -> None:
    pytest.importorskip("setuptools")
    if compiler == "cc" and shutil.which("cc") is None:
        pytest.skip("no compiler here")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**os.environ, "CC": compiler}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = load.find(tmp_path / "src" / "ontogeny" / "model" / "kernels")
    assert (found is not None) == (compiler == "cc")
