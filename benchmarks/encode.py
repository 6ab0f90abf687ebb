"""How fast text becomes tokens, and a store: ours beside both libraries it is made of.

Every measurement is the first pass over the text in a process of its own, since encoders that
remember words look better on text they have seen; one thread, medians of the rounds. The text is
the Python installation's own source, each file once. Without a `tokenizer.json` a vocabulary of
8,192 is trained on it. `python benchmarks/encode.py [--rounds 3] [--megabytes 32] [TOKENIZER]`
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ontogeny.artifact import open_artifact
from ontogeny.suite import VocabularySettings
from ontogeny.text.documents import Document, documents_in, json_line
from ontogeny.tokens.encode import encode_files
from ontogeny.tokens.vocabulary import TOKENIZER, build_vocabulary, load_vocabulary
from ontogeny.workers import Workers

FILES = 8  # the text lies in
CHUNK = 1 << 20  # characters encoded at a time

Encode = Callable[[list[str]], Any]


def write_sources(folder: Path, num_bytes: int) -> list[str]:
    """The texts, which are now in files of JSON Lines too."""
    texts: list[str] = []
    lines: list[bytes] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if num_bytes > 0:
            texts.append(path.read_text("utf-8", errors="ignore"))
            lines.append(json_line(Document(path.as_posix(), texts[-1], "python")))
            num_bytes -= len(texts[-1].encode())
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number}.jsonl").write_bytes(b"".join(lines[number::FILES]))
    return texts


def encoder(name: str, tokenizer: Path) -> Encode:
    if name == "ours":
        return load_vocabulary(tokenizer).encoder.encode
    if name == "gigatoken":
        return importlib.import_module(name).Tokenizer.from_json(tokenizer.read_text()).encode_batch
    encode = Tokenizer.from_file(str(tokenizer)).encode_batch_fast
    return lambda texts: [one.ids for one in encode(texts, add_special_tokens=False)]


def encode_texts(name: str, folder: Path) -> float:
    """Seconds to encode all texts, a chunk at a time; loading is not counted."""
    chunks: list[list[str]] = [[]]
    for file in sorted((folder / "text").iterdir()):
        for document, _ in documents_in(file, file.name, file):
            chunks[-1].append(document.text)
            if sum(map(len, chunks[-1])) > CHUNK:
                chunks.append([])
    encode = encoder(name, folder / "vocabulary" / TOKENIZER)
    encode(["warm up"])
    start = time.perf_counter()
    for chunk in chunks:
        encode(chunk)
    return time.perf_counter() - start


def make_store(num_workers: int, folder: Path) -> float:
    """Seconds from files of JSON Lines to a store."""
    files = sorted((folder / "text").iterdir())
    vocabulary = open_artifact(folder / "vocabulary", "vocabulary")
    workers = Workers(num_workers)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        encode_files(files, vocabulary, Path(name, "s"), config={}, inputs={}, workers=workers)
        return time.perf_counter() - start


def alone(function: Callable[[Any, Path], float], first: Any, folder: Path) -> tuple[float, float]:
    """What a function measures in a process of its own, and the peak of its memory in MB."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        seconds = pool.submit(function, first, folder).result()
        used = pool.submit(resource.getrusage, resource.RUSAGE_SELF).result()
    return seconds, used.ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("tokenizer", nargs="?")
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tasks: list[tuple[str, Callable[[Any, Path], float], Any]] = [
        *((f"encode: {name}", encode_texts, name) for name in ("ours", "gigatoken", "tokenizers")),
        *((f"store: {number} worker(s)", make_store, number) for number in (1, 2)),
    ]
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in tasks}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = write_sources(folder / "text", given.megabytes * 1_000_000)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        size = None if given.tokenizer else 8192
        settings = VocabularySettings(size=size, file=given.tokenizer)
        build_vocabulary(settings, iter(texts), folder / "vocabulary", inputs={}, base=Path.cwd())
        ours = load_vocabulary(folder / "vocabulary" / TOKENIZER).encoder.name
        print(f"{len(texts)} documents, {megabytes:.1f} MB; ours is {ours}", flush=True)
        for _ in range(given.rounds):
            for task, function, first in tasks:
                measured[task].append(alone(function, first, folder))
    for task, values in measured.items():
        seconds, peak = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{task:22s} {megabytes / seconds:8.1f} MB/s   peak {peak:5.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
