"""The machine a run computes on: device, arithmetic, threads, compiler, allocator, and its report.

What is chosen here and makes equal bits (device, precision, threads, instruction set, torch's
version) is recorded with every checkpoint. Nothing is chosen at import.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from ontogeny.errors import CheckpointError, ConfigError
from ontogeny.model.arithmetic import bits as arithmetic_bits
from ontogeny.model.arithmetic import threads
from ontogeny.model.neox import DTYPES
from ontogeny.suite import Precision, TrainingSettings

# Of glibc's mallopt: never hand a freed block back to the system, where the next update would
# have to fault it in again, page by page.
M_TRIM_THRESHOLD, M_MMAP_MAX, NEVER = -1, -4, -1
MADV_HUGEPAGE, LARGE_PAGE = 14, 2 << 20
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # with one of these, cuBLAS adds in one order
WORKSPACES = (":4096:8", ":16:8")


def device() -> torch.device:
    """The GPU this process computes on if torch sees one, by its number; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def take_gpu(number: int) -> None:
    """Compute on this GPU of the machine from now on. Raises ConfigError if there are fewer."""
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"there is no GPU for rank {number} of this machine",
            expected=f"at most {torch.cuda.device_count()} ranks on it, a GPU each",
            fix="fewer --ranks, or CUDA_VISIBLE_DEVICES= to compute without GPUs",
        )
    torch.cuda.set_device(number)


def resolve_precision(precision: Precision) -> Literal["bf16", "fp16", "fp32"]:
    """What `auto` means here: bfloat16 where the hardware multiplies in it, else float32."""
    if precision == "auto":
        return "bf16" if multiplies_bf16() else "fp32"
    return precision


def multiplies_bf16() -> bool:
    """Whether matrix products in bfloat16 are native to the device."""
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextlib.contextmanager
def arithmetic(training: TrainingSettings) -> Iterator[None]:
    """Compute as a run's settings say inside the block: its threads, and one way on a GPU.

    There, float32 is never rounded to TF32. Raises ConfigError as `one_way` does.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(threads(training.threads))
        if device().type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False  # some images turn it on
            if training.reproducible:
                stack.enter_context(one_way())
        yield


@contextlib.contextmanager
def one_way() -> Iterator[None]:
    """Have kernels of the GPU add in one order inside the block.

    Raises ConfigError where the environment asks cuBLAS for another way. To be entered before the
    first matrix product of the process, as cuBLAS looks once.
    """
    if os.environ.setdefault(WORKSPACE, WORKSPACES[0]) not in WORKSPACES:
        raise ConfigError(
            f"with this {WORKSPACE} a matrix product comes out otherwise each time",
            expected=" or ".join(WORKSPACES),
            found=os.environ[WORKSPACE],
            fix=f"unset {WORKSPACE}, or --set training.reproducible=false",
        )
    flags: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), flags.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    flags.fill_uninitialized_memory = False  # nothing here reads what it did not write
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        flags.fill_uninitialized_memory = before[1]


def compiler() -> str:
    """What torch's compiler makes its code with here. Raises ConfigError where that is missing."""
    if device().type == "cuda":
        name, is_there = "triton", find_spec("triton") is not None
    else:
        name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        is_there = shutil.which(name) is not None
    if not is_there:
        raise ConfigError(
            "nothing to compile with",
            expected=name,
            fix=f"install {name}, or --set training.compile=false",
        )
    if name == "triton":  # torch brings the version it needs
        return name
    told = subprocess.run([name, "--version"], capture_output=True, text=True, check=True)
    return told.stdout.partition("\n")[0]


def keep_freed_memory() -> None:
    """Let the C library, where it is glibc, keep freed memory for the next update, in large pages.

    It takes no memory of the system for itself: of the addresses set apart, half as many as there
    is memory, only what is used is there.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, NEVER)
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    place = library.malloc(ctypes.c_size_t(size))
    if place is not None:  # else all of it stays in small pages
        start = -(-place // LARGE_PAGE) * LARGE_PAGE
        length = ctypes.c_size_t(place + size - start)
        library.madvise(ctypes.c_void_p(start), length, MADV_HUGEPAGE)
        library.free(ctypes.c_void_p(place))


def bits(*, compiled: bool = False) -> dict[str, Any]:
    """What decides, with config and inputs, the bits of the arithmetic on this machine."""
    name = torch.cuda.get_device_name() if device().type == "cuda" else "cpu"
    return arithmetic_bits(name) | {
        "bf16_instructions": multiplies_bf16(),
        "compile": compiler() if compiled else False,
    }


def require_same_bits(
    recorded: Mapping[str, object], here: Mapping[str, object], step: int, where: Path, fix: str
) -> None:
    """Refuse another torch, processor or number of threads than was recorded with a step.

    Other bits would come. Raises CheckpointError naming the first thing that is not so here.
    """
    for name, value in recorded.items():
        if here.get(name) != value:
            raise CheckpointError(
                f"step {step} was computed with another {name}",
                where=where,
                expected=value,
                found=here.get(name),
                fix=f"that one again, or {fix}",
            )


def require_precision(precision: Precision) -> torch.dtype:
    """The dtype of a resolved precision. Raises ConfigError for one that is still `auto`."""
    if precision not in DTYPES:
        raise ConfigError("precision was not resolved", expected="bf16 or fp32", found=precision)
    return DTYPES[precision]
