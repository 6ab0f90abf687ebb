"""Readers of files that others wrote: any bytes give what they mean, or one clear line.

Every reader is given random bytes, and valid files that are cut off, altered by a byte, or have a
byte too many. Nothing but an OntogenyError may come out of it, and no count in a header may claim
memory that the file does not back.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import read_documents
from grown import SUITE, Ground, write_documents
from ontogeny.artifact import open_artifact
from ontogeny.config import build, read_toml
from ontogeny.errors import OntogenyError
from ontogeny.model import hf
from ontogeny.model.init import initial_model
from ontogeny.model.pickled import read_pickled
from ontogeny.order.plan import load_array
from ontogeny.record import Record, StageRecord, read_record, write_record
from ontogeny.results import Score, UpdateMetrics, read_metrics, read_scores, write_scores
from ontogeny.shape import Shape
from ontogeny.stages.neox_yaml import read_neox_yaml
from ontogeny.suite import RunFile, load_suite
from ontogeny.text.documents import Document
from ontogeny.tokens.store import HEADER, MAGIC, Store
from ontogeny.tokens.vocabulary import load_vocabulary
from ontogeny.training.metrics import whole_lines

NUM_EXAMPLES = int(os.environ.get("ONTOGENY_EXAMPLES", "60"))
RUN_FILE = """recipe = "sound"
size = "own"
store = "store"
vocabulary = "vocabulary"
[order]
context_length = 16
[training]
tokens = 1024
rows_per_update = 4
[sizes.own]
num_layers = 2
hidden_size = 16
num_heads = 2
learning_rate = 1e-2
"""
NEOX = """{ # batch size (trained on 2 gpus)
"num-layers": 2, "hidden-size": 16, "num-attention-heads": 2, "seq-length": 8,
"pos-emb": "rotary", "rotary-pct": 0.25, "no-weight-tying": true, "gpt-j-residual": true,
"bias-gelu-fusion": true, "hidden-dropout": 0, "attention-dropout": 0, "lr-decay-style": cosine,
"optimizer": {"type": "Adam", "params": {"lr": 0.001}}, "train_micro_batch_size_per_gpu": 4,
"train-iters": 20, "checkpoint-factor": 5, "extra-save-iters": [0, 1]
}
"""
SHAPE = Shape(num_layers=1, hidden_size=16, num_heads=2, vocab_size=5, context_length=8)


# What has broken readers of one format or another; each is given to all of them.
NASTY = [
    b"", b"\0" * 64, b"\xff\xfe", b"null", b"{}", b"[]", b"3", b'""', b"9" * 5000, b"NaN",
    b"1e999", b"[" * 100_000, b'{"a":' * 100_000, b"- " * 2_000, b'"\\ud800"', b"a = 1\na = 2\n",
    b"a" * 100_000, b"a." * 2_000 + b"b = 1", b"a = " + b"[" * 100_000, b"a = " + b"9" * 5000,
    b"!!bool x", b"!!int x", b"!!float x", b"!!timestamp x", b"!!binary x", b"!!python/none",
    b"? [a]\n: b", b"--- a", b"&a [*a]", b"<<: 1", b"{a: 1, a: 2}", b"1: 2", b"2001-99-99",
    b"{a: 2001-01-01}",
    b"\x93NUMPY\x01\x00\x02\x00\n", b'\x93NUMPY\x01\x00\x04\x00"""\n', b"\x80\x02}.", b"\x80\x02.",
    b"(lp0\n.", b"cos\nsystem\n(S'true'\ntR.", b"PK\x03\x04" + b"\0" * 40, b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd", b"\xff" * 8 + b"{}", (2).to_bytes(8, "little") + b"{}", b"MMIDIDX\0\0",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A file in a folder that a reader reads; all else in the folder is in order."""

    file: str
    read: Callable[[Path], object]


def metrics(folder: Path) -> object:
    return list(read_metrics(folder / "metrics.jsonl")), whole_lines(folder / "metrics.jsonl")


def run_file(folder: Path) -> object:
    return build(RunFile, read_toml(folder / "run.toml"), folder)


CASES = {
    "idx": Case("tokens.idx", lambda folder: Store(folder / "tokens")),
    "npy": Case("windows.npy", lambda folder: load_array(folder / "windows.npy")),
    "manifest": Case("manifest.json", open_artifact),
    "suite.json": Case("suite.json", read_record),
    "suite TOML": Case("suite.toml", lambda folder: load_suite(folder / "suite.toml")),
    "run TOML": Case("run.toml", run_file),
    "YAML": Case("neox.yml", lambda folder: read_neox_yaml(folder / "neox.yml", repair=True)),
    "JSONL": Case("d.jsonl", lambda folder: read_documents(folder / "d.jsonl")),
    "JSONL.gz": Case("d.jsonl.gz", lambda folder: read_documents(folder / "d.jsonl.gz")),
    "JSONL.zst": Case("d.jsonl.zst", lambda folder: read_documents(folder / "d.jsonl.zst")),
    "scores": Case("scores.parquet", lambda folder: read_scores(folder / "scores.parquet")),
    "metrics": Case("metrics.jsonl", metrics),
    "safetensors": Case(hf.WEIGHTS, hf.load),
    "config.json": Case(hf.CONFIG, hf.load),
    "pickle": Case(hf.PICKLED, lambda folder: read_pickled(folder / hf.PICKLED)),
    "old pickle": Case("old.bin", lambda folder: read_pickled(folder / "old.bin")),
    "tokenizer": Case("tokenizer.json", lambda folder: load_vocabulary(folder / "tokenizer.json")),
}


@pytest.fixture(scope="module")
def files(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small valid file of every kind."""
    folder = tmp_path_factory.mktemp("files") / "all"
    shutil.copytree(ground.vocabulary, folder)  # manifest.json and tokenizer.json
    sizes = np.array([3, 0, 2], "<i4")
    columns = sizes, 2 * (np.cumsum(sizes, dtype="<i8") - sizes), np.arange(4, dtype="<i8")
    header = HEADER.pack(MAGIC, 1, 8, 3, 4)
    (folder / "tokens.idx").write_bytes(header + b"".join(part.tobytes() for part in columns))
    (folder / "tokens.bin").write_bytes(np.arange(5, dtype="<u2").tobytes())
    np.save(folder / "windows.npy", np.arange(7, dtype=np.uint32))
    for name, text in (("suite.toml", SUITE), ("run.toml", RUN_FILE), ("neox.yml", NEOX)):
        (folder / name).write_text(text)
    stage = StageRecord(name="text", kind="corpus", path="text", digest="0" * 64, seconds=1.0)
    write_record(folder, Record(suite=load_suite(folder / "suite.toml"), stages=(stage,)))
    documents = [Document("a", "One text.", "here"), Document("b", "\u00e4nother", "there")]
    for suffix in ("", ".zst"):
        write_documents(folder / f"d.jsonl{suffix}", documents)
    (folder / "d.jsonl.gz").write_bytes(gzip.compress((folder / "d.jsonl").read_bytes()))
    rows = [UpdateMetrics(update, 1.5, 0.1, 2.0, 64, "ab", 0.5) for update in range(3)]
    (folder / "metrics.jsonl").write_text("".join(row.line() for row in rows))
    write_scores(folder / "scores.parquet", [Score("m", 1, 2, "t", "loss", 1.0, 0.5, 1.5, 3)])
    hf.save(initial_model(SHAPE, "normal", 0), folder)
    tensors = {"one": torch.ones(2, 3), "two": torch.zeros(4, dtype=torch.float16)}
    torch.save(tensors, folder / hf.PICKLED)
    torch.save(tensors, folder / "old.bin", _use_new_zipfile_serialization=False)
    return folder


def refusal(case: Case, folder: Path) -> str | None:
    """What a reader says against a file; None if it takes it."""
    try:
        case.read(folder)
    except OntogenyError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", CASES)
def test_nasty_bytes_are_refused(files: Path, name: str) -> None:
    path = files / CASES[name].file
    valid = path.read_bytes()
    try:
        for data in NASTY:
            path.write_bytes(data)
            told = refusal(CASES[name], files)
            assert told is None or (str(files) in told and "\n" not in told), data[:50]
    finally:
        path.write_bytes(valid)


def altered(valid: bytes) -> st.SearchStrategy[bytes]:
    """Any bytes at all, or a valid file with one thing wrong."""
    places = st.integers(0, len(valid) - 1)
    return st.one_of(
        st.binary(max_size=200),
        places.map(lambda end: valid[:end]),
        st.tuples(places, st.integers(0, 255)).map(
            lambda change: valid[: change[0]] + bytes([change[1]]) + valid[change[0] + 1 :]
        ),
        st.tuples(places, st.binary(min_size=1, max_size=9)).map(
            lambda change: valid[: change[0]] + change[1] + valid[change[0] :]
        ),
    )


# numpy reads the headers of Python 2 too, and says so.
@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("name", CASES)
def test_any_bytes_are_read_or_refused(files: Path, name: str) -> None:
    case = CASES[name]
    path = files / case.file
    valid = path.read_bytes()
    case.read(files)  # as it is, it is in order

    @settings(max_examples=NUM_EXAMPLES, derandomize=True, database=None)
    @given(altered(valid))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        told = refusal(case, files)
        assert told is None or (str(files) in told and "\n" not in told)

    try:
        check()
    finally:
        path.write_bytes(valid)


HUGE = 2**60


def test_an_index_that_claims_too_much_is_refused_in_little_memory(files: Path) -> None:
    path = files / "tokens.idx"
    valid = path.read_bytes()
    for counts in ((HUGE, 4), (3, HUGE), (HUGE, HUGE)):
        path.write_bytes(HEADER.pack(MAGIC, 1, 8, *counts) + valid[HEADER.size :])
        told, peak = refusal_and_memory(CASES["idx"], files)
        assert "disagrees with its own header by" in told
        assert peak < 1_000_000
    path.write_bytes(valid)


def test_an_item_that_claims_too_much_is_refused_in_little_memory(files: Path) -> None:
    path = files / "tokens.idx"
    valid = path.read_bytes()
    path.write_bytes(valid.replace(np.array([3, 0, 2], "<i4").tobytes(), b"\xff\xff\xff\x7f" * 3))
    told, peak = refusal_and_memory(CASES["idx"], files)
    assert "size and place of item 1 do not follow from those before it" in told
    assert peak < 1_000_000
    path.write_bytes(valid)


def test_an_array_that_claims_too_much_is_refused_in_little_memory(files: Path) -> None:
    path = files / "windows.npy"
    valid = path.read_bytes()
    path.write_bytes(valid.replace(b"(7,), }" + b" " * 12, b"(%d,), }" % HUGE))
    told, peak = refusal_and_memory(CASES["npy"], files)
    assert "windows.npy: unreadable array" in told
    assert peak < 1_000_000
    path.write_bytes(valid)


def test_a_pickle_that_claims_too_much_is_refused(files: Path) -> None:
    path = files / hf.PICKLED
    valid = path.read_bytes()
    torch.save({"one": torch.ones(1).expand(HUGE)}, path)
    assert "not a table of tensors by name" in refusal_and_memory(CASES["pickle"], files)[0]
    torch.save({"one": Bulky()}, path)
    assert "unreadable weights (MemoryError" in refusal_and_memory(CASES["pickle"], files)[0]
    path.write_bytes(valid)


class Bulky:
    """An object whose pickle asks for more memory than there is."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return bytearray, (HUGE,)


def refusal_and_memory(case: Case, folder: Path) -> tuple[str, int]:
    """What a reader says against a file, and the bytes it took at most to find out."""
    tracemalloc.start()
    try:
        told = refusal(case, folder)
        return told or "", tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
