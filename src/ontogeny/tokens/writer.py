"""Writing `.bin`/`.idx` pairs, byte for byte as GPT-NeoX does, in memory that does not grow.

Sizes go straight to their place in the `.idx` and document bounds to a nameless file beside it;
what needs the counts (header, byte offsets) is filled in at the end. The layout is described in
`store.py`. Not here: which tokens (`encode.py`).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Self

import numpy as np

from ontogeny.errors import DataError
from ontogeny.tokens.store import BLOCK, DTYPES, HEADER, MAGIC, VERSION, paired

INT32_MAX = 2**31 - 1
UINT16_VOCABULARY = 65500  # from this size on GPT-NeoX stores tokens in four bytes


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The type GPT-NeoX stores the ids of a vocabulary of this (unpadded) size in."""
    return np.dtype("<u2" if vocabulary_size < UINT16_VOCABULARY else "<i4")


class StoreWriter:
    """A store being written, as a context manager: whole when the block ends well.

    What is left of it otherwise has no header, and is no store.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._code = {np.dtype(name): code for code, name in DTYPES.items()}[self._dtype]
        self._paths = paired(path)
        self.num_items = self.num_tokens = self.num_documents = 0

    def __enter__(self) -> Self:
        bin_path, idx_path = self._paths
        self._bin = bin_path.open("xb")
        self._idx = idx_path.open("x+b")
        self._bounds = tempfile.TemporaryFile(dir=bin_path.parent)
        self._idx.seek(HEADER.size)
        self._bounds.write(np.zeros(1, "<i8").tobytes())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._bin, self._idx, self._bounds:
            if kind is None:
                self._finish()

    def add_items(self, tokens: np.ndarray, sizes: np.ndarray) -> None:
        """Append items of these sizes, their tokens one after another, to the open document."""
        self._check(tokens, sizes)
        self._bin.write(tokens.astype(self._dtype).data)
        self._idx.write(sizes.astype("<i4").data)
        self.num_items += len(sizes)
        self.num_tokens += len(tokens)

    def end_document(self) -> None:
        """The items added since the last end are one document."""
        self._add_bounds(np.array([self.num_items]))

    def add_documents(self, tokens: np.ndarray, sizes: np.ndarray) -> None:
        """Append documents of one item each."""
        first = self.num_items
        self.add_items(tokens, sizes)
        self._add_bounds(np.arange(first + 1, self.num_items + 1))

    def _add_bounds(self, bounds: np.ndarray) -> None:
        self._bounds.write(bounds.astype("<i8").data)
        self.num_documents += len(bounds)

    def _check(self, tokens: np.ndarray, sizes: np.ndarray) -> None:
        if len(sizes) and not 0 <= sizes.min() <= sizes.max() <= INT32_MAX:
            raise DataError(
                "a document the format cannot hold",
                where=self._paths[0],
                expected=f"0 to {INT32_MAX} tokens",
                found=f"{sizes.min()} to {sizes.max()}",
                fix="cut the text into shorter documents",
            )
        if int(sizes.sum(dtype=np.int64)) != len(tokens):
            raise DataError(
                "sizes and tokens disagree",
                where=self._paths[0],
                expected=f"{int(sizes.sum(dtype=np.int64))} tokens",
                found=len(tokens),
            )
        limits = np.iinfo(self._dtype)
        if len(tokens) and not limits.min <= tokens.min() <= tokens.max() <= limits.max:
            raise DataError(
                f"a token does not fit {self._dtype.name}",
                where=self._paths[0],
                expected=f"{limits.min} to {limits.max}",
                found=f"{tokens.min()} to {tokens.max()}",
            )

    def _finish(self) -> None:
        """Byte offsets after the sizes, then the document bounds, and the header in front."""
        itemsize, total = self._dtype.itemsize, 0
        for first in range(0, self.num_items, BLOCK):
            count = min(BLOCK, self.num_items - first)
            self._idx.seek(HEADER.size + 4 * first)
            sizes = np.frombuffer(self._idx.read(4 * count), "<i4").astype(np.int64)
            ends = total + np.cumsum(sizes)
            self._idx.seek(HEADER.size + 4 * self.num_items + 8 * first)
            self._idx.write(((ends - sizes) * itemsize).astype("<i8").data)
            total = int(ends[-1])
        self._bounds.seek(0)
        shutil.copyfileobj(self._bounds, self._idx)
        self._idx.seek(0)
        header = (MAGIC, VERSION, self._code, self.num_items, self.num_documents + 1)
        self._idx.write(HEADER.pack(*header))
