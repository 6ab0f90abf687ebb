"""Asking a run what it saw: by text, by tokens, by document; branches and original files too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from grown import Ground, begin, settings
from ontogeny.order.plan import Order
from ontogeny.questions.materials import open_materials
from ontogeny.stages.branch import begin_branch, plan_branch
from ontogeny.stages.splices import read_spec
from ontogeny.tokens.store import open_store
from ontogeny.tokens.vocabulary import TOKENIZER, Vocabulary, open_vocabulary, spellings
from ontogeny.training.loop import train
from pairs import write_pair
from spoken import Said, Type

NUM_UPDATES, ROWS = 24, 4
SPEC = """
[splice]
kind = "replace"
words = { river = "canal", stone = "rock" }
"""


@pytest.fixture(scope="module")
def home(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the ground with a finished run on it; indexes gather there."""
    folder = tmp_path_factory.mktemp("asked") / "home"
    shutil.copytree(ground.home, folder)
    moved = Ground(folder)
    train(begin(moved, folder / "run", settings()), moved.batches(ROWS))
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    return home / "run"


def rows_of(run: Path, num_updates: int = NUM_UPDATES) -> list[tuple[int, int, list[int]]]:
    """Every row of a run as its batches have it: update, row, tokens."""
    batches = open_materials(run).batches
    return [
        (update, number, row)
        for update in range(num_updates)
        for number, row in enumerate(batches(update).tolist())
    ]


def places_of(rows: list[tuple[int, int, list[int]]], wanted: list[int]) -> list[list[int]]:
    """Update, row and column of every string, found by looking everywhere."""
    return [
        [update, number, column]
        for update, number, row in rows
        for column in range(len(row) - len(wanted) + 1)
        if row[column : column + len(wanted)] == wanted
    ]


def texts_of(rows: list[Any], vocabulary: Vocabulary, text: str) -> list[list[int]]:
    """Where a text begins with a token, or after the space of one, found in the bytes of rows."""
    spelled, wanted = spellings(vocabulary), text.encode()
    assert spelled is not None
    found = []
    for update, number, row in rows:
        pieces = [spelled[token] for token in row]
        for column, piece in enumerate(pieces):
            rest = b"".join(pieces[column:])
            is_spaced = len(piece) > 1 and rest.startswith(b" " + wanted)
            if rest.startswith(wanted) or is_spaced:
                found.append([update, number, column])
    return found


def told(said: Said) -> Any:
    assert said.code == 0, said.err
    return json.loads(said.out)


def moments(answer: dict[str, Any]) -> list[list[int]]:
    return [[place[name] for name in ("update", "row", "column")] for place in answer["places"]]


def test_every_answer_is_that_of_the_batches(run: Path, say: Type) -> None:
    rows, store = rows_of(run), open_store(run.parent / "store")
    for wanted in ([rows[7][2][3]], rows[30][2][2:5], rows[40][2], [*rows[50][2], 1], [9, 9, 9, 9]):
        expected = places_of(rows, wanted)
        ids = ",".join(map(str, wanted))
        answer = told(say("seen", run, "--tokens", ids, "--limit", 5000, "--json"))
        assert moments(answer) == expected
        assert answer["count"] == len(expected)
        assert answer["first"] == (expected[0][0] if expected else None)
        assert answer["last"] == (expected[-1][0] if expected else None)
        for step, count in answer["counts"].items():
            assert count == sum(update < int(step) for update, *_ in expected)
        for place in answer["places"]:
            assert store.document_id(place["document"]) == place["id"]
            assert store.tokens(place["document"], place["offset"], 1)[0] == wanted[0]


@pytest.mark.parametrize(
    "text",
    ["river", "Stone", "the old", " house", "e", ". ", "ver", "door sees", "keeps.", "zebra"],
)
def test_a_text_is_found_in_all_its_forms(run: Path, say: Type, text: str) -> None:
    """By tokens that begin it or end it with other letters too; every form is told."""
    vocabulary = open_materials(run).vocabulary
    expected = texts_of(rows_of(run, 8), vocabulary, text)
    answer = told(say("seen", run, text, "--before", 8, "--limit", 9000, "--json"))
    assert moments(answer) == expected
    assert answer["count"] == len(expected) == sum(form["count"] for form in answer["forms"])
    assert all(text in form["text"] for form in answer["forms"])
    own = [vocabulary.encode(text), vocabulary.encode(" " + text)]
    assert [form for form in own if form in [one["tokens"] for one in answer["forms"]]]


def test_pages_follow_each_other(run: Path, say: Type) -> None:
    whole = told(say("seen", run, "the", "--limit", 50, "--json"))["places"]
    pages = [told(say("seen", run, "the", "--limit", 20, "--page", page, "--json"))["places"]
             for page in (1, 2, 3)]  # fmt: skip
    assert [place for page in pages for place in page][:50] == whole


def test_a_document_is_where_its_tokens_are(run: Path, say: Type) -> None:
    answer = told(say("seen", run, "--document", "d7", "--limit", 900, "--json"))
    store, rows = open_store(run.parent / "store"), rows_of(run)
    known = {(update, number): row for update, number, row in rows}
    assert answer["count"] == len(answer["places"]) > 1
    for place in answer["places"]:
        row, size = known[place["update"], place["row"]], place["tokens"]
        own = row[place["column"] : place["column"] + size]
        assert own == store.tokens(7, place["offset"], size).tolist()
        assert place["id"] == "d7"
    seen = np.zeros(int(store.sizes[7]), int)
    for place in answer["places"]:
        seen[place["offset"] : place["offset"] + place["tokens"]] += 1
    pieces = open_materials(run).batches.order
    assert isinstance(pieces, Order)
    spans = pieces.pieces(0, NUM_UPDATES * ROWS)
    assert seen.sum() == spans.lengths[spans.documents == 7].sum()


def test_a_branch_answers_for_both_stores(run: Path, say: Type, tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(SPEC)
    made, batches = begin_branch(plan_branch(run, 8, read_spec(str(spec))), run.parent / "branch")
    train(made, batches)
    rows = rows_of(made.path)
    assert rows != rows_of(run)
    for text in ("river", "canal", "rock", "old"):
        expected = texts_of(rows, open_materials(run).vocabulary, text)
        answer = told(say("seen", made.path, text, "--limit", 9000, "--json"))
        assert moments(answer) == expected
        after = [place for place in answer["places"] if place["update"] >= 8]
        assert bool(after) == (text != "river")
    written = told(say("seen", made.path, "canal", "--json"))["places"][0]
    assert (written["document"], written["id"]) == (None, None)
    assert not list(made.path.parent.glob("branch*/*index*"))


def test_a_trace_is_told_with_its_updates(run: Path, say: Type) -> None:
    vocabulary = open_materials(run).vocabulary
    row = rows_of(run)[33][2]
    text = "Xyz " + vocabulary.decode(row[1:])
    spans = told(say("trace", run, text, "--least", 9, "--limit", 2, "--json"))
    longest = max(spans, key=lambda span: len(span["tokens"]))
    expected = places_of(rows_of(run), longest["tokens"])
    assert len(longest["tokens"]) >= 9
    assert (longest["count"], longest["first"]) == (len(expected), expected[0][0])
    assert moments(longest) == expected[:2]
    said = say("trace", run, text, "--least", 9)
    assert f"{len(longest['tokens'])} tokens" in said.out
    assert f"seen: {len(expected)} times; first by update {expected[0][0]}" in said.out
    assert (
        "no 9 tokens in a row of it were seen" in say("trace", run, "zzzzzz" * 9, "--least", 9).out
    )


def test_original_files_are_asked_like_runs(run: Path, say: Type, tmp_path: Path) -> None:
    """A file of rows, and a pair that is ordered as GPT-NeoX does."""
    rows = [row for *_, row in rows_of(run)]
    write_pair(tmp_path / "rows", rows)
    vocabulary = ["--vocabulary", run / TOKENIZER, "--json", "--limit", 9000]
    answer = told(say("seen", tmp_path / "rows", "river", "--rows-per-update", ROWS, *vocabulary))
    same = told(say("seen", run, "river", "--limit", 9000, "--json"))
    assert moments(answer) == moments(same) != []
    assert {place["document"] for place in answer["places"]} == {None}
    for name in ("tokens.bin", "tokens.idx"):
        shutil.copyfile(run.parent / "store" / name, tmp_path / name)
    options = ["--context-length", 16, "--seed", 3, "--updates", 20, "--rows-per-update", 2]
    answer = told(say("seen", tmp_path / "tokens", "river", *options, *vocabulary))
    batch = say(
        "batch", tmp_path / "tokens", "--update", "0:20", *options, *vocabulary[:3], "--tokens"
    )
    lines = [json.loads(line) for line in batch.out.splitlines()]
    found = [(line["update"], line["row"], line["tokens"]) for line in lines]
    assert moments(answer) == texts_of(found, open_vocabulary(run.parent / "vocabulary"), "river")
    assert {place["id"] for place in answer["places"]} == {None}
    said = say("seen", tmp_path / "tokens", "--document", 7, *options)
    assert "seen: " in said.out
    assert "pieces of it before step 20" in said.out


def test_the_index_is_built_once_where_it_is_told(run: Path, say: Type, tmp_path: Path) -> None:
    store = run.parent / "store"
    said = say("index", store, "--index", tmp_path)
    place = said.out.removeprefix("index: ").strip()
    assert Path(place).parent == tmp_path
    assert place.startswith(str(tmp_path / "store.index-"))
    assert f"building {place}" in said.err
    again = say("seen", run, "--tokens", "5", "--index", tmp_path)
    assert (again.code, again.err) == (0, "")
    assert say("verify", place).code == 0


def test_an_answer_is_read_at_a_glance(run: Path, say: Type) -> None:
    said = say("seen", run, "e", "--limit", 3)
    lines = said.out.splitlines()
    assert "times before step 24; first by update 0, last by update 23" in lines[0]
    assert lines[1].split() == ["form", "tokens", "count"]
    assert any("before  step0:0" in line for line in lines)
    assert "more: --page 2, or --limit" in lines[-1]
    assert max(map(len, lines)) <= 100
    none = say("seen", run, "zebra")
    assert none.out.startswith("seen: 0 times before step 24\n")


def test_only_what_was_done_was_seen(home: Path, say: Type) -> None:
    begun = begin(Ground(home), home / "begun", settings())
    assert told(say("seen", begun.path, "the", "--json"))["count"] == 0
    assert (
        "there is no step 1; expected 0 to 0" in say("seen", begun.path, "the", "--before", 1).err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], 'what to look for?; try: one of "a text", --tokens 12,34, --document ID'),
        (["a", "--tokens", "1"], "what to look for?"),
        (["--tokens", "1;2"], "--tokens: not ids; expected ids, as 12,34; found 1;2"),
        ([""], "nothing to look for; expected a text"),
        (["a\udcff"], "the text is not Unicode; found half a surrogate pair at character 1"),
        (["a", "--before", "25"], "there is no step 25; expected 0 to 24"),
        (["--document", "d99"], "has no document 'd99'"),
        (["a", "--seed", "1"], "--seed cannot be asked of this"),
    ],
)
def test_what_cannot_be_asked_is_told(run: Path, say: Type, words: list[str], message: str) -> None:
    said = say("seen", run, *words)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_a_trace_needs_a_text_that_is_one(run: Path, say: Type) -> None:
    assert "the text is not Unicode" in say("trace", run, "\udcff").err


def test_a_trace_needs_a_text_as_long_as_its_parts(run: Path, say: Type) -> None:
    said = say("trace", run, "a")
    assert said.code == 2
    assert "shorter than any part looked for; expected 6 tokens or more; found 1" in said.err


def test_files_that_cannot_answer_say_why(run: Path, say: Type, tmp_path: Path) -> None:
    file = write_pair(tmp_path / "rows", np.arange(1, 13).reshape(4, 3))
    assert "a text needs the vocabulary" in say("seen", file, "a").err
    assert "written down, not of documents" in say("seen", file, "--document", "1").err
    words = Vocabulary(Tokenizer(models.WordLevel({"a": 0}, "a")).to_str())
    (tmp_path / "words.json").write_text(words.definition)
    said = say("seen", file, "a", "--vocabulary", tmp_path / "words.json")
    assert "words.json: its tokens have no bytes of their own" in said.err
    assert "expected a byte-level vocabulary; try: --tokens 12,34" in said.err
