"""`ontogeny batch`: what an update saw, of runs and of files, here and on a server."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grown import CONTEXT, Ground, begin, settings
from ontogeny.order.plan import Order
from ontogeny.order.rows import Rows
from ontogeny.order.shuffle import neox_indices
from ontogeny.order.spans import BLOCK, Spans
from ontogeny.order.splice import Part, Spliced
from ontogeny.questions import sources
from ontogeny.questions.sources import open_source
from ontogeny.text.documents import Document
from ontogeny.tokens.encode import encode
from ontogeny.tokens.store import Store, open_store
from ontogeny.tokens.vocabulary import TOKENIZER, Vocabulary, byte_lengths, train_vocabulary
from ontogeny.training.loop import train
from pairs import write_pair
from spoken import Type

TEXTS = [
    "Ein schöner Tag — für 漢字 und 🙂🙂!",
    "é" * 9,
    "[bold]x[/nothing] \x1b[31m:smile:\r\n",
    "z",
]


@pytest.fixture(scope="module")
def run(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has not been trained: what it will see is known all the same."""
    return begin(ground, tmp_path_factory.mktemp("runs") / "run", settings()).path


def objects(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines()]


def test_every_token_of_a_run_is_where_it_is_said_to_be(
    run: Path, ground: Ground, say: Type
) -> None:
    rows = objects(say("batch", run, "--update", "0:24", "--json", "--tokens").out)
    batches, store = ground.batches(4), open_store(ground.store)
    assert [(row["update"], row["row"]) for row in rows] == [
        (update, row) for update in range(24) for row in range(4)
    ]
    several = 0
    for row in rows:
        ids = batches(row["update"])[row["row"]].tolist()
        assert row["tokens"] == ids
        assert row["num_tokens"] == len(ids) == CONTEXT + 1
        assert row["place"] == 4 * row["update"] + row["row"]
        column = 0
        for span in row["spans"]:
            assert span["column"] == column
            part = ids[column : column + span["length"]]
            assert store.tokens(span["document"], span["offset"], span["length"]).tolist() == part
            assert span["id"] == f"d{span['document']}"
            assert span["source"] == ("even", "odd")[span["document"] % 2]
            column += span["length"]
        assert column == len(ids)
        several += len(row["spans"]) > 1
    assert several >= 5


def vocabulary_of(texts: list[str], size: int = 262) -> Vocabulary:
    return train_vocabulary(iter(texts * 3), size)


@pytest.mark.parametrize("eod", ["end", "none"])
@pytest.mark.parametrize("context", [1, 2, 5])
@pytest.mark.parametrize("block", [3, BLOCK])
def test_bytes_of_spans_tile_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eod: Any, context: int, block: int
) -> None:
    """Every document's spans are its text in pieces, also where they cut its characters."""
    monkeypatch.setattr("ontogeny.order.spans.BLOCK", block)
    vocabulary = vocabulary_of(TEXTS)
    documents = [Document(str(number), text, "all") for number, text in enumerate(TEXTS)]
    store = open_store(
        encode(documents, vocabulary, tmp_path / "s", eod=eod, config={}, inputs={}).path
    )
    indices = neox_indices(store.sizes, num_windows=10, context_length=context, seed=3)
    order = Order(store, indices, context, "")
    spans, seen = Spans(order, vocabulary), 0
    covered = [np.zeros(len(text.encode()), bool) for text in TEXTS]
    for place in range(order.num_windows):
        row = order.rows(place, 1)[0]
        for span in spans(place, row)[0]:
            assert span.document is not None
            assert span.bytes is not None
            text = TEXTS[span.document].encode()[slice(*span.bytes)]
            assert len(text) == span.bytes[1] - span.bytes[0]  # the end of a document is none
            ids = row[span.column : span.column + span.length]
            words = vocabulary.decode(ids[ids != vocabulary.eod].tolist())
            assert text.decode(errors="replace") == words
            covered[span.document][slice(*span.bytes)] = True
            seen += 1
    assert seen > 15
    assert np.concatenate(covered).mean() > 0.9  # the windows leave out the end of the stream


def test_spans_of_an_original_pair(tmp_path: Path) -> None:
    """Its documents have numbers, no names; empty ones have no span."""
    sizes = np.array([0, 3, 0, 0, 2, 4, 0])
    store = Store(write_pair(tmp_path / "pair", np.split(np.arange(9), np.cumsum(sizes)[:-1])))
    indices = neox_indices(sizes, num_windows=6, context_length=6, seed=2)
    order = Order(store, indices, 6, "")
    spans = Spans(order, None)
    for place in range(order.num_windows):
        row, read = order.rows(place, 1)[0], []
        for span in spans(place, row)[0]:
            assert span.document in (1, 4, 5)
            assert span.offset is not None
            assert (span.id, span.source, span.bytes) == (None, None, None)
            read += store.tokens(span.document, span.offset, span.length).tolist()
        assert read == row.tolist()


def test_no_bytes_without_a_byte_level_vocabulary() -> None:
    vocabulary = vocabulary_of(TEXTS)
    other = json.loads(vocabulary.definition) | {"decoder": None}
    assert byte_lengths(Vocabulary(json.dumps(other))) is None
    lengths = byte_lengths(vocabulary)
    assert lengths is not None
    for text in TEXTS:
        assert lengths[vocabulary.encode(text)].sum() == len(text.encode())


def test_spliced_windows_say_so(tmp_path: Path, ground: Ground) -> None:
    order = ground.batches(4).order
    rows = Rows(Store(write_pair(tmp_path / "patch", [[5] * CONTEXT + [0]])), CONTEXT)
    spliced = Spliced((Part(order, 0, 3), Part(order, 7, 9)), np.array([4]), rows)
    vocabulary = vocabulary_of(TEXTS)
    spans, parents = Spans(spliced, vocabulary), Spans(order, vocabulary)
    for place, parent in ((2, 2), (3, 7), (5, 9)):
        row = spliced.rows(place, 1)[0]
        assert spans(place, row) == (parents(parent, row)[0], False)
    found, patched = spans(4, spliced.rows(4, 1)[0])
    assert patched
    assert [(span.column, span.length, span.document) for span in found] == [(0, CONTEXT + 1, None)]


def test_what_is_printed(run: Path, ground: Ground, say: Type) -> None:
    by_update, by_step = say("batch", run, "--update", 5), say("batch", run, "--step", 5)
    assert by_update == by_step
    lines = by_update.out.splitlines()
    assert lines[0] == f"update 5: step5 -> step6, 4 rows of {CONTEXT + 1} tokens"
    assert [line.split()[0] for line in lines[1:6]] == ["row", "0", "1", "2", "3"]
    assert max(map(len, lines)) <= 100
    one = say("batch", run, "--update", "5:7", "--row", 2, "--tokens").out
    for update in (5, 6):
        row = ground.batches(4)(update)[2].tolist()
        assert " ".join(map(str, row)) in one
        assert f"update {update}: step{update} -> step{update + 1}" in one


def test_texts_are_harmless_to_the_terminal(tmp_path: Path, say: Type) -> None:
    vocabulary = vocabulary_of(TEXTS)
    (tmp_path / TOKENIZER).write_text(vocabulary.definition)
    ids = vocabulary.encode(TEXTS[2])
    write_pair(tmp_path / "rows", np.array([ids, ids]))
    said = say("batch", tmp_path / "rows", "--update", 0, "--vocabulary", tmp_path / TOKENIZER)
    assert said.code == 0
    assert said.out.count("[bold]x[/nothing] \N{REPLACEMENT CHARACTER}[31m:smile:") == 3
    assert "\x1b" not in said.out
    assert "\r" not in said.out


def test_long_updates_are_cut_and_rows_end_at_ends_of_documents(tmp_path: Path, say: Type) -> None:
    vocabulary = vocabulary_of(TEXTS)
    (tmp_path / TOKENIZER).write_text(vocabulary.definition)
    letter = vocabulary.encode("z")[0]
    rows = np.full((30, 2000), letter)
    rows[:, [7, 8, 1999]] = vocabulary.eod
    place = write_pair(tmp_path / "rows", rows)
    words = ["--vocabulary", tmp_path / TOKENIZER, "--rows-per-update", 20]
    printed = say("batch", place, "--update", 0, *words).out
    assert "and 8 more: --row 12, --json or --npy FILE" in printed
    assert len(printed) < 4000
    assert "z" * 1900 in say("batch", place, "--update", 1, "--row", 9, *words).out
    (row,) = objects(say("batch", place, "--update", 1, "--row", 9, "--json", *words).out)
    assert [(span["column"], span["length"]) for span in row["spans"]] == [
        (0, 9), (9, 1991),
    ]  # fmt: skip
    without = say("batch", place, "--update", 1, "--rows-per-update", 20).out
    assert f"{letter} {letter} {letter}" in without


def test_npy_is_written_block_by_block(
    tmp_path: Path, say: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK", 1 << 16)
    rows = np.random.RandomState(0).randint(1, 65536, (3000, 1001))
    place, file = write_pair(tmp_path / "rows", rows), tmp_path / "out.npy"
    open_source(place)
    tracemalloc.start()
    open_source(place, rows_per_update=1000).save(file, range(3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 8 * (1 << 16) < rows.nbytes / 10
    assert (np.load(file) == rows).all()
    said = say("batch", place, "--update", "1:3", "--row", "2:4", "--npy", tmp_path / "new/few",
               "--rows-per-update", 1000)  # fmt: skip
    assert "updates 1 to 2: step1 -> step3: uint16 [4, 1001] in" in said.out
    assert (np.load(tmp_path / "new/few") == rows[[1002, 1003, 2002, 2003]]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "new", "out.npy", "rows.bin", "rows.idx",
    ]  # fmt: skip


BAD: list[tuple[list[str], str]] = [
    ([], "which update\\?; try: --update 512, or --step 512"),
    (["--update", "1", "--step", "1"], "which update"),
    (["--update", "one"], "--update: not numbers; expected N or N:M; found one"),
    (["--update", "-1"], "not numbers"),
    (["--step", "5:5"], "--step: is empty; expected N:M with M above N"),
    (["--update", "24"], "there is no update 24; expected updates 0 to 23"),
    (["--update", "20:26"], "there is no update 25; expected updates 0 to 23"),
    (["--update", "3", "--row", "4"], "update 3 has no such rows; expected rows 0 to 3; found 4"),
    (["--update", "3", "--rows-per-update", "4"], "--rows-per-update cannot be asked of this"),
    (["--update", "3", "--seed", "4"], "--seed cannot be asked of this; expected a run's folder"),
    (["--update", "3", "--npy", "{run}/manifest.json"], "manifest.json: already exists"),
    (["--update", "3", "--npy", "new", "--json"], "--npy: writes a file, shows no rows"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input(run: Path, say: Type, words: list[str], message: str) -> None:
    said = say("batch", run, *(word.format(run=run) for word in words))
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert pytest.raises(AssertionError, match=message).matches(AssertionError(said.err))


def test_places_that_are_nothing(
    ground: Ground, tmp_path: Path, say: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ontogeny.ranges.PAUSE", 0.001)
    for place, message in (
        (tmp_path / "nothing", "nothing: neither a run nor tokens; expected a folder with"),
        (
            ground.home,
            "neither a run nor tokens; expected a folder with manifest.json, or the name",
        ),
        (ground.store, "wrong kind of artifact; expected run; found store"),
        (ground.store / "tokens", "its items differ in size, so they are no windows"),
        ("http://127.0.0.1:9/x", "cannot be reached"),
    ):
        said = say("batch", place, "--update", 0)
        assert (said.code, said.out) == (2, "")
        assert message in said.err


@pytest.mark.slow
def test_a_branch_shows_what_it_changed(ground: Ground, tmp_path: Path, say: Type) -> None:
    parent = begin(ground, tmp_path / "run", settings())
    train(parent, ground.batches(4))
    run, spec, folder = parent.path, tmp_path / "spec.toml", tmp_path / "branch"
    spec.write_text('[splice]\nkind = "drop"\nsources = ["odd"]\n')
    made = say("branch", run, "--at", 8, "--splice", spec, "--out", folder, "--no-train")
    assert made.code == 0, made.err
    asked = ("--update", "8:24", "--json", "--tokens")
    before, after = (
        objects(say("batch", run, *asked).out),
        objects(say("batch", folder, *asked).out),
    )
    for old, new in zip(before, after, strict=True):
        odd = any(span["source"] == "odd" for span in old["spans"])
        assert new["patched"] == (new["tokens"] != old["tokens"]) == odd
        assert odd or new == old
    first = next(row for row in after if row["patched"])
    shown = say("batch", folder, "--update", first["update"], "--row", first["row"]).out
    assert f"row {first['row']}, replaced by a splice" in shown
    early = say("batch", folder, "--update", 7)
    assert "no update 7; expected updates 8 to 23; try: ask the run it branched from" in early.err
