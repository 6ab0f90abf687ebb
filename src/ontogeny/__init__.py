"""Grow controlled suites of language models and study how they grow.

`ontogeny.open(folder)` opens a suite that has been grown; nothing is imported before that.
"""

from typing import Any

__all__ = ["open"]


def __getattr__(name: str) -> Any:
    if name == "open":
        from ontogeny.questions.handles import open_suite

        return open_suite
    raise AttributeError(f"module 'ontogeny' has no attribute {name!r}")
