"""Training speed and memory: ours beside transformers and litgpt, same shapes, same tokens.

Each measurement is a process of its own, and the contenders take turns, round after round, so that
a machine whose speed drifts treats them alike; medians over the rounds. Peers get the allocator
tuned as ours tunes it for itself, the fused optimizer, and the loss inside what is compiled; they
only lack the reading of rows, which is ours to do. A step is forward, loss, backward, clip, AdamW.
FLOPs are counted in closed form (`Shape.flops_per_token`), the ceiling is the best matrix product
found here. Memory is the peak above what the imports hold.

    python benchmarks/train.py --rounds 3 --peers-python PEERS/bin/python 600k 2m 14m 70m

litgpt is measured where the peers' Python has it (`pip install litgpt==0.5.13`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

WARMUP, STEPS = 3, 8  # a compiler is done before the first timed step
TUNED = (
    "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184"
    ":glibc.malloc.hugetlb=1"
)
SOME_IDS = 4096  # that occur in the tokens, by Zipf's law


@dataclass(frozen=True)
class Case:
    """A shape and a batch."""

    num_layers: int
    hidden_size: int
    num_heads: int
    vocab_size: int
    context_length: int
    rows: int

    @property
    def shape(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "rows"}

    @property
    def tokens(self) -> int:
        return self.rows * self.context_length


CASES = {
    "300k": Case(2, 32, 2, 4096, 128, 16),
    "600k": Case(2, 64, 2, 4096, 128, 16),
    "2m": Case(4, 128, 4, 4096, 128, 16),
    "nano": Case(4, 128, 4, 4096, 256, 16),
    "14m": Case(6, 128, 4, 50304, 512, 8),
    "14m-2048": Case(6, 128, 4, 50304, 2048, 2),
    "31m": Case(6, 256, 8, 50304, 512, 8),
    "70m": Case(6, 512, 8, 50304, 512, 8),
    "70m-2048": Case(6, 512, 8, 50304, 2048, 2),
}
# Who, in which arithmetic, and what else: the words that are taken apart below.
CONTENDERS = tuple(
    one + compiled
    for one in ("ours bf16", "ours fp32", "transformers bf16 eager", "transformers bf16 sdpa",
                "transformers fp32 eager", "transformers fp32 sdpa", "litgpt bf16")
    for compiled in ("", " compiled")
)  # fmt: skip
HEAVY = {
    "ours": "ontogeny.training.loop",
    "transformers": "transformers.models.gpt_neox.modeling_gpt_neox",
    "litgpt": "litgpt",
}


@dataclass(frozen=True)
class Task:
    """What a process of its own is asked to measure."""

    case: Case
    contender: str
    threads: int
    device: str
    folder: str  # of the tokens, as a store and as rows


Step = Callable[[], tuple[float, float]]  # one update: its loss, and the seconds it waited for rows


def measure(task: Task) -> dict[str, float]:
    """Seconds of the median step, peak bytes, last loss, and the share of time spent waiting."""
    import torch

    torch.set_num_threads(task.threads)
    who, _, _ = task.contender.partition(" ")
    importlib.import_module(HEAVY[who])
    imported = peak_bytes(task.device)
    steps = {"ours": ours, "transformers": transformers, "litgpt": litgpt}[who]
    seconds, waited, loss = [], 0.0, 0.0
    for number, step in enumerate(steps(task)):
        began = time.perf_counter()
        loss, waits = step()
        if task.device == "cuda":
            torch.cuda.synchronize()
        if number >= WARMUP:
            seconds.append(time.perf_counter() - began)
            waited += waits
    return {
        "seconds": statistics.median(seconds),
        "bytes": peak_bytes(task.device) - imported,
        "loss": loss,
        "waiting": waited / sum(seconds),
    }


def ours(task: Task) -> Iterator[Step]:
    """Updates of a run, from its rows on disk to its moved weights."""
    from ontogeny.config import build
    from ontogeny.suite import RunSettings
    from ontogeny.training import machine
    from ontogeny.training.prefetch import Feed
    from ontogeny.training.ranks import ALONE
    from ontogeny.training.run import create_run
    from ontogeny.training.update import resumed, take_update

    case, words = task.case, task.contender.split()
    training = {"tokens": (WARMUP + STEPS) * case.tokens, "rows_per_update": case.rows,
                "learning_rate": 1e-3, "precision": words[1], "compile": "compiled" in words,
                "threads": task.threads}  # fmt: skip
    values = {"member": "x", "recipe": "sound", "shape": case.shape, "init": "small-wang",
              "init_seed": 0, "training": training}  # fmt: skip
    settings = build(RunSettings, values, "benchmark")
    batches = batches_of(case, Path(task.folder))
    machine.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, machine.arithmetic(settings.training):
        run = create_run(Path(folder) / "run", settings, {}, tokenizer_files={})
        state = resumed(run, run.start(batches.start), ALONE)
        with Feed(batches, state.progress, settings.num_updates, machine.device()) as feed:

            def step() -> tuple[float, float]:
                before = feed.waited
                return take_update(run, feed, state).loss, feed.waited - before

            yield from [step] * settings.num_updates


def transformers(task: Task) -> Iterator[Step]:
    """Steps of transformers' own model."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    case = task.case
    sizes = {"hidden_size": case.hidden_size, "intermediate_size": 4 * case.hidden_size,
             "num_hidden_layers": case.num_layers, "num_attention_heads": case.num_heads,
             "max_position_embeddings": case.context_length, "vocab_size": case.vocab_size,
             "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
    attention = task.contender.split()[2]
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, attn_implementation=attention))
    return peers_steps(task, model, lambda tokens: model(tokens, use_cache=False).logits)


def litgpt(task: Task) -> Iterator[Step]:
    """Steps of litgpt's model in the shape of GPT-NeoX."""
    package: Any = importlib.import_module("litgpt")
    case = task.case
    sizes = {"n_layer": case.num_layers, "n_head": case.num_heads, "n_embd": case.hidden_size,
             "vocab_size": case.vocab_size, "padded_vocab_size": case.vocab_size,
             "block_size": case.context_length}  # fmt: skip
    model = package.GPT(package.Config(**sizes, rotary_percentage=0.25))
    return peers_steps(task, model, model)


def peers_steps(task: Task, model: Any, logits_of: Callable[[Any], Any]) -> Iterator[Step]:
    """Steps of a peer's model under autocast, with torch's loss and fused AdamW."""
    import torch
    import torch.nn.functional as F

    is_bf16 = task.contender.split()[1] == "bf16"
    model.to(task.device)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-3, (0.9, 0.95), weight_decay=0.1, fused=True)

    def loss_of(rows: Any) -> Any:
        with torch.autocast(task.device, dtype=torch.bfloat16, enabled=is_bf16):
            logits = logits_of(rows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    forward = torch.compile(loss_of) if "compiled" in task.contender else loss_of

    def step(rows: Any) -> tuple[float, float]:
        loss = forward(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item(), 0.0

    for rows in torch.from_numpy(np.load(Path(task.folder) / "rows.npy")).to(task.device):
        yield partial(step, rows)


def batches_of(case: Case, folder: Path) -> Any:
    """The batches of the tokens that `write_tokens` left in a folder."""
    from ontogeny.order.batches import Batches
    from ontogeny.order.originals import build_neox_order

    length, num_windows = case.context_length, (WARMUP + STEPS) * case.rows
    pair = folder / "tokens"
    order = build_neox_order(pair, context_length=length, seed=0, num_windows=num_windows)
    return Batches(order, case.rows)


def write_tokens(case: Case, folder: Path) -> None:
    """Documents drawn by Zipf's law as a store, and the rows that its order makes of them."""
    from ontogeny.tokens.writer import StoreWriter, token_dtype

    random = np.random.RandomState(0)
    weights = 1 / np.arange(2, SOME_IDS + 2)
    total = (WARMUP + STEPS) * case.tokens + 1
    ids = random.choice(SOME_IDS, total, p=weights / weights.sum())
    with StoreWriter(folder / "tokens", token_dtype(case.vocab_size)) as writer:
        writer.add_documents(ids, np.diff(np.linspace(0, total, total // 600 + 2, dtype=int)))
    batches = batches_of(case, folder)
    np.save(folder / "rows.npy", np.stack([batches(n) for n in range(WARMUP + STEPS)]))


def peak_bytes(device: str) -> int:
    """The most memory this process has held so far, on the device."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ceiling(threads: int, device: str) -> float:
    """Operations a second of the best bfloat16 matrix product: a roof no trainer gets above."""
    import torch

    torch.set_num_threads(threads)
    best = 0.0
    for size in (8192, 16384) if device == "cuda" else (512, 1024, 2048):
        a, b = (torch.randn(size, size // 2, device=device).bfloat16() for _ in range(2))
        out = torch.empty(size, size, dtype=torch.bfloat16, device=device)
        for _ in range(20):
            began = time.perf_counter()
            torch.mm(a, b.T, out=out)[0, 0].item()
            best = max(best, size**3 / (time.perf_counter() - began))
    return best


def in_its_own_process(task: Task, python: str) -> dict[str, float] | None:
    """`measure`, with nothing left over from another contender; None where it cannot run."""
    environment = os.environ | ({} if "ours" in task.contender else {"GLIBC_TUNABLES": TUNED})
    if task.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [python, __file__, "--task", json.dumps(asdict(task))]
    done = subprocess.run(command, env=environment, capture_output=True)
    if done.returncode:
        last = (done.stderr.decode().strip().splitlines() or ["no word"])[-1]
        print(f"{task.contender}: not measured ({last})", file=sys.stderr)
        return None
    return dict[str, float](json.loads(done.stdout.splitlines()[-1]))


def compare(name: str, options: argparse.Namespace) -> None:
    """Measure one case, in turns, and print its table."""
    case, found = CASES[name], {one: list[dict[str, float]]() for one in options.contenders}
    ceilings = []
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(case, Path(folder))
        for _ in range(options.rounds):
            ceilings.append(ceiling(options.threads, options.device))
            for one in list(found):
                python = sys.executable if "ours" in one else options.peers_python
                task = Task(case, one, options.threads, options.device, folder)
                result = in_its_own_process(task, python)
                if result is None:
                    del found[one]  # nor in the next rounds
                else:
                    found[one].append(result)
    print(f"\n{name}: {case}, {options.device}, {options.threads} threads, {options.rounds} rounds")
    print_table(case, found, statistics.median(ceilings))


def print_table(case: Case, found: dict[str, list[dict[str, float]]], roof: float) -> None:
    from ontogeny.shape import Shape

    flops = Shape(**case.shape).flops_per_token
    median = {
        one: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for one, results in found.items()
    }
    speed = {one: case.tokens / values["seconds"] for one, values in median.items()}
    best = max((rate for one, rate in speed.items() if "ours" not in one), default=float("nan"))
    print(f"ceiling {roof / 1e9:.0f} GFLOP/s, at most {roof / flops:,.0f} tokens/s")
    columns = ("contender", "tokens/s", "of the best peer", "GFLOP/s", "of the ceiling",
               "peak MB", "loss", "waiting for rows")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for one, rate in speed.items():
        values = median[one]
        print(
            f"| {one} | {rate:,.0f} | {rate / best:.2f} | {rate * flops / 1e9:.0f} "
            f"| {rate * flops / roof:.0%} | {values['bytes'] / 1e6:.0f} | {values['loss']:.3f} "
            f"| {values['waiting']:.2%} |"
        )


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=CASES, default="2m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--peers-python", default=sys.executable, help="that has the peers")
    parser.add_argument("--task", help="measure one and print JSON")
    options = parser.parse_args()
    if options.task:
        values = json.loads(options.task)
        print(json.dumps(measure(Task(**values | {"case": Case(**values["case"])}))))
        return
    for name in options.cases:
        compare(name, options)


if __name__ == "__main__":
    main()
