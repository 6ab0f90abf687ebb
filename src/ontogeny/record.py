"""The record of a suite's folder: which stages are done, where, and what they took.

Not here: what a suite is (`suite.py`), making a stage (`stages`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from ontogeny.config import Settings, build, nearest
from ontogeny.digest import digest_json
from ontogeny.errors import ConfigError
from ontogeny.suite import Suite
from ontogeny.workers import held

RECORD, LOCK = "suite.json", ".lock"


class StageRecord(Settings):
    """A finished stage: the artifact it made, and the seconds it took when it was made."""

    name: str  # such as text, stores/standard, runs/2m-deduped, scores/2m-deduped
    kind: str
    path: str  # relative to the suite's folder
    digest: str
    seconds: float


class Record(Settings):
    """What a suite's folder holds: `suite.json`, written anew whenever a stage ends."""

    suite: Suite
    stages: tuple[StageRecord, ...]

    def stage(self, name: str) -> StageRecord:
        """The stage of that name. Raises ConfigError naming the nearest if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise ConfigError(f"no stage {name!r}", where=RECORD, fix=nearest(name, names))

    def with_stages(self, *changed: StageRecord) -> Record:
        """The record with stages in place of those of their names, new ones at its end."""
        stages = {stage.name: stage for stage in (*self.stages, *changed)}
        return self.model_copy(update={"stages": tuple(stages.values())})


def write_record(home: Path, record: Record) -> None:
    """Write the record of the suite in `home` with its own digest, whole or not at all."""
    with held(home / LOCK):
        _write(home, record)


def change_record(home: Path, change: Callable[[Record], Record]) -> None:
    """Read the record of the suite in `home`, change it and write it, while nobody else does."""
    with held(home / LOCK):
        _write(home, change(read_record(home)))


def read_record(home: Path) -> Record:
    """The record of the suite in `home`. Raises ConfigError if it is altered or there is none."""
    path, fix = home / RECORD, "ontogeny run SUITE.toml --out"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("digest") != digest_json(values):
            raise ConfigError("was altered", where=path, fix=f"remove it, then {fix} {home}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"not the folder of a suite ({error})", where=home, fix=fix) from error
    return build(Record, values, path)


def _write(home: Path, record: Record) -> None:
    aside, values = home / f".{RECORD}.{os.getpid()}", record.resolved()
    text = json.dumps({"digest": digest_json(values)} | values, indent=1, ensure_ascii=False)
    aside.write_text(text + "\n", encoding="utf-8")
    aside.replace(home / RECORD)
