"""How fast verifying is, beside how fast this machine reads its disk and hashes.

Checkpoints of a run are generated, then read cold (their pages dropped from the cache before each
measurement), hashed by one thread and by all, and verified. Every byte of a checkpoint's weights
is hashed twice: its file has a digest, and each tensor has one.

    python benchmarks/verify.py [--gigabytes 4] [--folder DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ontogeny.artifact import writing
from ontogeny.checkpoints.store import Progress, save_checkpoint
from ontogeny.config import build
from ontogeny.model.neox import NeoX
from ontogeny.questions.verify import verify
from ontogeny.results import UpdateMetrics
from ontogeny.steps import METRICS
from ontogeny.suite import RunSettings

CHUNK = 1 << 20
NO_ROWS = "0" * 64
CORES = os.cpu_count() or 1
SHAPE = {"num_layers": 4, "hidden_size": 512, "num_heads": 8, "vocab_size": 50304}
TRAINING = {"rows_per_update": 1, "learning_rate": 1e-3, "precision": "fp32"}


def grow(folder: Path, gigabytes: float) -> list[Path]:
    """A run with checkpoints of random weights; the files that hold them."""
    shape = SHAPE | {"context_length": 2048}
    run = {"member": "generated", "recipe": "sound", "init": "normal", "init_seed": 0}
    values = run | {"shape": shape, "training": TRAINING | {"tokens": 2048}}
    num_bytes = 4 * build(RunSettings, values, "benchmark").shape.num_parameters
    steps = max(1, round(gigabytes * 1e9 / num_bytes))
    values["training"] = TRAINING | {"tokens": 2048 * steps, "num_linear": steps}
    settings = build(RunSettings, values, "benchmark")
    with writing(folder / "run", "run", config=settings.resolved(), inputs={}) as draft:
        pass
    model, parent = NeoX(settings.shape), None
    for step in settings.steps:
        with torch.no_grad():
            for weights in model.parameters():
                weights.normal_()
        progress = Progress(step, 2048 * step, NO_ROWS)
        parent = save_checkpoint(draft.artifact, model, progress, parent=parent, provenance={})
    rows = (UpdateMetrics(n, 1.0, 1e-3, 1.0, 2048 * (n + 1), NO_ROWS, 1.0) for n in range(steps))
    (folder / "run" / METRICS).write_text("".join(row.line() for row in rows))
    return sorted(folder.rglob("*.safetensors"))


def cold(files: list[Path]) -> None:
    """Drop the files' pages from the cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    buffer = bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def hash_block(block: bytes) -> None:
    hashlib.sha256(block).hexdigest()


def rate(num_bytes: int, work: Callable[[], object]) -> float:
    """GB/s of doing something with so many bytes, the best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return num_bytes / best / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ThreadPoolExecutor(CORES) as pool:
        files = grow(Path(name), options.gigabytes)
        size = sum(path.stat().st_size for path in files)
        print(f"{len(files)} checkpoints, {size / 1e9:.2f} GB, {CORES} cores")
        block = os.urandom(1 << 28)

        def read_cold() -> None:
            cold(files)
            list(pool.map(read, files))

        def verify_cold() -> None:
            cold(files)
            found = [fault for subject in verify(Path(name)) for fault in subject.faults]
            assert found == [], found[0]

        disk = rate(size, read_cold)
        one = rate(len(block), lambda: hash_block(block))
        every = rate(len(block) * CORES, lambda: list(pool.map(hash_block, [block] * CORES)))
        warm = rate(size, lambda: verify(Path(name)))
        verified = rate(size, verify_cold)
        print(f"disk, cold      {disk:6.2f} GB/s")
        print(f"sha256, 1 core  {one:6.2f} GB/s")
        print(f"sha256, {CORES} cores {every:6.2f} GB/s")
        print(f"verify, cold    {verified:6.2f} GB/s of files, {2 * verified:.2f} GB/s hashed")
        print(f"verify, warm    {warm:6.2f} GB/s of files, {2 * warm:.2f} GB/s hashed")
        bound = min(disk, every / 2)
        print(f"verify, cold, of min(disk, sha256 twice): {verified / bound:.2f}")
        print(f"verify, cold, of min(disk, sha256 once):  {verified / min(disk, every):.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
