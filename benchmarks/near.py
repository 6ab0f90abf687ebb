"""How fast near-duplicates are found: signatures by bytes of text, clusters by documents.

The text is the Python installation's own source, each file once; datasketch is measured beside
where it is installed, from the same shingles. One thread. Clusters are of a table mapped from a
file, one in ten documents a mutation of an earlier one.
`python benchmarks/near.py [--documents 1000000]`
"""

from __future__ import annotations

import argparse
import importlib
import sys
import sysconfig
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ontogeny.text.near import METHOD, SIGNATURE, bands, first_alike, signatures

THRESHOLD = 0.87
MEGABYTES = 16


def seconds_of(function: Callable[[], object], rounds: int = 3) -> float:
    """The least of a few rounds."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found)


def read_texts() -> list[str]:
    texts: list[str] = []
    left = MEGABYTES * 1_000_000
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if left > 0:
            texts.append(path.read_text("utf-8", errors="ignore"))
            left -= len(texts[-1].encode())
    return texts


def by_datasketch(texts: list[str]) -> None:
    library = importlib.import_module("datasketch")
    for text in texts:
        words = text.lower().split()
        shingles = {" ".join(words[at : at + 5]).encode() for at in range(max(len(words) - 4, 1))}
        library.MinHash(SIGNATURE).update_batch(shingles)


def mapped_table(path: Path, count: int) -> np.ndarray:
    """Signatures, of which one in ten is that of an earlier document but for 5 % of it."""
    random = np.random.default_rng(0)
    table = np.memmap(path, np.uint32, "w+", shape=(count, SIGNATURE))
    table[:] = random.integers(0, 2**32, table.shape, dtype=np.uint32)
    for row in random.choice(np.arange(1, count), count // 10, replace=False):
        is_kept = random.random(SIGNATURE) < 0.95
        table[row, is_kept] = table[random.integers(row), is_kept]
    return table


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=1_000_000)
    count = parser.parse_args().documents
    texts = read_texts()
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{METHOD}; threshold {THRESHOLD}: bands, numbers of each: {bands(THRESHOLD)}")
    seconds = seconds_of(lambda: signatures(texts))
    print(f"signatures: {megabytes / seconds:.1f} MB/s, {len(texts) / seconds:.0f} documents/s")
    try:
        seconds = seconds_of(lambda: by_datasketch(texts), rounds=1)
        print(f"datasketch: {megabytes / seconds:.1f} MB/s")
    except ImportError:
        print("datasketch: not installed")
    with tempfile.TemporaryDirectory() as name:
        table = mapped_table(Path(name, "table"), count)
        start = time.perf_counter()
        first = first_alike(table, THRESHOLD)
        seconds = time.perf_counter() - start
        tracemalloc.start()
        first_alike(table, THRESHOLD)
        peak = tracemalloc.get_traced_memory()[1]
    found = int((first != np.arange(count)).sum())
    print(f"clusters: {count / seconds:.0f} documents/s, {found} alike an earlier one of {count}")
    print(f"memory: {peak / count:.0f} bytes a document, the table not counted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
