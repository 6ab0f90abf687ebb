"""What exists already, read in place: the files that GPT-NeoX trains on and those Pythia published.

Three forms: windows that are written down in training order (Pythia's preshuffled files: rows of
2049 tokens); a `.bin`/`.idx` pair with the index arrays GPT-NeoX cached beside it; and a pair
alone, whose order is built as GPT-NeoX builds it. Pairs may be in shards, and lie on a server.

A local file is checked when it is opened: its whole index, and of its tokens NUM_PROBES places
(the size of the file does not matter then), where there must be no hole. Of a remote one every
value is checked that is read. Not here: runs of our own (`ontogeny.questions.materials`).
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import cast

import numpy as np

from ontogeny.digest import digest_json
from ontogeny.errors import DataError, OrderError
from ontogeny.order.blend import windows_asked
from ontogeny.order.plan import (
    ARRAYS,
    NO_ARRAY,
    Order,
    check_indices,
    check_shapes,
    load_array,
)
from ontogeny.order.rows import Rows
from ontogeny.order.shuffle import Indices, neox_indices
from ontogeny.ranges import Place, is_remote, open_ranges
from ontogeny.tokens.ranged import HOLE, RangeArray, below, open_pair, refuse_holes
from ontogeny.tokens.store import Store, require_bytes

NUM_PROBES = 256  # places of a local file looked at for holes: one of 1/255 of it is always found
NPY_HEADER = 4096  # bytes that hold the header of any `.npy` of numbers
INDEX_MAP = re.compile(
    r"(?P<map>(?P<base>.+)_(?:train|valid|test)_(?:\d+_)?indexmap_\d+ns_(?P<length>\d+)sl_\d+s)"
    r"(?:_(?:doc|sample|shuffle)_idx(?:\.npy)?)?"
)
SUFFIXES = dict(zip(ARRAYS, ("doc", "sample", "shuffle"), strict=True))


def open_rows(place: Place) -> Rows:
    """Open a pair whose items are windows in training order, all of one length."""
    store = open_pair(place)
    width = int(store.sizes[0]) if len(store) else 0
    if width < 2:
        raise OrderError("holds no windows", where=store.idx, expected="items of 2 tokens or more")
    if not is_remote(place):
        _refuse_other_sizes(store, width)
        _probe(store)
    return Rows(store, width - 1)


def open_index_maps(place: Place) -> Order:
    """Open the three index arrays that GPT-NeoX cached beside a pair, by the name of any of them.

    Raises OrderError for arrays that are no order of the pair, saying which entry is not.
    """
    named = INDEX_MAP.fullmatch(str(place))
    if named is None:
        expected = "..._train_0_indexmap_NUMBERns_LENGTHsl_SEEDs_doc_idx.npy"
        raise OrderError("not an index array of GPT-NeoX", where=place, expected=expected)
    store, length, remote = open_pair(named["base"]), int(named["length"]), is_remote(place)
    files = {name: f"{named['map']}_{SUFFIXES[name]}_idx.npy" for name in ARRAYS}
    indices = Indices(**{n: _reach(f) if remote else load_array(Path(f)) for n, f in files.items()})
    num_epochs = max(1, indices.documents.size // max(1, len(store)))
    num_windows = indices.windows.size
    if remote:
        check_shapes(indices, store, num_epochs, files)
        place_bounds = np.array([indices.documents.size, store.num_tokens])
        bounds: list[int | np.ndarray] = [len(store), place_bounds, num_windows]
        for name, bound in zip(ARRAYS, bounds, strict=True):
            getattr(indices, name).check = below(bound, files[name], "entry")
    else:
        _refuse_zeros(indices.windows, 1, files["windows"])
        _refuse_zeros(indices.documents, num_epochs, files["documents"])
        check_indices(indices, store, num_epochs, files)
        _probe(store)
    start = digest_json({"index maps": num_windows, "context_length": length})
    return Order(store, indices, length, start)


def build_neox_order(place: Place, *, context_length: int, seed: int, num_windows: int) -> Order:
    """The order in which GPT-NeoX goes through a pair, built in memory: nothing is written.

    `num_windows` are those that training takes; the number decides how many epochs are shuffled
    together. Raises DataError for a remote pair, of whose index all would have to be fetched.
    """
    if is_remote(place):
        raise DataError(
            "an order is built over a local index only",
            where=place,
            fix="fetch the files, or name the index arrays beside them",
        )
    store = open_pair(place)
    _probe(store)
    (asked,) = windows_asked(num_windows)
    settings = {"context_length": context_length, "seed": seed}
    indices = neox_indices(store.sizes, num_windows=asked, **settings)
    num_epochs = len(indices.documents) // len(store)
    return Order(store, indices, context_length, digest_json(settings | {"num_epochs": num_epochs}))


def is_index_map(place: Place) -> bool:
    """Whether a place has the name of an index array of GPT-NeoX."""
    return INDEX_MAP.fullmatch(str(place)) is not None


def _reach(file: str) -> np.ndarray:
    """The numbers of a `.npy` on a server. Raises OrderError for anything else, or half of one."""
    ranges = open_ranges(file)
    head = io.BytesIO(ranges.read(0, min(NPY_HEADER, ranges.size)))
    try:
        np.lib.format.read_magic(head)  # GPT-NeoX's have never been of another version than 1.0
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(head)
    except NO_ARRAY as error:
        raise OrderError(f"unreadable array ({error})", where=file) from error
    if by_columns:
        raise OrderError("stored by columns", where=file, expected="rows")
    array = RangeArray(ranges, dtype, head.tell(), shape)
    num_bytes = head.tell() + array.size * dtype.itemsize
    require_bytes(file, ranges.size, num_bytes, "its own header")
    return cast(np.ndarray, array)


def _refuse_other_sizes(store: Store, width: int) -> None:
    """Refuse items that are no rows, and say in which other way the pair may be read."""
    other = store.sizes != width
    if not other.any():
        return
    base = str(store.idx).removesuffix(".idx")
    maps = sorted(Path(base).parent.glob(f"{Path(base).name}_*indexmap_*_shuffle_idx.npy"))
    raise OrderError(
        "its items differ in size, so they are no windows",
        where=store.idx,
        expected=f"{width} tokens in each",
        found=f"{int(store.sizes[other.argmax()])} in item {int(other.argmax())}",
        fix=f"name the order: {', '.join(map(str, maps))}"
        if maps
        else "--context-length, --seed and --updates, to order it as GPT-NeoX does",
    )


def _refuse_zeros(values: np.ndarray, copies: int, where: Place) -> None:
    """Refuse an index array that holds 0 more often than an order does, as broken ones do."""
    zeros = values == 0
    count = int(np.count_nonzero(zeros))
    if count > copies:
        raise OrderError(
            f"full of zeros from entry {int(zeros.argmax())} on",
            where=where,
            expected=f"{copies} of {len(values)} to be 0",
            found=f"{count}, the last at entry {len(values) - 1 - int(zeros[::-1].argmax())}",
            fix="fetch the file anew",
        )


def _probe(store: Store) -> None:
    """Look for holes at evenly spaced places of the tokens, the first and the last among them."""
    length = min(2 * HOLE // store.dtype.itemsize, store.num_tokens)
    for start in np.linspace(0, store.num_tokens - length, NUM_PROBES, dtype=np.int64).tolist():
        refuse_holes(store.flat[start : start + length], start, store.bin)
