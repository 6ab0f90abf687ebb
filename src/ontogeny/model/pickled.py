"""Tensors in files of `torch.save`: `pytorch_model.bin` and the layer files of GPT-NeoX.

They are pickles, which can name any function to call. Only what torch's own reader of plain
weights knows is let through; whatever else a file names is refused without being run.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ontogeny.errors import CheckpointError

# What torch's reader raises on bytes that are no pickle, or one that is cut off or altered.
BROKEN = (
    pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError,
    AttributeError, AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip


def read_pickled(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """The tensors of a file by name, each in memory of its own or `mapped`, on the CPU.

    Raises CheckpointError for a file that is missing, damaged, asks for code to be run, or holds
    anything but plain tensors by name.
    """
    try:
        with warnings.catch_warnings():
            # It warns of old forms of pickle that it may not read; what it reads is checked here.
            warnings.simplefilter("ignore", UserWarning)
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except BROKEN as error:
        raise _refusal(path, error) from error
    if not isinstance(found, Mapping) or not all(map(_is_plain, found.items())):
        raise CheckpointError(
            "not a table of tensors by name", where=path, expected="the weights of one model alone"
        )
    return dict(_apart(found))


def _is_plain(entry: tuple[object, object]) -> bool:
    name, tensor = entry
    return (
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and not tensor.is_meta
        and not tensor.is_quantized
        # A stride of 0 lets a few bytes pose as a tensor that no memory holds.
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
    )


def _apart(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, copied where they share the memory of one before them."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        yield name, tensor.detach().clone() if memory in seen else tensor.detach()
        seen.add(memory)


def _refusal(path: Path, error: Exception) -> CheckpointError:
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named is None:
        words = " ".join(str(error).split())[-200:]
        return CheckpointError(
            f"unreadable weights ({type(error).__name__}: {words})",
            where=path,
            expected="a file of torch.save",
        )
    return CheckpointError(
        "not loaded, as it could run code",
        where=path,
        expected="nothing but tensors",
        found=f"a call of {named[1]}",
        fix="fetch the safetensors form of these weights",
    )
