"""The n-gram index of a store: its suffixes in the order of their tokens, so found by bisection.

The store is cut at ends of items into shards of about equal size, each sorted for itself; a shard's
part of `suffixes.bin` lies where its tokens lie in the store, an entry (uint32) a token: where the
suffix begins, counted from the shard's start. Tokens are compared as unsigned numbers. Sorted by
libdivsufsort (Yuta Mori, MIT), which takes bytes: tokens are handed to it big end first, and the
suffixes that begin inside a token are dropped. A store larger than memory is searched from disk.
Not here: which of the places a run has seen (`ontogeny.order.lookup`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ontogeny.artifact import Artifact, open_artifact, require_space, writing
from ontogeny.digest import digest_bytes, digest_json
from ontogeny.errors import ConfigError, DataError
from ontogeny.tokens.store import DocumentStore, Store, check_bytes
from ontogeny.workers import num_cores

KIND = "index"
SUFFIXES = "suffixes.bin"
SUFFIX = np.dtype("<u4")
NUM_SHARDS = 8  # to be sorted side by side, as long as they are neither too small nor too large
SMALL_SHARD, LARGE_SHARD = 1 << 20, 1 << 25
BLOCK = 1 << 20
FIRST_BLOCK, LARGEST_BLOCK = 1 << 11, 1 << 17  # positions handed out together
SAMPLES, SAMPLE_TOKENS = 256, 2048

Observe = Callable[[int, int], None]


class Range(NamedTuple):
    """Neighbours in the order of a shard that holds the tokens from `start` to `stop`.

    `low` and `high` count entries of the whole of the suffixes.
    """

    start: int
    stop: int
    low: int
    high: int


class Suffixes:
    """The index of a store, opened."""

    def __init__(self, artifact: Artifact, store: Store) -> None:
        if artifact.inputs["store"] != identity(store):
            raise DataError(
                "an index of another store",
                where=artifact.path,
                expected=f"one of {store.bin}",
                fix=f"remove {artifact.path}, or give the index of this store",
            )
        path = artifact.path / SUFFIXES
        check_bytes(path, store.num_tokens * SUFFIX.itemsize, str(store.idx))
        self.artifact, self.store = artifact, store
        self.bounds = [int(bound) for bound in artifact.facts["bounds"]]
        mapped = np.memmap(path, SUFFIX, "r") if store.num_tokens else np.empty(0, SUFFIX)
        self._suffixes = mapped.view(np.ndarray)

    def everything(self) -> list[Range]:
        """All suffixes, a range a shard: where the empty string is found."""
        pairs = zip(self.bounds, self.bounds[1:], strict=False)
        return [Range(start, stop, start, stop) for start, stop in pairs]

    def find(self, tokens: Sequence[int]) -> list[Range]:
        """The suffixes that begin with `tokens`: a range for every shard that has any.

        Raises ConfigError for no tokens.
        """
        if not len(tokens):
            raise ConfigError("nothing to look for", expected="a token or more")
        return self.narrow(self.everything(), 0, *tokens)

    def narrow(self, ranges: Sequence[Range], known: int, *tokens: int) -> list[Range]:
        """Those of `ranges`, alike in their first `known` tokens, that go on with `tokens`."""
        return [found for one in ranges if (found := self._narrow(one, known, list(tokens)))]

    def positions(self, ranges: Sequence[Range]) -> Iterator[np.ndarray]:
        """Where in the whole of the tokens the suffixes begin: int64, in blocks of growing size.

        So who only asks for one need not wait for all, and memory is bounded.
        """
        gathered: list[np.ndarray] = []
        wanted = left = FIRST_BLOCK
        for one in ranges:
            low = one.low
            while low < one.high:
                piece = self._suffixes[low : min(low + left, one.high)]
                gathered.append(piece + np.int64(one.start))
                low, left = low + len(piece), left - len(piece)
                if not left:
                    yield np.concatenate(gathered)
                    gathered.clear()
                    wanted = left = min(8 * wanted, LARGEST_BLOCK)
        if gathered:
            yield np.concatenate(gathered)

    def _narrow(self, within: Range, known: int, wanted: list[int]) -> Range | None:
        """The part of a range whose tokens from the `known`th on are those wanted."""
        start, stop, low, high = within
        suffixes, store, count = self._suffixes, self.store, len(wanted)
        unsigned = np.dtype(f"<u{store.dtype.itemsize}")

        def key(entry: int) -> list[int]:
            first = start + int(suffixes[entry]) + known
            tokens = store.flat[first : min(first + count, stop)]
            found: list[int] = tokens.view(unsigned).tolist()
            return found

        entries = range(high)
        low = bisect_left(entries, wanted, low, high, key=key)
        if low == high or key(low) != wanted:
            return None
        step = 1  # most strings are rare: their range ends close by
        while low + step < high and key(low + step) == wanted:
            step *= 2
        high = bisect_right(entries, wanted, low + step // 2, min(low + step, high), key=key)
        return Range(start, stop, low, high)


def build_index(
    store: Store,
    folder: Path,
    *,
    shard_tokens: int | None = None,
    observe: Observe = lambda done, total: None,
) -> Artifact:
    """Write the index of a store, sorting as many shards at a time as there are cores.

    `observe` is told how many tokens are sorted, and of how many. A thread needs memory for one
    shard, about 14 bytes a token of 16 bits and 20 a larger one: at most 0.7 GB, unless an item is
    longer than `shard_tokens`, which makes a larger shard. Raises DataError for too little disk.
    """
    shard_tokens = standard_shard(store) if shard_tokens is None else shard_tokens
    bounds = _shard_bounds(store, shard_tokens)
    require_space(folder, store.num_tokens * SUFFIX.itemsize)
    made_of = {"store": store.artifact if isinstance(store, DocumentStore) else identity(store)}
    with writing(folder, KIND, config={"shard_tokens": shard_tokens}, inputs=made_of) as draft:
        path = draft.folder / SUFFIXES
        path.touch()

        def sort(start: int, stop: int) -> int:
            suffixes = _sorted_suffixes(store.flat[start:stop])
            with path.open("r+b") as file:  # of its own, as others write meanwhile
                file.seek(start * SUFFIX.itemsize)
                file.write(suffixes.data)
            return stop

        with ThreadPoolExecutor(num_cores()) as pool:
            for done in pool.map(sort, bounds, bounds[1:]):
                observe(done, store.num_tokens)
        draft.facts |= {"num_tokens": store.num_tokens, "bounds": bounds}
    return draft.artifact


def standard_shard(store: Store) -> int:
    """How many tokens a shard of a store has, unless told otherwise."""
    return min(max(-(-store.num_tokens // NUM_SHARDS), SMALL_SHARD), LARGE_SHARD)


def open_index(path: Path, store: Store) -> Suffixes:
    """Open the index of `store` at `path`. Raises DataError for one of another store."""
    return Suffixes(open_artifact(path, KIND), store)


def identity(store: Store) -> str:
    """What an index calls its store: the digest of the artifact, or else of samples of the tokens.

    A file of the originals is too large to be read whole whenever it is asked.
    """
    if isinstance(store, DocumentStore):
        return store.digest
    last = max(store.num_tokens - SAMPLE_TOKENS, 0)
    firsts = np.unique(np.linspace(0, last, SAMPLES).astype(np.int64)).tolist()
    samples = b"".join(store.flat[first : first + SAMPLE_TOKENS].tobytes() for first in firsts)
    counts = {"items": len(store), "tokens": store.num_tokens, "dtype": store.dtype.str}
    return digest_json(counts | {"samples": digest_bytes(samples)})


def _shard_bounds(store: Store, shard_tokens: int) -> list[int]:
    """Where shards begin, and the last one ends: at ends of items, near equal shares."""
    total = store.num_tokens
    if not total:
        return [0]
    ends = np.cumsum(store.sizes[:], dtype=np.int64)
    num_shards = -(-total // shard_tokens)
    shares = np.arange(1, num_shards + 1) * total // num_shards
    bounds = np.unique(ends[np.searchsorted(ends, shares)])
    return [0, *bounds.tolist()]


def _sorted_suffixes(tokens: np.ndarray) -> np.ndarray:
    """Where the suffixes of some tokens begin, in their order: uint32."""
    from pydivsufsort import divsufsort

    if len(tokens) > np.iinfo(SUFFIX).max:
        raise DataError(
            "an item is too long for an index", expected="less than 2^32 tokens", found=len(tokens)
        )
    unsigned = tokens.view(f"<u{tokens.dtype.itemsize}")
    width = 2 if tokens.dtype.itemsize == 2 else (int(unsigned.max()).bit_length() + 7) // 8 or 1
    raw = unsigned.astype(unsigned.dtype.newbyteorder(">")).view(np.uint8)
    raw = np.ascontiguousarray(raw.reshape(len(tokens), -1)[:, -width:]).reshape(-1)
    order = divsufsort(raw)
    suffixes, filled = np.empty(len(tokens), SUFFIX), 0
    for first in range(0, len(order), BLOCK):
        places = order[first : first + BLOCK]
        begun = places // width
        begun = begun[begun * width == places]
        suffixes[filled : filled + len(begun)] = begun
        filled += len(begun)
    return suffixes
