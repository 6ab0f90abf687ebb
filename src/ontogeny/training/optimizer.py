"""AdamW with the original's groups, and its state by parameter name.

Weight decay on every matrix, both embeddings included; none on biases and norms.
Source: gpt-neox v1.0 (`get_params_for_weight_decay_optimization`, fused Adam of its engine).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ontogeny.errors import CheckpointError
from ontogeny.model.neox import NeoX
from ontogeny.suite import RECIPES, RunSettings

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW over the two groups of a model."""

    def __init__(self, model: NeoX, settings: RunSettings) -> None:
        training = settings.training
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": training.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        betas = (training.beta1, training.beta2)
        super().__init__(groups, lr=0.0, betas=betas, eps=training.epsilon, fused=True)
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        counted = RECIPES[settings.recipe].optimizer_counts_from
        for parameter in self._names:
            self.state[parameter] = {
                "step": torch.tensor(float(counted), device=parameter.device),
                **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
            }

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next update."""
        for group in self.param_groups:
            group["lr"] = rate

    def named_state(self) -> dict[str, Tensor]:
        """Both moments of every parameter and the update counter, as a flat table of tensors."""
        tensors = {
            f"{moment}.{name}": self.state[parameter][moment]
            for parameter, name in self._names.items()
            for moment in MOMENTS
        }
        return tensors | {"updates": self.state[next(iter(self._names))]["step"].cpu()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `named_state` gave. Raises CheckpointError if a tensor is missing."""
        try:
            for parameter, name in self._names.items():
                state = self.state[parameter]
                state["step"].copy_(tensors["updates"])
                for moment in MOMENTS:
                    state[moment].copy_(tensors[f"{moment}.{name}"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the optimizer's state does not fit the model: {error}"
            ) from error
