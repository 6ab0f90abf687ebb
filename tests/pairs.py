"""Pairs of `.bin` and `.idx` of items made up."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ontogeny.tokens.writer import StoreWriter


def write_pair(path: Path, items: Iterable[object], dtype: str = "<u2") -> Path:
    """Write a pair of items, each a row of tokens and a document of its own."""
    rows = [np.array(item, np.int64) for item in items]
    flat = np.concatenate([np.empty(0, np.int64), *rows])
    with StoreWriter(path, np.dtype(dtype)) as writer:
        writer.add_documents(flat, np.array([len(row) for row in rows], np.int64))
    return path
