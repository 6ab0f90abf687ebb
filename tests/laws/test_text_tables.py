"""Parquet and Arrow files: round trips, saved data sets, and one clear line for every fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ontogeny.text.tables as tables
from corpora import read_documents, refusal
from ontogeny.errors import DataError
from ontogeny.text.documents import Document, corpus_files, documents_in

texts = st.text(st.characters(exclude_categories=["Cs"]))


def write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, row_group_size=3)


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, 4)


def write_arrow_file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table, 4)


FORMS: dict[str, tuple[str, Callable[[pa.Table, Path], None]]] = {
    "parquet": ("a.parquet", write_parquet),
    "stream": ("a.arrow", write_stream),
    "file": ("a.arrow", write_arrow_file),
}
TEN = pa.table({"text": [f"text {row} é" for row in range(10)]})


@pytest.mark.parametrize("form", FORMS)
@given(st.lists(st.tuples(texts, texts.filter(bool)), min_size=1, max_size=9))
@settings(max_examples=25)
def test_what_is_written_is_read(
    form: str, tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    name, write = FORMS[form]
    path = tmp_path_factory.mktemp("round") / name
    found, sources = [text for text, _ in rows], [source for _, source in rows]
    write(
        pa.table(
            {"source": sources, "extra": [1] * len(rows), "text": found, "id": range(len(rows))}
        ),
        path,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BATCH_ROWS", 2)
        assert read_documents(path) == [
            Document(str(row), text, source) for row, (text, source) in enumerate(rows)
        ]


@pytest.mark.parametrize("form", FORMS)
def test_sources_and_ids_that_are_not_given(form: str, tmp_path: Path) -> None:
    name, write = FORMS[form]
    meta = [{"pile_set_name": "Pile-CC"}, {"pile_set_name": None}, None]
    table = pa.table({"text": ["a", "b", "c"], "meta": meta, "id": [None, "y", None]})
    corpus = tmp_path / "corpus"
    for place in (corpus / name, corpus / "web" / name):
        place.parent.mkdir(exist_ok=True)
        write(table.drop(["id"]) if place.parent == corpus else table, place)
    assert [(d.id, d.source) for d in read_documents(corpus)] == [
        (f"{name}:1", "Pile-CC"),
        (f"{name}:2", "corpus"),
        (f"{name}:3", "corpus"),
        (f"web/{name}:1", "Pile-CC"),
        ("y", "web"),
        (f"web/{name}:3", "web"),
    ]
    assert [d.source for d in read_documents(corpus / name)] == ["Pile-CC", "a", "a"]


def test_files_can_be_read_one_by_one(tmp_path: Path) -> None:
    write_parquet(TEN, tmp_path / "b.parquet")
    write_stream(TEN, tmp_path / "a.arrow")
    (tmp_path / "c.txt").write_text("c")
    files = corpus_files(tmp_path)
    assert [name for _, name in files] == ["a.arrow", "b.parquet", "c.txt"]
    one_by_one = [d for file, name in files for d, _ in documents_in(file, name, tmp_path)]
    assert one_by_one == read_documents(tmp_path)


def save_data_set(folder: Path, num_shards: int = 2) -> None:
    """As `save_to_disk` of Hugging Face datasets does, with a cache beside it."""
    folder.mkdir()
    names = [f"data-{shard:05}-of-{num_shards:05}.arrow" for shard in range(num_shards)]
    for shard, name in enumerate(names):
        write_stream(TEN.slice(5 * shard, 5), folder / name)
    write_stream(TEN, folder / "cache-87b90c2ecbea8c03.arrow")
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_data_set_is_what_its_state_lists(tmp_path: Path) -> None:
    save_data_set(tmp_path / "wiki")
    found = read_documents(tmp_path / "wiki")
    assert [d.text for d in found] == TEN["text"].to_pylist()
    assert {d.source for d in found} == {"wiki"}
    assert found[5].id == "data-00001-of-00002.arrow:1"
    (tmp_path / "wiki" / "state.json").write_text('{"some": "other program"}')
    assert len(read_documents(tmp_path / "wiki")) == 20


def test_a_data_set_that_is_not_whole(tmp_path: Path) -> None:
    save_data_set(tmp_path / "wiki")
    (tmp_path / "wiki" / "data-00001-of-00002.arrow").unlink()
    message = refusal(tmp_path / "wiki")
    assert "a file of the data set is missing; expected 2 files that state.json lists" in message
    assert "found 1, without data-00001-of-00002.arrow" in message


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"body": ["a"]}, "no column 'text'; expected one column of that name; found body; try: "),
        ({"text": ["a", None]}, ", row 2: no text under 'text'; expected a string; found nothing"),
        ({"text": [1]}, ", row 1: no text under 'text'; expected a string; found int"),
        ({"text": [b"a"]}, ", row 1: no text under 'text'; expected a string; found bytes"),
        (
            {"text": ["a"], "id": [1.5]},
            ", row 1: no text under 'id'; expected a string; found float",
        ),
        ({"text": ["a", "b"], "id": ["x", "x"]}, ", row 2: duplicate id 'x'"),
    ],
)
def test_a_wrong_column_is_named(
    form: str, columns: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    name, write = FORMS[form]
    write(pa.table(columns), tmp_path / name)
    message = refusal(tmp_path)
    assert message.startswith(str(tmp_path / name))
    assert expected in message


@pytest.mark.parametrize("form", FORMS)
def test_text_that_is_not_utf8(form: str, tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    name, write = FORMS[form]
    write(pa.table({"text": broken}), tmp_path / name)
    assert f"{name}: cannot be read after row 0 (" in refusal(tmp_path)
    assert "UTF8" in refusal(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_is_refused(form: str, tmp_path: Path) -> None:
    name, write = FORMS[form]
    write(TEN, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for size in range(0, len(whole), 31):
        (tmp_path / name).write_bytes(whole[:size])
        assert f"{name}: cannot be read after row " in refusal(tmp_path)


@pytest.mark.parametrize("form", FORMS)
@given(st.data())
@settings(max_examples=60)
def test_a_damaged_file_never_gives_a_traceback(
    form: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name, write = FORMS[form]
    path = tmp_path_factory.mktemp("damaged") / name
    write(TEN, path)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        outcome = f"{path}: {len(read_documents(path))}"
    except DataError as error:
        outcome = str(error)
    assert outcome.startswith(str(path))
