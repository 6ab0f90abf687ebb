"""Artifacts: folders that are whole or absent, and say in `manifest.json` what they are made of.

A manifest has two parts. *Content* (kind, format, resolved config, digests of the inputs, digests
of the payload files, facts counted while writing) is the artifact's identity: its digest is what
others refer to. *Provenance* (when, where, with which versions) is checksummed but outside it.
A folder is written aside and renamed into place. Not here: what any kind of artifact holds.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import glob
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ontogeny.digest import SHORT, digest_file, digest_json, digest_sources
from ontogeny.errors import DataError, Fault, MissingInputError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published folder and its manifest."""

    path: Path
    content: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The artifact's identity: the digest of its content."""
        return digest_json(self.content)

    @property
    def kind(self) -> str:
        return str(self.content["kind"])

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved settings that, with the inputs, determine this artifact."""
        config: Mapping[str, Any] = self.content["config"]
        return config

    @property
    def inputs(self) -> Mapping[str, str]:
        """Digests of the artifacts this one is made from, by role."""
        inputs: Mapping[str, str] = self.content["inputs"]
        return inputs

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was counted while writing, by name; determined by config and inputs."""
        facts: Mapping[str, Any] = self.content["facts"]
        return facts

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Bytes and digest of every payload file, by path relative to the folder."""
        files: Mapping[str, Mapping[str, Any]] = self.content["files"]
        return files


# What an artifact is made from: another artifact, or the digest of something that is none.
Input = Artifact | str


@dataclass(slots=True)
class Draft:
    """An artifact being written: put files in `folder` and what was counted in `facts`."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    published: Artifact | None = None

    @property
    def artifact(self) -> Artifact:
        """What was published, once the block that wrote it has ended well."""
        assert self.published is not None
        return self.published


def key_of(kind: str, config: Mapping[str, Any], inputs: Mapping[str, Input]) -> str:
    """The digest of what an artifact is to be, known before it is made."""
    return digest_json(
        {"kind": kind, "format": FORMAT, "config": dict(config), "inputs": _digests(inputs)}
    )


def key(artifact: Artifact) -> str:
    """The key an artifact was made under."""
    return key_of(artifact.kind, artifact.config, artifact.inputs)


def keyed(path: Path, kind: str, config: Mapping[str, Any], inputs: Mapping[str, Input]) -> Path:
    """Where an artifact called `path` goes: its name and the first digits of its key.

    Another config or other inputs make another folder, never a mixed one.
    """
    return path.with_name(f"{path.name}-{key_of(kind, config, inputs)[:SHORT]}")


@contextlib.contextmanager
def writing(
    path: Path,
    kind: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, Input],
    provenance: Mapping[str, Any] | None = None,
) -> Iterator[Draft]:
    """Write an artifact aside and publish it at `path` when the block ends well.

    `Draft.artifact` is the published artifact afterwards. When the block raises, nothing is left.
    Where inputs that are artifacts lie is kept in the provenance, for `open_input`.
    Raises DataError if `path` exists: an artifact is never written over.
    """
    if path.exists():
        raise DataError("already exists", where=path, fix=f"remove {path} or choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    aside = path.parent / f".{path.name}.writing-{os.getpid()}"
    aside.mkdir()
    draft = Draft(aside)
    try:
        yield draft
        content = {
            "kind": kind,
            "format": FORMAT,
            "config": dict(config),
            "inputs": _digests(inputs),
            "facts": draft.facts,
            "files": _digest_files(aside),
        }
        places = {"inputs_at": _places(path, inputs)}
        draft.published = _write_manifest(aside, path, content, places | dict(provenance or {}))
        _flush(aside)
        _publish(aside, path)
        _flush_folder(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def open_artifact(path: Path, kind: str | None = None) -> Artifact:
    """Open a published artifact: its manifest whole and true to itself, its files there and sized.

    Payload digests are not recomputed here; `faults` does that. Raises DataError for what is
    missing, damaged or of another kind than `kind`.
    """
    artifact = read_manifest(path)
    if kind is not None and artifact.kind != kind:
        raise DataError("wrong kind of artifact", where=path, expected=kind, found=artifact.kind)
    for name in artifact.files:
        fault = file_fault(artifact, name, rehash=False)
        if fault is not None:
            raise DataError(fault.problem, where=fault.place, fix=fault.fix)
    return artifact


def read_manifest(path: Path) -> Artifact:
    """What an artifact's manifest says, true to itself; its files are not looked at."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise DataError("not an artifact", where=path, expected=f"a folder with {MANIFEST}")
    return parse_manifest(manifest.read_bytes(), path)


def parse_manifest(text: bytes, path: Path) -> Artifact:
    """The artifact at `path` whose manifest reads so. Raises DataError if it is damaged."""
    manifest = path / MANIFEST
    try:
        written = json.loads(text.decode("utf-8"))
        artifact = Artifact(path, dict(written["content"]), dict(written["provenance"]))
        recorded = str(written["digest"]), str(written["provenance_digest"])
        actual = artifact.digest, digest_json(artifact.provenance)
        found_format = artifact.content["format"]
        _check_form(artifact)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"unreadable manifest ({type(error).__name__}: {error})",
            where=manifest,
            fix=f"remove {path} and make it again",
        ) from error
    if recorded != actual:
        raise DataError("manifest was altered", where=manifest, expected=recorded[0], found=actual)
    if found_format != FORMAT:
        raise DataError("unknown format", where=manifest, expected=FORMAT, found=found_format)
    return artifact


def open_input(artifact: Artifact, role: str) -> Artifact:
    """Open what an artifact was made from, where it lay then, and check that it is the same.

    Raises MissingInputError when `role` is no input that is an artifact or nothing is there any
    more, DataError when something else is.
    """
    place = input_place(artifact, role)
    if role not in artifact.inputs or place is None:
        raise MissingInputError(
            f"no {role} is known among what it was made from",
            where=artifact.path,
            found=", ".join(artifact.provenance.get("inputs_at", {})) or "nothing",
        )
    if not place.is_dir():
        raise MissingInputError(
            f"its {role} is not there",
            where=artifact.path,
            expected=f"{artifact.inputs[role][:SHORT]} at {place}",
            fix=f"put it back, or move {role} and {artifact.kind} together",
        )
    found = open_artifact(place)
    if found.digest != artifact.inputs[role]:
        raise DataError(
            f"is not the {role} that {artifact.path} was made from",
            where=place,
            expected=artifact.inputs[role],
            found=found.digest,
        )
    return found


def input_place(artifact: Artifact, role: str) -> Path | None:
    """Where an input lay when the artifact was made; None where that is not known."""
    place = artifact.provenance.get("inputs_at", {}).get(role)
    return None if place is None else Path(os.path.normpath(artifact.path.resolve() / place))


def faults(artifact: Artifact) -> list[Fault]:
    """Every payload file whose bytes are not those the manifest recorded."""
    found = (file_fault(artifact, name) for name in artifact.files)
    return [fault for fault in found if fault is not None]


def file_fault(artifact: Artifact, name: str, *, rehash: bool = True) -> Fault | None:
    """What is wrong with a payload file, if anything is; its bytes are read where `rehash`."""
    path, entry = artifact.path / name, artifact.files[name]
    remake = f"fetch {name} again, or remove {artifact.path} and make it again"
    if not path.is_file():
        return Fault(str(path), "missing file", "removed, or never copied", remake)
    found, expected = path.stat().st_size, entry["bytes"]
    if found != expected:
        problem = f"truncated or altered file; expected {expected} bytes; found {found} bytes"
        cause = "a copy that was cut short, or a full disk" if found < expected else "an edit"
        return Fault(str(path), problem, cause, remake)
    if rehash and (digest := digest_file(path)) != entry["sha256"]:
        problem = f"other bytes; expected sha256 {entry['sha256']}; found {digest}"
        return Fault(str(path), problem, "flipped bits or an edit: the size is right", remake)
    return None


def require_space(path: Path, num_bytes: int) -> None:
    """Raise DataError unless the disk that will hold `path` has `num_bytes` free."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise DataError(
            "too little disk space",
            where=path,
            expected=f"{num_bytes / 1e9:.2f} GB free",
            found=f"{free / 1e9:.2f} GB",
            fix="free some space or choose another folder with --out",
        )


def environment() -> dict[str, Any]:
    """The provenance every artifact carries: time, machine, versions, this package's source."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "package_source": _own_source(),
    }


@functools.cache
def _own_source() -> str:
    """The digest of this package's source: once, as it was when the process first asked."""
    return digest_sources(Path(__file__).parent)


def _digests(inputs: Mapping[str, Input]) -> dict[str, str]:
    return {
        role: given.digest if isinstance(given, Artifact) else given
        for role, given in inputs.items()
    }


def _places(path: Path, inputs: Mapping[str, Input]) -> dict[str, str]:
    """Where the inputs that are artifacts lie, from `path` on: right while all move together."""
    home = path.parent.resolve() / path.name
    return {
        role: Path(os.path.relpath(given.path.resolve(), home)).as_posix()
        for role, given in inputs.items()
        if isinstance(given, Artifact)
    }


def _write_manifest(
    folder: Path, home: Path, content: dict[str, Any], provenance: Mapping[str, Any]
) -> Artifact:
    artifact = Artifact(home, content, environment() | dict(provenance))
    written = {
        "digest": artifact.digest,
        "content": content,
        "provenance": artifact.provenance,
        "provenance_digest": digest_json(artifact.provenance),
    }
    text = json.dumps(written, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return artifact


def _publish(aside: Path, path: Path) -> None:
    try:
        aside.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise DataError(
            "was made meanwhile by another process", where=path, fix="run the same command again"
        ) from error


def _digest_files(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": digest_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def _check_form(artifact: Artifact) -> None:
    places = artifact.provenance.get("inputs_at", {})
    parts = (artifact.config, artifact.inputs, artifact.facts, artifact.files, places)
    texts = [artifact.content["kind"], *artifact.inputs.values(), *places.values()]
    texts += [entry["sha256"] for entry in artifact.files.values()]
    sizes = [entry["bytes"] for entry in artifact.files.values()]
    for kind, values in ((dict, parts), (str, texts), (int, sizes)):
        if not all(isinstance(value, kind) for value in values):
            raise TypeError(f"a part of it is no {kind.__name__}")


def _remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` that no longer live left beside it."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.writing-*"):
        owner = leftover.name.rpartition("-")[2]
        # What bears our own number was left by a dead process that had it before, as every start
        # in a container may.
        if not owner.isdigit() or int(owner) == os.getpid() or not _lives(int(owner)):
            shutil.rmtree(leftover, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
