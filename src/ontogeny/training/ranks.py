"""The ranks that train a run together: who this one is, and what they tell each other.

A process that is alone is rank 0 of 1, for which nothing is sent. Not here: how tensors are cut
(`parallel.py`), how the processes are started (`launch.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from ontogeny.errors import ConfigError, TrainingError
from ontogeny.suite import RunSettings
from ontogeny.training import machine
from ontogeny.training.layout import Layout

Made = TypeVar("Made")
ROLL_CALL = 3.0  # seconds in which every rank that is there finds that another is not


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank `number` of a layout; `mesh` is data x tensor.

    `beside` is all ranks once more, for what they tell each other on threads beside the updates.
    Both are None where it is alone.
    """

    layout: Layout
    number: int = 0
    mesh: DeviceMesh | None = None
    beside: dist.ProcessGroup | None = None

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
        return machine.bits(compiled=settings.training.compile) | layout

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
def joined(layout: Layout, patience: float = 600.0) -> Iterator[Ranks]:
    """Be one of the processes that torchrun started, or alone where it started none.

    `patience` is for how many seconds another rank may be silent. Raises ConfigError when they are
    not as many as the layout has ranks, TrainingError when another is gone or silent.
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
    if torch.cuda.is_available():
        machine.take_gpu(int(os.environ["LOCAL_RANK"]))
    device = machine.device()
    agents, rank, _ = next(iter(rendezvous("env://")))
    # The agent's store outlives its ranks: what those before a restart left is not to be found.
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", agents)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=number,
        timeout=timedelta(seconds=patience),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        mesh = init_device_mesh(
            device.type, (layout.data, layout.tensor), mesh_dim_names=("data", "tensor")
        )
        beside = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience))
        yield Ranks(layout, rank, mesh, beside)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise _lost(store, rank, number, patience) from error
    finally:
        dist.destroy_process_group()


def _lost(store: Any, rank: int, number: int, patience: float) -> TrainingError:
    """The error of a rank that could not reach another; whoever is there says so in the store."""
    store.set(f"waits/{rank}", "")
    time.sleep(ROLL_CALL)
    gone = [str(other) for other in range(number) if not store.check([f"waits/{other}"])]
    return TrainingError(
        f"rank {', '.join(gone) or 'unknown'} of {number} is gone, or was silent for "
        f"{patience:g} seconds",
        fix="the same command again: it goes on from the last saved state",
    )
