"""How long the index arrays of 10 M documents take, beside the original's procedure in C++.

The original spends its time in two shuffles, done by the same NumPy calls here, and in a compiled
walk over the documents, written here anew from its description. `python benchmarks/order.py`
prints both times and their ratio (at most 1.25), and how many rows a second an order gives.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ontogeny.order.plan import Order
from ontogeny.order.shuffle import Indices, neox_indices
from ontogeny.tokens.store import Store
from ontogeny.tokens.writer import StoreWriter, token_dtype

NUM_DOCUMENTS = 10_000_000
MEAN_SIZE = 600
CONTEXT_LENGTH = 2048
SEED = 1234
REPEATS = 3

WALK = """
#include <cstdint>
extern "C" void walk(const int32_t* sizes, const int32_t* documents, int64_t num_windows,
                     int32_t context_length, int32_t* samples) {
    int64_t place = 0;
    int32_t offset = 0;
    samples[0] = samples[1] = 0;
    for (int64_t window = 1; window <= num_windows; ++window) {
        int32_t wanted = context_length + 1;
        for (;;) {
            int32_t left = sizes[documents[place]] - offset;
            if (left >= wanted) break;
            wanted -= left;
            ++place;
            offset = 0;
        }
        offset += wanted - 1;
        samples[2 * window] = (int32_t)place;
        samples[2 * window + 1] = offset;
    }
}
"""


def compiled_walk(folder: Path) -> Callable[..., None] | None:
    """The walk as a function, or None where there is no compiler."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    source, library = folder / "walk.cpp", folder / "walk.so"
    source.write_text(WALK)
    subprocess.run([compiler, "-O3", "-shared", "-fPIC", source, "-o", library], check=True)
    walk: Callable[..., None] = ctypes.CDLL(str(library)).walk
    return walk


def original(sizes: np.ndarray, num_windows: int, walk: Callable[..., None]) -> Indices:
    """The original's procedure for one epoch."""
    stream = np.random.RandomState(SEED)
    documents = np.arange(len(sizes), dtype=np.int32)
    stream.shuffle(documents)
    samples = np.zeros((num_windows + 1, 2), np.int32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (sizes, documents, samples)]
    walk(
        *pointers[:2],
        ctypes.c_int64(num_windows),
        ctypes.c_int32(CONTEXT_LENGTH),
        pointers[2],
    )
    windows = np.arange(num_windows, dtype=np.uint32)
    stream.shuffle(windows)
    return Indices(documents, samples, windows)


def ours(sizes: np.ndarray, num_windows: int) -> Indices:
    return neox_indices(sizes, num_windows=num_windows, context_length=CONTEXT_LENGTH, seed=SEED)


def measure_indices(folder: Path) -> None:
    random = np.random.RandomState(0)
    sizes = np.maximum(1, random.standard_exponential(NUM_DOCUMENTS) * MEAN_SIZE).astype(np.int32)
    num_windows = (int(sizes.sum(dtype=np.int64)) - 1) // CONTEXT_LENGTH
    walk = compiled_walk(folder)
    times: dict[str, list[float]] = {"ours": [], "original": []}
    for _ in range(REPEATS):  # in turns, so that a busy moment of the machine hits both
        start = time.perf_counter()
        found = ours(sizes, num_windows)
        times["ours"].append(time.perf_counter() - start)
        if walk is None:
            continue
        start = time.perf_counter()
        expected = original(sizes, num_windows, walk)
        times["original"].append(time.perf_counter() - start)
        for name in ("documents", "samples", "windows"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    print(f"{NUM_DOCUMENTS:,} documents, {num_windows:,} windows of {CONTEXT_LENGTH}")
    print(f"ours      {min(times['ours']):.3f} s")
    if walk is None:
        print("original  not measured: no C++ compiler")
        return
    print(f"original  {min(times['original']):.3f} s, equal arrays")
    print(f"ratio     {min(times['ours']) / min(times['original']):.2f}")


def measure_rows(folder: Path) -> None:
    random = np.random.RandomState(1)
    sizes = np.maximum(1, random.standard_exponential(100_000) * MEAN_SIZE).astype(np.int64)
    with StoreWriter(folder / "tokens", token_dtype(50277)) as writer:
        writer.add_documents(random.randint(0, 50277, sizes.sum()), sizes)
    store = Store(folder / "tokens")
    indices = neox_indices(store.sizes, num_windows=1, context_length=CONTEXT_LENGTH, seed=SEED)
    order = Order(store, indices, CONTEXT_LENGTH, "")
    order.rows(0, order.num_windows)  # warm
    start = time.perf_counter()
    for first in range(0, order.num_windows - 64, 64):
        order.rows(first, 64)
    rate = order.num_windows / (time.perf_counter() - start)
    print(f"rows      {rate:,.0f} a second, in batches of 64, documents of {MEAN_SIZE} tokens")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        measure_indices(Path(name))
        measure_rows(Path(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
