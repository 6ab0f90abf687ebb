"""The n-gram index and the lookups: equal to a search of the tokens and windows themselves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.errors import DataError, OrderError
from ontogeny.order.lookup import Hits, joined, lookup_in
from ontogeny.order.plan import Order
from ontogeny.order.rows import Rows
from ontogeny.order.shuffle import Indices, neox_indices, sound_indices
from ontogeny.order.splice import Part, Spliced
from ontogeny.order.stream import Ascending
from ontogeny.order.windows import Windows
from ontogeny.tokens.store import Store
from ontogeny.tokens.suffixes import Suffixes, build_index, identity, open_index
from pairs import write_pair

DTYPES = ("<u1", "<u2", "<i4", "<i8")
EOD = 0


def write(folder: Path, name: str, documents: Sequence[Sequence[int]], dtype: str = "<u2") -> Store:
    return Store(write_pair(folder / name, documents, dtype))


def indexed(store: Store, shard_tokens: int = 7) -> Suffixes:
    folder = Path(store.bin).with_suffix(f".index-{shard_tokens}")
    if not folder.exists():
        build_index(store, folder, shard_tokens=shard_tokens)
    return open_index(folder, store)


def in_store(store: Store, wanted: Sequence[int]) -> list[int]:
    """Where a string begins in the whole of the tokens, found by looking everywhere."""
    tokens = store.flat.tolist()
    size = len(wanted)
    return [at for at in range(len(tokens) - size + 1) if tokens[at : at + size] == list(wanted)]


def in_windows(windows: Windows, wanted: Sequence[int]) -> list[tuple[int, int]]:
    """Where a string lies in windows (place, column), found by looking everywhere."""
    size = len(wanted)
    return [
        (place, column)
        for place in range(windows.num_windows)
        for row in [windows.rows(place, 1)[0].tolist()]
        for column in range(len(row) - size + 1)
        if row[column : column + size] == list(wanted)
    ]


def found_in(windows: Windows, wanted: Sequence[int]) -> tuple[list[tuple[int, int]], Hits]:
    """The same by the lookup, and all it says."""
    lookup = lookup_in(windows, indexed)
    hits = joined(list(lookup.hits(wanted)))
    for index, number in zip(lookup.indexes, range(9), strict=False):
        own = hits.take((hits.numbers == number) & (hits.items >= 0))
        for item, offset in zip(own.items.tolist(), own.offsets.tolist(), strict=True):
            assert index.store.tokens(item, offset, 1)[0] == wanted[0]
    same = lookup.who(hits.places, hits.columns)
    for name in Hits.__slots__:
        assert np.array_equal(getattr(same, name), getattr(hits, name)), name
    return sorted(zip(hits.places.tolist(), hits.columns.tolist(), strict=True)), hits


documents_of = st.lists(st.lists(st.integers(1, 3), max_size=7), min_size=1, max_size=9)
strings = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@given(
    documents=documents_of,
    wanted=strings,
    shard_tokens=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1, 85]),
)
def test_the_index_finds_what_a_search_finds(
    documents: list[list[int]], wanted: list[int], shard_tokens: int, dtype: str, scale: int
) -> None:
    """In every shard; strings across shards are none of it, and those across items are."""
    documents = [[token * scale for token in document] for document in documents]
    wanted = [token * scale for token in wanted]
    with tempfile.TemporaryDirectory() as folder:
        store = write(Path(folder), "t", documents, dtype)
        index = indexed(store, shard_tokens)
        ends = {0, *np.cumsum(store.sizes).tolist()}
        assert set(index.bounds) <= ends
        ranges = index.find(wanted)
        found = sorted(place for block in index.positions(ranges) for place in block.tolist())
        cuts = index.bounds[1:-1]
        size = len(wanted)
        whole = [at for at in in_store(store, wanted) if not any(at < c < at + size for c in cuts)]
        assert found == whole
        narrowed = index.everything()
        for known, token in enumerate(wanted):
            narrowed = index.narrow(narrowed, known, token)
        assert narrowed == ranges


@given(values=st.lists(st.integers(0, 50), max_size=12), wanted=st.lists(st.integers(0, 60)))
def test_ascending_finds_the_last_not_above(values: list[int], wanted: list[int]) -> None:
    values.sort()
    found = Ascending(np.array(values, np.int64))(np.array(wanted, np.int64)).tolist()
    assert found == [sum(value <= one for value in values) - 1 for one in wanted]


@st.composite
def orders(draw: st.DrawFn) -> tuple[list[list[int]], int, int, bool, int]:
    documents = draw(documents_of)
    if draw(st.booleans()):
        documents = [[*document, EOD] for document in documents]
    if sum(map(len, documents)) < 2:
        documents.append([1, 2, 3])
    total = sum(map(len, documents))
    length = draw(st.integers(1, max(1, min(8, total - 1))))
    return documents, length, draw(st.integers(1, 3)), draw(st.booleans()), draw(st.integers(0, 9))


def ordered(store: Store, length: int, epochs: int, together: bool, seed: int) -> Order:
    total = store.num_tokens
    make = neox_indices if together else sound_indices
    num_windows = max(1, (total - 1) // length) * epochs
    indices: Indices = make(store.sizes, num_windows=num_windows, context_length=length, seed=seed)
    return Order(store, indices, length, "")


@given(case=orders(), wanted=strings)
def test_an_order_is_searched_as_its_windows_are(
    case: tuple[list[list[int]], int, int, bool, int], wanted: list[int]
) -> None:
    documents, length, epochs, together, seed = case
    with tempfile.TemporaryDirectory() as folder:
        order = ordered(write(Path(folder), "t", documents), length, epochs, together, seed)
        assert found_in(order, wanted)[0] == in_windows(order, wanted)


@st.composite
def row_lists(draw: st.DrawFn, width: int, most: int = 6) -> list[list[int]]:
    row = st.lists(st.integers(1, 3), min_size=width, max_size=width)
    return draw(st.lists(row, min_size=1, max_size=most))


def test_tokens_of_more_than_32_bits_are_none_of_a_store(tmp_path: Path) -> None:
    order = ordered(write(tmp_path, "t", [[1, 2], [3, 1]]), 3, 1, False, 0)
    (window,) = order.rows(0, 1).tolist()
    assert len(found_in(order, window[1:3])[1]) == 1  # across the join
    assert len(found_in(order, [window[1], window[2] + 2**32])[1]) == 0


def test_a_string_may_end_with_the_stream(tmp_path: Path) -> None:
    order = ordered(write(tmp_path, "t", [[1, 1], [2, 2]]), 3, 1, False, 0)
    (window,) = order.rows(0, 1).tolist()
    assert found_in(order, window)[0] == [(0, 0)]
    assert found_in(order, window[1:])[0] == [(0, 1)]


@given(width=st.integers(2, 5), data=st.data(), wanted=strings)
def test_rows_are_searched_as_they_are(width: int, data: st.DataObject, wanted: list[int]) -> None:
    documents = data.draw(row_lists(width))
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows(write(Path(folder), "t", documents), width - 1)
        assert found_in(rows, wanted)[0] == in_windows(rows, wanted)


def spliced(folder: Path, parent: Order, other: Windows, data: st.DataObject) -> Spliced:
    """A branch of `parent` in parts of it and of another, some places patched."""
    places = parent.num_windows
    cut, last = sorted(data.draw(st.tuples(st.integers(0, places), st.integers(0, places))))
    count = data.draw(st.integers(0, other.num_windows))
    first, after = Part(parent, 0, cut), Part(parent, last, places - last)
    parts = (first, Part(other, other.num_windows - count, count), after)
    everywhere = range(cut + count + places - last)
    patched = sorted(
        data.draw(st.sets(st.sampled_from(everywhere), max_size=4)) if everywhere else ()
    )
    width = parent.context_length + 1
    rows = data.draw(st.lists(st.lists(st.integers(1, 3), min_size=width, max_size=width),
                              min_size=len(patched), max_size=len(patched)))  # fmt: skip
    patch = Rows(write(folder, "patch", rows), parent.context_length)
    return Spliced(parts, np.array(patched, np.int64), patch)


@settings(max_examples=25)  # each writes several stores and indexes
@given(case=orders(), data=st.data(), wanted=strings)
def test_a_branch_is_searched_as_its_windows_are(
    case: tuple[list[list[int]], int, int, bool, int], data: st.DataObject, wanted: list[int]
) -> None:
    """Also one of a branch; both stores are asked, and what is patched is not the parent's."""
    documents, length, epochs, together, seed = case
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parent = ordered(write(folder, "t", documents), length, epochs, together, seed)
        more = data.draw(row_lists(length + 1, 3))
        other: Windows = Rows(write(folder, "other", more), length)
        branch = spliced(folder, parent, other, data)
        if data.draw(st.booleans()):
            other = ordered(parent.store, length, 1, True, seed + 1)
            (folder / "again").mkdir()
            branch = spliced(folder / "again", parent, branch, data)
        assert found_in(branch, wanted)[0] == in_windows(branch, wanted)


@settings(max_examples=40)
@given(case=orders(), data=st.data())
def test_the_pieces_of_an_item_are_where_it_is_seen(
    case: tuple[list[list[int]], int, int, bool, int], data: st.DataObject
) -> None:
    documents, length, epochs, together, seed = case
    with tempfile.TemporaryDirectory() as folder:
        store = write(Path(folder), "t", documents)
        order = ordered(store, length, epochs, together, seed)
        windows: Windows = order
        if data.draw(st.booleans()):
            windows = spliced(Path(folder), order, order, data)
        lookup = lookup_in(windows, indexed)
        every = np.array([[p, c] for p in range(windows.num_windows) for c in range(length + 1)])
        who = lookup.who(*every.T) if len(every) else joined([])
        who = who.take(who.items >= 0)
        told = sorted(zip(*(getattr(who, name).tolist() for name in Hits.__slots__), strict=True))
        found = []
        for number, index in enumerate(lookup.indexes):
            for item in range(len(index.store)):
                hits, lengths = lookup.pieces(number, item)
                for at, size in enumerate(lengths.tolist()):
                    one = hits.take(np.array([at]))
                    first = [int(getattr(one, name)[0]) for name in Hits.__slots__]
                    place, column, own, offset, own_number = first
                    assert (own, own_number) == (item, number)
                    for step in range(size):
                        found.append((place, column + step, item, offset + step, number))
        assert sorted(found) == told


def test_bad_indexes_are_refused(tmp_path: Path) -> None:
    store, other = write(tmp_path, "a", [[1, 2]]), write(tmp_path, "b", [[1, 3]])
    build_index(store, tmp_path / "x")
    with pytest.raises(DataError, match=r"x: an index of another store; expected one of .*b\.bin"):
        open_index(tmp_path / "x", other)
    assert identity(store) == identity(write(tmp_path, "c", [[1, 2]]))


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    store = write(tmp_path, "b", [[1, 2, 3, 1, 2, 3]])
    samples = np.array([[0, 0], [0, 1], [0, 2]])
    order = Order(store, Indices(np.zeros(1, np.int32), samples, np.arange(2)), 2, "")
    with pytest.raises(OrderError, match="windows share more than a token"):
        list(lookup_in(order, indexed).hits([1]))


def test_an_index_is_whole_where_little_is_written_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Linux writes 2 GB at most, and a shard with a long document is larger."""
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:10], at))
    store = write(tmp_path, "a", [[3, 1, 2] * 40])
    suffixes = np.fromfile(build_index(store, tmp_path / "x").path / "suffixes.bin", "<u4")
    assert sorted(suffixes.tolist()) == list(range(120))


def test_an_index_takes_four_bytes_a_token(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    store = write(tmp_path, "a", random.randint(0, 9, (500, 40)).tolist())
    artifact = build_index(store, tmp_path / "x", shard_tokens=3000)
    size = sum(path.stat().st_size for path in (tmp_path / "x").iterdir())
    assert len(artifact.facts["bounds"]) == 8
    assert artifact.files["suffixes.bin"]["bytes"] == 4 * store.num_tokens
    assert size < 4.2 * store.num_tokens
