"""Near-duplicates: shingles and clusters against naive ones, planted pairs against theory."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ontogeny.text.near as near
from ontogeny.config import build
from ontogeny.errors import ConfigError
from ontogeny.suite import TextSettings
from ontogeny.text.near import RECALL, SIGNATURE, bands, first_alike, signatures

texts = st.text(st.sampled_from("abAB é漢\n\t\x0b\x1c\xa0"), max_size=60)


def naive_shingles(text: str) -> set[tuple[bytes, ...]]:
    words = [word.lower() for word in re.findall(rb"[^ \t\n\r\f\v]+", text.encode())]
    return {tuple(words[at : at + 5]) for at in range(max(len(words) - 4, 1))} if words else set()


@given(texts, texts)
def test_equal_signatures_mean_equal_shingles(one: str, other: str) -> None:
    ours, theirs = signatures([one, other])
    assert np.array_equal(ours, theirs) == (naive_shingles(one) == naive_shingles(other))


@given(st.lists(texts, max_size=8), st.integers(1, 40), st.integers(1, 40))
def test_a_signature_is_a_function_of_its_text(batch: list[str], group: int, block: int) -> None:
    alone = np.concatenate([signatures([]), *(signatures([text]) for text in batch)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "GROUP_BYTES", group)
        patch.setattr(near, "BLOCK_BYTES", block)
        together = signatures(batch)
    assert together.dtype == np.uint32
    np.testing.assert_array_equal(together, alone)


PINNED = "a9835c5468e17826876693dae33bc4fe128a16ab0c7c13340a3e21ac6caf4735"
SAMPLE = "from ontogeny.text.near import signatures as s; import hashlib; " + (
    "print(hashlib.sha256(s(['', 'a b', 'x ' * 9, ' '.join(map(str, range(3000)))])"
    ".astype('<u4').tobytes()).hexdigest())"
)


@pytest.mark.parametrize("kernel", ["", "scalar"])
def test_signatures_are_the_same_in_every_process(kernel: str) -> None:
    """A new version that computes others is noticed here; it needs another METHOD."""
    changed = {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1", "RENSA_FORCE_KERNEL": kernel}
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE],
        env={**os.environ, **changed},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == PINNED, done.stderr
    assert near.METHOD == "5 words, R-MinHash 2, 128 numbers"


def planted_pairs(similarity: float, count: int, shingles: int = 400) -> tuple[list[str], float]:
    """Pairs of texts, each with words of its own, and their exact similarity."""
    shared = round(2 * shingles * similarity / (1 + similarity))
    planted = []
    for pair in range(count):
        words = [f"{pair}.{word}" for word in range(2 * shingles)]
        ends = [f"{pair}:{word}" for word in range(shingles)]
        one = words[: shingles + 4]
        other = words[: shared + 4] + ends[: shingles - shared]
        planted += [" ".join(one), " ".join(other)]
    exact = [naive_shingles(text) for text in planted[:2]]
    return planted, len(exact[0] & exact[1]) / len(exact[0] | exact[1])


def tail(least: int, similarity: float) -> float:
    """The chance that so many of the numbers are equal, or more."""
    return math.fsum(
        math.comb(SIGNATURE, n) * similarity**n * (1 - similarity) ** (SIGNATURE - n)
        for n in range(least, SIGNATURE + 1)
    )


@pytest.mark.parametrize("target", [0.75, 0.82, 0.85, 0.87, 0.89, 0.92, 0.97])
def test_planted_duplicates_are_found_as_theory_predicts(target: float) -> None:
    count, threshold = 150, 0.87
    planted, similarity = planted_pairs(target, count)
    assert similarity == pytest.approx(target, abs=2e-3)
    table = signatures(planted)
    equal = (table[::2] == table[1::2]).mean(axis=1)
    spread = math.sqrt(similarity * (1 - similarity) / SIGNATURE)
    assert abs(equal.mean() - similarity) < 4 * spread / math.sqrt(count)
    assert 0.6 * spread < equal.std() < 1.2 * spread
    num_bands, width = bands(threshold)
    alike = tail(math.ceil(threshold * SIGNATURE), similarity)
    predicted = alike * (1 - (1 - similarity**width) ** num_bands)  # at least: both hang together
    first = first_alike(table, threshold)
    found = (first[1::2] == np.arange(0, 2 * count, 2)).mean()
    noise = 4 * math.sqrt(alike * (1 - alike) / count) + 0.02
    assert predicted - noise < found < alike + noise
    np.testing.assert_array_equal(first[::2], np.arange(0, 2 * count, 2))  # no stranger


def test_exact_duplicates_are_always_found() -> None:
    words = [f"word{number}" for number in range(40)]
    distinct = [" ".join(words[at : at + size]) for at in range(20) for size in (1, 3, 20)]
    first = first_alike(signatures(distinct + distinct[::-1]), 1.0)
    assert first.tolist() == [*range(60), *range(59, -1, -1)]


def naive_clusters(table: np.ndarray, threshold: float) -> list[int]:
    """By all pairs, one after another."""
    num_bands, width = bands(threshold)
    first = list(range(len(table)))
    for one, other in combinations(range(len(table)), 2):
        equal = table[one] == table[other]
        shares = any(equal[at * width : (at + 1) * width].all() for at in range(num_bands))
        if shares and equal.sum() >= threshold * SIGNATURE:
            low, high = sorted((first[one], first[other]))
            first = [low if root == high else root for root in first]
    return first


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.87])
@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_those_of_all_pairs(threshold: float, seed: int) -> None:
    """Chains of documents, each a mutation of an earlier one, so that alike is not transitive."""
    random = np.random.RandomState(seed)
    table = random.randint(0, 2**32, (70, SIGNATURE), dtype=np.uint32)
    for row in range(8, len(table)):
        changed = random.rand(SIGNATURE) < random.choice([0, 0.05, 0.15, 0.3, 0.5])
        table[row] = np.where(changed, table[row], table[random.randint(row)])
    expected = naive_clusters(table, threshold)
    assert 8 < len(set(expected)) < 70
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "PAIRS", 7)
        assert first_alike(table, threshold).tolist() == expected


def test_every_pair_of_a_band_is_compared() -> None:
    """Three share one band, of which the first is unlike the others, which share no other."""
    num_bands, width = bands(0.87)
    table = np.random.RandomState(0).randint(0, 2**32, (3, SIGNATURE), dtype=np.uint32)
    table[1:, :width] = table[0, :width]
    table[2] = table[1]
    table[2, [band * width for band in range(1, num_bands)]] += np.uint32(1)
    assert first_alike(table, 0.87).tolist() == [0, 1, 1]


def test_clusters_do_not_depend_on_the_order() -> None:
    planted, _ = planted_pairs(0.9, 30, shingles=60)
    table = signatures([*planted, *planted[:7]])
    order = np.random.RandomState(3).permutation(len(table))
    plain, shuffled = first_alike(table, 0.87), first_alike(table[order], 0.87)
    together = {frozenset(np.flatnonzero(plain == root)) for root in plain.tolist()}
    assert together == {frozenset(order[shuffled == root]) for root in shuffled.tolist()}
    assert all(first <= place for place, first in enumerate(shuffled.tolist()))


def test_memory_grows_by_bytes_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "PAIRS", 512)
    count = 40_000
    table = np.memmap(tmp_path / "table", np.uint32, "w+", shape=(count, SIGNATURE))
    table[:] = np.arange(count, dtype=np.uint32)[:, None]
    tracemalloc.start()
    first = first_alike(table, 0.87)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (first == np.arange(count)).all()
    assert peak < 34 * count + 2 * 512 * SIGNATURE * 4


def test_no_document_has_no_cluster() -> None:
    assert first_alike(signatures([]), 0.87).tolist() == []


def test_bands_are_the_widest_that_see_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.87, 0.99):
        num_bands, width = bands(threshold)
        assert 1 - (1 - threshold**width) ** num_bands >= RECALL
        wider = SIGNATURE // (width + 1)
        assert 1 - (1 - threshold ** (width + 1)) ** wider < RECALL
    assert bands(1) == (1, SIGNATURE)


@pytest.mark.parametrize("threshold", [0.49, 1.01, float("nan")])
def test_settings_refuse_what_is_no_threshold(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"(?:near_duplicates: Input should be|not a setting)"):
        build(TextSettings, {"path": "x", "near_duplicates": threshold}, "suite.toml")
