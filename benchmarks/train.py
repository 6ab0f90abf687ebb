"""Training speed and memory, ours beside transformers' GPT-NeoX, on the same batches.

Each measurement is a process of its own; the contenders take turns, round after round, so that a
machine whose speed drifts treats them alike. Medians over the rounds; memory is the peak above
what is resident after the imports. The allocator is tuned for the peer as ours tunes it for itself.

    python benchmarks/train.py --rounds 3 600k 2m 14m
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WARMUP, STEPS = 3, 8
TUNED = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184"


@dataclass(frozen=True)
class Case:
    """A shape and a batch."""

    num_layers: int
    hidden_size: int
    num_heads: int
    vocab_size: int
    context_length: int
    rows: int


CASES = {
    "300k": Case(2, 32, 2, 4096, 128, 16),
    "600k": Case(2, 64, 2, 4096, 128, 16),
    "2m": Case(4, 128, 4, 4096, 128, 16),
    "14m": Case(6, 128, 4, 50304, 512, 8),
    "14m-2048": Case(6, 128, 4, 50304, 2048, 2),
    "70m": Case(6, 512, 8, 50304, 512, 8),
}
CONTENDERS = ("ours bf16", "ours fp32", "eager bf16", "sdpa bf16", "eager fp32", "sdpa fp32")


def measure(case: Case, contender: str, threads: int) -> dict[str, float]:
    """Tokens a second (median step) and peak bytes above the imports, of one contender."""
    import torch

    who, precision = contender.split()
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = torch.randint(
        0, case.vocab_size, (WARMUP + STEPS, case.rows, case.context_length + 1),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    build = ours if who == "ours" else peer
    step = build(case, who, dtype)
    resident = peak_bytes()
    seconds, loss = [], 0.0
    for batch in rows:
        began = time.perf_counter()
        loss = step(batch)
        seconds.append(time.perf_counter() - began)
    tokens = case.rows * case.context_length
    return {
        "tokens_per_second": tokens / statistics.median(seconds[WARMUP:]),
        "bytes": peak_bytes() - resident,
        "loss": loss,
    }


def ours(case: Case, who: str, dtype: Any) -> Callable[[Any], float]:
    """A training step as `ontogeny.training.update` takes it."""
    import torch

    from ontogeny.config import build
    from ontogeny.model.init import initial_model
    from ontogeny.suite import RunSettings
    from ontogeny.training import machine
    from ontogeny.training.objective import Objective
    from ontogeny.training.optimizer import AdamW
    from ontogeny.training.ranks import ALONE
    from ontogeny.training.update import accumulate, gradient_norm

    machine.keep_freed_memory()
    shape = {name: value for name, value in vars(case).items() if name != "rows"}
    training = {
        "tokens": 10**6,
        "rows_per_update": case.rows,
        "learning_rate": 1e-3,
        "precision": "bf16" if dtype is torch.bfloat16 else "fp32",
    }
    values = {"member": "x", "recipe": "sound", "shape": shape, "init": "small-wang",
              "init_seed": 0, "training": training}  # fmt: skip
    settings = build(RunSettings, values, "benchmark")
    model = initial_model(settings.shape, "small-wang", 0)
    objective, optimizer = Objective(model), AdamW(model, settings)

    def step(batch: Any) -> float:
        loss, gradients = accumulate(objective, batch, settings, ALONE)
        norm = gradient_norm(model, gradients, ALONE)
        torch._foreach_mul_(list(gradients.values()), min(1.0, 1 / (norm + 1e-6)))
        optimizer.step(gradients, 1e-3)
        return loss

    return step


def peer(case: Case, who: str, dtype: Any) -> Callable[[Any], float]:
    """A training step of transformers' model, with autocast and the fused optimizer."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        hidden_size=case.hidden_size,
        num_hidden_layers=case.num_layers,
        num_attention_heads=case.num_heads,
        intermediate_size=4 * case.hidden_size,
        vocab_size=case.vocab_size,
        max_position_embeddings=case.context_length,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=who,
    )
    model = GPTNeoXForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def step(batch: Any) -> float:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16):
            logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_its_own_process(case: str, contender: str, threads: int) -> dict[str, float]:
    """`measure`, with nothing left over from another contender."""
    command = [sys.executable, __file__, "--one", contender, "--threads", str(threads), case]
    environment = os.environ | ({} if "ours" in contender else {"GLIBC_TUNABLES": TUNED})
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def flops_per_token(case: Case) -> float:
    from ontogeny.shape import Shape

    return Shape(
        **{name: value for name, value in vars(case).items() if name != "rows"}
    ).flops_per_token


def compare(name: str, rounds: int, threads: int) -> None:
    """Print the table of one case."""
    import torch

    from ontogeny.stages.plan import matmul_rate

    results: dict[str, list[dict[str, float]]] = {contender: [] for contender in CONTENDERS}
    rates = []
    for _ in range(rounds):
        rates.append(matmul_rate(torch.bfloat16, threads))
        for contender in CONTENDERS:
            results[contender].append(in_its_own_process(name, contender, threads))
    speed = {
        contender: statistics.median(one["tokens_per_second"] for one in found)
        for contender, found in results.items()
    }
    memory = {
        contender: statistics.median(one["bytes"] for one in found)
        for contender, found in results.items()
    }
    best = max(speed[contender] for contender in CONTENDERS if "ours" not in contender)
    ceiling, flops = statistics.median(rates), flops_per_token(CASES[name])
    print(f"\n{name}: {CASES[name]}, {threads} threads, {rounds} rounds")
    print(f"bf16 matrix product: {ceiling / 1e9:.0f} GFLOP/s")
    print("| contender | tokens/s | of the best peer | GFLOP/s | of the ceiling | peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for contender in CONTENDERS:
        rate = speed[contender]
        print(
            f"| {contender} | {rate:,.0f} | {rate / best:.2f} | {rate * flops / 1e9:.0f} "
            f"| {rate * flops / ceiling:.0%} | {memory[contender] / 1e6:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--one", metavar="CONTENDER", help="measure one and print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(CASES[options.cases[0]], options.one, options.threads)))
        return
    for name in options.cases:
        compare(name, options.rounds, options.threads)


if __name__ == "__main__":
    main()
