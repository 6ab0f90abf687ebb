"""Batches: what every update sees, as a pure function of the order and the update's number.

A row is a place in the batch of the whole job; ranks take their own of it, so neither their number
nor restarts can change what is seen. Also the rolling digest of the rows seen. T = context length.
Not here: moving tokens to a device (`ontogeny.training`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ontogeny.errors import OrderError
from ontogeny.order.windows import Windows


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of an order for a run of `rows_per_update` rows an update.

    The run begins with update `first_update` at `first_place` of the order: 0 and 0, unless it is
    a branch. What the updates before saw are then the batches `earlier`, of its parent.
    """

    order: Windows
    rows_per_update: int
    first_update: int = 0
    first_place: int = 0
    earlier: Batches | None = None

    def __post_init__(self) -> None:
        if self.rows_per_update < 1:
            raise OrderError(
                "an update needs a row", expected="1 or more", found=self.rows_per_update
            )

    @property
    def start(self) -> str:
        """The rolling digest before update 0."""
        return self.order.start

    @property
    def num_updates(self) -> int:
        """Updates the order has whole batches for."""
        left = self.order.num_windows - self.first_place
        return self.first_update + left // self.rows_per_update

    def place(self, update: int) -> int:
        """Where in the order the rows of an update begin."""
        if update < self.first_update and self.earlier is not None:
            return self.earlier.place(update)
        return self.first_place + (update - self.first_update) * self.rows_per_update

    def updates_and_rows(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which update saw the windows at these places of the order, and as which of its rows."""
        updates, rows = np.divmod(places - self.first_place, self.rows_per_update)
        updates += self.first_update
        if self.earlier is not None:
            before = places < self.first_place
            updates[before], rows[before] = self.earlier.updates_and_rows(places[before])
        return updates, rows

    def __call__(self, update: int) -> np.ndarray:
        """The batch that takes the model from step `update` to the next: int64 [rows, T + 1].

        Raises OrderError when the order ends before `update` does.
        """
        if update < self.first_update and self.earlier is not None:
            return self.earlier(update)
        if not self.first_update <= update < self.num_updates:
            raise OrderError(
                f"the order does not reach update {update}",
                expected=f"updates {self.first_update} to {self.num_updates - 1}",
                found=f"{self.order.num_windows} windows, {self.rows_per_update} an update",
                fix="train for fewer tokens or make a longer order",
            )
        return self.order.rows(self.place(update), self.rows_per_update)


def roll(digest: str, rows: np.ndarray) -> str:
    """The rolling digest after `rows` [count, T + 1] more.

    Row by row, each as little-endian uint32, so that it is equal at equal tokens seen, whatever
    the number of rows an update takes.
    """
    for row in rows:
        state = hashlib.sha256(bytes.fromhex(digest))
        state.update(row.astype("<u4").data)
        digest = state.hexdigest()
    return digest


def rows_of_rank(
    update: int,
    *,
    micro_batch: int,
    num_ranks: int,
    num_micro_steps: int,
    rank: int,
    micro_step: int,
) -> range:
    """The places of the order that GPT-NeoX gives a data-parallel rank in a micro step.

    Ranks take neighbouring slices of each micro step; all of an update's together are the
    update's batch, for any layout. Source: gpt-neox v1.0, megatron/data/samplers.py.
    """
    chunk = (update * num_micro_steps + micro_step) * num_ranks + rank
    return range(chunk * micro_batch, (chunk + 1) * micro_batch)
