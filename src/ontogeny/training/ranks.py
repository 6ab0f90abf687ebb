"""The ranks that train a run together: who this one is, and what they tell each other.

A process that is alone is rank 0 of 1, for which nothing is sent. Not here: how tensors are cut
(`parallel.py`), how the processes are started (`launch.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ontogeny.errors import ConfigError
from ontogeny.suite import RunSettings
from ontogeny.training import machine
from ontogeny.training.layout import Layout

Made = TypeVar("Made")
WAIT = timedelta(minutes=10)  # for another rank, before it counts as lost


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank `number` of a layout; `mesh` is data x tensor, and None where it is alone."""

    layout: Layout
    number: int = 0
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and reports."""
        return self.number == 0

    @property
    def place(self) -> int:
        """Which of the data-parallel ranks this is."""
        return 0 if self.mesh is None else self.mesh.get_local_rank("data")

    def bits(self, settings: RunSettings) -> dict[str, Any]:
        """What decides a run's bits here: the layout too, unless the run is reproducible."""
        layout = {} if settings.training.reproducible else {"layout": self.layout.as_json()}
        return machine.bits() | layout

    def gathered(self, values: Tensor) -> Tensor:
        """What every data-parallel rank gave, [n] each, as [ranks, n] in their order."""
        if self.layout.data == 1 or self.mesh is None:
            return values[None]
        result = [torch.empty_like(values) for _ in range(self.layout.data)]
        dist.all_gather(result, values.contiguous(), group=self.mesh.get_group("data"))
        return torch.stack(result)

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank raises it: the same answer on all."""
        if self.mesh is None:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32, device=machine.device())
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def first(self, make: Callable[[], Made]) -> Made:
        """What `make` gives, called by the first rank alone before the others call it too."""
        if self.mesh is None:
            return make()
        made = make() if self.is_first else None
        dist.barrier()
        return make() if made is None else made


ALONE = Ranks(Layout())


@contextmanager
def joined(layout: Layout) -> Iterator[Ranks]:
    """Be one of the processes that torchrun started, or alone where it started none.

    Raises ConfigError when they are not as many as the layout has ranks.
    """
    number = int(os.environ.get("WORLD_SIZE", 1))
    if number != layout.num_ranks:
        raise ConfigError(
            f"the layout has {layout.num_ranks} ranks",
            expected=f"{layout.num_ranks} processes",
            found=f"{number}",
            fix=f"torchrun --nproc-per-node {layout.num_ranks}, or another --tensor-parallel",
        )
    if number == 1:
        yield Ranks(layout)
        return
    device = machine.device().type
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=WAIT)
    try:
        mesh = init_device_mesh(
            device, (layout.data, layout.tensor), mesh_dim_names=("data", "tensor")
        )
        yield Ranks(layout, dist.get_rank(), mesh)
    finally:
        dist.destroy_process_group()
