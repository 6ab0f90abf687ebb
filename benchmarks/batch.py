"""What it costs to see one update of a 600 GB file on a server, and to read rows of a local one.

`python benchmarks/batch.py` serves a sparse fake of Pythia's preshuffled file from 127.0.0.1, with
real tokens where the update is, and prints the seconds and bytes that opening it and reading update
100000 take (at most 1 s and 10 MB); then rows a second of a local file, by places and at random.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ontogeny.order.rows import Rows
from ontogeny.questions.sources import open_source
from ontogeny.tokens.ranged import RangedStore
from ontogeny.tokens.store import Store
from ontogeny.tokens.writer import StoreWriter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from served import WIDTH, fake_preshuffled, serving

UPDATE = 100_000
REPEATS = 5
LOCAL_ROWS = 500_000  # 2 GB
BATCH = 1024


def remote(folder: Path) -> None:
    """One update of a file on a server."""
    expected = fake_preshuffled(folder, UPDATE)
    size = (folder / "document.bin").stat().st_size
    with serving(folder) as server:
        for _ in range(REPEATS):
            begin = time.perf_counter()
            source = open_source(f"{server.url}/document")
            rows = source.batches(UPDATE)
            seconds = time.perf_counter() - begin
            assert (rows == expected).all()
            print(
                f"update {UPDATE} of {size / 1e9:.0f} GB: {seconds:.3f} s, {source.moved:,} bytes"
            )


def local(folder: Path) -> None:
    """Rows a second, as int64."""
    tokens = np.random.RandomState(0).randint(1, 50277, (BATCH, WIDTH)).astype("<u2")
    with StoreWriter(folder / "rows", np.dtype("<u2")) as writer:
        for first in range(0, LOCAL_ROWS, BATCH):
            count = min(BATCH, LOCAL_ROWS - first)
            writer.add_documents(tokens[:count].reshape(-1), np.full(count, WIDTH))
    begin = time.perf_counter()
    store = Store(folder / "rows")
    print(f"opening {LOCAL_ROWS} rows: {time.perf_counter() - begin:.3f} s")
    ranged = RangedStore([folder / "rows.bin"], folder / "rows.idx", folder / "rows.bin")
    for name, windows in (("mapped", Rows(store, WIDTH - 1)), ("ranged", Rows(ranged, WIDTH - 1))):
        for count, what in ((BATCH, "batches"), (1, "one by one")):
            firsts = np.random.RandomState(1).randint(0, LOCAL_ROWS - count, 20_480 // count)
            begin = time.perf_counter()
            for first in firsts.tolist():
                windows.rows(first, count)
            speed = len(firsts) * count / (time.perf_counter() - begin)
            print(f"{name}, {what}: {speed:,.0f} rows/s")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        remote(Path(folder))
        local(Path(folder))


if __name__ == "__main__":
    main()
