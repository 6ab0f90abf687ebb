"""Runs trained by several ranks: the bits of one, or with tensor parallel its numbers, nearly."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranked import on_ranks
from torch import Tensor

import grown
from grown import Ground, begin
from ontogeny.artifact import open_artifact
from ontogeny.checkpoints.store import load_checkpoint
from ontogeny.config import build
from ontogeny.errors import CheckpointError, Stopped
from ontogeny.model.init import initial_model
from ontogeny.results import UpdateMetrics
from ontogeny.steps import METRICS, list_steps, step_folder
from ontogeny.suite import RunSettings
from ontogeny.training import vocabulary
from ontogeny.training.layout import Layout
from ontogeny.training.loop import train
from ontogeny.training.objective import Objective
from ontogeny.training.optimizer import AdamW
from ontogeny.training.parallel import distribute, is_cut_in_matrices
from ontogeny.training.parts import own
from ontogeny.training.ranks import ALONE, Ranks
from ontogeny.training.update import accumulate, gradient_norm

UPDATES = 8
# A width that 4 ranks cannot share evenly, and heads that the kernel of attention takes.
SHAPES = {"fp32": (18, 2), "bf16": (64, 4)}
PRECISIONS = sorted(SHAPES)
# What tensor-parallel ranks may differ by after UPDATES updates: of the loss, relative, and of
# the weights, relative to how far they moved.
NEAR = {"fp32": (1e-6, 5e-3), "bf16": (3e-3, 0.1)}


def settings(precision: str, **training: Any) -> RunSettings:
    """Updates of four micro batches."""
    values = {"rows_per_update": 8, "micro_batch_rows": 2, "num_linear": 2, "full_state_every": 1}
    of_run = {"tokens": UPDATES * 8 * grown.CONTEXT, "precision": precision}
    resolved: Any = grown.settings(**(values | of_run | training)).resolved()
    width, heads = SHAPES[precision]
    resolved["shape"] |= {"hidden_size": width, "num_heads": heads}
    return build(RunSettings, resolved, "test")


def grow(
    ranks: Ranks,
    home: Path,
    folder: Path,
    run_settings: RunSettings,
    stop_at: int = 0,
    other_bits: bool = False,
) -> None:
    """Train a run to its end, or until it is asked to leave after an update."""

    def leave(row: UpdateMetrics) -> None:
        if row.update + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    ground = Ground(home)
    run = ranks.first(lambda: begin(ground, folder, run_settings))
    batches = ground.batches(run_settings.training.rows_per_update)
    with suppress(Stopped):
        train(run, batches, [leave], ranks=ranks, other_bits=other_bits)


def grow_all(ranks: Ranks, home: Path, folder: Path) -> None:
    """A run of each precision."""
    for precision in PRECISIONS:
        grow(ranks, home, folder / precision, settings(precision))


def outcome(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What became of a run: its lines of metrics but for the time, its checkpoints' digests."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    timeless = [{k: v for k, v in line.items() if k not in ("seconds", "check")} for line in lines]
    steps = [open_artifact(step_folder(folder, step), "checkpoint") for step in list_steps(folder)]
    return timeless, [step.digest for step in steps]


@pytest.fixture(scope="module")
def alone(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each precision by one rank."""
    folder = tmp_path_factory.mktemp("alone")
    grow_all(ALONE, ground.home, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        Layout(1, recompute=True),
        Layout(2),
        Layout(2, shard="all"),
        Layout(2, recompute=True),
        Layout(4),
        Layout(4, shard="all", recompute=True),
    ],
    ids=str,
)
def test_bits_do_not_depend_on_the_layout(
    layout: Layout, ground: Ground, alone: Path, tmp_path: Path
) -> None:
    on_ranks(layout, grow_all, ground.home, tmp_path)
    for precision in PRECISIONS:
        assert outcome(tmp_path / precision) == outcome(alone / precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_goes_on_by_another_number_of_ranks(
    precision: str, ground: Ground, alone: Path, tmp_path: Path
) -> None:
    run, wanted = tmp_path / "run", settings(precision)
    on_ranks(Layout(4), grow, ground.home, run, wanted, 3)
    assert len(outcome(run)[0]) == 3
    grow(ALONE, ground.home, run, wanted, 5)
    assert len(outcome(run)[0]) == 5
    on_ranks(Layout(2, shard="all"), grow, ground.home, run, wanted)
    assert outcome(run) == outcome(alone / precision)


@pytest.mark.slow
def test_bits_are_equal_with_two_threads_a_rank(ground: Ground, tmp_path: Path) -> None:
    wanted = settings("bf16", threads=2, tokens=3 * 8 * grown.CONTEXT)
    grow(ALONE, ground.home, tmp_path / "one", wanted)
    on_ranks(Layout(2), grow, ground.home, tmp_path / "two", wanted)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


@pytest.mark.slow
def test_micro_batches_that_are_no_power_of_two(ground: Ground, tmp_path: Path) -> None:
    rows = {"rows_per_update": 9, "micro_batch_rows": 3, "tokens": UPDATES * 9 * grown.CONTEXT}
    wanted = settings("fp32", reproducible=False, **rows)
    grow(ALONE, ground.home, tmp_path / "one", wanted)
    on_ranks(Layout(3), grow, ground.home, tmp_path / "three", wanted)
    assert len(outcome(tmp_path / "three")[0]) == UPDATES
    require_near(tmp_path / "three", tmp_path / "one", "fp32")


def require_near(run: Path, other: Path, precision: str) -> None:
    """Assert that two runs saw the same rows and came out nearly the same."""
    (lines, _), (others, _) = outcome(run), outcome(other)
    assert [line["rows_digest"] for line in lines] == [line["rows_digest"] for line in others]
    of_loss, of_weights = NEAR[precision]
    for name in ("loss", "gradient_norm"):
        ours, theirs = (torch.tensor([line[name] for line in both]) for both in (lines, others))
        torch.testing.assert_close(ours, theirs, rtol=of_loss, atol=0)
    first, last, reached = (
        torch.cat([one.detach().flatten() for one in load_checkpoint(*which).parameters()])
        for which in ((other, 0), (other, UPDATES), (run, UPDATES))
    )
    assert (reached - last).norm() < of_weights * (last - first).norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        (Layout(1, 2), "bf16"),
        (Layout(1, 4), "bf16"),
        (Layout(2, 2, "all", recompute=True), "bf16"),
        (Layout(2, 2), "fp32"),
    ],
    ids=str,
)
def test_tensor_parallel_is_near_one_rank(
    layout: Layout, precision: str, ground: Ground, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    on_ranks(layout, grow, ground.home, run, settings(precision, reproducible=False))
    require_near(run, alone / precision, precision)
    bits = open_artifact(step_folder(run, UPDATES), "checkpoint").provenance["bits"]
    assert bits["layout"] == asdict(layout)


@pytest.mark.slow
def test_a_run_of_tensor_ranks_goes_on_with_others_only_if_told_to(
    ground: Ground, alone: Path, tmp_path: Path
) -> None:
    run, wanted = tmp_path / "run", settings("bf16", reproducible=False)
    on_ranks(Layout(2, 2), grow, ground.home, run, wanted, 3)
    with pytest.raises(CheckpointError, match="step 3 was computed with another layout"):
        grow(ALONE, ground.home, run, wanted)
    grow(ALONE, ground.home, run, wanted, 5, other_bits=True)
    on_ranks(Layout(1, 2), grow, ground.home, run, wanted, 0, True)
    require_near(run, alone / "bf16", "bf16")


def copies(ranks: Ranks, home: Path) -> tuple[int, int, int]:
    """How many numbers this rank holds, and of how many tensors copies; how many are equal."""
    wanted = settings("bf16", reproducible=False)
    model = initial_model(wanted.shape, wanted.init, wanted.init_seed)
    objective = Objective(model)
    distribute(objective, ranks, wanted.training)
    optimizer, batches = AdamW(model, wanted), Ground(home).batches(8)
    for update in range(3):
        rows = torch.from_numpy(batches(update))
        _, gradients = accumulate(objective, rows, wanted, ranks)
        norms = gathered(ranks, torch.tensor(gradient_norm(model, gradients, ranks)), None)
        assert len(set(norms.tolist())) == 1
        optimizer.step(gradients, 1e-2)
    assert ranks.mesh is not None
    group = ranks.mesh.get_group("tensor")
    moments = optimizer.named_state()
    found = [
        all(
            torch.equal(*gathered(ranks, own(one.detach()), group))
            for one in (parameter, moments[f"exp_avg.{name}"], moments[f"exp_avg_sq.{name}"])
        )
        for name, parameter in model.named_parameters()
        if not is_cut_in_matrices(parameter)
    ]
    held = sum(own(parameter).numel() for parameter in model.parameters())
    return held, len(found), sum(found)


def gathered(ranks: Ranks, part: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """What the ranks of a group have, stacked."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part, group)
    return torch.stack(parts)


@pytest.mark.slow
def test_copies_on_tensor_ranks_stay_equal(ground: Ground) -> None:
    held, found, equal = on_ranks(Layout(2, 2), copies, ground.home)
    width = SHAPES["bf16"][0]
    # Norms, and biases of what is added up: of 2 blocks of 2 + 2 and 2, and the last norm.
    assert equal == found == 2 * (4 + 2) + 2
    matrices = 2 * (12 * width + 7) * width + 2 * 384 * width
    assert held == matrices / 4 + found * width / 2


def cross_entropy(ranks: Ranks, strip_bytes: int, dtype: torch.dtype) -> list[float]:
    """How far loss and gradients of parts are from those of the whole in float64, relative."""
    assert ranks.mesh is not None
    vars(vocabulary).update(CHUNK_BYTES=strip_bytes, STRIP_BYTES=strip_bytes)
    mesh, random = ranks.mesh["tensor"], torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 24, generator=random).to(dtype)
    weight = torch.randn(96, 24, generator=random).to(dtype).float()
    targets = torch.randint(96, (37,), generator=random)
    targets[:4] = torch.tensor([0, 47, 48, 95])  # at the ends of parts
    exact = [one.double().requires_grad_() for one in (hidden, weight)]
    loss = F.cross_entropy(exact[0] @ exact[1].T, targets)
    size = len(weight) // mesh.size()
    share = slice(mesh.get_local_rank() * size, (mesh.get_local_rank() + 1) * size)
    ours = [one.requires_grad_() for one in (hidden, weight[share].clone())]
    found = vocabulary.cross_entropy_of_parts(ours[0], ours[1], targets, 8.0, mesh=mesh)
    d_hidden, d_weight = torch.autograd.grad(found, ours)
    exact_hidden, exact_weight = torch.autograd.grad(loss, exact)
    pairs = [(found, loss), (d_hidden, exact_hidden), (d_weight, exact_weight[share])]
    return [
        float((one.detach() / scale - other.detach()).norm() / other.detach().norm())
        for (one, other), scale in zip(pairs, (1, 8, 8), strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_loss_of_parts_of_the_ids_is_that_of_all(dtype: torch.dtype, bound: float) -> None:
    for strip_bytes in (1, 1000, 1 << 20):
        assert max(on_ranks(Layout(1, 2), cross_entropy, strip_bytes, dtype)) < bound
