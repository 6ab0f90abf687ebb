"""Training on a GPU: near the CPU's numbers, and always the same ones.

    CUDA_VISIBLE_DEVICES=0 pytest -m gpu

The runs are tiny, so nothing here says how fast they are.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from grown import CONTEXT, Enough, Ground, begin, settings, stop_after
from killed import FORKS, Site, proof
from ontogeny.checkpoints.store import Progress, load_checkpoint
from ontogeny.config import build
from ontogeny.evaluation.score import Request, answer
from ontogeny.model.attention import causal_attention
from ontogeny.model.init import initial_model
from ontogeny.results import UpdateMetrics, read_metrics
from ontogeny.steps import METRICS
from ontogeny.suite import RunSettings
from ontogeny.training import machine
from ontogeny.training.loop import train
from ontogeny.training.prefetch import Feed
from ontogeny.training.replay import replay
from ontogeny.training.run import Run, open_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="no GPU here; where there is one: CUDA_VISIBLE_DEVICES=0 pytest -m gpu",
    ),
    pytest.mark.filterwarnings("default"),  # torch's compiler makes torch warn
]
# cuBLAS looks once, at the first product of the process, which may be another test's.
os.environ.setdefault(machine.WORKSPACE, machine.WORKSPACES[0])

# Loss and norm after 24 updates that move the loss from 6.3 to 3.1, relative to the CPU in fp32.
NEAR = {"fp32": 1e-3, "bf16": 0.03, "fp16": 0.01}
PRECISIONS = sorted(NEAR)
COMPILED = pytest.param(True, marks=pytest.mark.slow, id="compiled")


def shaped(**training: object) -> RunSettings:
    """Updates of two micro batches, with heads that flash attention takes."""
    resolved = settings(**{"micro_batch_rows": 2} | training).resolved()
    resolved["shape"] |= {"hidden_size": 64, "num_heads": 2}
    return build(RunSettings, resolved, "test")


def lines(run: Run) -> list[UpdateMetrics]:
    return [dataclasses.replace(row, seconds=0.0) for row in read_metrics(run.path / METRICS)]


def grow_without_gpus(home: Path, folder: Path) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    Site(Ground(home), folder, shaped(learning_rate=1e-3)).finish()


@pytest.fixture(scope="module")
def of_the_cpu(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in fp32 by a process that sees no GPU."""
    folder = tmp_path_factory.mktemp("cpu") / "run"
    process = FORKS.Process(target=grow_without_gpus, args=(ground.home, folder))
    process.start()
    process.join()
    assert process.exitcode == 0
    return open_run(folder)


@pytest.mark.parametrize("compiled", [False, COMPILED])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_cpus_numbers_nearly(
    ground: Ground, of_the_cpu: Run, tmp_path: Path, precision: str, compiled: bool
) -> None:
    wanted = shaped(precision=precision, compile=compiled, learning_rate=1e-3)
    run = begin(ground, tmp_path / "run", wanted)
    train(run, ground.batches(4))
    for row, other in zip(lines(run), lines(of_the_cpu), strict=True):
        assert row.rows_digest == other.rows_digest
        assert row.loss == pytest.approx(other.loss, rel=NEAR[precision])
        assert row.gradient_norm == pytest.approx(other.gradient_norm, rel=10 * NEAR[precision])
    first, second = (load_checkpoint(one.path, 1).state_dict() for one in (run, of_the_cpu))
    if precision == "fp32":  # one update; a bias of the keys has no gradient but rounding
        for name in (name for name in first if not name.endswith("query_key_value.bias")):
            torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("compiled", [False, COMPILED])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_bits_again_after_stops_and_kills(
    ground: Ground, tmp_path: Path, precision: str, compiled: bool
) -> None:
    wanted = shaped(
        precision=precision, compile=compiled, loss_scale={"initial": 2.0**20, "window": 5}
    )
    whole = Site(ground, tmp_path / "whole", wanted).finish()
    run = begin(ground, tmp_path / "run", wanted)
    for stop in (5, 9, 10):
        with pytest.raises(Enough):
            train(run, ground.batches(4), [stop_after(stop)])
    site = Site(ground, run.path, wanted)
    with site.training() as process:  # killed -9 as soon as it is past update 12
        while process.is_alive() and (run.path / METRICS).read_bytes().count(b"\n") < 12:
            process.join(0.001)
    assert proof(site.finish()) == proof(whole)
    assert lines(run) == lines(whole)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_replay_derives_every_bit(ground: Ground, tmp_path: Path, precision: str) -> None:
    run = Site(ground, tmp_path / "run", shaped(precision=precision)).finish()
    for step, start in ((24, 0), (21, 8)):
        found = replay(run, ground.batches(4), step, start=start)
        assert found.num_compared == step - start
        assert all(one.deviation is None for one in found.passed)


def test_rows_lie_on_the_gpu_when_they_are_asked_for(ground: Ground) -> None:
    batches, device = ground.batches(4), machine.device()
    with Feed(batches, Progress(0, 0, batches.start), 9, device) as feed:
        for update in range(9):
            rows = feed.take()
            assert rows.tokens.device == device
            assert np.array_equal(rows.tokens.cpu().numpy(), batches(update))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_attention_is_that_of_the_cpu(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 200, 3, 192, generator=generator)
    angles = torch.arange(200)[:, None] / 10.0 ** torch.arange(8).repeat(2)
    grad = torch.randn(2, 200, 3, 64, generator=generator)
    found = []
    for where, kind in (("cpu", torch.float32), (machine.device(), dtype)):
        x = qkv.to(where, kind).detach().requires_grad_()
        out = causal_attention(x, angles.cos().to(where, kind), angles.sin().to(where, kind))
        out.backward(grad.to(where, kind))
        assert x.grad is not None
        found.append((out.detach().float().cpu(), x.grad.float().cpu()))
    bound = {torch.float16: 3e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5}[dtype]
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < bound * one.norm()


def test_scores_are_those_of_the_cpu() -> None:
    model = initial_model(shaped().shape, "small-wang", 0)
    requests = [Request(tuple(range(2, 2 + n)), (5, n)) for n in range(1, CONTEXT - 1)]
    of_the_cpu = answer(model, requests, torch.float32, greedy=True)
    on_the_gpu = answer(model.to(machine.device()), requests, torch.float32, greedy=True)
    for one, other in zip(of_the_cpu, on_the_gpu, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-4)
        assert one.is_greedy == other.is_greedy


def test_what_makes_the_bits_names_the_gpu() -> None:
    bits = machine.bits(compiled=True)
    assert bits["device"] == torch.cuda.get_device_name()
    assert bits["compile"] == "triton"


def test_float32_is_never_rounded_to_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True  # as some images do
    with machine.arithmetic(settings().training):
        assert not torch.backends.cuda.matmul.allow_tf32
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
        found = (a.to(machine.device()) @ b.to(machine.device())).cpu().double()
    exact = a.double() @ b.double()
    assert (found - exact).norm() < 1e-5 * exact.norm()
