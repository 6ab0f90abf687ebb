"""The library of kernels: found, loaded, and told by name and version.

It is plain C behind ctypes, built when the package is installed. Where it was not built, where the
processor lacks what it needs, or where ONTOGENY_KERNELS=0 says so, there is none, and torch
computes; what computed is recorded with every checkpoint (`training/machine.py`).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

# A version changes with the bits a kernel gives, or with how it is called.
VERSIONS = {"attention": 1, "loss": 1}


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where there are none or they are turned off."""
    if os.environ.get("ONTOGENY_KERNELS") == "0":
        return None
    places = (Path(__file__).with_name("_kernels" + suffix) for suffix in EXTENSION_SUFFIXES)
    found = next((place for place in places if place.is_file()), None)
    try:
        return None if found is None else ctypes.CDLL(str(found))
    except OSError:  # built for another machine
        return None


@cache
def features() -> list[str]:
    """The kernels this processor can run, each with its version, as in `attention-1`."""
    kernels = library()
    return [
        f"{name}-{version}"
        for name, version in VERSIONS.items()
        # A library left from an older build lacks a kernel, or has it in another version.
        if kernels is not None and _version(kernels, name) == version
    ]


def has(name: str) -> bool:
    """Whether the kernel of that name can be used here."""
    return f"{name}-{VERSIONS[name]}" in features()


def _version(kernels: ctypes.CDLL, name: str) -> int:
    """The version of a kernel as built, 0 where it cannot run."""
    told = getattr(kernels, f"{name}_version", None)
    return 0 if told is None else int(told())
