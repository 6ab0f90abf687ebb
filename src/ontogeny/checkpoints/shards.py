"""Tensors that are cut over ranks, in safetensors files: torch's distributed checkpoint.

Every rank writes one file of its parts, which knows where in the whole they belong; no rank sends
another more than its plan. Files written under one layout are read under any other, also by a
process alone, and so are whole safetensors files. Nothing is pickled in any file. Not here: what
the tensors are and when they are saved; importing this takes half a second.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ontogeny.checkpoints.verify import LENGTH
from ontogeny.errors import CheckpointError, OntogenyError


def told(make: Callable[[], Path | None], group: dist.ProcessGroup) -> Path | None:
    """What `make` gives on the first rank of a group, on all; or raises on all what it raised.

    To be called by all of them.
    """
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = make()
        except (OSError, OntogenyError) as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0, group=group)
    path, failure = answer
    if failure is not None:
        raise failure
    return path


def write(tensors: Mapping[str, Tensor], folder: Path, group: dist.ProcessGroup) -> None:
    """Write this rank's parts of the tensors, all in the CPU's memory, into an existing folder.

    To be called by all ranks of the group. A tensor that is not cut is written by one of them.
    Raises CheckpointError, on all ranks, when the disk does not take it.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        rank, cause = _first_failure(error)
        raise CheckpointError(
            f"the part of rank {rank} cannot be written ({cause})",
            where=folder,
            fix="free some space, then go on",
        ) from cause
    if dist.get_rank() == 0:
        for path in folder.glob("*.safetensors"):
            _sort_notes(path)


def read(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors, or this rank's parts of them, from all safetensors files of a folder.

    To be called by all ranks, or by a process alone. Raises CheckpointError for a tensor that is
    missing or has another shape.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it may be
        try:
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))
        except CheckpointException as error:
            _, cause = _first_failure(error)
            raise CheckpointError(f"does not fit the model ({cause})", where=folder) from cause


def _sort_notes(path: Path) -> None:
    """Put what a file says about itself in one order: the library leaves that to chance."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the same words in another order"
        file.seek(LENGTH)
        file.write(text.ljust(length))


def _first_failure(error: CheckpointException) -> tuple[int, BaseException]:
    rank = min(error.failures)
    return rank, error.failures[rank][0]
