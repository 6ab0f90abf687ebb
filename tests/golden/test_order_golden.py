"""Orders against the index arrays, samples and batches of the original GPT-NeoX programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ontogeny.order.batches import rows_of_rank
from ontogeny.order.blend import blend_indices, split_bounds, windows_asked
from ontogeny.order.plan import Order
from ontogeny.order.shuffle import Indices, neox_indices
from ontogeny.tokens.store import Store

PARTS = {"documents": "doc", "samples": "sample", "windows": "shuffle"}
ALONE = ["d1_one_epoch_uint16", "d2_multi_epoch_int32_tiny_docs", "d3_zero_length_and_multi_piece"]
PIPELINES = ["p1_pythia_style_pipeline", "p3_blend_of_two"]


def read_params(case: Path) -> dict[str, Any]:
    params: dict[str, Any] = json.loads((case / "params.json").read_text())
    return params


def same_as_files(indices: Indices, case: Path, stem: str) -> None:
    for attribute, name in PARTS.items():
        ours = getattr(indices, attribute)
        theirs = np.load(case / "expected" / f"{stem}_{name}_idx.npy")
        assert ours.dtype == theirs.dtype, (stem, name)
        np.testing.assert_array_equal(ours, theirs, err_msg=f"{stem} {name}")


@pytest.mark.parametrize("name", ALONE)
def test_one_corpus(golden: Path, name: str) -> None:
    params = read_params(golden / name)
    asked, length, seed = params["num_samples"], params["seq_length"], params["seed"]
    store = Store(golden / name / "toy_text_document")
    indices = neox_indices(store.sizes, num_windows=asked, context_length=length, seed=seed)
    prefix = f"toy_text_document_train_0_indexmap_{asked}ns_{length}sl_{seed}s"
    same_as_files(indices, golden / name, prefix)
    order = Order(store, indices, length, "")
    # The original's length leaves out the last window, and wraps around past its end.
    expected = params["expected"]
    assert order.num_windows == expected["len_dataset"] + 1
    rows = np.load(golden / name / "expected" / "samples.npy")
    for place, row in zip(expected["samples_are_dataset_indices"], rows, strict=True):
        np.testing.assert_array_equal(order.rows(place, 1)[0], row)
    for place, equals in expected["index_past_end"].items():
        assert [int(place) % (order.num_windows - 1)] == equals["equals_dataset_index"]


def test_s1_a_split_of_one_path(golden: Path) -> None:
    case = golden / "s1_split_of_one_path"
    params = read_params(case)
    store = Store(case / "toy_text_document")
    bounds = split_bounds(params["split"], len(store))
    assert list(bounds) == params["boundaries"]
    length, seed = params["seq_length"], params["seed"]
    for part, name in enumerate(["train", "valid", "test"]):
        first, last = bounds[part], bounds[part + 1]
        if params["expected"][name] is None:
            assert first == last
            continue
        asked = params["train_valid_test_num_samples"][part]
        within = neox_indices(
            store.sizes[first:last], num_windows=asked, context_length=length, seed=seed
        )
        indices = Indices(within.documents + np.int32(first), within.samples, within.windows)
        prefix = f"toy_text_document_{name}_indexmap_{asked}ns_{length}sl_{seed}s"
        same_as_files(indices, case, prefix)
        order = Order(store, indices, length, "")
        rows = np.load(case / "expected" / f"samples_{name}.npy")
        places = params["expected"][name]["samples_are_dataset_indices"]
        for place, row in zip(places, rows, strict=True):
            np.testing.assert_array_equal(order.rows(place, 1)[0], row)


@pytest.mark.parametrize("name", PIPELINES)
def test_whole_pipeline(golden: Path, name: str) -> None:
    """p1 and p3: how much is asked, each corpus's order, the blend, ranks and micro steps."""
    case = golden / name
    params = read_params(case)
    batch = params["train_batch_size"]
    evaluations = params["train_iters"] // params["eval_interval"] + 1
    needed = {
        "train": params["train_iters"] * batch,
        "valid": evaluations * params["eval_iters"] * batch,
        "test": params["eval_iters"] * batch,
    }
    batches = np.load(case / "expected" / "batches.npz")
    for part, num_windows in needed.items():
        asked = windows_asked(num_windows, params["weights"])
        assert asked == params["expected"]["num_samples_asked"][part]
        orders = [
            ordered_corpus(case, params, f"{prefix}_{part}_{number}", prefix, asked[number])
            for number, prefix in enumerate(params["data_prefixes"])
        ]
        size = sum(order.num_windows - 1 for order in orders)
        corpora, places = blend_indices(params["weights"], size)
        if part == "train" and "blend" in params["expected"]:
            same_blend(case, corpora, places)
        for key in batches.files:
            which, _, step, rank, micro_step = key.split("|")
            if which != part:
                continue
            rows = rows_of_rank(
                int(step[4:]),
                micro_batch=params["train_micro_batch_size_per_gpu"],
                num_ranks=params["data_parallel_size"],
                num_micro_steps=params["gradient_accumulation_steps"],
                rank=int(rank[4:]),
                micro_step=int(micro_step[5:]),
            )
            ours = np.stack([orders[corpora[row]].rows(int(places[row]), 1)[0] for row in rows])
            np.testing.assert_array_equal(ours, batches[key], err_msg=key)


def ordered_corpus(case: Path, params: dict[str, Any], stem: str, prefix: str, asked: int) -> Order:
    store = Store(case / prefix)
    length, seed = params["seq_length"], params["seed"]
    indices = neox_indices(store.sizes, num_windows=asked, context_length=length, seed=seed)
    same_as_files(indices, case, f"{stem}_indexmap_{asked}ns_{length}sl_{seed}s")
    return Order(store, indices, length, "")


def same_blend(case: Path, corpora: np.ndarray, places: np.ndarray) -> None:
    theirs = [np.load(case / "expected" / f"blend_dataset_{name}.npy") for name in BLEND]
    for ours, expected in zip([corpora, places], theirs, strict=True):
        assert ours.dtype == expected.dtype
        np.testing.assert_array_equal(ours, expected)


BLEND = ("index", "sample_index")


def test_split_strings(golden: Path) -> None:
    for case in json.loads((golden / "split_strings.json").read_text()):
        assert list(split_bounds(case["split"], case["size"])) == case["boundaries"]


def test_batch_ids(golden: Path) -> None:
    for layout in json.loads((golden / "batch_ids.json").read_text()):
        micro_batch = layout["train_micro_batch_size_per_gpu"]
        num_ranks = layout["data_parallel_size"]
        for batch in layout["batches"]:
            rows = rows_of_rank(
                batch["step"],
                micro_batch=micro_batch,
                num_ranks=num_ranks,
                num_micro_steps=layout["gradient_accumulation_steps"],
                rank=batch["dp_rank"],
                micro_step=batch["micro_step"],
            )
            micro_step_ends = rows.stop + (num_ranks - 1 - batch["dp_rank"]) * micro_batch
            used_up = micro_step_ends > layout["dataset_len"]
            assert batch["ids"] == (None if used_up else list(rows))
