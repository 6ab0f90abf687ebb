"""Splices: what they change is what was asked for, nothing else, and counted as it is."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.artifact import open_artifact
from ontogeny.config import build
from ontogeny.errors import ConfigError, DataError, OrderError
from ontogeny.order.edits import pieces_of
from ontogeny.order.plan import Order, build_order, open_order
from ontogeny.order.splice import PATCHED, Spliced, Stretch, open_windows, write_splice
from ontogeny.stages.splices import SPLICES, Ground
from ontogeny.suite import OrderSettings, RecipeName, VocabularySettings
from ontogeny.text.documents import Document
from ontogeny.tokens.encode import Eod, encode
from ontogeny.tokens.rewrite import substitute_pattern, substitute_words
from ontogeny.tokens.store import DocumentStore, open_store
from ontogeny.tokens.vocabulary import Vocabulary, build_vocabulary, open_vocabulary

LENGTH = 12
WORDS = ["he", "she", "The", "café", "sees", "🐟", "him", "themselves", "HE", "I"]
SWAP = {"he": "she", "she": "he", "him": "her", "themselves": "us"}


@dataclass(frozen=True, repr=False)
class Made:
    """A small store and an order of it, and the vocabulary it was encoded with."""

    order: Order
    vocabulary: Vocabulary
    num_streams: int

    @property
    def store(self) -> DocumentStore:
        assert isinstance(self.order.store, DocumentStore)
        return self.order.store

    @property
    def end(self) -> int | None:
        return self.store.artifact.facts["eod_id"]


def make(folder: Path, recipe: RecipeName, eod: Eod) -> Made:
    random = np.random.RandomState(5)
    texts = [" ".join(random.choice(WORDS, random.randint(1, 14))) for _ in range(30)]
    documents = [
        Document(f"d{number}", text, "first" if number < 10 else "second")
        for number, text in enumerate(texts)
    ]
    build_vocabulary(
        VocabularySettings(size=275), iter(texts), folder / "vocabulary", inputs={}, base=folder
    )
    vocabulary = open_vocabulary(folder / "vocabulary")
    encode(documents, vocabulary, folder / "store", eod=eod, config={}, inputs={})
    store = open_store(folder / "store")
    order = OrderSettings(context_length=LENGTH, seed=3)
    made = build_order(store, order, recipe=recipe, num_windows=150, folder=folder / "order")
    opened = open_order(folder / "order", store)
    return Made(opened, vocabulary, 1 if recipe == "pythia" else made.facts["num_epochs"])


GROUNDS: list[tuple[RecipeName, Eod]] = [("sound", "end"), ("pythia", "end"), ("sound", "none")]


@pytest.fixture(scope="module", params=GROUNDS, ids="-".join)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"), *request.param)


def splice(
    made: Made, stretch: Stretch, kind: str, **values: Any
) -> tuple[Spliced, dict[str, int]]:
    """A splice of the order, written and opened again, and its summary."""
    chosen = build(SPLICES[kind], values, "test")
    home = made.store.artifact.path.parent
    with tempfile.TemporaryDirectory(dir=home) as folder:
        written = write_splice(
            Path(folder) / "splice",
            stretch,
            lambda scratch: chosen.splice(Ground(stretch, made.vocabulary, scratch)),
            config={},
            inputs={"parent": open_artifact(home / "order")},
        )
        windows = open_windows(open_artifact(written.path, "splice"))
        assert isinstance(windows, Spliced)
        return windows, written.facts["summary"]


Token = tuple[int, int]  # a document and a place in it


def windows_of(made: Made) -> list[list[Token]]:
    """Every window in order as documents and places in them, by laying out the streams."""
    windows = []
    for stream in np.split(made.order.indices.documents, made.num_streams):
        tokens = [(int(d), place) for d in stream for place in range(int(made.store.sizes[d]))]
        for begin in range(0, len(tokens) - LENGTH, LENGTH):
            windows.append(tokens[begin : begin + LENGTH + 1])
    return [windows[window] for window in made.order.indices.windows.tolist()]


def pieces(window: list[Token]) -> Iterator[tuple[int, int, int]]:
    """Document, first place and end of each run of tokens in a window."""
    begin = 0
    for at in range(1, len(window) + 1):
        document, place = window[at - 1]
        if at == len(window) or window[at] != (document, place + 1):
            yield document, window[begin][1], place + 1
            begin = at


def fitted(tokens: list[int], padding: int) -> list[int]:
    return (tokens + [padding] * (LENGTH + 1))[: LENGTH + 1]


def compared(
    made: Made, stretch: Stretch, windows: Spliced, expected: Callable[[list[Token]], list[int]]
) -> dict[str, int]:
    """Check every window against the naive one, and count what differs."""
    parent = made.order.rows(0, made.order.num_windows).tolist()
    found = windows.rows(0, windows.num_windows).tolist()
    changed = tokens = 0
    for place, (before, after, window) in enumerate(
        zip(parent, found, windows_of(made), strict=True)
    ):
        inside = stretch.first <= place < stretch.last
        assert after == (expected(window) if inside else before), place
        changed += before != after
        tokens += sum(left != right for left, right in zip(before, after, strict=True))
    return {"windows": stretch.count, "windows_changed": changed, "tokens_changed": tokens}


@st.composite
def stretches(draw: st.DrawFn) -> tuple[int, int]:
    first = draw(st.integers(0, 130))
    return first, draw(st.integers(first + 20, 150))


@settings(max_examples=15)
@given(bounds=stretches(), ids=st.sets(st.integers(0, 29), min_size=1))
def test_drop_takes_documents_out(made: Made, bounds: tuple[int, int], ids: set[int]) -> None:
    stretch = Stretch(made.order, *bounds)
    there = {d for window in windows_of(made)[slice(*bounds)] for d, _ in window}
    names = [f"d{number}" for number in sorted(ids)]
    if not ids & there:
        with pytest.raises(ConfigError, match="none of the documents is in the windows"):
            splice(made, stretch, "drop", documents=names)
        return
    windows, summary = splice(made, stretch, "drop", documents=names)
    padding = made.vocabulary.eod

    def expected(window: list[Token]) -> list[int]:
        kept = [int(made.store.tokens(d)[place]) for d, place in window if d not in ids]
        return fitted(kept, padding)

    counts = compared(made, stretch, windows, expected)
    lost = [sum(d in ids for d, _ in window) for window in windows_of(made)[slice(*bounds)]]
    assert summary == counts | {
        "windows_added": 0,
        "documents": len(ids & there),
        "windows_cut": 0,
        "tokens_cut": 0,
        "windows_padded": sum(number > 0 for number in lost),
        "tokens_padded": sum(lost),
    }


def swapped(word: str) -> str:
    """The word map, case followed, one word at a time."""
    other = SWAP.get(word.lower(), word)
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other.capitalize() if word[0].isupper() else other


class Rewritten:
    """A document with its words swapped, byte by byte and token by token."""

    def __init__(self, made: Made, document: int) -> None:
        self.made = made
        self.old = made.store.tokens(document).tolist()
        body = self.old if made.end is None else self.old[:-1]
        words = made.vocabulary.decode(body).split(" ")
        self.matches = sum(word != swapped(word) for word in words)
        self.new = made.vocabulary.encode(" ".join(map(swapped, words)))
        self.places, at = [], 0  # of every old byte in the new text
        for word in words:
            size, new_size = len(word.encode()), len(swapped(word).encode())
            self.places += [at + min(byte, new_size) for byte in range(size)] + [at + new_size]
            at += new_size + 1

    def piece(self, begin: int, end: int) -> list[int]:
        if not self.matches:
            return self.old[begin:end]
        ended = [] if self.made.end is None else [self.made.end]
        return (self.new + ended)[self.cut(begin) : self.cut(end)]

    def cut(self, place: int) -> int:
        if self.made.end is not None and place == len(self.old):
            return len(self.new) + 1
        byte = self.places[sum(map(self.size, self.old[:place]))]
        return sum(sum(map(self.size, self.new[: n + 1])) <= byte for n in range(len(self.new)))

    def size(self, token: int) -> int:
        return len(str(self.made.vocabulary.tokenizer.id_to_token(token)))  # a byte a letter


@settings(max_examples=10)
@given(bounds=stretches())
def test_replace_rewrites_documents_in_place(made: Made, bounds: tuple[int, int]) -> None:
    stretch = Stretch(made.order, *bounds)
    windows, summary = splice(made, stretch, "replace", words=SWAP)
    documents = [Rewritten(made, number) for number in range(len(made.store))]
    excess = []

    def expected(window: list[Token]) -> list[int]:
        tokens = [t for d, begin, end in pieces(window) for t in documents[d].piece(begin, end)]
        excess.append(len(tokens) - LENGTH - 1)
        return fitted(tokens, made.vocabulary.eod)

    counts = compared(made, stretch, windows, expected)
    there = {d for window in windows_of(made)[slice(*bounds)] for d, _ in window}
    matches = [documents[number].matches for number in there]
    assert summary == counts | {
        "windows_added": 0,
        "documents": sum(number > 0 for number in matches),
        "matches": sum(matches),
        "windows_cut": sum(number > 0 for number in excess),
        "tokens_cut": sum(number for number in excess if number > 0),
        "windows_padded": sum(number < 0 for number in excess),
        "tokens_padded": -sum(number for number in excess if number < 0),
    }


def test_replace_leaves_windows_before_the_word_as_they_are(tmp_path: Path) -> None:
    """Also where windows begin within a character, and where text would encode to other tokens."""
    made = make(tmp_path, "sound", "end")
    stretch = Stretch(made.order, 0, made.order.num_windows)
    windows, summary = splice(made, stretch, "replace", pattern="themselves", replacement="us")
    found = windows.rows(0, windows.num_windows)
    parent = made.order.rows(0, made.order.num_windows)
    themselves = made.vocabulary.encode(" themselves")
    untouched = 0
    for place, window in enumerate(windows_of(made)):
        texts = [
            made.vocabulary.decode(made.store.tokens(d)[:end].tolist())
            for d, _, end in pieces(window)
        ]
        if not any("them" in text for text in texts):
            untouched += 1
            assert found[place].tolist() == parent[place].tolist()
    assert untouched > 20
    assert summary["windows_changed"] > 20
    assert len(themselves) < LENGTH


def put_in(before: list[int], after: list[int], piece: list[int], end: int) -> bool:
    """Whether a window is another with a piece put behind the end of a document, or in front."""
    joins = [at + 1 for at, token in enumerate(before) if token == end]
    fits = [at for at in joins if at + len(piece) <= len(before)]
    return any(after == [*before[:at], *piece, *before[at:]][: len(before)] for at in (fits or [0]))


@settings(max_examples=10)
@given(bounds=stretches(), times=st.integers(1, 3), seed=st.integers(0, 9))
def test_insert_puts_texts_in_drawn_windows(
    made: Made, bounds: tuple[int, int], times: int, seed: int
) -> None:
    stretch, texts = Stretch(made.order, *bounds), ["🐟🐟 him", "The The"]
    values = {"texts": texts, "times": times, "seed": seed}
    if 2 * times > stretch.count:
        with pytest.raises(ConfigError, match="more pieces to put in than windows"):
            splice(made, stretch, "insert", **values)
        return
    windows, summary = splice(made, stretch, "insert", **values)
    again, _ = splice(made, stretch, "insert", **values)
    assert again.patched.tolist() == windows.patched.tolist()
    end = made.vocabulary.eod
    pieces = [[*made.vocabulary.encode(text), end] for text in texts] * times
    assert summary["pieces"] == summary["windows_changed"] == len(pieces)
    assert summary["tokens_cut"] == sum(map(len, pieces))
    for place, window in enumerate(windows.rows(0, windows.num_windows).tolist()):
        before = made.order.rows(place, 1)[0].tolist()
        if place in windows.patched:
            assert bounds[0] <= place < bounds[1]
            fitting = next(piece for piece in pieces if put_in(before, window, piece, end))
            pieces.remove(fitting)
        else:
            assert window == before
    assert pieces == []


@settings(max_examples=10)
@given(numbers=st.sets(st.integers(0, 29), min_size=1, max_size=3), times=st.integers(1, 2))
def test_repeat_shows_every_target_again(made: Made, numbers: set[int], times: int) -> None:
    stretch = Stretch(made.order, 10, 150)
    names = [f"d{number}" for number in numbers]
    windows, summary = splice(made, stretch, "repeat", documents=names, times=times)
    rows = made.order.rows(0, 150).tolist()
    found = windows.rows(0, 150).tolist()
    expected = []
    for number in sorted(numbers):
        tokens = made.store.tokens(number).tolist()
        begins = range(0, max(1, len(tokens) - 1), LENGTH)
        expected += [tokens[begin : begin + LENGTH + 1] for begin in begins] * times
    assert summary["pieces"] == len(expected)
    for place in windows.patched.tolist():
        row, other = rows[place], found[place]
        fitting = [p for p in expected if put_in(row, other, p, made.vocabulary.eod)]
        expected.remove(max(fitting, key=len))
    assert len(expected) == summary["pieces"] - summary["windows_changed"]


def test_pieces_of_documents_teach_every_token_once() -> None:
    sizes = np.arange(1, 60)
    documents, offsets, lengths = pieces_of(sizes, LENGTH)
    for number, size in enumerate(sizes.tolist()):
        own = documents == number
        targets = [
            token
            for offset, length in zip(offsets[own], lengths[own], strict=True)
            for token in range(offset + 1, offset + length)
        ]
        assert targets == list(range(1, size))
        assert lengths[own].min() >= min(size, 2)
        assert lengths[own].max() <= LENGTH + 1


def test_seed_is_another_order_of_the_same_windows(made: Made) -> None:
    stretch = Stretch(made.order, 40, 140)
    windows, summary = splice(made, stretch, "seed", seed=1)
    rows = made.order.rows(0, made.order.num_windows)
    found = windows.rows(0, windows.num_windows)
    assert found[:40].tolist() == rows[:40].tolist()
    assert found[140:].tolist() == rows[140:].tolist()
    assert sorted(found[40:140].tolist()) == sorted(rows[40:140].tolist())
    assert summary["windows_changed"] == (found != rows).any(1).sum() > 80
    assert summary["tokens_changed"] == (found != rows).sum()
    assert len(windows.patched) == 0
    others = [splice(made, stretch, "seed", seed=seed)[0] for seed in range(2, 6)]
    for end in (40, 139):
        assert len({tuple(other.rows(end, 1)[0]) for other in others}) > 1


def test_rows_are_slices_of_the_whole(made: Made) -> None:
    windows, _ = splice(made, Stretch(made.order, 50, 100), "drop", sources=["first"])
    whole = windows.rows(0, windows.num_windows)
    for first, count in itertools.product(range(0, 150, 7), (0, 1, 30, len(whole))):
        if first + count > len(whole):
            with pytest.raises(OrderError, match="has no such windows"):
                windows.rows(first, count)
        else:
            np.testing.assert_array_equal(windows.rows(first, count), whole[first : first + count])
    assert windows.start == made.order.start
    assert windows.num_ids == made.order.num_ids


def test_a_splice_of_a_splice_keeps_the_first(made: Made) -> None:
    first, _ = splice(made, Stretch(made.order, 30, 60), "drop", sources=["first"])
    stretch = Stretch(first, 70, 100)
    order, at = stretch.order
    assert at == 70
    assert order.rows(at, 30).tolist() == made.order.rows(70, 30).tolist()
    for patched in (Stretch(first, 50, 100), Stretch(first, 40, 60)):
        with pytest.raises(OrderError, match="its documents are not whole"):
            _ = patched.order
    reordered, _ = splice(made, Stretch(made.order, 30, 60), "seed", seed=1)
    assert Stretch(reordered, 40, 60).order[1] == 40
    with pytest.raises(OrderError, match="its documents are not whole"):
        _ = Stretch(reordered, 40, 61).order


def test_what_is_put_in_front_stays_in_front(tmp_path: Path) -> None:
    made = make(tmp_path, "sound", "end")
    windows, summary = splice(
        made, Stretch(made.order, 0, 150), "replace", pattern="^", replacement="!"
    )
    mark = made.vocabulary.encode("!")[0]
    whole = [  # documents that begin in a window, which no earlier one of the window pushes out
        place
        for place, window in enumerate(windows_of(made)[:150])
        for column, (_, at) in enumerate(window)
        if at == 0 and column + sum(other == 0 for _, other in window[:column]) <= LENGTH
    ]
    found = windows.rows(0, 150)
    assert [place for place, row in enumerate(found.tolist()) for t in row if t == mark] == whole
    assert summary["matches"] == summary["documents"] == 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("he said she", "she said he"),
        ("He, HE; he's hero", "She, SHE; she's hero"),
        ("I am not Him", "We am not Her"),
        ("no match", None),
        ("It", None),
        ("", None),
    ],
)
def test_words_are_swapped_whole_and_in_their_case(text: str, expected: str | None) -> None:
    words = {"he": "she", "she": "he", "him": "her", "i": "we", "it": "it"}
    found = substitute_words(words)(text)
    assert (None if found is None else found.text) == expected


def test_the_longest_word_is_found_first() -> None:
    found = substitute_words({"c": "x", "c++": "d"})("c c++ c++11")
    assert found is not None
    assert found.text == "x d x++11"
    assert found.spans.tolist() == [[0, 1, 0, 1], [2, 5, 2, 3], [6, 7, 4, 5]]


def test_places_move_with_the_text() -> None:
    found = substitute_pattern(r"(\w)=(\w)", r"\2=\1!")("é a=b c=d")
    assert found is not None
    assert found.text == "é b=a! d=c!"
    assert found.moved(np.arange(11)).tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 12]


BROKEN = [("(", "x"), ("a", r"\1"), ("a", r"\g<name>"), ("a{99999999999999}", "x")]


@pytest.mark.parametrize(("pattern", "replacement"), BROKEN)
def test_a_broken_pattern_is_refused(pattern: str, replacement: str) -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        substitute_pattern(pattern, replacement)


def test_replacements_that_normalisation_changes_are_refused(made: Made) -> None:
    stretch = Stretch(made.order, 0, 150)
    with pytest.raises(DataError, match=r"document d.*do not add up to the text.*NFC"):
        splice(made, stretch, "replace", pattern="he", replacement="cafe\u0301")


def test_a_splice_that_changes_nothing_is_refused(made: Made) -> None:
    stretch = Stretch(made.order, 0, 150)
    with pytest.raises(ConfigError, match=r"changes no window.*--splice identity"):
        splice(made, stretch, "replace", pattern="absent", replacement="x")


@pytest.mark.parametrize("damage", [[3, 2], [10, 200], [-1, 4], [[1, 2]], [1.0, 2.0]])
def test_a_damaged_patch_is_refused(tmp_path: Path, damage: list[Any]) -> None:
    made = make(tmp_path, "sound", "end")
    stretch = Stretch(made.order, 0, 150)
    chosen = build(SPLICES["insert"], {"texts": ["he", "she"]}, "test")
    written = write_splice(
        tmp_path / "splice",
        stretch,
        lambda scratch: chosen.splice(Ground(stretch, made.vocabulary, scratch)),
        config={},
        inputs={"parent": open_artifact(tmp_path / "order")},
    )
    np.save(written.path / PATCHED, np.array(damage))
    with pytest.raises(OrderError, match=r"patched.npy: damaged splice; expected 2 ascending"):
        open_windows(open_artifact(written.path))
