"""What is trained: the mean loss of a model over rows of tokens, and the root of its shards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ontogeny.model.loss import linear_cross_entropy
from ontogeny.model.neox import NeoX


class Objective(nn.Module):
    """A model and its loss; called on rows, so that what cuts the model sees the whole pass.

    With `recompute`, the model's blocks keep only their inputs for the backward pass; with
    `compiles`, they are compiled, inside of that.
    """

    def __init__(self, model: NeoX, *, recompute: bool = False, compiles: bool = False) -> None:
        super().__init__()
        self.model = model
        # Where the output embedding is cut, another; and told before every pass of an update
        # whether it is the last: `parallel.py` sets both.
        self.loss: Callable[..., Tensor] = linear_cross_entropy
        self.before_pass: Callable[[bool], None] = lambda is_last: None
        for block in model.layers:
            if compiles:
                block.forward = torch.compile(block.forward)
            if recompute:
                block.forward = partial(
                    checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
                )

    def forward(self, rows: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """The mean loss, float32, of int64 rows [N, T + 1], computed in `dtype`.

        Its gradient comes out multiplied by `scale`.
        """
        hidden = self.model.hidden(rows[:, :-1], dtype).flatten(0, 1)
        return self.loss(hidden, self.model.embed_out.weight, rows[:, 1:].flatten(), scale)
