"""Mixtures: the Pile's table adds up, copies follow weights; and the named normalisations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.errors import ConfigError
from ontogeny.text.mixture import PILE_EPOCHS, copies, pile_epochs, weighted_epochs
from ontogeny.text.normalise import NORMALISATIONS

# Table 1 of the Pile's paper (Gao et al. 2020): GiB, and percent of the mixed bytes.
PAPER = {
    "Pile-CC": (227.12, 18.11),
    "PubMed Central": (90.27, 14.40),
    "Books3": (100.96, 12.07),
    "OpenWebText2": (62.77, 10.01),
    "ArXiv": (56.21, 8.96),
    "Github": (95.16, 7.59),
    "FreeLaw": (51.15, 6.12),
    "StackExchange": (32.20, 5.13),
    "USPTO Backgrounds": (22.90, 3.65),
    "PubMed Abstracts": (19.26, 3.07),
    "Gutenberg (PG-19)": (10.88, 2.17),
    "OpenSubtitles": (12.98, 1.55),
    "Wikipedia (en)": (6.38, 1.53),
    "DM Mathematics": (7.75, 1.24),
    "Ubuntu IRC": (5.52, 0.88),
    "BookCorpus2": (6.30, 0.75),
    "EuroParl": (4.59, 0.73),
    "HackerNews": (3.90, 0.62),
    "YoutubeSubtitles": (3.73, 0.60),
    "PhilPapers": (2.38, 0.38),
    "NIH ExPorter": (1.89, 0.30),
    "Enron Emails": (0.88, 0.14),
}

sizes = st.lists(st.integers(1, 10_000), min_size=1, max_size=40)
everything = st.text(st.characters(exclude_categories=["Cs"]))


def keys_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 2**64, (count, 2), np.uint64)


def test_the_piles_table_adds_up() -> None:
    assert PAPER.keys() == PILE_EPOCHS.keys()
    assert sum(size for size, _ in PAPER.values()) == pytest.approx(825.18)
    assert sum(percent for _, percent in PAPER.values()) == pytest.approx(100)
    mixed = {name: size * PILE_EPOCHS[name] for name, (size, _) in PAPER.items()}
    assert sum(mixed.values()) == pytest.approx(1254.20, abs=0.01)
    for name, (_, percent) in PAPER.items():
        assert 100 * mixed[name] / 1254.20 == pytest.approx(percent, abs=0.012)


def test_weights_of_the_pile_are_its_epochs() -> None:
    num_bytes = {name: int(size * 2**30) for name, (size, _) in PAPER.items()}
    weights = {name: percent for name, (_, percent) in PAPER.items()}
    by_weight = weighted_epochs(weights, num_bytes)
    once = {name: times * 825.18 / 1254.20 for name, times in pile_epochs(PAPER).items()}
    assert by_weight == pytest.approx(once, rel=0.02)
    assert pile_epochs(["ArXiv", "Pile-CC"]) == {"ArXiv": 2, "Pile-CC": 1}


@given(sizes, st.floats(0, 5), st.integers(0, 99))
def test_copies_fill_the_epochs(num_bytes: list[int], epochs: float, seed: int) -> None:
    bytes_of = np.array(num_bytes)
    keys = keys_of(len(num_bytes), seed)
    found = copies(keys, bytes_of, epochs)
    assert set(found.tolist()) <= {math.floor(epochs), math.floor(epochs) + 1}
    missing = epochs * bytes_of.sum() - (found * bytes_of).sum()
    assert -1e-6 < missing < bytes_of.max()
    more = found > math.floor(epochs)
    chosen = keys[more].tolist()
    assert sorted(keys.tolist())[: len(chosen)] == sorted(chosen)  # the lowest keys
    order = np.random.RandomState(seed).permutation(len(num_bytes))
    np.testing.assert_array_equal(copies(keys[order], bytes_of[order], epochs), found[order])


def test_what_fits_exactly_is_taken() -> None:
    assert sorted(copies(keys_of(4), np.full(4, 10), 1.5).tolist()) == [1, 1, 2, 2]


@given(sizes, st.floats(0, 3), st.floats(0, 3))
def test_more_epochs_take_no_copy_away(num_bytes: list[int], one: float, other: float) -> None:
    less, more = sorted((one, other))
    keys, bytes_of = keys_of(len(num_bytes)), np.array(num_bytes)
    assert (copies(keys, bytes_of, less) <= copies(keys, bytes_of, more)).all()


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1),
    st.integers(1, 10**10),
)
def test_weights_are_shares_of_the_bytes(weights: dict[str, float], unit: int) -> None:
    num_bytes = {name: unit * ord(name) for name in weights}
    total = sum(num_bytes.values())
    epochs = weighted_epochs(weights, num_bytes)
    mixed = {name: epochs[name] * num_bytes[name] for name in weights}
    assert sum(mixed.values()) == pytest.approx(total)
    for name, weight in weights.items():
        assert mixed[name] / total == pytest.approx(weight / sum(weights.values()))
    assert weighted_epochs({**weights, "z": 0}, {**num_bytes, "z": 5})["z"] == 0


def test_refusals_name_the_nearest() -> None:
    with pytest.raises(
        ConfigError,
        match=r"\[text\.weights\]: source 'Arxiv' is no component of the Pile; expected one of "
        r"ArXiv, .*; try: did you mean 'ArXiv'\?",
    ):
        pile_epochs(["Arxiv"])
    with pytest.raises(ConfigError, match=r"'books' has documents but no weight; .*; try: give it"):
        weighted_epochs({"code": 1}, {"books": 5, "code": 5})
    with pytest.raises(ConfigError, match=r"'bokks' has a weight but no document; .*'books'\?"):
        weighted_epochs({"bokks": 1, "books": 1}, {"books": 5})
    for weight in (-1.0, 1e308, math.inf, math.nan):
        with pytest.raises(ConfigError, match=r"not a weight of 'a'; expected 0 to 1e\+300; found"):
            weighted_epochs({"a": weight, "b": weight}, {"a": 1, "b": 1})
    with pytest.raises(ConfigError, match="the mixture is empty; expected a weight above 0"):
        weighted_epochs({"a": 0.0}, {"a": 1})


@pytest.mark.parametrize("name", NORMALISATIONS)
@given(text=everything)
def test_normalising_twice_changes_nothing(name: str, text: str) -> None:
    once = NORMALISATIONS[name](text)
    assert NORMALISATIONS[name](once) == once
    assert name != "none" or once == text


def test_what_the_normalisations_do() -> None:
    text = "\ufeffcafe\u0301 \t\r\n\x07x\x0cy\x0b\x85\n\n"
    assert NORMALISATIONS["nfc"](text) == text.replace("e\u0301", "\u00e9")
    assert NORMALISATIONS["clean-1"](text) == "caf\u00e9\nx\x0cy"
