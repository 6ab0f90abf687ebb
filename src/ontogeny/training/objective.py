"""What is trained: the mean loss of a model over rows of tokens, and the root of its shards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ontogeny.model.loss import linear_cross_entropy
from ontogeny.model.neox import NeoX


class Objective(nn.Module):
    """A model and its loss; called on rows, so that what cuts the model sees the whole pass."""

    def __init__(self, model: NeoX) -> None:
        super().__init__()
        self.model = model
        # Told before every pass of an update whether it is the last; `parallel.py` listens.
        self.before_pass: Callable[[bool], None] = lambda is_last: None

    def forward(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The mean loss, float32, of int64 rows [N, T + 1], computed in `dtype`."""
        hidden = self.model.hidden(rows[:, :-1], dtype).flatten(0, 1)
        return linear_cross_entropy(hidden, self.model.embed_out.weight, rows[:, 1:].flatten())
