"""Exact duplicates: documents whose texts are equal but for encoding form, line ends and trails.

In: texts. Out: 16-byte digests to compare. The Pile's deduplicated twin compares by MinHash;
near-duplicates are not compared here.
"""

from __future__ import annotations

import hashlib
import unicodedata


def normalised(text: str) -> str:
    """The text in NFC with `\\n` line ends and no white space that ends a line or the text."""
    lines = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join([line.rstrip(" \t\f\v") for line in lines.split("\n")]).rstrip()


def text_digest(text: str) -> bytes:
    """Sixteen bytes that are equal for exact duplicates and for nothing else."""
    return hashlib.sha256(normalised(text).encode()).digest()[:16]
