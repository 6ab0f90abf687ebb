"""The three index arrays that put the tokens of a corpus into an order of windows.

In: the size of every document in tokens, a window length, a seed. Out: `Indices`. Two recipes:
`neox_indices` is GPT-NeoX's, bit for bit (gpt-neox v1.0, megatron/data/gpt2_dataset.py and its
compiled helper), in which the epochs are shuffled together; `sound_indices` goes through the
epochs one after another. Not here: files (`plan.py`), mixing several corpora (`blend.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ontogeny.errors import OrderError

BLOCK = 1 << 16  # documents looked at together: their sizes and sums stay in the cache
INT32_MAX = 2**31 - 1
UINT32_WINDOWS = 2**32 - 2  # from this many windows on, GPT-NeoX counts them in int64


@dataclass(frozen=True, slots=True)
class Indices:
    """An order of windows over documents. N windows, T = context length.

    `documents`: int32, the documents as they follow each other in the shuffled stream.
    `samples`: [N + 1, 2] int32 (int64 where int32 is too small); row w is where window w starts: a
    place in `documents` and an offset in tokens. A window is the T + 1 tokens from there on.
    `windows`: uint32, a permutation of the N windows: the order in which they are used.
    """

    documents: np.ndarray
    samples: np.ndarray
    windows: np.ndarray


def neox_indices(sizes: np.ndarray, *, num_windows: int, context_length: int, seed: int) -> Indices:
    """The index arrays of GPT-NeoX for a corpus of documents of `sizes` tokens.

    There are as many epochs as `num_windows` windows need, all shuffled together, and all their
    windows are in the result, so usually more than asked for. Consecutive windows share one token.
    Raises OrderError when the corpus has no tokens.
    """
    sizes, total = _checked(sizes, num_windows, context_length, seed)
    num_epochs = -(-(num_windows * context_length + 1) // total)
    built = (num_epochs * total - 1) // context_length
    stream = np.random.RandomState(seed)
    documents = np.tile(np.arange(len(sizes), dtype=_signed(len(sizes))), num_epochs)
    stream.shuffle(documents)
    samples = np.empty((built + 1, 2), _signed(len(documents)))
    _fill_starts(samples, sizes, documents, context_length)
    windows = _window_numbers(built)
    stream.shuffle(windows)
    return Indices(documents, samples, windows)


def sound_indices(
    sizes: np.ndarray, *, num_windows: int, context_length: int, seed: int
) -> Indices:
    """As many whole epochs as `num_windows` windows need, each shuffled for itself.

    Every epoch holds every document once, in an order of its own, cut into windows that share one
    token with their neighbours; what is left at its end (at most `context_length` tokens) is not
    used. A longer order of the same seed begins with the shorter one.
    Raises OrderError when the corpus is shorter than one window.
    """
    sizes, total = _checked(sizes, num_windows, context_length, seed)
    per_epoch = (total - 1) // context_length
    if per_epoch == 0:
        raise OrderError(
            "the corpus is shorter than one window",
            expected=f"at least {context_length + 1} tokens",
            found=total,
            fix="add text or set a smaller order.context_length",
        )
    num_epochs = -(-num_windows // per_epoch)
    size, built = len(sizes), num_epochs * per_epoch
    documents = np.tile(np.arange(size, dtype=_signed(len(sizes))), num_epochs)
    samples = np.empty((built + 1, 2), _signed(len(documents)))
    windows = _window_numbers(built)
    for epoch in range(num_epochs):
        own_documents = documents[epoch * size : (epoch + 1) * size]
        own_windows = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        named_stream(f"order/epoch/{epoch}/documents/{seed}").shuffle(own_documents)
        named_stream(f"order/epoch/{epoch}/windows/{seed}").shuffle(windows[own_windows])
        # One row more than the epoch has windows: the next epoch overwrites it with its own start.
        starts = samples[own_windows.start : own_windows.stop + 1]
        _fill_starts(starts, sizes, own_documents, context_length)
        starts[:, 0] += epoch * size
    return Indices(documents, samples, windows)


def named_stream(name: str) -> np.random.RandomState:
    """The random stream of a name; MT19937 behind NumPy's frozen legacy interface.

    Unlike `numpy.random.Generator`, whose methods may change between releases, it gives the same
    numbers for ever.
    """
    key = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
    return np.random.RandomState(key.astype(np.uint32))


def _fill_starts(
    samples: np.ndarray, sizes: np.ndarray, documents: np.ndarray, context_length: int
) -> None:
    """Write where every window starts: window w at token w * T of the stream of `documents`.

    Token t lies in the first document whose end (its sizes summed up to and with it) is past t, so
    never in an empty one; only the very first window starts at (0, 0) whatever is there. So the
    place of window w is the number of documents that end at or before its token: those with
    ceil(end / T) <= w, which are counted rather than searched for. Block by block, so that what is
    gathered is summed and counted while still in the cache.
    """
    total, window, num_rows = 0, 0, len(samples)
    for first in range(0, len(documents), BLOCK):
        # "wrap" leaves out the bounds check, the larger part of the cost of a gather.
        block = sizes.take(documents[first : first + BLOCK], mode="wrap")
        ends = np.cumsum(block, dtype=np.int64)
        ends += total
        total = int(ends[-1])
        until = min((total - 1) // context_length + 1, num_rows)
        count = until - window
        if count <= 0:
            continue
        ended_before = (ends + (context_length - 1)) // context_length - window
        places = np.cumsum(np.bincount(ended_before, minlength=count)[:count])
        offsets = np.arange(window, until, dtype=np.int64) * context_length
        offsets -= ends.take(places, mode="wrap")
        offsets += block.take(places, mode="wrap")
        samples[window:until, 0] = places + first
        samples[window:until, 1] = offsets
        window = until
    samples[0] = 0


def _checked(
    sizes: np.ndarray, num_windows: int, context_length: int, seed: int
) -> tuple[np.ndarray, int]:
    """The sizes as a plain array (one of a memory map may be unaligned: slow), and their sum."""
    if num_windows < 1 or context_length < 1:
        raise OrderError(
            "an order needs a window",
            expected="num_windows and context_length of at least 1",
            found=f"{num_windows} and {context_length}",
        )
    if not 0 <= seed < 2**32:
        raise OrderError("seed out of range", expected="0 to 2^32 - 1", found=seed)
    plain = np.require(sizes, requirements=["C", "A"])
    total = int(plain.sum(dtype=np.int64))
    if total == 0:
        raise OrderError("the corpus has no tokens", found=f"{len(plain)} documents, all empty")
    return plain.view(np.ndarray), total


def _signed(largest: int) -> type[np.signedinteger]:
    return np.int32 if largest <= INT32_MAX else np.int64


def _window_numbers(num_windows: int) -> np.ndarray:
    return np.arange(num_windows, dtype=np.uint32 if num_windows < UINT32_WINDOWS else np.int64)
