"""What is in a corpus on disk, and what is said of one that no text can be made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from ontogeny.errors import DataError
from ontogeny.suite import TextSettings
from ontogeny.text.corpus import build_text
from ontogeny.text.documents import Document, corpus_files, documents_in


def read_documents(path: Path) -> list[Document]:
    """The documents of a file or folder, in their order."""
    return [
        document
        for file, name in corpus_files(path)
        for document, _ in documents_in(file, name, path)
    ]


def refusal(path: Path) -> str:
    """The error of the text stage on a file or folder."""
    settings = TextSettings(path=str(path))
    with pytest.raises(DataError) as caught:
        build_text(settings, path.with_name("refused"), cache=None, base=path.parent)
    return str(caught.value)
