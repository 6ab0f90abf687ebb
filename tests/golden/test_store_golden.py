"""The store against files and reads of the original GPT-NeoX and Pythia programs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ontogeny.digest import digest_bytes, digest_file
from ontogeny.errors import DataError
from ontogeny.tokens.store import Store
from ontogeny.tokens.writer import StoreWriter, token_dtype

WITH_DOCUMENTS = ["d1_one_epoch_uint16", "d2_multi_epoch_int32_tiny_docs"]
WITH_DOCUMENTS += ["d3_zero_length_and_multi_piece"]


def read_params(case: Path) -> dict[str, Any]:
    params: dict[str, Any] = json.loads((case / "params.json").read_text())
    return params


@pytest.mark.parametrize("name", WITH_DOCUMENTS)
def test_writer_makes_the_original_bytes(golden: Path, tmp_path: Path, name: str) -> None:
    params = read_params(golden / name)
    documents = json.loads((golden / name / "documents.json").read_text())
    with StoreWriter(tmp_path / "ours", token_dtype(params["vocab_size_given_to_writer"])) as ours:
        for items in documents:
            for item in items:
                ours.add_items(np.array(item, np.int64), np.array([len(item)]))
            ours.end_document()
    for suffix in (".bin", ".idx"):
        assert digest_file(tmp_path / f"ours{suffix}") == params["sha256"][suffix]


@pytest.mark.parametrize("name", WITH_DOCUMENTS)
def test_reader_gives_the_writers_input(golden: Path, name: str) -> None:
    store = Store(golden / name / "toy_text_document.bin")
    documents = json.loads((golden / name / "documents.json").read_text())
    assert store.dtype == read_params(golden / name)["dtype"]
    bounds = store.documents.tolist()
    read = [
        [store.tokens(item).tolist() for item in range(first, last)]
        for first, last in itertools.pairwise(bounds)
    ]
    assert read == documents


def test_v1_reads_like_the_preshuffled_reader(golden: Path) -> None:
    case = golden / "v1_preshuffled_rows"
    params = read_params(case)
    store = Store(case / "document.idx")
    assert len(store) == params["len"]
    for entry in params["int_index"]:
        check(lambda i=entry["i"]: store.tokens(i), entry["result"])
    for entry in params["get"]:
        asked = entry["i"], entry["offset"], entry["length"]
        check(lambda asked=asked: store.tokens(*asked), entry["result"])
    for entry in params["slices"]:
        if entry["step"] not in (None, 1) or entry["start"] == len(store):
            continue  # what the original refuses cannot be said to `rows`, or is an empty view
        start, stop, _ = slice(entry["start"], entry["stop"]).indices(len(store))
        check(lambda start=start, stop=stop: store.rows(start, stop), entry["result"])


def check(read: Any, expected: dict[str, Any]) -> None:
    if "raises" in expected:
        with pytest.raises(DataError, match="no such item"):
            read()
        return
    tokens = read()
    assert list(tokens.shape) == expected["shape"]
    assert tokens.dtype == expected["dtype"]
    assert digest_bytes(tokens.tobytes()) == expected["sha256_of_c_order_bytes"]


def test_v3_the_formula_file_and_its_batches(golden: Path, tmp_path: Path) -> None:
    params = read_params(golden / "v3_batch_viewer")
    r = np.arange(params["rows"], dtype=np.int64)[:, None] + params["row_offset_in_formula"]
    c = np.arange(2049, dtype=np.int64)[None, :]
    tokens = (7919 * r + 104729 * c + (r * c % 613)) % 50277
    with StoreWriter(tmp_path / "document", token_dtype(50277)) as writer:
        for part in np.array_split(tokens, 7):  # in pieces, as a stream comes
            writer.add_documents(part.reshape(-1), np.full(len(part), 2049))
    for suffix in (".bin", ".idx"):
        path = tmp_path / f"document{suffix}"
        assert path.stat().st_size == params["dataset_bytes"][suffix]
        assert digest_file(path) == params["dataset_sha256"][suffix]
    store = Store(tmp_path / "document")
    for run in params["runs"]:
        first, last = 1024 * run["start_iteration"], 1024 * (run["end_iteration"] + 1)
        if "raises" in run["result"] or "shape" not in run["result"]:
            assert first >= len(store)
            continue
        rows = store.rows(first, min(last, len(store)))
        assert list(rows.shape) == run["result"]["shape"]
        assert digest_bytes(rows.tobytes()) == run["result"]["sha256_of_c_order_bytes"]
