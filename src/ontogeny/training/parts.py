"""The part of a tensor that a rank holds, and the whole again.

Parts are torch's distributed tensors, and are known by their methods: importing their class takes
half a second, which a rank alone, whose tensors are whole, does not wait for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import Tensor

from ontogeny.model import hf
from ontogeny.model.neox import NeoX
from ontogeny.training.ranks import Ranks


def is_cut(tensor: Any) -> TypeGuard[Any]:
    """Whether the tensor is a rank's part of a larger one."""
    return hasattr(tensor, "full_tensor")


def own(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; all of it where it is not cut."""
    return tensor.to_local() if is_cut(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank. To be called by all of them."""
    return tensor.full_tensor() if is_cut(tensor) else tensor


def gathered(model: NeoX, ranks: Ranks) -> dict[str, Tensor]:
    """A copy of all weights in the first rank's CPU memory, by their names in files; {} elsewhere.

    To be called by all ranks; no other holds more than one tensor whole, and only for a moment.
    """
    weights = {}
    for name, tensor in hf.named_weights(model).items():
        found = whole(tensor)
        if ranks.is_first:
            weights[name] = found.to("cpu", copy=found is tensor)
    return weights


def staged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of this rank's parts in the CPU's memory, cut as the tensors are."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def like(tensor: Tensor, part: Tensor) -> Tensor:
    """This rank's part of something that is cut as `tensor` is."""
    if not is_cut(tensor):
        return part
    return type(tensor).from_local(
        part,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def part_of(tensor: Tensor, cut: Tensor) -> Tensor:
    """This rank's part of a whole tensor, cut as `cut` is."""
    if not is_cut(cut):
        return tensor
    (chunk,) = cut.__create_chunk_list__()
    begins_and_sizes = zip(chunk.offsets, chunk.sizes, strict=True)
    return tensor[tuple(slice(begin, begin + size) for begin, size in begins_and_sizes)]
