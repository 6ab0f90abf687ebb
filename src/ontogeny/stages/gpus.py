"""What GPUs can do at best, from their makers' data sheets, and what Pythia was trained on.

Rates are per GPU: of dense products in bfloat16, of its memory, of its links inside a node and of
its share of the node's network, in one direction. Sources: NVIDIA's data sheets of the A100 (SXM),
H100 (SXM), H200 (SXM) and DGX B200; the network as rented or sold with eight of them (AWS
p4d.24xlarge; DGX A100 80 GB, H100, H200, B200). Not here: what a training run reaches of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ontogeny.config import nearest
from ontogeny.errors import ConfigError
from ontogeny.training.layout import Layout

NODE = 8  # GPUs that are linked without the network


@dataclass(frozen=True, slots=True)
class Gpu:
    """Operations and bytes a second, and bytes, of one GPU of a node of eight."""

    name: str
    flops: float
    memory_bytes: float
    memory_rate: float
    link_rate: float
    network_rate: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", 312e12, 40e9, 1.555e12, 300e9, 6.25e9),
        Gpu("a100-80gb", 312e12, 80e9, 2.039e12, 300e9, 25e9),
        Gpu("h100", 989e12, 80e9, 3.35e12, 450e9, 50e9),
        Gpu("h200", 989e12, 141e9, 4.8e12, 450e9, 50e9),
        Gpu("b200", 2250e12, 180e9, 8e12, 900e9, 50e9),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of a name. Raises ConfigError with the nearest one, or all."""
    if name not in GPUS:
        raise ConfigError(
            f"unknown GPU {name!r}",
            expected=f"one of {', '.join(GPUS)}",
            fix=nearest(name.lower(), GPUS),
        )
    return GPUS[name]


# How Pythia was trained on A100s of 40 GB, and the GPU-hours stated: layout, rows a micro batch.
# Hours: Biderman et al. 2023, appendix, which states 544,280 for the suite of two corpora trained
# twice; the rest: the released configurations.
PAPER = {
    name: (Layout(data, tensor, "optimizer", recompute=True), rows, gpu_hours)
    for name, data, tensor, rows, gpu_hours in (
        ("70m", 32, 1, 32, 510),
        ("160m", 32, 1, 32, 1_030),
        ("410m", 32, 1, 32, 2_540),
        ("1b", 64, 1, 16, 4_830),
        ("1.4b", 64, 1, 16, 7_120),
        ("2.8b", 64, 1, 16, 14_240),
        ("6.9b", 64, 2, 8, 33_500),
        ("12b", 64, 4, 8, 72_300),
    )
}
