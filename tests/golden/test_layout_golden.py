"""The mesh of ranks against the original's groups."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def meshed(rank: int, data: int, tensor: int) -> Iterator[DeviceMesh]:
    """The mesh of a rank among others that are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=data * tensor)
    try:
        yield init_device_mesh("cpu", (data, tensor), mesh_dim_names=("data", "tensor"))
    finally:
        dist.destroy_process_group()


def test_ranks_are_grouped_as_the_original_does(golden: Path) -> None:
    layouts = json.loads((golden / "rank_layout.json").read_text())
    checked = 0
    for layout in (one for one in layouts if one["pipe"] == 1):
        data, tensor = layout["data"], layout["model"]
        for rank, (_, of_data, of_model) in enumerate(layout["rank_to_pipe_data_model"]):
            with meshed(rank, data, tensor) as mesh:
                assert mesh.get_local_rank("data") == of_data
                assert mesh.get_local_rank("tensor") == of_model
                mine = [
                    dist.get_process_group_ranks(mesh.get_group(name))
                    for name in ("data", "tensor")
                ]
            assert mine[0] == next(group for group in layout["data_groups"] if rank in group)
            assert mine[1] == next(group for group in layout["model_groups"] if rank in group)
            checked += 1
    assert checked == 12
