"""What decides the last bits of a model's arithmetic, whether it is trained or asked.

Not here: which device and precision are chosen (`training/machine.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ontogeny.model.kernels.load import features


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bits(device: str) -> dict[str, Any]:
    """What decides, with weights, inputs and dtype, the bits a device computes here."""
    return {
        "torch": torch.__version__,
        "device": device,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "extensions": features(),
    }
