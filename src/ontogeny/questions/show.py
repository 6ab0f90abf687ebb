"""What an artifact is, where it came from and what it holds, from manifests alone.

Nothing is opened beyond manifests and no payload is read, so a folder whose inputs are gone can be
shown too: it says so. Not here: whether any of it is true (`verify.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ontogeny.artifact import MANIFEST, Artifact, input_place, read_manifest
from ontogeny.checkpoints.store import list_states
from ontogeny.checkpoints.verify import recorded_tensors
from ontogeny.errors import DataError, OntogenyError
from ontogeny.record import RECORD, read_record
from ontogeny.scores import stage_digest
from ontogeny.steps import METRICS, list_steps
from ontogeny.suite import settings_of
from ontogeny.training.metrics import whole_rows

DEPTH = 3  # names of a setting or fact that are joined; what lies deeper is only counted
NAMES = 8  # entries of a list that are named


def describe(path: Path) -> dict[str, Any]:
    """An artifact, a run or a suite's folder, as values for a page or a program.

    Raises DataError where there is none, or its manifest is damaged.
    """
    if (path / RECORD).is_file():
        return _suite(path)
    if not (path / MANIFEST).is_file():
        raise DataError(
            "nothing to show" if path.exists() else "no such folder",
            where=path,
            expected=f"a folder with {MANIFEST} or {RECORD}",
        )
    artifact = read_manifest(path)
    facts = {name: value for name, value in artifact.facts.items() if name != "tensors"}
    return {
        "path": str(path),
        "kind": artifact.kind,
        "digest": artifact.digest,
        "made": flat({**artifact.provenance, "inputs_at": None}),
        "settings": flat(artifact.config),
        "from": list(origins(artifact, {artifact.digest})),
        **_growth(artifact),
        "facts": flat(facts),
        "files": {name: entry["bytes"] for name, entry in artifact.files.items()},
        "missing": [name for name in artifact.files if not (path / name).is_file()],
    }


def origins(artifact: Artifact, known: set[str], depth: int = 0) -> Iterator[dict[str, Any]]:
    """What an artifact was made from, and that in turn, up to the text; each expanded once.

    The parents of a checkpoint are left out, as one line says them all.
    """
    for role, digest in artifact.inputs.items():
        if role == "parent" and artifact.kind == "checkpoint":
            continue
        place = input_place(artifact, role)
        found, state = None, "a digest only" if place is None else "gone"
        if place is not None and (place / MANIFEST).is_file():
            try:
                found = read_manifest(place)
                state = "there" if found.digest == digest else "another is there"
            except OntogenyError:
                state = "damaged"
        if digest in known and state == "there":
            state = "there, as above"
        yield {"depth": depth, "role": role, "digest": digest, "state": state,
               "path": None if place is None else str(place)}  # fmt: skip
        if found is not None and state == "there":
            known.add(digest)
            yield from origins(found, known, depth + 1)


def parents(checkpoint: Artifact) -> Iterator[str]:
    """The checkpoints before one, the nearest first, as `member/stepN`; at last what is missing."""
    while (place := input_place(checkpoint, "parent")) is not None:
        digest = checkpoint.inputs.get("parent")
        try:
            checkpoint = read_manifest(place)
        except OntogenyError:
            yield f"{place} is gone or damaged"
            return
        if checkpoint.digest != digest:
            yield f"{place} is another"
            return
        yield f"{checkpoint.facts.get('member')}/step{checkpoint.config.get('step')}"


def flat(values: Mapping[str, Any], depth: int = DEPTH) -> dict[str, Any]:
    """Nested settings or facts as one level of `a.b`; lists by their names or their length."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and depth > 1:
            inner = flat(value, depth - 1)
            found |= {f"{name}.{rest}": one for rest, one in inner.items()}
        elif isinstance(value, dict):
            found[name] = f"{len(value)} entries"
        elif isinstance(value, list):
            found[name] = _listed(value)
        elif value is not None:
            found[name] = value
    return found


def _listed(values: list[Any]) -> str:
    names = [next(iter(one.values()), "") if isinstance(one, dict) else one for one in values]
    if len(names) <= NAMES and not any(isinstance(name, dict | list) for name in names):
        return ", ".join(map(str, names))
    return f"{len(values)} entries"


def _growth(artifact: Artifact) -> dict[str, Any]:
    """What only weights and runs have."""
    if artifact.kind == "run":
        settings = settings_of(artifact)
        rows = list(whole_rows(artifact.path / METRICS))
        return {
            "parameters": settings.shape.num_parameters,
            "updates": f"{len(rows)} of {settings.num_updates}",
            "tokens": rows[-1].tokens if rows else 0,
            "loss": rows[-1].loss if rows else None,
            "steps": list_steps(artifact.path),
            "states": list_states(artifact.path),
        }
    shapes = [entry["shape"] for entry in recorded_tensors(artifact).values()]
    return {
        "tensors": len(shapes) or None,
        "parameters": sum(map(math.prod, shapes)) or None,
        "parents": list(parents(artifact)),
    }


def _suite(home: Path) -> dict[str, Any]:
    record = read_record(home)
    stages = []
    for stage in record.stages:
        try:
            state = "there" if stage_digest(home, stage) == stage.digest else "another is there"
            files = (home / stage.path).rglob("*")
            size = sum(path.stat().st_size for path in files if path.is_file())
        except OntogenyError:
            state, size = "gone or damaged", 0
        stages.append({**stage.resolved(), "bytes": size, "state": state})
    return {
        "path": str(home),
        "kind": "suite",
        "name": record.suite.name,
        "members": [member.name for member in record.suite.table()],
        "settings": flat(record.suite.resolved()),
        "stages": stages,
    }
