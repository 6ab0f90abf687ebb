"""The store: what is written is read, at any size; files that disagree are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ontogeny.tokens.store as store_module
import ontogeny.tokens.writer as writer_module
from ontogeny.errors import DataError
from ontogeny.tokens.store import HEADER, Store
from ontogeny.tokens.writer import StoreWriter, token_dtype

Texts = list[list[list[int]]]  # documents of items of tokens

UINT16 = np.dtype("<u2")
items = st.lists(st.integers(0, 65535), max_size=6)
corpora = st.lists(st.lists(items, max_size=3), max_size=12)


def write(path: Path, documents: Texts, dtype: np.dtype = UINT16) -> Path:
    with StoreWriter(path, dtype) as writer:
        for document in documents:
            for item in document:
                writer.add_items(np.array(item, np.int64), np.array([len(item)]))
            writer.end_document()
    return path


def naive_files(documents: Texts) -> tuple[bytes, bytes]:
    """`.bin` and `.idx` from the table of the format, with nothing but `struct`."""
    every = [item for document in documents for item in document]
    bounds, pointers, at = [0], [], 0
    for document in documents:
        bounds.append(bounds[-1] + len(document))
    for item in every:
        pointers.append(at)
        at += 2 * len(item)
    tokens = [token for item in every for token in item]
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(every), len(bounds))
    index += struct.pack(f"<{len(every)}i", *map(len, every))
    index += struct.pack(f"<{len(every)}q", *pointers) + struct.pack(f"<{len(bounds)}q", *bounds)
    return struct.pack(f"<{len(tokens)}H", *tokens), index


@settings(max_examples=100, deadline=None)
@given(documents=corpora, block=st.integers(1, 5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, documents: Texts, block: int) -> None:
    path = tmp_path_factory.mktemp("store") / "tokens"
    with pytest.MonkeyPatch.context() as patch:  # so that small corpora take several blocks
        patch.setattr(store_module, "BLOCK", block)
        patch.setattr(writer_module, "BLOCK", block)
        write(path, documents)
        store = Store(path)
    written = path.with_suffix(".bin").read_bytes(), path.with_suffix(".idx").read_bytes()
    assert written == naive_files(documents)
    every = [item for document in documents for item in document]
    assert [store.tokens(number).tolist() for number in range(len(store))] == every
    assert store.num_tokens == sum(map(len, every))
    assert np.diff(store.documents).tolist() == [len(document) for document in documents]


def test_parts_of_items(tmp_path: Path) -> None:
    store = Store(write(tmp_path / "tokens", [[[1, 2, 3], []], [[4, 5, 6, 7]]]))
    assert store.tokens(2, 1, 2).tolist() == [5, 6]
    assert store.tokens(-1, 3).tolist() == [7]
    assert store.tokens(1).tolist() == []
    assert not store.tokens(0).flags.writeable
    assert store.gather(np.array([5, 0]), np.array([2, 1])).tolist() == [6, 7, 1]
    assert store.gather(np.array([], int), np.array([], int)).tolist() == []


@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_either_name_will_do(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "my.tokens", [[[1]]])
    assert len(Store(tmp_path / f"my.tokens{suffix}")) == 1


@pytest.mark.parametrize(
    ("size", "name"), [(258, "uint16"), (65499, "uint16"), (65500, "int32"), (300_000, "int32")]
)
def test_token_dtype(size: int, name: str) -> None:
    assert token_dtype(size).name == name


def test_more_tokens_than_32_bits_count(tmp_path: Path) -> None:
    """A sparse store of 2^31 + 2^30 tokens: nothing wraps around, the last tokens are found."""
    size, tail = 2**30, np.array([11, 22, 33])
    sizes = np.array([size, size, size - 1, 3])
    starts = np.cumsum(sizes) - sizes
    header = HEADER.pack(b"MMIDIDX\0\0", 1, 8, 4, 5)
    pointers = (starts * 2).astype("<i8").tobytes()
    bounds = np.arange(5, dtype="<i8").tobytes()
    index = header + sizes.astype("<i4").tobytes() + pointers + bounds
    (tmp_path / "big.idx").write_bytes(index)
    with (tmp_path / "big.bin").open("wb") as file:
        file.seek(2 * int(starts[-1]))  # a hole: no disk is used
        file.write(tail.astype("<u2").tobytes())
    store = Store(tmp_path / "big")
    assert store.num_tokens == int(sizes.sum()) > 2**31
    assert store.tokens(3).tolist() == tail.tolist()
    assert store.starts(np.array([3])).tolist() == [3 * 2**30 - 1]
    assert store.gather(store.starts(np.array([3])), np.array([3])).tolist() == tail.tolist()


def test_writer_counts_beyond_32_bits(tmp_path: Path) -> None:
    """Offsets are summed in 64 bits: sizes alone, since the tokens would take gigabytes."""
    sizes = np.full(5, 2**31 - 1)
    with StoreWriter(tmp_path / "big", UINT16) as writer:
        writer._idx.write(sizes.astype("<i4").tobytes())
        writer.num_items = len(sizes)
    index = (tmp_path / "big.idx").read_bytes()
    pointers = np.frombuffer(index, "<i8", 5, HEADER.size + 4 * 5)
    assert pointers.tolist() == [2 * number * (2**31 - 1) for number in range(5)]


def replace(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


THREE = [[[1, 2]], [[3]], [[4, 5, 6]]]  # .idx: 34 header, 12 sizes, 24 pointers, 32 bounds
DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: p.with_suffix(".bin").unlink(), r"tokens\.bin: no such file"),
    (lambda p: p.with_suffix(".idx").unlink(), r"tokens\.idx: no such file"),
    (lambda p: p.with_suffix(".idx").write_bytes(b"PK"), "not the index of a store"),
    (lambda p: replace(p.with_suffix(".idx"), 0, b"X"), "not the index of a store"),
    (lambda p: replace(p.with_suffix(".idx"), 9, b"\2"), "version of index; expected 1; found 2"),
    (lambda p: replace(p.with_suffix(".idx"), 17, b"\6"), "unknown type of token.*found 6"),
    (lambda p: replace(p.with_suffix(".idx"), 18, b"\4"), "its own header by 12 bytes"),
    (
        lambda p: p.with_suffix(".bin").write_bytes(bytes(14)),
        r"tokens\.bin: disagrees with tokens\.idx by 2 bytes; expected 12 bytes; found 14 bytes",
    ),
    (
        lambda p: replace(p.with_suffix(".idx"), 34 + 4, b"\2"),
        "item 2 do not follow.*expected byte 8 .*found byte 6",
    ),
    (lambda p: replace(p.with_suffix(".idx"), 34 + 4, b"\xff" * 4), "item 1 .*size -1"),
    (lambda p: replace(p.with_suffix(".idx"), 34 + 12 + 8, b"\5"), "item 1 .*found byte 5"),
    (
        lambda p: replace(p.with_suffix(".idx"), 34 + 36 + 24, b"\2"),
        "bounds do not span the items; expected 0 to 3; found 0 to 2",
    ),
    (
        lambda p: replace(p.with_suffix(".idx"), 34 + 36 + 8, b"\3"),
        "document 1 ends before it begins; expected item 3 or later; found 2",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_refuses_files_that_disagree(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    path = write(tmp_path / "tokens", THREE)
    damage(path)
    with pytest.raises(DataError, match=message):
        Store(path)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.tokens(3), "no such item; expected less than 3; found 3"),
        (lambda s: s.tokens(-4), "no such item"),
        (lambda s: s.tokens(2, 1, 3), "at most 3 tokens; found 3 tokens from 1 on"),
        (lambda s: s.tokens(0, -1), "item 0 has no such part"),
        (lambda s: s.rows(0, 2), "differ in size"),
    ],
)
def test_refuses_what_it_does_not_hold(
    tmp_path: Path, ask: Callable[[Store], object], message: str
) -> None:
    store = Store(write(tmp_path / "tokens", THREE))
    with pytest.raises(DataError, match=message):
        ask(store)


@pytest.mark.parametrize(
    ("tokens", "sizes", "message"),
    [
        ([65536], [1], "does not fit uint16; expected 0 to 65535; found 65536"),
        ([-1], [1], "does not fit uint16"),
        ([1, 2], [3], "sizes and tokens disagree; expected 3 tokens; found 2"),
        ([], [2**31], "a document the format cannot hold"),
    ],
)
def test_writer_refuses_and_leaves_no_store(
    tmp_path: Path, tokens: list[int], sizes: list[int], message: str
) -> None:
    def add() -> None:
        with StoreWriter(tmp_path / "tokens", UINT16) as writer:
            writer.add_documents(np.array([1, 2]), np.array([2]))
            writer.add_documents(np.array(tokens, np.int64), np.array(sizes))

    with pytest.raises(DataError, match=message):
        add()
    with pytest.raises(DataError, match="not the index of a store"):
        Store(tmp_path / "tokens")
