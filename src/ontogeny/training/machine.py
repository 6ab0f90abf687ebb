"""The machine a run computes on: device, arithmetic, threads, allocator, and what it reports.

What is chosen here and makes equal bits (device, precision, threads, instruction set, torch's
version) is recorded with every checkpoint. Nothing is chosen at import.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch

from ontogeny.errors import ConfigError
from ontogeny.model.kernels.load import features
from ontogeny.model.neox import DTYPES
from ontogeny.suite import Precision

# Of glibc's mallopt: never hand a freed block back to the system, where the next update would
# have to fault it in again, page by page.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def device() -> torch.device:
    """A GPU if torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: Precision) -> Literal["bf16", "fp16", "fp32"]:
    """What `auto` means here: bfloat16 where the hardware multiplies in it, else float32."""
    if precision == "auto":
        return "bf16" if multiplies_bf16() else "fp32"
    return precision


def multiplies_bf16() -> bool:
    """Whether matrix products in bfloat16 are native to the device."""
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the next update; False where it has no say."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def bits() -> dict[str, Any]:
    """What decides, with config and inputs, the bits of the arithmetic on this machine."""
    is_gpu = device().type == "cuda"
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if is_gpu else "cpu",
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": multiplies_bf16(),
        "threads": torch.get_num_threads(),
        "compile": False,  # nothing is compiled here
        "extensions": features(),
    }


def differing(recorded: Mapping[str, object], here: Mapping[str, object]) -> str | None:
    """The first recorded thing that is not so here; None where the bits will be the same."""
    return next((name for name, value in recorded.items() if here.get(name) != value), None)


def require_precision(precision: Precision) -> torch.dtype:
    """The dtype of a resolved precision. Raises ConfigError for one that is still `auto`."""
    if precision not in DTYPES:
        raise ConfigError("precision was not resolved", expected="bf16 or fp32", found=precision)
    return DTYPES[precision]
