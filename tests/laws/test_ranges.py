"""Byte ranges: what is read equals the bytes, wherever they lie; servers that err are refused."""

from __future__ import annotations

import itertools
import random
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ontogeny import ranges
from ontogeny.errors import DataError
from ontogeny.ranges import FileRanges, Joined, Place, hub_url, open_joined, open_ranges, read_all
from ontogeny.tokens.ranged import HOLE, RangeArray, RangedStore, located, open_pair, refuse_holes
from ontogeny.tokens.store import HEADER, Store
from ontogeny.tokens.writer import StoreWriter
from served import Served, serving

DATA = random.Random(0).randbytes(70_000)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of `data`, `a b` (the same) and `empty`."""
    folder = tmp_path_factory.mktemp("served")
    for name, data in (("data", DATA), ("a b", DATA), ("empty", b"")):
        (folder / name).write_bytes(data)
    with serving(folder) as server:
        yield server


@pytest.fixture
def server(kept: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setattr(ranges, "PAUSE", 0.001)
    kept.faults, kept.asked, kept.connections = {}, [], 0
    return kept


spans = st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 10_000)), min_size=1, max_size=20)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=spans, cuts=st.lists(st.integers(0, len(DATA)), max_size=5))
def test_any_ranges_of_anything(
    server: Served, wanted: list[tuple[int, int]], cuts: list[int]
) -> None:
    expected = [DATA[offset : offset + length] for offset, length in wanted]
    bounds = [0, *sorted(cuts), len(DATA)]
    folder = server.folder / "parts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        (folder / str(number)).write_bytes(DATA[first:last])
    here = [folder / str(number) for number in range(len(bounds) - 1)]
    there = [f"{server.url}/parts/{number}" for number in range(len(bounds) - 1)]
    joined = open_joined(here, "joined")
    for one in (open_ranges(server.folder / "data"), open_ranges(f"{server.url}/data"), joined):
        assert one.size == len(DATA)
        assert read_all(one, wanted) == expected
        assert [one.read(*span) for span in wanted] == expected
    assert read_all(open_joined(there, "joined"), wanted) == expected


def test_bytes_are_counted_and_connections_kept(server: Served) -> None:
    served, here = (
        open_ranges(f"{server.url}/a%20b?download=true"),
        FileRanges(server.folder / "data"),
    )
    for one, opening in ((served, 1), (here, 0)):
        assert one.read(5, 10) + one.read(0, 0) + one.read(69_990, 10) == DATA[5:15] + DATA[-10:]
        assert one.moved == 20 + opening
    assert server.connections == 1
    assert Joined([served, here], "both").moved == served.moved + here.moved
    assert open_ranges(f"{server.url}/empty").size == 0
    server.faults["/empty"] = "whole"
    assert open_ranges(f"{server.url}/empty").size == 0
    assert open_ranges(f"{server.url}/a b").read(1, 1) == DATA[1:2]


def test_spans_that_touch_are_read_together(server: Served) -> None:
    one = open_ranges(f"{server.url}/data")
    read_all(one, [(0, 10), (30_000, 5), (10, 10), (100, 10)])
    assert sorted(asked[1] for asked in server.asked[1:]) == ["bytes=0-109", "bytes=30000-30004"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("whole", "ignores ranges and sends the whole; .*try: fetch the file and give its path"),
        (404, "no such file; found 404"),
        (403, "not for everybody; found 403 for a range; try: set HF_TOKEN"),
        (418, "the server does not send it; found 418"),
        (503, r"cannot be reached \(too many 503 error responses\).* in 5 attempts"),
        ("short", r"cannot be reached \(broken off after 2 of 4 bytes\)"),
        ("shift", "answers another range; expected bytes 0-0/; found bytes 1-0/70000"),
        ("grow", "changed while it was read; expected 70000 bytes; found 70003"),
        ("to /nothing", "no such file"),
        ("to /data", "redirects without end"),
        (
            "to ftp://127.0.0.1/data",
            r"not a URL that can be read \(Not supported URL scheme ftp\); expected http",
        ),
        ("to http://[", r"not a URL that can be read \(Invalid IPv6 URL\)"),
    ],
)
def test_servers_that_err(server: Served, fault: object, message: str) -> None:
    server.faults["/data"] = fault
    with pytest.raises(DataError, match=f"{server.url}/data: .*{message}"):
        open_ranges(f"{server.url}/data").read(3, 4)
    assert sum(len(asked[1]) for asked in server.asked) < 1000  # and nothing was fetched whole


@pytest.mark.parametrize("fault", ["drop", "cut"])
def test_dropped_connections_are_opened_again(server: Served, fault: str) -> None:
    server.faults["/data"] = fault
    one = open_ranges(f"{server.url}/data")
    assert [one.read(place, 3) for place in (0, 9, 99)] == [DATA[:3], DATA[9:12], DATA[99:102]]


def test_no_server_no_url(server: Served) -> None:
    with pytest.raises(DataError, match=r"cannot be reached \(.*Connection refused\)"):
        open_ranges("http://127.0.0.1:9/data")
    for url in ("http://", "http://host:port/data"):
        with pytest.raises(
            DataError, match=r"not a URL that can be read \(.*\); expected http\(s\)://HOST"
        ):
            open_ranges(url)


def test_a_silent_server_is_given_up(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "TIMEOUT", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/data"
        with pytest.raises(DataError, match=rf"{url}: cannot be reached \(.*Read timed out"):
            open_ranges(url)


def test_a_redirect_that_expires_is_asked_for_again(server: Served) -> None:
    server.faults["/data"] = "to /a%20b"
    one = open_ranges(f"{server.url}/data")
    assert one.read(3, 4) == DATA[3:7]
    server.faults |= {"/a%20b": 403, "/data": "to /parts/whole"}
    (server.folder / "parts").mkdir(exist_ok=True)
    shutil.copy(server.folder / "data", server.folder / "parts" / "whole")
    assert one.read(5, 4) == DATA[5:9]
    assert [path for path, _, _ in server.asked[2:]] == [
        "/a%20b",
        "/a%20b",
        "/data",
        "/parts/whole",
    ]


def test_the_token_goes_to_the_hub_alone(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    path = "/datasets/me/set/resolve/main/in/x%20y.bin"
    (tmp_path / "far").write_bytes(DATA)
    with serving(tmp_path) as other:
        server.faults[path] = f"to {other.url}/far"
        assert open_ranges("hf://datasets/me/set/in/x y.bin").read(1, 2) == DATA[1:3]
        assert {word for _, _, word in other.asked} == {None}
    assert server.asked[0] == (path, "bytes=0-0", "Bearer secret")


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("hf://me/model/a.bin", "me/model/resolve/main/a.bin"),
        ("hf://me/model@step512/b/a.bin", "me/model/resolve/step512/b/a.bin"),
        ("hf://datasets/me/set@refs%2Fpr%2F1/a", "datasets/me/set/resolve/refs%2Fpr%2F1/a"),
    ],
)
def test_places_on_a_hub(place: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_url(place) == f"https://huggingface.co/{url}"


@pytest.mark.parametrize(
    "place", ["hf://", "hf://me", "hf://me/model", "hf://me/model/", "hf:///a/b"]
)
def test_no_places_on_a_hub(place: str) -> None:
    with pytest.raises(DataError, match="not a file of a hub; expected hf://OWNER/NAME/PATH"):
        open_ranges(place)


def test_a_hub_that_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "localhost")
    with pytest.raises(DataError, match="HF_ENDPOINT: not a URL; expected https://HOST; found lo"):
        open_ranges("hf://me/model/a.bin")


def test_local_files_that_fail(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing: no such file"):
        open_ranges(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(bytes(10))
    opened = open_ranges(tmp_path / "file")
    with pytest.raises(DataError, match=r"file: ends before .* bytes 8 to 11; found 10 bytes"):
        opened.read(8, 3)
    (tmp_path / "file").write_bytes(bytes(5))
    with pytest.raises(DataError, match="became shorter while it was read"):
        opened.read(0, 10)


keys = st.one_of(
    st.integers(-6, 5),
    st.slices(6).filter(lambda key: key.step in (None, 1)),
    st.lists(st.integers(0, 5), max_size=9).map(lambda places: np.array(places, np.int64)),
)


@given(key=keys)
def test_arrays_in_ranges_index_like_arrays(
    tmp_path_factory: pytest.TempPathFactory, key: object
) -> None:
    values = np.arange(12, dtype="<i8").reshape(6, 2) * 7
    path = tmp_path_factory.getbasetemp() / "numbers"
    path.write_bytes(b"head" + values.tobytes() + b"tail")
    array = RangeArray(open_ranges(path), values.dtype, 4, (6, 2))
    np.testing.assert_array_equal(array[key], values[key])  # type: ignore[call-overload]
    for wrong in (6, -7, np.array([2, 6])):
        with pytest.raises(DataError, match="has no such entries; expected at most 6"):
            array[wrong]


def write(folder: Path, sizes: list[int]) -> Path:
    with StoreWriter(folder / "document", np.dtype("<u2")) as writer:
        tokens = np.random.RandomState(1).randint(1, 65536, sum(sizes))
        writer.add_documents(tokens, np.array(sizes, np.int64))
    return folder / "document"


def cut(base: Path, num_bytes: int) -> list[Path]:
    """Shards as the original makes them: one more than the name says, the last perhaps empty."""
    data = base.with_suffix(".bin").read_bytes()
    last = len(data) // num_bytes
    names = [base.with_name(f"{base.name}-{i:05}-of-{last:05}.bin") for i in range(last + 1)]
    for number, name in enumerate(names):
        name.write_bytes(data[number * num_bytes : (number + 1) * num_bytes])
    base.with_suffix(".bin").unlink()
    return names


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12), num_bytes=st.integers(7, 60))
def test_shards_read_like_the_whole(server: Served, sizes: list[int], num_bytes: int) -> None:
    shutil.rmtree(server.folder / "s", ignore_errors=True)
    (server.folder / "s").mkdir()
    base = write(server.folder / "s", sizes)
    whole = Store(base)
    names = cut(base, num_bytes)
    places: list[Place] = [base, base.with_suffix(".idx"), names[0], names[-1]]
    places.append(f"{server.url}/s/{names[0].name}")
    picked = np.arange(len(sizes))[::-1]
    for place in places:
        store = open_pair(place)
        assert isinstance(store, RangedStore)
        assert (len(store), store.num_tokens) == (len(sizes), sum(sizes))
        assert store.flat[: sum(sizes)].tolist() == whole.flat.tolist()
        for item in range(-len(sizes), len(sizes)):
            assert store.tokens(item).tolist() == whole.tokens(item).tolist()
        gathered = store.gather(store.starts(picked), store.sizes[picked])
        assert gathered.tolist() == whole.gather(whole.starts(picked), whole.sizes[picked]).tolist()


def test_an_empty_last_shard_may_be_missing(tmp_path: Path) -> None:
    base = write(tmp_path, [5, 5])
    whole = Store(base).flat.tolist()
    shards = cut(base, 10)
    assert [shard.stat().st_size for shard in shards] == [10, 10, 0]
    assert open_pair(base).flat[:10].tolist() == whole
    shards[2].unlink()
    assert open_pair(base).flat[:10].tolist() == whole
    with pytest.raises(DataError, match=r"document-00002-of-00002\.bin: no such file"):
        open_pair(shards[0])
    shards[0].unlink()
    with pytest.raises(DataError, match="shards are missing, or of several sets"):
        open_pair(base)


def test_missing_shards_are_missed(tmp_path: Path) -> None:
    base = write(tmp_path, [5, 5])
    cut(base, 8)[-1].unlink()
    with pytest.raises(
        DataError, match=r"document-\*-of-00002.bin: disagrees with document.idx by 4"
    ):
        open_pair(base)


def test_names_with_a_query() -> None:
    bins, idx, called = located("https://host/a/document-00000-of-00001.bin?download=true")
    names = ("document-00000-of-00001.bin", "document-00001-of-00001.bin", "document.idx")
    assert [*bins, idx] == [f"https://host/a/{name}?download=true" for name in names]
    assert called == "https://host/a/document-*-of-00001.bin"


DAMAGES = [  # offset in the index of three items of 4 tokens, bytes there, message
    (0, b"X", "not the index of a store"),
    (18, b"\4", "disagrees with its own header by 12 bytes"),
    (HEADER.size + 8, b"\5", r"document\.bin: disagrees with document\.idx by 2 bytes"),
    (HEADER.size + 4, b"\xff" * 4, "size of item 1 is out of range; .*below 13; found -1"),
    (HEADER.size + 12 + 8, b"\x77", "place of item 1 is out of range; .*below 25; found 119"),
    (HEADER.size + 12 + 8, b"\6", "place of item 1 does not follow.*expected 8 bytes.*found 6"),
    (HEADER.size + 4, b"\3", "items differ in size"),
]


@pytest.mark.parametrize(("offset", "data", "message"), DAMAGES)
def test_what_is_touched_of_a_remote_index_is_checked(
    tmp_path: Path, offset: int, data: bytes, message: str
) -> None:
    path = write(tmp_path, [4, 4, 4]).with_suffix(".idx")
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    with serving(tmp_path) as server, pytest.raises(DataError, match=message):
        open_pair(f"{server.url}/document").rows(0, 3)


@given(start=st.integers(0, 9000), length=st.integers(0, 9000))
def test_holes_are_found(start: int, length: int) -> None:
    tokens = np.ones(9000, "<u2")
    tokens[start : start + length] = 0
    num_bytes = 2 * (tokens == 0).sum()
    if num_bytes >= 2 * HOLE:
        with pytest.raises(DataError, match=r"x: full of zeros from byte (\d+) on") as caught:
            refuse_holes(tokens, 50, "x")
        begins = int(str(caught.value).split()[6]) - 2 * 50  # of a token, half of a 1 is zero
        assert begins == max(2 * start - 1, 0)
    elif num_bytes < HOLE:
        refuse_holes(tokens, 50, "x")
