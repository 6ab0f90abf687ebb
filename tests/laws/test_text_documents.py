"""Reading and writing documents: fixed order, round trips, and one clear line for every fault."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import read_documents, refusal
from grown import write_documents
from ontogeny.text.documents import Document, digest_documents, work_of

texts = st.text(st.characters(exclude_categories=["Cs"]))
documents = st.lists(
    st.builds(Document, id=texts, text=texts, source=texts.filter(bool)),
    min_size=1,
    unique_by=lambda document: document.id,
)


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, "zstd", asbytes=True)
    return packed


@given(documents)
@settings(max_examples=50)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, written: list[Document]
) -> None:
    path = tmp_path_factory.mktemp("round") / "a.jsonl.zst"
    write_documents(path, written)
    assert read_documents(path) == written


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".jsonl", bytes),
        (".jsonl.gz", gzip.compress),
        (".jsonl.zst", zstd),
        # frames one after another, as `cat a.zst b.zst` makes them
        (".jsonl.zst", lambda data: zstd(data[:9]) + zstd(data[9:])),
    ],
)
def test_every_form_of_json_lines(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    data = lines({"text": "one", "id": 7}, {"text": "two", "meta": {"pile_set_name": "Pile-CC"}})
    (tmp_path / f"some{suffix}").write_bytes(compress(data + b"\n"))
    assert read_documents(tmp_path) == [
        Document("7", "one", "some"),
        Document(f"some{suffix}:2", "two", "Pile-CC"),
    ]


def test_folders_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/b.py", "c/d/e.rst", ".git/x.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "a/m.jsonl").write_bytes(
        lines({"text": "t", "meta": {"source": "web"}}, {"text": ""})
    )
    found = read_documents(tmp_path)
    assert [(d.id, d.source) for d in found] == [
        ("a/b.py", "a"),
        ("a/m.jsonl:1", "web"),
        ("a/m.jsonl:2", "a"),
        ("a/z.md", "a"),
        ("b.txt", tmp_path.name),
        ("c/d/e.rst", "c"),
    ]
    assert found[-1].text == "text of c/d/e.rst"


def test_one_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_bytes(b"\xef\xbb\xbfIt was\r\nlate.")
    assert read_documents(tmp_path / "novel.txt") == [
        Document("novel.txt", "It was\r\nlate.", "novel")
    ]


def test_the_digest_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    first = digest_documents(tmp_path)
    (tmp_path / "ignored.png").write_text("x")
    assert digest_documents(tmp_path) == first
    (tmp_path / "a.txt").write_text("two")
    second = digest_documents(tmp_path)
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert len({first, second, digest_documents(tmp_path)}) == 3


def test_a_work_is_named_before_the_hash() -> None:
    assert work_of("books/hamlet#3") == work_of("books/hamlet#12") == "books/hamlet"
    assert work_of("plain") == "plain"


def test_a_missing_path(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert "nowhere: no such file or folder" in message
    assert "expected a corpus" in message


def test_an_empty_corpus(tmp_path: Path) -> None:
    assert "the corpus is empty; expected at least two works" in refusal(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert "the corpus is empty" in refusal(tmp_path)


def test_only_unknown_file_types(tmp_path: Path) -> None:
    (tmp_path / "paper.pdf").write_bytes(b"%PDF")
    message = refusal(tmp_path)
    assert "paper.pdf: unknown file type" in message
    assert ".jsonl.zst" in message
    assert "found .pdf" in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a"', "a.jsonl:2, column 13: broken JSON"),
        (b'{"text": }', "a.jsonl:2, column 10: broken JSON"),
        (b"[" * 100_000, "a.jsonl:2: broken JSON (maximum recursion depth"),
        (b'["text"]', "a.jsonl:2: not a JSON object; expected {...}; found list"),
        (b'{"body": "a"}', "a.jsonl:2: no text under 'text'; expected a string; found nothing"),
        (b'{"text": 3}', "a.jsonl:2: no text under 'text'; expected a string; found int"),
        (
            b'{"text": "a", "id": [1]}',
            "a.jsonl:2: no text under 'id'; expected a string; found list",
        ),
        (b'{"text": "a", "source": 3}', "a.jsonl:2: no text under 'source'"),
        (b'{"text": "\\ud800"}', "a.jsonl:2: 'text' holds half a surrogate pair"),
        (b'{"text": "b", "id": "x"}', "a.jsonl:2: duplicate id 'x'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, expected: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a", "id": "x"}) + line + b"\n")
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_text_that_is_not_utf8(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    assert "latin.txt: not UTF-8 text; expected UTF-8; found byte 0xe9 at offset 3" in refusal(
        tmp_path / "latin.txt"
    )
    name = "latin.jsonl" if compress is bytes else "latin.jsonl.gz"
    (tmp_path / name).write_bytes(compress(b'{"text": "a"}\n{"text": "\xe9"}\n'))
    assert f"{name}: not UTF-8 text; expected UTF-8; found byte 0xe9 at offset 24" in refusal(
        tmp_path / name
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.gz", gzip.compress(lines({"text": "a" * 99}))[:-9]),
        ("a.jsonl.gz", b"not gzip"),
        ("a.jsonl.zst", b"not zstd"),
        ("a.jsonl.zst", zstd(lines({"text": "a" * 99}))[:-3]),
    ],
)
def test_a_damaged_archive(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert f"{name}: cannot be read (" in refusal(tmp_path)
