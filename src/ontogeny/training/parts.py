"""The part of a tensor that a rank holds, and the whole again.

Parts are torch's distributed tensors, and are known by their methods: importing their class takes
half a second, which a rank alone, whose tensors are whole, does not wait for.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import Tensor

from ontogeny.model import hf
from ontogeny.model.neox import NeoX


def is_cut(tensor: Any) -> TypeGuard[Any]:
    """Whether the tensor is a rank's part of a larger one."""
    return hasattr(tensor, "full_tensor")


def own(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; all of it where it is not cut."""
    return tensor.to_local() if is_cut(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank. To be called by all of them."""
    return tensor.full_tensor() if is_cut(tensor) else tensor


def whole_model(model: NeoX) -> NeoX:
    """All of a model, on every rank. To be called by all of them."""
    if not any(is_cut(parameter) for parameter in model.parameters()):
        return model
    weights = {hf.to_file_name(name): whole(one.detach()) for name, one in model.named_parameters()}
    return hf.assembled(model.shape, weights, "the ranks' parts")


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


def own_part(tensor: Tensor, cut: Tensor) -> Tensor:
    """This rank's part of a whole tensor, cut as `cut` is. To be called by all ranks."""
    if not is_cut(cut):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    where = cut.to_local().device
    return distribute_tensor(tensor.to(where), cut.device_mesh, cut.placements).to_local()
