"""The originals' files in place: what is far, in pieces or broken."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ontogeny.errors import DataError, OrderError
from ontogeny.order.shuffle import neox_indices
from ontogeny.questions.sources import open_source
from pairs import write_pair
from served import PER_UPDATE, WIDTH, fake_preshuffled, serving
from spoken import Type


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse fake of 600 GB."""
    folder = tmp_path_factory.mktemp("far")
    fake_preshuffled(folder, 100_000)
    return folder


def test_one_update_of_600_gb(far: Path, tmp_path: Path, say: Type) -> None:
    expected = fake_preshuffled(far, 100_000)
    assert (far / "document.bin").stat().st_size > 600e9
    with serving(far) as server:
        begun = time.monotonic()
        said = say("batch", f"{server.url}/document", "--update", 100_000, "--npy", tmp_path / "n")
        seconds = time.monotonic() - begun
        assert (np.load(tmp_path / "n") == expected).all()
        shown = say("batch", f"{server.url}/document", "--update", 100_000)
    assert seconds < 1
    moved = int(said.err.split()[0].replace(",", ""))
    assert 2 * PER_UPDATE * WIDTH < moved < 10e6
    assert said.err == f"{moved:,} bytes moved\n"
    assert shown.code == 0
    assert "update 100000: step100000 -> step100001, 1024 rows of 2049 tokens" in shown.out


def test_a_file_of_a_hub(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = far / "datasets/me/set/resolve/v1"
    folder.mkdir(parents=True)
    rows = np.arange(1, 21).reshape(4, 5)
    write_pair(folder / "document", rows)
    with serving(far) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        source = open_source("hf://datasets/me/set@v1/document", rows_per_update=2)
        assert (source.batches(1) == rows[2:]).all()


def test_holes_of_a_remote_file_are_named(far: Path, say: Type) -> None:
    with serving(far) as server:
        said = say("batch", f"{server.url}/document.bin", "--update", 7)
        assert said.code == 2
        assert "document.idx: rows of another length; expected 2049 tokens; found 0" in said.err
    rows = np.ones((9, 2049), int)
    rows[4] = 0
    place = write_pair(far / "holes", rows)
    with serving(far) as server:
        source = open_source(f"{server.url}/holes", rows_per_update=3)
        assert (source.batches(0) == 1).all()
        with pytest.raises(DataError, match=r"holes\.bin: full of zeros from byte 1639[12] on"):
            source.batches(1)
    with pytest.raises(DataError, match=r"holes\.bin: full of zeros from byte 1\d+ on.*a hole"):
        open_source(place)


Damage = Callable[[np.ndarray], np.ndarray]


def put(place: int, value: int) -> Damage:
    def damage(array: np.ndarray) -> np.ndarray:
        array.flat[place] = value
        return array

    return damage


def zeros_from(place: int) -> Damage:
    def damage(array: np.ndarray) -> np.ndarray:
        array[place:] = 0
        return array

    return damage


DAMAGES: list[tuple[str, Damage, str, str | None]] = [  # array, damage, message here, message there
    ("shuffle", put(3, 10**6), "entry 3; expected 0 to", "entry 3 is out of range; .*below"),
    ("shuffle", zeros_from(9), r"full of zeros from entry \d+ on; expected 1 of", None),
    ("shuffle", lambda array: array[:-1], "wrong shape", "wrong shape"),
    ("shuffle", lambda array: array[:1].reshape(()), "wrong shape", "wrong shape"),
    ("sample", lambda array: array.T, "wrong shape", "stored by columns"),
    ("shuffle", lambda array: np.where(array == 5, 6, array), "no 5", None),
    ("shuffle", lambda array: array.astype(float), "wrong shape", "wrong shape"),
    ("doc", put(0, 99), "entry 0; expected 0 to", None),
    ("doc", zeros_from(3), "full of zeros from entry", None),
    ("sample", put(6, -1), "entry 3; expected a place after", "entry 3 is out of range"),
    ("sample", zeros_from(0), "entry 1; expected a place after", "no window of 9 tokens is at"),
    ("sample", lambda array: np.roll(array, 1, 0), "expected a place after", "no window of 9"),
]


@pytest.mark.parametrize(("name", "damage", "here", "there"), DAMAGES)
def test_damaged_index_arrays(
    tmp_path: Path, name: str, damage: Damage, here: str, there: str | None
) -> None:
    sizes = np.random.RandomState(0).randint(0, 30, 20)
    write_pair(tmp_path / "pair", map(np.ones, sizes))
    indices = neox_indices(sizes, num_windows=20, context_length=8, seed=1)
    stem = tmp_path / "pair_train_0_indexmap_20ns_8sl_1s"
    arrays = {"doc": indices.documents, "sample": indices.samples, "shuffle": indices.windows}
    for part, array in arrays.items():
        np.save(f"{stem}_{part}_idx.npy", array)
    with serving(tmp_path) as server:
        remote = f"{server.url}/{stem.name}"
        for place in (stem, remote):
            assert open_source(place, rows_per_update=2).batches(0).shape == (2, 9)
        np.save(f"{stem}_{name}_idx.npy", damage(arrays[name].copy()))
        with pytest.raises(OrderError, match=here):
            open_source(stem, rows_per_update=2)
        if there is not None:
            with pytest.raises((DataError, OrderError), match=there):
                open_source(remote, rows_per_update=len(indices.windows)).batches(0)
        path = Path(f"{stem}_{name}_idx.npy")
        path.write_bytes(path.read_bytes()[:-3])
        for place in (stem, remote):
            with pytest.raises((DataError, OrderError), match=rf"{name}_idx\.npy: "):
                open_source(place, rows_per_update=2)
        path.write_bytes(b"PK")
        for place in (stem, remote):
            with pytest.raises(OrderError, match=rf"{name}_idx\.npy: unreadable array"):
                open_source(place, rows_per_update=2)


def test_index_arrays_of_a_pair_that_holds_nothing(tmp_path: Path) -> None:
    write_pair(tmp_path / "pair", [])
    stem = tmp_path / "pair_train_0_indexmap_1ns_2sl_3s"
    arrays = {"doc": np.zeros(0, int), "sample": np.zeros((2, 2), int), "shuffle": np.zeros(1, int)}
    for part, array in arrays.items():
        np.save(f"{stem}_{part}_idx.npy", array)
    with pytest.raises(
        OrderError, match=r"sample_idx\.npy: damaged order at entry 0; .* found 0, 0"
    ):
        open_source(stem, rows_per_update=1)


def test_a_pair_with_index_arrays_names_them(tmp_path: Path, say: Type) -> None:
    write_pair(tmp_path / "pair", [[1] * 4, [1] * 5])
    said = say("batch", tmp_path / "pair", "--update", 0)
    assert "try: --context-length, --seed and --updates" in said.err
    (tmp_path / "pair_train_0_indexmap_1ns_2sl_3s_shuffle_idx.npy").touch()
    said = say("batch", tmp_path / "pair", "--update", 0)
    assert "pair_train_0_indexmap_1ns_2sl_3s_shuffle_idx.npy" in said.err
    order = ["--context-length", 2, "--seed", 3, "--updates", 1, "--rows-per-update", 2]
    said = say("batch", tmp_path / "pair", "--update", 0, *order)
    assert "update 0: step0 -> step1, 2 rows of 3 tokens" in said.out
    said = say("batch", "http://127.0.0.1:9/pair", "--update", 0, *order)
    assert "an order is built over a local index only" in said.err


def test_an_order_built_in_memory_asks_for_more_as_the_original_does(tmp_path: Path) -> None:
    """1.005 times the windows of training: here one pass holds those, but not so many."""
    write_pair(tmp_path / "pair", [[1] * 143] * 7)
    for updates, num_windows in ((99, 100), (100, 200)):
        source = open_source(
            tmp_path / "pair", rows_per_update=1, context_length=10, seed=1, updates=updates
        )
        assert source.batches.order.num_windows == num_windows
