"""Content digests (SHA-256, lower-case hexadecimal) of bytes, files and JSON values.

A digest names content: equal content has equal digest on any day, machine and layout.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SHORT = 8  # hexadecimal digits of a digest that appear in folder names and tables


def digest_bytes(data: bytes | memoryview) -> str:
    """The digest of a run of bytes."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """The digest of a file's bytes, streamed; `sha256sum` prints the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. Raises on what is not JSON."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_json(value: Any) -> str:
    """The digest of a JSON value, independent of key order and layout of the file it came from."""
    return digest_bytes(canonical_json(value).encode())


def digest_sources(folder: Path) -> str:
    """The digest of a tree of Python source: relative paths and contents of its files, sorted."""
    files = sorted(folder.rglob("*.py"))
    return digest_json({path.relative_to(folder).as_posix(): digest_file(path) for path in files})
