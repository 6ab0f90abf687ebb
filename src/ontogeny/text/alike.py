"""Near-duplicates over shards: signatures a shard at a time, then the clusters of all of them.

Not here: what a signature is and which are alike (`near.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ontogeny.artifact import Artifact, writing
from ontogeny.text.documents import read_lines
from ontogeny.text.near import SIGNATURE, first_alike, signatures
from ontogeny.text.shards import Shard
from ontogeny.workers import Task, Workers

SIGNATURES = "signatures.npy"
FIRST = "first.npy"


def find_alike(
    shards: Sequence[Shard], threshold: float, work: Path, workers: Workers
) -> np.ndarray:
    """For every document of the shards the first one of its cluster: int64 [documents], mapped."""
    signed = workers.do(
        [
            Task(work / f"signatures-{number:05d}", partial(_sign, lines=shard.lines))
            for number, shard in enumerate(shards)
        ]
    )
    tables = [artifact.path / SIGNATURES for artifact in signed]
    cluster = Task(work / "near", partial(_cluster, tables=tables, threshold=threshold))
    (found,) = workers.do([cluster])
    first: np.ndarray = np.load(found.path / FIRST, "r")
    return first


def _sign(folder: Path, lines: Path) -> Artifact:
    """The signatures of the documents of a file."""
    with writing(folder, "signatures", config={}, inputs={}) as draft:
        texts = (json.loads(line)["text"] for line in read_lines(lines))
        np.save(draft.folder / SIGNATURES, signatures(texts))
    return draft.artifact


def _cluster(folder: Path, tables: Sequence[Path], threshold: float) -> Artifact:
    """The clusters of documents whose signatures lie in several files."""
    with writing(folder, "near", config={}, inputs={}) as draft:
        sizes = [len(np.load(path, "r")) for path in tables]
        together = draft.folder / SIGNATURES
        table = np.lib.format.open_memmap(together, "w+", np.uint32, (sum(sizes), SIGNATURE))
        for path, end in zip(tables, np.cumsum(sizes).tolist(), strict=True):
            part = np.load(path, "r")
            table[end - len(part) : end] = part
        np.save(draft.folder / FIRST, first_alike(table, threshold))
        together.unlink()
    return draft.artifact
