"""What updates saw: counts, places and traces equal to a search of the batches themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.errors import ConfigError, OrderError
from ontogeny.order.batches import Batches
from ontogeny.order.lookup import Hits, lookup_in
from ontogeny.order.plan import Order
from ontogeny.order.seen import History, Seen, Sighting
from ontogeny.order.shuffle import sound_indices
from ontogeny.order.trace import trace
from ontogeny.tokens.store import Store
from ontogeny.tokens.suffixes import build_index, open_index
from pairs import write_pair

Moment = tuple[int, int, int]


def history_of(folder: Path, documents: list[list[int]], context: int, rows: int) -> History:
    store = Store(write_pair(folder / "t", documents))
    build_index(store, folder / "index")
    num_windows = 2 * ((store.num_tokens - 1) // context)
    indices = sound_indices(store.sizes, num_windows=num_windows, context_length=context, seed=1)
    batches = Batches(Order(store, indices, context, ""), rows)
    lookup = lookup_in(batches.order, lambda store: open_index(folder / "index", store))
    return History(batches, batches.num_updates, lookup)


def looked_up(history: History, wanted: list[int], before: int) -> list[Moment]:
    """Update, row and column of every string, found by looking everywhere."""
    size = len(wanted)
    return [
        (update, number, column)
        for update in range(before)
        for number, row in enumerate(history.batches(update).tolist())
        for column in range(len(row) - size + 1)
        if row[column : column + size] == wanted
    ]


def moments(seen: Seen) -> list[Moment]:
    columns = (seen.updates.tolist(), seen.rows.tolist(), seen.hits.columns.tolist())
    return list(zip(*columns, strict=True))


def of_documents(history: History, hits: Hits, wanted: list[int]) -> bool:
    (index,) = history.lookup.indexes
    first = [index.store.tokens(*pair, 1)[0] for pair in zip(hits.items, hits.offsets, strict=True)]
    return first == wanted[:1] * len(hits)


strings = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> list[History]:
    """Some of tiny documents, two epochs each, in updates of one to three rows."""
    random = np.random.RandomState(2)
    return [
        history_of(
            tmp_path_factory.mktemp("tiny"),
            [random.randint(1, 4, random.randint(0, 9)).tolist() for _ in range(6)] + [[1, 2, 3]],
            context=1 + number % 5,
            rows=1 + number % 3,
        )
        for number in range(10)
    ]


@given(number=st.integers(0, 9), wanted=strings, data=st.data())
def test_history_tells_what_the_batches_hold(
    histories: list[History], number: int, wanted: list[int], data: st.DataObject
) -> None:
    history = histories[number]
    steps = data.draw(st.lists(st.integers(0, history.num_updates), min_size=1, max_size=3))
    expected = [looked_up(history, wanted, step) for step in steps]
    assert history.counts(wanted, steps) == list(map(len, expected))
    first, limit = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))
    for step, found in zip(steps, expected, strict=True):
        assert history.has(wanted, step) == bool(found)
        updates = [update for update, *_ in found] or [-1]
        ends = Sighting(len(found), min(updates), max(updates))
        assert history.sighting(wanted, step) == ends
        page = history.places(wanted, step, first, limit)
        assert moments(page) == found[first : first + limit]
        assert of_documents(history, page.hits, wanted)
    everything = looked_up(history, wanted, history.num_updates)
    assert history.count(wanted) == len(everything)
    assert moments(history.places(wanted)) == everything


@given(
    number=st.integers(0, 9),
    text=st.lists(st.integers(1, 3), max_size=9),
    least=st.integers(1, 3),
    share=st.floats(0, 1),
)
def test_a_trace_is_all_that_cannot_be_longer(
    histories: list[History], number: int, text: list[int], least: int, share: float
) -> None:
    history = histories[number]
    before = int(share * history.num_updates)
    spans = [
        (start, stop)
        for start in range(len(text))
        for stop in range(start + 1, len(text) + 1)
        if looked_up(history, text[start:stop], before)
    ]
    longest = [
        (start, stop)
        for start, stop in spans
        if stop - start >= least
        and not any(a <= start and stop <= b and (a, b) != (start, stop) for a, b in spans)
    ]
    found = trace(history, text, least=least, before=before)
    assert [(span.start, span.stop) for span in found] == longest
    for span in found:
        assert span.sighting == history.sighting(text[span.start : span.stop], before)


@pytest.fixture(scope="module")
def frequent(tmp_path_factory: pytest.TempPathFactory) -> History:
    """So many tokens of so few kinds that they are tallied, and windows read for places."""
    random = np.random.RandomState(0)
    documents = [random.choice(4, random.randint(1, 90), p=[0.1, 0.2, 0.6, 0.1]).tolist()
                 for _ in range(1500)]  # fmt: skip
    return history_of(tmp_path_factory.mktemp("frequent"), documents, 64, 5)


def test_frequent_tokens_are_tallied_exactly(frequent: History) -> None:
    rows = np.concatenate([frequent.batches(update) for update in range(frequent.num_updates)])
    steps = [0, 1, 7, frequent.num_updates // 2, frequent.num_updates]
    expected = [int((rows[: 5 * step] == 2).sum()) for step in steps]
    assert [frequent.counts([2], steps) for _ in range(3)] == [expected] * 3
    assert "_tally" in vars(frequent)
    assert frequent.counts([70000], [9]) == [0]


@pytest.mark.parametrize("wanted", [[2], [2, 2], [1, 2, 2, 1]])
def test_places_of_frequent_strings_are_the_first(frequent: History, wanted: list[int]) -> None:
    expected = looked_up(frequent, wanted, 40)
    for first, limit in ((0, 10), (5, 300), (len(expected) - 3, 10)):
        seen = frequent.places(wanted, 40, first, limit)
        assert moments(seen) == expected[first : first + limit]
        assert of_documents(frequent, seen.hits, wanted)


def test_what_cannot_be_asked_is_refused(frequent: History) -> None:
    last = frequent.num_updates
    with pytest.raises(OrderError, match=f"no step {last + 1}; expected 0 to {last}"):
        frequent.count([1], last + 1)
    with pytest.raises(OrderError, match="no step -1"):
        frequent.places([1], -1)
    for ask in (frequent.count, frequent.has, frequent.places):
        with pytest.raises(ConfigError, match="nothing to look for; expected a token or more"):
            ask([])
    with pytest.raises(ConfigError, match="a span needs a token"):
        trace(frequent, [1, 2], least=0)
    assert frequent.count([1] * 66) == 0
