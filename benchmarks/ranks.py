"""What bits that do not depend on the layout cost: updates of several ranks on this machine.

In every process the contenders take turns, update by update: gradients summed in the fixed order,
and by torch's own reduce-scatter, for both ways to cut; and torch's DistributedDataParallel, which
cuts nothing. Medians over the updates. With more ranks than cores a time says little; ratios do.

    torchrun --nproc-per-node 2 benchmarks/ranks.py 14m 2m
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ontogeny.config import build
from ontogeny.model.init import initial_model
from ontogeny.suite import RunSettings
from ontogeny.training import machine
from ontogeny.training.launch import num_started
from ontogeny.training.layout import Layout
from ontogeny.training.objective import Objective
from ontogeny.training.optimizer import AdamW
from ontogeny.training.parallel import distribute
from ontogeny.training.ranks import Ranks, joined
from ontogeny.training.update import accumulate, gradient_norm
from train import CASES, Case

WARMUP, UPDATES = 2, 9
DDP = "torch's DDP"


def settings_of(case: Case, micro_steps: int, reproducible: bool) -> RunSettings:
    shape = {name: value for name, value in vars(case).items() if name != "rows"}
    training = {
        "tokens": 10**6,
        "rows_per_update": case.rows,
        "micro_batch_rows": case.rows // (num_started() * micro_steps),
        "learning_rate": 1e-3,
        "precision": machine.resolve_precision("auto"),
        "reproducible": reproducible,
    }
    values = {"member": "x", "recipe": "sound", "shape": shape, "init": "small-wang",
              "init_seed": 0, "training": training}  # fmt: skip
    return build(RunSettings, values, "benchmark")


def ours(ranks: Ranks, settings: RunSettings) -> Callable[[Any], None]:
    """An update as `ontogeny.training.update` takes it."""
    model = initial_model(settings.shape, "small-wang", 0)
    objective = Objective(model)
    distribute(objective, ranks, settings.training)
    optimizer = AdamW(model, settings)

    def update(rows: torch.Tensor) -> None:
        _, gradients = accumulate(objective, rows, settings, ranks)
        norm = gradient_norm(model, gradients, ranks)
        torch._foreach_mul_(list(gradients.values()), min(1.0, 1 / (norm + 1e-6)))
        optimizer.step(gradients, 1e-3)

    return update


def ddp(ranks: Ranks, settings: RunSettings) -> Callable[[Any], None]:
    """An update of the same model by torch's replicas, with every part of the optimizer on all."""
    objective = Objective(initial_model(settings.shape, "small-wang", 0))
    replica = DistributedDataParallel(objective)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, fused=True)
    dtype = machine.require_precision(settings.training.precision)

    def update(rows: torch.Tensor) -> None:
        micro_batches = rows.chunk(ranks.layout.data)[ranks.place].split(
            settings.training.micro_batch_rows or len(rows)
        )
        for number, micro in enumerate(micro_batches, start=1):
            replica.require_backward_grad_sync = number == len(micro_batches)
            replica(micro, dtype).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update


def compare(name: str, micro_steps: int) -> None:
    """Print the table of one case, on the first rank."""
    case, seconds = CASES[name], {}
    contenders: dict[str, Callable[[Any], None]] = {}
    number = num_started()
    with joined(Layout(number)) as ranks:
        for shard in ("optimizer", "all"):
            cut = Ranks(Layout(number, shard=shard), ranks.number, ranks.mesh)
            for order, reproducible in (("fixed order", True), ("torch's order", False)):
                settings = settings_of(case, micro_steps, reproducible)
                contenders[f"{shard} cut, {order}"] = ours(cut, settings)
        contenders[DDP] = ddp(ranks, settings_of(case, micro_steps, True))
        batches = torch.randint(
            0, case.vocab_size, (WARMUP + UPDATES, case.rows, case.context_length + 1),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        taken: dict[str, list[float]] = {one: [] for one in contenders}
        for rows in batches:
            for contender, update in contenders.items():
                dist.barrier()
                began = time.perf_counter()
                update(rows)
                dist.barrier()
                taken[contender].append(time.perf_counter() - began)
        seconds = {one: statistics.median(times[WARMUP:]) for one, times in taken.items()}
        if not ranks.is_first:
            return
    print(f"\n{name}: {case}, {number} ranks, {micro_steps} micro steps")
    print("| contender | s an update | of torch's order, so cut | of DDP |")
    print("| --- | --- | --- | --- |")
    for contender, time_taken in seconds.items():
        plain = seconds.get(contender.replace("fixed order", "torch's order"), time_taken)
        print(
            f"| {contender} | {time_taken:.3f} | {time_taken / plain:.2f} "
            f"| {time_taken / seconds[DDP]:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--micro-steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine.keep_freed_memory()
    for name in options.cases:
        compare(name, options.micro_steps)


if __name__ == "__main__":
    main()
