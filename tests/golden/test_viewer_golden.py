"""`batch` and the readers under it against what Pythia's tools made of the same files."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ontogeny.digest import digest_bytes, digest_file
from ontogeny.errors import DataError, OrderError
from ontogeny.order.originals import build_neox_order, open_index_maps
from ontogeny.questions.sources import open_source
from ontogeny.ranges import Place, open_joined
from ontogeny.tokens.ranged import located, open_pair
from ontogeny.tokens.writer import StoreWriter, token_dtype
from served import serving
from spoken import Type

ALONE = ["d1_one_epoch_uint16", "d2_multi_epoch_int32_tiny_docs", "d3_zero_length_and_multi_piece"]
PIPELINE = "p1_pythia_style_pipeline"


def read_params(case: Path) -> dict[str, Any]:
    params: dict[str, Any] = json.loads((case / "params.json").read_text())
    return params


@pytest.fixture
def beside(golden: Path, tmp_path: Path) -> Iterator[Any]:
    """Copies a case, its index arrays beside its data; gives its places here and on a server."""
    with serving(tmp_path) as server:

        def copy(name: str) -> tuple[Path, str]:
            folder = tmp_path / name
            shutil.copytree(golden / name, folder)
            for path in (folder / "expected").glob("*_idx.npy"):
                path.rename(folder / path.name)
            return folder, f"{server.url}/{name}"

        yield copy


@pytest.mark.parametrize("name", ALONE)
def test_index_arrays_in_place(beside: Any, golden: Path, name: str) -> None:
    params = read_params(golden / name)
    asked, length, seed = params["num_samples"], params["seq_length"], params["seed"]
    rows = np.load(golden / name / "expected" / "samples.npy")
    called = f"toy_text_document_train_0_indexmap_{asked}ns_{length}sl_{seed}s"
    for folder in beside(name):
        for suffix in ("", "_doc_idx", "_sample_idx.npy", "_shuffle_idx.npy"):
            order = open_index_maps(f"{folder}/{called}{suffix}")
            assert (order.num_windows, order.context_length) == (
                params["expected"]["len_dataset"] + 1,
                length,
            )
        for place, row in zip(params["expected"]["samples_are_dataset_indices"], rows, strict=True):
            np.testing.assert_array_equal(order.rows(place, 1)[0], row)


def batch_of(case: Path, step: int) -> np.ndarray:
    """The batch of a training step of the pipeline, its ranks and micro steps put together."""
    found = np.load(case / "expected" / "batches.npz")
    parts = itertools.product((0, 1), (0, 1))
    return np.concatenate(
        [found[f"train|resume0|step{step}|rank{rank}|micro{micro}"] for micro, rank in parts]
    )


@pytest.mark.parametrize("step", [0, 1, 7])
def test_p1_updates_of_the_whole_pipeline(beside: Any, golden: Path, step: int) -> None:
    expected = batch_of(golden / PIPELINE, step)
    here, there = beside(PIPELINE)
    maps = "toy_text_document_train_0_indexmap_161ns_32sl_1234s_shuffle_idx.npy"
    for place in (here / maps, f"{there}/{maps}"):
        np.testing.assert_array_equal(open_source(place, rows_per_update=8).batches(step), expected)
    pair = here / "toy_text_document.bin"
    source = open_source(pair, rows_per_update=8, context_length=32, seed=1234, updates=20)
    assert source.num_updates == 20
    np.testing.assert_array_equal(source.batches(step), expected)


@pytest.mark.parametrize("name", ALONE)
def test_orders_built_in_memory(golden: Path, name: str) -> None:
    """Training asks for 1.005 times the windows it takes, which is so many here."""
    params = read_params(golden / name)
    asked, length, seed = params["num_samples"], params["seq_length"], params["seed"]
    place = golden / name / "toy_text_document"
    order = build_neox_order(
        place, context_length=length, seed=seed, num_windows=int(asked / 1.005)
    )
    rows = np.load(golden / name / "expected" / "samples.npy")
    places = params["expected"]["samples_are_dataset_indices"]
    np.testing.assert_array_equal([order.rows(place, 1)[0] for place in places], rows)


@pytest.mark.parametrize("name", ["u1_shards", "u2_one_shard"])
def test_shards_are_joined_where_they_lie(golden: Path, name: str) -> None:
    case = golden / name
    params = read_params(case)
    with serving(case) as server:
        for named in (case / "pile_toy_document", f"{server.url}/{params['shards'][0]['file']}"):
            bins, idx, _ = located(named)
            assert [str(place).rpartition("/")[2] for place in (*bins, idx)] == [
                *(shard["file"] for shard in params["shards"]),
                "pile_toy_document.idx",
            ]
            whole = open_joined(bins, "whole")
            assert whole.size == params["input_bytes"]
            assert digest_bytes(whole.read(0, whole.size)) == params["input_sha256"]


def test_v1_reads_like_the_preshuffled_reader(golden: Path, tmp_path: Path) -> None:
    """Whole, in shards and from a server; what the original makes of odd reads is refused."""
    case = golden / "v1_preshuffled_rows"
    params = read_params(case)
    data = (case / "document.bin").read_bytes()
    for number in range(3):  # not where rows end, nor tokens
        part = data[number * 20_001 : (number + 1) * 20_001]
        (tmp_path / f"document-0000{number}-of-00002.bin").write_bytes(part)
    shutil.copy(case / "document.idx", tmp_path)
    with serving(tmp_path) as cut, serving(case) as whole:
        places: list[Place] = [tmp_path / "document", f"{cut.url}/document-00000-of-00002"]
        for place in (case / "document", f"{whole.url}/document.idx", *places):
            assert compare(place, params) == 14


def compare(place: Place, params: dict[str, Any]) -> int:
    """Ask all that the original was asked; how many answers are equal."""
    store, equal = open_pair(place), 0
    assert len(store) == params["len"]
    for entry in (*params["int_index"], *params["get"]):
        equal += 1
        asked = entry["i"], entry.get("offset", 0), entry.get("length")
        if "raises" in entry["result"]:
            with pytest.raises(DataError, match="no such item"):
                store.tokens(*asked)
        else:
            same(store.tokens(*asked), entry["result"])
    for entry in params["slices"]:
        if entry["step"] not in (None, 1) or entry["start"] == len(store):
            continue  # the first cannot be said; the second fails there and is empty here
        start, stop, _ = slice(entry["start"], entry["stop"]).indices(len(store))
        same(store.rows(start, stop), entry["result"])
        equal += 1
    return equal


def same(tokens: np.ndarray, expected: dict[str, Any]) -> None:
    assert list(tokens.shape) == expected["shape"]
    assert tokens.dtype == expected["dtype"]
    assert digest_bytes(tokens.tobytes()) == expected["sha256_of_c_order_bytes"]


@pytest.fixture(scope="module")
def formula(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of v3, which is given by a formula."""
    params = read_params(golden / "v3_batch_viewer")
    path = tmp_path_factory.mktemp("v3") / "document"
    r = np.arange(params["rows"], dtype=np.int64)[:, None]
    c = np.arange(2049, dtype=np.int64)[None, :]
    tokens = (7919 * r + 104729 * c + (r * c % 613)) % 50277
    with StoreWriter(path, token_dtype(50277)) as writer:
        writer.add_documents(tokens.reshape(-1), np.full(len(tokens), 2049))
    assert digest_file(path.with_suffix(".bin")) == params["dataset_sha256"][".bin"]
    return path


def test_v3_batch_writes_what_the_viewer_wrote(
    golden: Path, formula: Path, tmp_path: Path, say: Type
) -> None:
    """Its last iteration is ours too; iterations past the end, which it leaves out, are refused."""
    runs = read_params(golden / "v3_batch_viewer")["runs"]
    for number, run in enumerate(runs):
        first, last = run["start_iteration"], run["end_iteration"]
        path, file = formula.with_suffix(["", ".bin", ".idx"][number % 3]), tmp_path / f"{number}"
        said = say("batch", path, "--update", f"{first}:{last + 1}", "--npy", file)
        if last > 2:
            assert said.code == 2
            assert f"there is no update {max(first, last)}; expected updates 0 to 2" in said.err
            said = say("batch", path, "--update", f"{first}:3", "--npy", file)
        if "fails" in run["result"]:
            assert first == 3
            assert said.code == 2
            continue
        assert said.code == 0
        assert digest_file(file) == run["result"]["npy_sha256"]
        same(np.load(file), run["result"])


def test_v3_rows_end_within_an_update(formula: Path) -> None:
    source = open_source(formula)
    assert [source.num_rows(update) for update in range(3)] == [1024, 1024, 52]
    with pytest.raises(OrderError, match="there is no update 3; expected updates 0 to 2"):
        source.num_rows(3)
