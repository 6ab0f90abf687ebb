"""Orders on disk and batches: the right tokens, the same for any slicing, damage refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.artifact import open_artifact
from ontogeny.errors import DataError, OrderError
from ontogeny.order.batches import Batches, roll, rows_of_rank
from ontogeny.order.plan import ARRAYS, Order, build_order, check_indices, open_order, order_config
from ontogeny.order.shuffle import Indices
from ontogeny.suite import OrderSettings, RecipeName
from ontogeny.text.documents import Document
from ontogeny.tokens.encode import encode
from ontogeny.tokens.store import DocumentStore, open_store
from ontogeny.tokens.vocabulary import train_vocabulary

LENGTH = 24
RECIPES: list[RecipeName] = ["pythia", "sound"]
SETTINGS = OrderSettings(context_length=LENGTH, seed=77)


@dataclass(frozen=True)
class Made:
    """A small store and an order of it in each recipe."""

    folder: Path
    store: DocumentStore
    orders: dict[RecipeName, Order]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    random = np.random.RandomState(3)
    words = ["rain", "snow", "wind", "sun", "fog"]
    texts = [" ".join(random.choice(words, random.randint(1, 60))) for _ in range(40)]
    documents = [Document(str(number), text, "weather") for number, text in enumerate(texts)]
    vocabulary = train_vocabulary(iter(texts), 262)
    encode(documents, vocabulary, folder / "store", config={}, inputs={})
    store = open_store(folder / "store")
    orders: dict[RecipeName, Order] = {}
    for recipe in RECIPES:
        path = folder / recipe
        build_order(store, SETTINGS, recipe=recipe, num_windows=300, folder=path)
        orders[recipe] = open_order(path, store)
    return Made(folder, store, orders)


def naive_rows(order: Order, num_epochs: int) -> list[list[int]]:
    """All rows, by laying out the stream (of each epoch, if they follow each other)."""
    documents = np.split(order.indices.documents, num_epochs)
    windows: list[list[int]] = []
    for part in documents:
        stream = [token for item in part for token in order.store.tokens(int(item)).tolist()]
        per_part = (len(stream) - 1) // LENGTH
        windows += [stream[w * LENGTH : (w + 1) * LENGTH + 1] for w in range(per_part)]
    return [windows[window] for window in order.indices.windows.tolist()]


@pytest.mark.parametrize("recipe", RECIPES)
def test_rows_are_the_tokens_of_the_stream(made: Made, recipe: RecipeName) -> None:
    order = made.orders[recipe]
    facts = open_artifact(made.folder / recipe).facts
    assert facts["num_epochs"] > 1
    expected = naive_rows(order, 1 if recipe == "pythia" else facts["num_epochs"])
    assert order.num_windows == facts["num_windows"] == len(expected) >= 300
    rows = order.rows(0, order.num_windows)
    assert rows.dtype == np.int64
    assert rows.tolist() == expected
    assert order.rows(7, 1)[0].tolist() == expected[7]
    assert order.rows(5, 0).shape == (0, LENGTH + 1)


@settings(max_examples=60, deadline=None)
@given(rows_per_update=st.integers(1, 40), update=st.integers(0, 6))
def test_batches_follow_each_other(made: Made, rows_per_update: int, update: int) -> None:
    batches = Batches(made.orders["sound"], rows_per_update)
    first = update * rows_per_update
    np.testing.assert_array_equal(batches(update), batches.order.rows(first, rows_per_update))


@settings(max_examples=60, deadline=None)
@given(
    update=st.integers(0, 1000),
    micro_batch=st.integers(1, 8),
    num_ranks=st.integers(1, 8),
    num_micro_steps=st.integers(1, 4),
)
def test_layouts_share_an_update_out(
    update: int, micro_batch: int, num_ranks: int, num_micro_steps: int
) -> None:
    every = [
        place
        for micro_step in range(num_micro_steps)
        for rank in range(num_ranks)
        for place in rows_of_rank(
            update,
            micro_batch=micro_batch,
            num_ranks=num_ranks,
            num_micro_steps=num_micro_steps,
            rank=rank,
            micro_step=micro_step,
        )
    ]
    rows = micro_batch * num_ranks * num_micro_steps
    assert every == list(range(update * rows, (update + 1) * rows))


def test_rolling_digest_is_equal_at_equal_tokens(made: Made) -> None:
    """Whatever the rows per update, and as `hashlib` alone says."""
    order = made.orders["sound"]
    small, large = Batches(order, 4), Batches(order, 12)
    digest = small.start
    for update in range(6):
        digest = roll(digest, small(update))
    assert large.start == small.start
    assert roll(roll(large.start, large(0)), large(1)) == digest
    expected = bytes.fromhex(order.start)
    for row in order.rows(0, 24):
        expected = hashlib.sha256(
            expected + b"".join(int(t).to_bytes(4, "little") for t in row)
        ).digest()
    assert digest == expected.hex()
    changed = order.rows(0, 24)
    changed[3, 5] += 1
    assert roll(small.start, changed) != digest


def test_longer_orders_start_alike(made: Made, tmp_path: Path) -> None:
    for recipe, alike in (("sound", True), ("pythia", False)):
        name: Any = recipe
        build_order(made.store, SETTINGS, recipe=name, num_windows=900, folder=tmp_path / name)
        longer = open_order(tmp_path / name, made.store)
        shorter = made.orders[name]
        same_rows = (longer.rows(0, 50) == shorter.rows(0, 50)).all()
        assert same_rows == alike == (longer.start == shorter.start)


def test_same_order_on_any_day(made: Made, tmp_path: Path) -> None:
    again = build_order(
        made.store, SETTINGS, recipe="sound", num_windows=300, folder=tmp_path / "o"
    )
    before = open_artifact(made.folder / "sound")
    assert again.digest == before.digest
    assert again.config == order_config(SETTINGS, "sound", 300)
    assert again.inputs == {"store": made.store.digest}


def test_refuses_places_it_does_not_have(made: Made) -> None:
    order = made.orders["sound"]
    last = order.num_windows - 1
    for first, count in ((last + 1, 1), (-1, 1), (last, 2)):
        with pytest.raises(OrderError, match=f"no such windows; expected places 0 to {last}"):
            order.rows(first, count)


def test_refuses_updates_past_the_end(made: Made) -> None:
    batches = Batches(made.orders["sound"], 7)
    windows = batches.order.num_windows
    batches(batches.num_updates - 1)
    message = (
        rf"does not reach update {batches.num_updates}; expected updates 0 to "
        rf"{batches.num_updates - 1}; found {windows} windows, 7 an update; try: train for fewer"
    )
    with pytest.raises(OrderError, match=message):
        batches(batches.num_updates)
    with pytest.raises(OrderError, match="an update needs a row"):
        Batches(batches.order, 0)


def test_refuses_an_order_of_another_store(made: Made, tmp_path: Path) -> None:
    vocabulary = train_vocabulary(iter(["owl"]), 258)
    encode([Document("1", "owl", "s")], vocabulary, tmp_path / "s", config={}, inputs={})
    with pytest.raises(OrderError, match="an order of another store; expected"):
        open_order(made.folder / "sound", open_store(tmp_path / "s"))
    with pytest.raises(DataError, match="wrong kind of artifact; expected order; found store"):
        open_order(tmp_path / "s", made.store)


Change = Callable[[Indices], Indices]


def with_entry(indices: Indices, name: str, at: Any, value: Any) -> Indices:
    array = getattr(indices, name).copy()
    array[at] = value
    return replace(indices, **{name: array})


DAMAGES: list[tuple[Change, str]] = [
    (lambda i: replace(i, samples=i.samples[:-1]), r"samples\.npy: array of the wrong shape"),
    (lambda i: replace(i, documents=i.documents[:-1]), r"documents\.npy: array of the wrong"),
    (
        lambda i: replace(i, windows=i.windows * 1.0),
        r"windows\.npy: array of the wrong shape; expected integers",
    ),
    (lambda i: with_entry(i, "windows", 4, i.windows[5]), r"windows\.npy.*every number below"),
    (lambda i: with_entry(i, "windows", 4, 10**6), r"entry 4; expected 0 to \d+; found 1000000"),
    (lambda i: with_entry(i, "documents", 2, -1), r"documents\.npy: .* entry 2; .*found -1"),
    (lambda i: with_entry(i, "samples", (9, 0), -3), r"samples\.npy: .* entry 9; .*found -3,"),
    (lambda i: with_entry(i, "samples", (9, 0), 10**6), r"samples\.npy: .* entry 9"),
    (lambda i: with_entry(i, "samples", (9, 1), 10**6), r"samples\.npy: .* entry 9"),
    (
        lambda i: with_entry(i, "samples", 9, 0),
        r"entry 9; expected a place after the last.*found 0, 0",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
@pytest.mark.parametrize("block", [1 << 20, 4])
def test_refuses_damaged_arrays(
    made: Made, damage: Change, message: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ontogeny.order.plan.BLOCK", block)
    order = made.orders["sound"]
    num_epochs = len(order.indices.documents) // len(made.store)
    files = {name: Path("order") / f"{name}.npy" for name in ARRAYS}
    check_indices(order.indices, made.store, num_epochs, files)
    with pytest.raises(OrderError, match=message):
        check_indices(damage(order.indices), made.store, num_epochs, files)


def test_refuses_an_unreadable_array(made: Made, tmp_path: Path) -> None:
    artifact = build_order(
        made.store, SETTINGS, recipe="sound", num_windows=9, folder=tmp_path / "o"
    )
    path = artifact.path / "windows.npy"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(OrderError, match=r"windows\.npy: unreadable array"):
        open_order(artifact.path, made.store)
