"""Index arrays against a plain reading of the rules, and the laws of orders and batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ontogeny.order.shuffle as shuffle_module
from ontogeny.errors import ConfigError, OrderError
from ontogeny.order.blend import blend_indices, split_bounds, windows_asked
from ontogeny.order.shuffle import Indices, named_stream, neox_indices, sound_indices

sizes_lists = st.lists(st.integers(0, 12), min_size=1, max_size=40)


def naive_neox(sizes: list[int], num_windows: int, length: int, seed: int) -> list[list[Any]]:
    """GPT-NeoX's procedure, token by token."""
    epochs = 1
    while (epochs * sum(sizes) - 1) // length < num_windows:
        epochs += 1
    stream = np.random.RandomState(seed)
    documents = list(range(len(sizes))) * epochs
    stream.shuffle(documents)
    tokens = [(k, offset) for k, item in enumerate(documents) for offset in range(sizes[item])]
    built = (len(tokens) - 1) // length
    windows = list(range(built))
    stream.shuffle(windows)
    starts = [list(tokens[window * length]) for window in range(built + 1)]
    starts[0] = [0, 0]
    return [documents, starts, windows]


@settings(max_examples=200, deadline=None)
@given(
    sizes=sizes_lists,
    num_windows=st.integers(1, 60),
    length=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    block=st.integers(1, 50),
)
def test_neox_is_its_procedure(
    sizes: list[int], num_windows: int, length: int, seed: int, block: int
) -> None:
    assume(sum(sizes) > 0)
    with pytest.MonkeyPatch.context() as patch:  # so that small corpora take several blocks
        patch.setattr(shuffle_module, "BLOCK", block)
        found = neox_indices(
            np.array(sizes, np.int32), num_windows=num_windows, context_length=length, seed=seed
        )
    expected = naive_neox(sizes, num_windows, length, seed)
    assert [found.documents.tolist(), found.samples.tolist(), found.windows.tolist()] == expected
    assert [part.dtype for part in (found.documents, found.samples)] == [np.int32, np.int32]
    assert found.windows.dtype == np.uint32


@settings(max_examples=150, deadline=None)
@given(
    sizes=sizes_lists,
    num_windows=st.integers(1, 40),
    length=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_sound_epochs(sizes: list[int], num_windows: int, length: int, seed: int) -> None:
    """Every epoch has each document and each of its windows once, and is cut as one stream."""
    per_epoch = (sum(sizes) - 1) // length
    assume(per_epoch > 0)
    array = np.array(sizes, np.int32)
    found = sound_indices(array, num_windows=num_windows, context_length=length, seed=seed)
    num_epochs = -(-num_windows // per_epoch)
    assert len(found.windows) == num_epochs * per_epoch
    for epoch in range(num_epochs):
        first, last = epoch * per_epoch, (epoch + 1) * per_epoch
        assert sorted(found.windows[first:last]) == list(range(first, last))
        documents = found.documents[epoch * len(sizes) : (epoch + 1) * len(sizes)].tolist()
        assert sorted(documents) == list(range(len(sizes)))
        tokens = [(k, o) for k, item in enumerate(documents) for o in range(sizes[item])]
        starts = [list(tokens[w * length]) for w in range(per_epoch)]
        starts[0] = [0, 0]
        own = found.samples[first:last] - [epoch * len(sizes), 0]
        assert own.tolist() == starts


def test_sound_orders_begin_alike() -> None:
    sizes = np.arange(1, 50, dtype=np.int32)
    short = sound_indices(sizes, num_windows=100, context_length=16, seed=5)
    long = sound_indices(sizes, num_windows=400, context_length=16, seed=5)
    windows, documents = len(short.windows), len(short.documents)
    assert windows < len(long.windows)
    np.testing.assert_array_equal(long.windows[:windows], short.windows)
    np.testing.assert_array_equal(long.documents[:documents], short.documents)
    np.testing.assert_array_equal(long.samples[:windows], short.samples[:windows])
    other = sound_indices(sizes, num_windows=100, context_length=16, seed=6)
    assert (other.documents != short.documents).any()
    epochs = long.documents.reshape(-1, len(sizes))
    assert (epochs[0] != epochs[1]).any()


def test_a_memory_map_of_sizes_will_do(tmp_path: Path) -> None:
    """Also one that starts at an odd byte, as the sizes in an `.idx` do."""
    sizes = np.arange(1, 200, dtype="<i4")
    (tmp_path / "sizes").write_bytes(b"odd" + sizes.tobytes())
    mapped = np.memmap(tmp_path / "sizes", "<i4", "r", 3)
    asked: Any = {"num_windows": 50, "context_length": 9, "seed": 1}
    found, expected = neox_indices(mapped, **asked), neox_indices(sizes, **asked)
    np.testing.assert_array_equal(found.samples, expected.samples)


@pytest.mark.parametrize("recipe", [neox_indices, sound_indices])
def test_wider_numbers_where_32_bits_are_too_few(
    recipe: Callable[..., Indices], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Any = {"num_windows": 50, "context_length": 9, "seed": 1}
    sizes = np.arange(1, 30)
    narrow = recipe(sizes, **asked)
    monkeypatch.setattr(shuffle_module, "INT32_MAX", 28)
    monkeypatch.setattr(shuffle_module, "UINT32_WINDOWS", 50)
    wide = recipe(sizes, **asked)
    for name in ("documents", "samples", "windows"):
        assert getattr(wide, name).dtype == np.int64
        np.testing.assert_array_equal(getattr(wide, name), getattr(narrow, name))


def test_named_streams_are_frozen() -> None:
    """These numbers may never change: orders already made depend on them."""
    numbers = named_stream("order/epoch/0/documents/1234").randint(0, 1000, 5)
    assert numbers.tolist() == [451, 242, 268, 318, 825]
    found = sound_indices(np.full(4, 5), num_windows=12, context_length=3, seed=1234)
    assert found.documents.tolist() == [1, 0, 2, 3, 3, 1, 2, 0]
    assert found.windows.tolist() == [3, 0, 5, 1, 2, 4, 11, 6, 7, 9, 8, 10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": np.zeros(3, np.int32)}, "no tokens; found 3 documents, all empty"),
        ({"sizes": np.zeros(0, np.int32)}, "no tokens; found 0 documents"),
        ({"num_windows": 0}, "needs a window.*found 0 and 4"),
        ({"context_length": 0}, "needs a window.*found 5 and 0"),
        ({"seed": -1}, r"seed out of range; expected 0 to 2\^32 - 1; found -1"),
    ],
)
@pytest.mark.parametrize("recipe", [neox_indices, sound_indices])
def test_refuses(recipe: Callable[..., Indices], arguments: Any, message: str) -> None:
    sizes = arguments.get("sizes", np.array([9, 9], np.int32))
    asked = {"num_windows": 5, "context_length": 4, "seed": 1} | arguments
    asked.pop("sizes", None)
    with pytest.raises(OrderError, match=message):
        recipe(sizes, **asked)


def test_sound_refuses_a_corpus_shorter_than_a_window() -> None:
    with pytest.raises(OrderError, match=r"at least 17 tokens; found 16; try: add text"):
        sound_indices(np.array([16]), num_windows=1, context_length=16, seed=1)


@settings(max_examples=100, deadline=None)
@given(shares=st.lists(st.integers(1, 999), min_size=1, max_size=3), size=st.integers(0, 10**6))
def test_splits_cover_everything(shares: list[int], size: int) -> None:
    bounds = split_bounds(",".join(map(str, shares)), size)
    assert (bounds[0], bounds[3]) == (0, size)
    assert split_bounds("/".join(map(str, shares)), size) == bounds
    for part, share in enumerate(shares[:2]):
        assert abs(bounds[part + 1] - bounds[part] - share / sum(shares) * size) <= 2


def test_splits_round_half_to_even_and_take_the_excess_off() -> None:
    assert split_bounds("0.5/0.25/0.25", 10) == (0, 6, 8, 10)
    assert split_bounds("1,1,1", 10) == (0, 4, 7, 10)
    assert split_bounds("969, 30, 1", 1000) == (0, 969, 999, 1000)


@pytest.mark.parametrize("split", ["", "a,b", "0,0", "-1,2", "nan", "1,inf"])
def test_refuses_what_is_no_split(split: str) -> None:
    with pytest.raises(ConfigError, match="not a split of a corpus"):
        split_bounds(split, 10)


def test_pythia_asks_for_what_its_file_names_say() -> None:
    assert windows_asked(143000 * 1024) == [147164160]


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5), size=st.integers(1, 300))
def test_blends_keep_to_their_weights(weights: list[float], size: int) -> None:
    corpora, places = blend_indices(weights, size)
    for corpus, weight in enumerate(weights):
        own = places[corpora == corpus]
        assert own.tolist() == list(range(len(own)))
        assert abs(len(own) - size * weight / sum(weights)) <= len(weights)


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [-1.0, 2.0]])
def test_refuses_weights(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="cannot blend by these weights"):
        blend_indices(weights, 5)
