"""The library of kernels: found, loaded, and told by name and version.

It is plain C behind ctypes, built when the package is installed. Where it was not built, where the
processor lacks what it needs, or where ONTOGENY_KERNELS=0 says so, there is none, and torch
computes; what computed is recorded with every checkpoint (`training/machine.py`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

# A version changes with the bits a kernel gives, or with how it is called.
VERSIONS = {"attention": 1, "linear": 1, "loss": 3}
OPERATORS = torch.library.Library("ontogeny", "FRAGMENT")


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where there are none or they are turned off."""
    if os.environ.get("ONTOGENY_KERNELS") == "0":
        return None
    return find(Path(__file__).parent)


@cache
def features() -> list[str]:
    """The kernels this processor can run, each with its version, as in `attention-1`."""
    return runnable(library())


def has(name: str) -> bool:
    """Whether the kernel of that name can be used here."""
    return f"{name}-{VERSIONS[name]}" in features()


# What torch.compiler.assume_constant_result would set, which imports torch's compiler, for seconds.
has._dynamo_marked_constant = True  # type: ignore[attr-defined]


def call(name: str, *arguments: Tensor | int | float | ctypes.Array[ctypes.c_long]) -> bool:
    """Call a kernel with as many threads as torch uses; whether it declined.

    Tensors are passed as they lie in memory, so they are to be contiguous.
    """
    function = _function(name, *map(type, arguments))
    passed = [one.data_ptr() if isinstance(one, Tensor) else one for one in arguments]
    answer = function(*passed, torch.get_num_threads())
    if answer < 0:
        raise MemoryError(f"no memory for {name}")
    return bool(answer)


@cache
def _function(name: str, *kinds: type) -> Any:
    """A kernel that takes arguments of these kinds: numbers as they are, all else as a place."""
    function = cast("Any", library())[name]
    numbers: dict[type, Any] = {int: ctypes.c_long, float: ctypes.c_float}
    function.argtypes = [numbers.get(kind, ctypes.c_void_p) for kind in kinds] + [ctypes.c_int]
    return function


def operator(schema: str, compute: Callable[..., Any], empty: Callable[..., Any]) -> None:
    """Make of a computation, and of the tensors it fills, an operator of torch on CPUs.

    So its compiler and its tensors without memory know it, as `torch.ops.ontogeny.NAME`.
    """
    name = schema.partition("(")[0]
    OPERATORS.define(schema)
    OPERATORS.impl(name, compute, "CPU")
    torch.library.register_fake(f"ontogeny::{name}", empty, lib=OPERATORS)


def find(folder: Path) -> ctypes.CDLL | None:
    """The library in a folder, set to work on torch's threads; None where none can be loaded."""
    places = (folder / f"_kernels{suffix}" for suffix in EXTENSION_SUFFIXES)
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        return None
    try:
        kernels = ctypes.CDLL(str(place))
    except OSError:  # built for another machine
        return None
    # Through the module of torch its own runtime is found, however that is called and packed.
    team = getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)
    if team is not None and hasattr(kernels, "use_team"):
        kernels.use_team(ctypes.cast(team, ctypes.c_void_p))
    return kernels


def runnable(kernels: ctypes.CDLL | None) -> list[str]:
    """Of a library, the kernels that run here; one left from an older build is not among them."""
    return [
        f"{name}-{wanted}" for name, wanted in VERSIONS.items() if _told(kernels, name) == wanted
    ]


def _told(kernels: ctypes.CDLL | None, name: str) -> int:
    """The version of a kernel as built; 0 where it was not, or cannot run."""
    tell = getattr(kernels, f"{name}_version", None)
    return 0 if tell is None else int(tell())
