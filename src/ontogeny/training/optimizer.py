"""AdamW with the original's groups, over this rank's part of every parameter.

Weight decay on every matrix, both embeddings included; none on biases and norms.
Source: gpt-neox v1.0 (`get_params_for_weight_decay_optimization`, fused Adam of its engine).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw

from ontogeny.model.neox import NeoX
from ontogeny.suite import RECIPES, RunSettings
from ontogeny.training.parts import like, own

MOMENTS = ("exp_avg", "exp_avg_sq")
WIDTH = 16  # numbers torch's kernel updates at once; what is left over it rounds otherwise


class AdamW:
    """torch's fused AdamW; what it makes of a number does not depend on how the tensor is cut."""

    def __init__(self, model: NeoX, settings: RunSettings) -> None:
        self._training = settings.training
        self._parameters = dict(model.named_parameters())
        counted = float(RECIPES[settings.recipe].optimizer_counts_from)
        self._slots = {
            name: Slot(own(parameter.detach()), counted)
            for name, parameter in self._parameters.items()
        }
        is_matrix = {name: parameter.ndim > 1 for name, parameter in self._parameters.items()}
        self._matrices = {name: slot for name, slot in self._slots.items() if is_matrix[name]}
        self._vectors = {name: slot for name, slot in self._slots.items() if not is_matrix[name]}

    def step(self, gradients: Mapping[str, Tensor], rate: float) -> None:
        """Move this rank's part of the parameters by its part of the gradients, at a rate."""
        training = self._training
        for weight_decay, slots in ((training.weight_decay, self._matrices), (0.0, self._vectors)):
            for slot in slots.values():
                slot.read()
            adamw(
                [slot.flat for slot in slots.values()],
                [padded(gradients[name]) for name in slots],
                [slot.moments["exp_avg"] for slot in slots.values()],
                [slot.moments["exp_avg_sq"] for slot in slots.values()],
                [],
                [slot.updates for slot in slots.values()],
                fused=True,
                amsgrad=False,
                beta1=training.beta1,
                beta2=training.beta2,
                lr=rate,
                weight_decay=weight_decay,
                eps=training.epsilon,
                maximize=False,
            )
            for slot in slots.values():
                slot.write()

    def named_state(self) -> dict[str, Tensor]:
        """Both moments of every parameter and the update counter, as a flat table of tensors.

        They are cut over the ranks as the parameters are.
        """
        tensors = {
            f"{moment}.{name}": like(
                self._parameters[name], unpadded(slot.moments[moment], slot.parameter)
            )
            for name, slot in self._slots.items()
            for moment in MOMENTS
        }
        return tensors | {"updates": next(iter(self._slots.values())).updates.cpu()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back this rank's parts, as `named_state` gave them."""
        for name, slot in self._slots.items():
            slot.updates.copy_(tensors["updates"])
            for moment in MOMENTS:
                part = own(tensors[f"{moment}.{name}"])
                unpadded(slot.moments[moment], slot.parameter).copy_(part)


class Slot:
    """What the optimizer holds for this rank's part of one parameter."""

    def __init__(self, parameter: Tensor, updates: float) -> None:
        self.parameter, self.flat = parameter, padded(parameter)
        self._is_copy = self.flat.data_ptr() != parameter.data_ptr()
        self.moments = {moment: padded(torch.zeros_like(parameter)) for moment in MOMENTS}
        self.updates = torch.tensor(updates, device=parameter.device)

    def read(self) -> None:
        """Let the vector have the parameter's values."""
        if self._is_copy:
            unpadded(self.flat, self.parameter).copy_(self.parameter)

    def write(self) -> None:
        """Let the parameter have the vector's."""
        if self._is_copy:
            self.parameter.copy_(unpadded(self.flat, self.parameter))


def padded(tensor: Tensor) -> Tensor:
    """A tensor as a vector of whole widths: the same memory where that fits, else a copy."""
    flat = tensor.reshape(-1)
    return flat if len(flat) % WIDTH == 0 else F.pad(flat, (0, -len(flat) % WIDTH))


def unpadded(flat: Tensor, like: Tensor) -> Tensor:
    """The part of a padded vector that is the tensor, in the shape of that, in the same memory."""
    return flat[: like.numel()].view(like.shape)
