"""Work for workers: a text of several shards, and tasks that tell who did them, die or fail.

Without what is not needed, since processes of their own import it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from ontogeny.artifact import Artifact, writing
from ontogeny.errors import DataError
from ontogeny.suite import PlantedSettings, TextSettings
from ontogeny.text.corpus import build_text
from ontogeny.workers import Workers

SETTINGS = TextSettings(
    path="corpus", held_out=0.2, shard_bytes=9000, planted=PlantedSettings(canary_copies=(1, 3))
)


def build(base: Path | str, name: str, by: int | Workers) -> Artifact:
    """The text of the documents under `corpus`."""
    workers = Workers(by) if isinstance(by, int) else by
    return build_text(SETTINGS, Path(base, name), cache=None, base=Path(base), workers=workers)


def note(folder: Path, text: str) -> Artifact:
    """An artifact of a text; how often it was made is noted beside it."""
    with Path(f"{folder}.log").open("a", encoding="utf-8") as log:
        log.write(f"{os.getpid()}\n")
    with writing(folder, "note", config={}, inputs={}) as draft:
        (draft.folder / "text").write_text(text, encoding="utf-8")
    return draft.artifact


def killed_at_first(folder: Path, times: int) -> Artifact:
    """A task over which so many workers die."""
    log = Path(f"{folder}.log")
    if log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= times:
        return note(folder, "at last")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def refused(folder: Path) -> Artifact:
    raise DataError("no good", where="here:3", expected="better", fix="mend it")


def broken(folder: Path) -> Artifact:
    raise ZeroDivisionError
