"""How fast text becomes a store, by 1 and 2 processes, and how much memory that takes.

The text is the Python installation's own source, each file once, since encoders that remember
words look better on text they have seen. `python benchmarks/encode.py [TOKENIZER_JSON]` trains a
vocabulary of 8192 where none is given.
"""

from __future__ import annotations

import resource
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from ontogeny.text.documents import Document
from ontogeny.tokens.encode import encode
from ontogeny.tokens.vocabulary import load_vocabulary, train_vocabulary

MEGABYTES = 16


def read_sources() -> list[Document]:
    documents, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        documents.append(Document(path.as_posix(), text, "python"))
        total += len(text)
        if total > MEGABYTES * 1_000_000:
            break
    return documents


def main() -> int:
    documents = read_sources()
    megabytes = sum(len(document.text.encode()) for document in documents) / 1e6
    print(f"{len(documents)} documents, {megabytes:.1f} MB")
    if sys.argv[1:]:
        vocabulary = load_vocabulary(Path(sys.argv[1]))
    else:
        start = time.perf_counter()
        vocabulary = train_vocabulary((document.text for document in documents), 8192)
        print(f"trained a vocabulary of 8192 in {time.perf_counter() - start:.1f} s")
    digests = set()
    with tempfile.TemporaryDirectory() as name:
        for count in (1, 2):
            start = time.perf_counter()
            artifact = encode(
                documents,
                vocabulary,
                Path(name, f"by{count}"),
                num_processes=count,
                config={},
                inputs={},
            )
            seconds = time.perf_counter() - start
            tokens = artifact.facts["num_tokens"]
            print(
                f"{count} process(es): {seconds:.1f} s, {megabytes / seconds:.1f} MB/s, "
                f"{tokens / seconds / 1e6:.2f} M tokens/s, {tokens:,} tokens"
            )
            digests.add(artifact.digest)
    assert len(digests) == 1, "bytes differ with the number of processes"
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
