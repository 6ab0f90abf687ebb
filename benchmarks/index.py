"""How fast the n-gram index is built and asked, beside tokengrams and infini-gram where installed.

`python benchmarks/index.py --tokens 100000000` makes tokens by Zipf's law with copied spans, in
documents that end with an EOD, and times in turns: the builds in M tokens/s, and medians of asking
in us, for strings taken from anywhere in the text. Ours also says when a run saw them. Bars: 7
bytes a token, 1.5 times tokengrams' build, medians under 5 ms. Peers go into a venv of their own,
made with `pip install tokengrams infini-gram`; the package is then found by `PYTHONPATH=src`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ontogeny.order.batches import Batches
from ontogeny.order.lookup import lookup_in
from ontogeny.order.plan import Order
from ontogeny.order.seen import History
from ontogeny.order.shuffle import sound_indices
from ontogeny.tokens.store import Store
from ontogeny.tokens.suffixes import Suffixes, build_index, open_index
from ontogeny.tokens.writer import StoreWriter

VOCABULARY = 50277
EXPONENT = 1.05  # the likeliest token is about 9 % of the text
MEAN_SIZE = 600
CONTEXT_LENGTH, ROWS = 2048, 64
LENGTHS = (1, 2, 5, 32)
QUERIES = 300
REPEATS = 3

Count = Callable[[list[int]], int]


def make_store(folder: Path, num_tokens: int) -> Store:
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, VOCABULARY) ** EXPONENT
    bounds = np.cumsum(shares) / shares.sum()
    tokens = np.empty(num_tokens, np.uint16)
    for first in range(0, num_tokens, 1 << 22):
        drawn = random.random(min(1 << 22, num_tokens - first))
        tokens[first : first + len(drawn)] = 1 + np.searchsorted(bounds, drawn)
    for _ in range(num_tokens // 2000):
        size, *places = random.integers(8, 200), *random.integers(0, num_tokens - 200, 2)
        tokens[places[0] : places[0] + size] = tokens[places[1] : places[1] + size]
    sizes = np.maximum(1, random.exponential(MEAN_SIZE, 2 * num_tokens // MEAN_SIZE)).astype(int)
    ends = np.cumsum(sizes)
    ends = np.append(ends[ends < num_tokens], num_tokens)
    tokens[ends - 1] = 0
    with StoreWriter(folder / "tokens", np.dtype("<u2")) as writer:
        writer.add_documents(tokens, np.diff(ends, prepend=0))
    return Store(folder / "tokens")


def build_ours(store: Store, folder: Path) -> tuple[Path, Count]:
    build_index(store, folder)
    index = open_index(folder, store)
    return folder, lambda tokens: sum(one.high - one.low for one in index.find(tokens))


def build_tokengrams(store: Store, folder: Path) -> tuple[Path, Count]:
    memmap: Any = importlib.import_module("tokengrams").MemmapIndex
    folder.mkdir()
    file = folder / "index"
    return file, memmap.build(str(store.bin), str(file), vocab=VOCABULARY).count


def build_infini_gram(store: Store, folder: Path) -> tuple[Path, Count]:
    """Its own indexer, after the step that makes tokens of text.

    It marks where documents begin, so that it does not find what goes across.
    """
    folder.mkdir()
    starts = store.pointers // 2
    pieces = np.insert(store.flat, starts, 0xFFFF)
    pieces.tofile(folder / "tokenized.0")
    (2 * (starts + np.arange(len(starts)))).astype("<u8").tofile(folder / "offset.0")
    limit = int(subprocess.run("ulimit -Hn", shell=True, capture_output=True, text=True).stdout)
    command = [sys.executable, "-m", "infini_gram.indexing", "--data_dir", folder, "--save_dir",
               folder, "--token_dtype", "u16", "--cpus", os.cpu_count(), "--mem", 4,
               "--ulimit", limit]  # fmt: skip
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    engine: Any = importlib.import_module("infini_gram.engine").InfiniGramEngine
    opened = engine(index_dir=str(folder), eos_token_id=0, vocab_size=VOCABULARY)
    return folder, lambda tokens: int(opened.count(input_ids=tokens)["count"])


BUILDERS = {"ours": build_ours, "tokengrams": build_tokengrams, "infini-gram": build_infini_gram}


def timed(ask: Callable[[list[int]], object], queries: Sequence[list[int]]) -> float:
    """The median of asking, in microseconds."""
    times = []
    for query in queries:
        start = time.perf_counter()
        ask(query)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def measure_builds(store: Store, folder: Path) -> dict[str, Count]:
    """Build every index in turns; what counts with each."""
    modules = {"tokengrams": "tokengrams", "infini-gram": "infini_gram", "ours": "ontogeny"}
    builders = {name: BUILDERS[name] for name in BUILDERS if find_spec(modules[name])}
    times: dict[str, list[float]] = {name: [] for name in builders}
    counts: dict[str, Count] = {}
    for _ in range(REPEATS):
        for name, build in builders.items():
            shutil.rmtree(folder / name, ignore_errors=True)
            start = time.perf_counter()
            path, counts[name] = build(store, folder / name)
            times[name].append(time.perf_counter() - start)
            size = size_of(path) / store.num_tokens
            rate = store.num_tokens / times[name][-1] / 1e6
            print(f"build {name:12} {rate:6.2f} M tokens/s {size:5.2f} bytes a token", flush=True)
    for name, own in times.items():
        ratio = np.median(np.array(own) / np.array(times["ours"]))
        print(
            f"{name}: {store.num_tokens / np.median(own) / 1e6:.2f} M tokens/s; ours {ratio:.2f}x"
        )
    return counts


def measure_asking(store: Store, index: Suffixes, counts: dict[str, Count]) -> None:
    indices = sound_indices(store.sizes, num_windows=1, context_length=CONTEXT_LENGTH, seed=0)
    order = Order(store, indices, CONTEXT_LENGTH, "")
    batches = Batches(order, ROWS)
    history = History(batches, batches.num_updates, lookup_in(order, lambda _: index))
    middle = history.num_updates // 2
    random = np.random.default_rng(1)
    begins = random.integers(0, store.num_tokens - max(LENGTHS), QUERIES)
    history.counts([1], [middle])  # opens what is opened once
    for length in LENGTHS:
        queries = [store.flat[begin : begin + length].tolist() for begin in begins]
        hits = np.median([counts["ours"](query) for query in queries])
        for name, count in counts.items():
            agree = sum(count(query) == counts["ours"](query) for query in queries)
            print(f"{length:2} tokens, {name:12} {timed(count, queries):8.0f} us, {agree} agree")
        seen = timed(lambda query: history.count(query, middle), queries)
        again = timed(lambda query: history.count(query, middle), queries)
        places = timed(lambda query: history.places(query, middle), queries)
        print(f"{length:2} tokens, {hits:9.0f} hits: seen {seen:.0f} us (again {again:.0f}), "
              f"1000 places {places:.0f} us", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder, parser.parse_args().tokens)
        counts = measure_builds(store, folder)
        measure_asking(store, open_index(folder / "ours", store), counts)


if __name__ == "__main__":
    main()
