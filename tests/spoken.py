"""What a command printed and how it left; the fixture `say` types one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """What a command printed and how it left."""

    code: int
    out: str
    err: str

    def refused(self, *parts: str) -> bool:
        """Whether it left with code 2 and one line on standard error that has all the parts."""
        (line,) = self.err.strip().splitlines()
        return self.code == 2 and line.startswith("error: ") and all(part in line for part in parts)


Type = Callable[..., Said]
