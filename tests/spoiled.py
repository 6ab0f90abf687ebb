"""A run that may be spoiled, ways to spoil what it has on record, and what `verify` then finds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from grown import begin, prepare, settings
from ontogeny.artifact import MANIFEST
from ontogeny.digest import digest_bytes, digest_file, digest_json
from ontogeny.errors import Fault
from ontogeny.questions.verify import verify
from ontogeny.training.loop import train

WEIGHTS = "model.safetensors"
EMBEDDING = "gpt_neox.embed_in.weight"


def grow_site(home: Path) -> Path:
    """A ground with a finished run on it, so that they may be moved together."""
    site = prepare(home)
    train(begin(site, home / "run", settings()), site.batches(4))
    return home


def faults(path: Path) -> list[Fault]:
    return [fault for subject in verify(path) for fault in subject.faults]


def notes(path: Path) -> str:
    return "; ".join(note for subject in verify(path) for note in subject.notes)


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(bytes(data))


def restate(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest, content or provenance, so that nothing in it gives the change away."""
    written = json.loads((folder / MANIFEST).read_text())
    change(written)
    written["digest"] = digest_json(written["content"])
    written["provenance_digest"] = digest_json(written["provenance"])
    (folder / MANIFEST).write_text(json.dumps(written))


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite what a manifest says of its files as they are now, and change its content."""

    def follow(written: dict[str, Any]) -> None:
        content = written["content"]
        for name, entry in content["files"].items():
            entry |= {"bytes": (folder / name).stat().st_size, "sha256": digest_file(folder / name)}
        if (folder / WEIGHTS).is_file() and "tensors" in content["facts"]:
            for name, tensor in load_file(folder / WEIGHTS).items():
                data = tensor.contiguous().numpy().tobytes()
                content["facts"]["tensors"][name]["sha256"] = digest_bytes(data)
        change(content)

    restate(folder, follow)


def forge_bits(folder: Path, name: str, value: object) -> None:
    """Have a manifest say that something else computed it."""
    restate(folder, lambda written: written["provenance"]["bits"].update({name: value}))


def no_change(content: dict[str, Any]) -> None:
    """Only what follows from the files."""


def payload_files(home: Path) -> list[Path]:
    return sorted(
        path
        for path in home.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size
    )


def flips_missed(home: Path, files: list[Path], seed: int) -> list[Path]:
    """The files of which `verify` does not find, or place, a flipped bit; all are whole again."""
    places, missed = random.Random(seed), []
    for path in files:
        data = path.read_bytes()
        flip(path, places.randrange(len(data)), places.randrange(8))
        first = next((fault.place for fault in faults(home)), None)
        named = path.parent if path.name == MANIFEST else path
        if first is None or (str(named) not in first and first != str(home)):
            missed.append(path)
        path.write_bytes(data)
    return missed
