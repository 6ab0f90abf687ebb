"""Initial weights: small-init, Wang-init and plain normal, seeded per tensor name.

Each tensor has its own random stream, named by the seed and the tensor's name, so a member starts
equal anywhere: whatever else is built, on however many ranks, in whatever order.
Source: GPT-NeoX `init_functions.py` as used by Pythia (small-init: Nguyen and Salazar 2019).
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from ontogeny.model.neox import NeoX
from ontogeny.shape import Shape
from ontogeny.suite import Init

# What writes into the residual stream; all other matrices get the first standard deviation.
OUTPUTS = ("attention.dense.weight", "mlp.dense_4h_to_h.weight")


def standard_deviations(init: Init, num_layers: int, hidden_size: int) -> tuple[float, float]:
    """Of the matrices, and of those that write into the residual stream."""
    if init == "normal":
        return 0.02, 0.02 / math.sqrt(2 * num_layers)
    return math.sqrt(2 / (5 * hidden_size)), 2 / (num_layers * math.sqrt(hidden_size))


def initial_model(shape: Shape, init: Init, seed: int) -> NeoX:
    """A model at step 0, in float32 on the CPU: a pure function of the arguments."""
    with torch.device("meta"):
        model = NeoX(shape)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_tensor(name, parameter.shape, shape, init, seed))
    return model


def initial_tensor(name: str, size: torch.Size, shape: Shape, init: Init, seed: int) -> Tensor:
    """One tensor of step 0: norms at one, biases at zero, matrices normal with mean zero."""
    if len(size) == 1:
        return torch.ones(size) if name.endswith("norm.weight") else torch.zeros(size)
    matrix, output = standard_deviations(init, shape.num_layers, shape.hidden_size)
    scale = output if name.endswith(OUTPUTS) else matrix
    generator = torch.Generator().manual_seed(stream_seed(seed, name))
    return torch.randn(size, generator=generator) * scale


def stream_seed(seed: int, name: str) -> int:
    """The 63-bit seed of the stream for one tensor."""
    text = f"init/{seed}/{name}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
