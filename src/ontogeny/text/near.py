"""Near-duplicates: documents that share most of their runs of five words.

In: texts. Out: their MinHash signatures; then, for every document, the first one of its cluster.
A word is a run of bytes without white space; ASCII letters count in lower case. A shingle is five
words in a row, or a whole text of fewer (Lee et al. 2022, section 4.2, take 5-grams too). The
signature is R-MinHash (rensa, algorithm version 2): each of its numbers is equal in two documents
with the probability of their Jaccard similarity. Of the Pile's deduplicated variant only
"MinHashLSH, Jaccard similarity thresholded at 0.87" is known: neither shingles nor numbers.

Candidates are pairs that are equal in a whole band of numbers (locality-sensitive hashing). They
are compared by their whole signatures, so a needless one costs time and nothing else; the bands
are therefore chosen for recall. A cluster is what is connected by alike pairs. It depends on the
signatures alone: not on how they are cut into files, nor on threads. Not here: exact duplicates
(`dedup.py`), and what becomes of a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from numpy.random import RandomState
from rensa import RMinHash

from ontogeny.text.shards import bundles

SIGNATURE = 128  # numbers of a signature: uint32, so 512 bytes a document
SHINGLE = 5  # words
SEED = 1
METHOD = f"{SHINGLE} words, R-MinHash {RMinHash.ALGORITHM_VERSION}, {SIGNATURE} numbers"
RECALL = 0.99  # of the pairs right at the threshold, how many become candidates

GROUP_BYTES = 1 << 16  # of text at a time; larger ones leave the cache
BLOCK_BYTES = 1 << 15  # of it hashed at a time
PAIRS = 1 << 14  # compared at a time: twice 8 MB

_SPACE = re.compile(rb"\s")
_IS_SPACE = np.array([bytes([byte]).isspace() for byte in range(256)])
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2**64
_VALUES = RandomState(SEED).randint(0, 2**64, 256, dtype=np.uint64)[  # of a byte
    list(bytes(range(256)).lower())
]


def signatures(texts: Iterable[str]) -> np.ndarray:
    """The signature of every text: uint32 [texts, 128], a function of that text alone."""
    parts = [np.empty((0, SIGNATURE), np.uint32)]
    for some in bundles((text.encode() for text in texts), len, GROUP_BYTES):
        found = RMinHash.digest_matrix_from_flat_token_hashes(*_shingles(some), SIGNATURE, SEED)
        parts.append(np.array(found.to_rows(), np.uint32))
    return np.concatenate(parts)


def bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many numbers: the widest in which a pair at the threshold is seen.

    A pair of similarity s shares one of b bands of r numbers with probability 1 - (1 - s**r)**b.
    """
    widths = range(SIGNATURE, 0, -1)
    shapes = ((SIGNATURE // width, width) for width in widths)
    return next(shape for shape in shapes if 1 - (1 - threshold ** shape[1]) ** shape[0] >= RECALL)


def first_alike(table: np.ndarray, threshold: float) -> np.ndarray:
    """For every document the first of its cluster, itself if there is none: int64 [documents].

    `table` holds the signatures in the order of the corpus, uint32 [documents, 128], and may be
    mapped from a file. A pair is alike if as large a part of their numbers is equal as the
    threshold says. Memory: 33 bytes a document, 70 more for each that shares a band with another,
    and 25 MB. Time grows with the square of the different signatures that share a band unlike.
    """
    num_bands, width = bands(threshold)
    least = int(np.ceil(threshold * SIGNATURE - 1e-9))
    first = np.arange(len(table))
    for band in range(num_bands):
        members, runs = _runs(_band_keys(table, slice(band * width, (band + 1) * width)))
        while len(members):
            members, runs = _compare_with_leaders(table, first, members, runs, least)
    return _roots(first, np.arange(len(table)))


def _shingles(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all shingles, text by text, and where each text's begin, and their end."""
    words, places = _words(b"\n".join(texts))
    bounds = np.cumsum([0, *(len(text) + 1 for text in texts)])
    counts = np.diff(np.searchsorted(places, bounds))
    number = np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)  # in its text
    at = np.arange(len(words)) + np.repeat(np.arange(len(texts)), counts) * (SHINGLE - 1)
    apart = np.zeros(len(words) + len(texts) * (SHINGLE - 1), np.uint64)  # no word after the last
    apart[at] = words
    joined = np.zeros(len(words), np.uint64)
    for word in range(SHINGLE):
        joined = joined * np.uint64(_BASE) + apart[at + word]
    is_whole = number <= np.repeat(np.maximum(counts - SHINGLE, 0), counts)
    sizes = np.minimum(counts, np.maximum(counts - SHINGLE + 1, 1))
    return _mixed(joined[is_whole]), np.cumsum([0, *sizes])


def _words(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A hash of every word, and at which byte it begins."""
    words, places = [], []
    for start, end in _blocks(data):
        block = np.frombuffer(data, np.uint8, end - start, start)
        edges = np.flatnonzero(np.diff(_IS_SPACE[block], prepend=True, append=True))
        begins, ends = edges[::2], edges[1::2]
        # A word is a polynomial of its bytes: a difference of sums, divided by the power it
        # begins with, so that its place does not matter.
        powers, inverses = _powers(1 << max(len(block), 2 * BLOCK_BYTES - 1).bit_length())
        sums = np.zeros(len(block) + 1, np.uint64)
        np.cumsum(_VALUES[block] * powers[: len(block)], out=sums[1:])
        words.append(_mixed((sums[ends] - sums[begins]) * inverses[begins]))
        places.append(begins + start)
    return np.concatenate(words), np.concatenate(places)


def _blocks(data: bytes) -> Iterator[tuple[int, int]]:
    """Where blocks of bytes begin and end, of at least a size, cut where there is white space."""
    start, end = 0, -1
    while end < len(data):
        found = _SPACE.search(data, start + BLOCK_BYTES)
        end = found.end() if found else len(data)
        yield start, end
        start = end


@lru_cache(maxsize=2)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of the base and of its inverse modulo 2**64."""
    tables = []
    for base in (_BASE, pow(_BASE, -1, 2**64)):
        table = np.full(count, base, np.uint64)
        table[0] = 1
        tables.append(np.multiply.accumulate(table))
    return tables[0], tables[1]


def _mixed(values: np.ndarray) -> np.ndarray:
    """Hashes of 64 bits in which every bit depends on all (the finalizer of MurmurHash3)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


def _band_keys(table: np.ndarray, columns: slice) -> np.ndarray:
    """A hash of some columns of every signature."""
    keys = np.zeros(len(table), np.uint64)
    for start in range(0, len(table), PAIRS):
        part = keys[start : start + PAIRS]
        for column in np.array(table[start : start + PAIRS, columns], np.uint64).T:
            part[:] = _mixed(part * np.uint64(_BASE) + column)
    return keys


def _runs(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents whose key another has too, equal keys together and in order, and their run."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    is_new = np.ones(len(keys) + 1, bool)
    is_new[1:-1] = keys[1:] != keys[:-1]
    has_other = ~(is_new[:-1] & is_new[1:])
    return order[has_other], np.cumsum(is_new[:-1][has_other])


def _compare_with_leaders(
    table: np.ndarray, first: np.ndarray, members: np.ndarray, runs: np.ndarray, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compare the first member of every run with the others of it; who is still to be compared.

    Leaders are done then, and so are members with the signature of their leader. A run whose
    members are all in one cluster is done.
    """
    is_leader = np.diff(runs, prepend=-1) != 0
    leaders = members[is_leader][np.cumsum(is_leader) - 1]
    equal = np.where(members == leaders, SIGNATURE, 0)
    open_pairs = np.flatnonzero(_roots(first, members) != _roots(first, leaders))
    for start in range(0, len(open_pairs), PAIRS):
        pairs = open_pairs[start : start + PAIRS]
        equal[pairs] = (table[members[pairs]] == table[leaders[pairs]]).sum(axis=1)
    alike = equal >= least
    _join(first, members[alike], leaders[alike])
    is_left = equal < SIGNATURE
    members, runs = members[is_left], runs[is_left]
    roots = _roots(first, members)
    is_first = np.diff(runs, prepend=-1) != 0
    differs = roots != roots[is_first][np.cumsum(is_first) - 1]
    is_open = np.bincount(runs, differs)[runs] > 0
    return members[is_open], runs[is_open]


def _join(first: np.ndarray, ones: np.ndarray, others: np.ndarray) -> None:
    """Put the clusters of each pair together, under the earliest document."""
    while len(ones):
        ones, others = _roots(first, ones), _roots(first, others)
        is_apart = ones != others
        ones, others = ones[is_apart], others[is_apart]
        np.minimum.at(first, np.maximum(ones, others), np.minimum(ones, others))


def _roots(first: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The earliest document of each one's cluster; ways are shortened in `first`."""
    roots = first[documents]
    while np.any((above := first[roots]) != roots):
        roots = above
    first[documents] = roots
    return roots
