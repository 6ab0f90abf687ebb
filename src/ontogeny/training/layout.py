"""How a run's work is laid out over ranks, and which layouts can be.

A layout is no setting of a run: as long as the run is reproducible, its bits do not depend on it.
Nothing here needs torch, so a wrong layout is refused before any memory is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ontogeny.errors import ConfigError
from ontogeny.suite import RunSettings


@dataclass(frozen=True, slots=True)
class Layout:
    """`data` ranks share the rows of an update, `tensor` ranks each matrix; their product is all.

    `shard` says what the data ranks hold a part of: the optimizer's state and the gradients (the
    parameters are whole from their gathering to the end of the update), or the parameters too.
    With `recompute`, blocks forget their activations and compute them again going backward.
    """

    data: int = 1
    tensor: int = 1
    shard: Literal["optimizer", "all"] = "optimizer"
    recompute: bool = False

    @property
    def num_ranks(self) -> int:
        return self.data * self.tensor

    def as_json(self) -> dict[str, Any]:
        """As provenance keeps it."""
        return asdict(self)


def require_layout(layout: Layout, settings: RunSettings) -> None:
    """Refuse a layout the run cannot have, with those it can have. Raises ConfigError."""
    training, shape = settings.training, settings.shape
    leaves = settings.num_leaves
    if leaves % layout.data:
        raise ConfigError(
            f"{leaves} micro batches an update cannot be shared among {layout.data} ranks",
            where=settings.member,
            expected=f"data-parallel ranks: {_listed(divisors(leaves))}",
            found=layout.data,
            fix=f"training.micro_batch_rows={training.rows_per_update // layout.data} or less"
            if training.rows_per_update % layout.data == 0
            else None,
        )
    for what, number in (("attention heads", shape.num_heads), ("ids", shape.vocab_size)):
        if number % layout.tensor:
            both = [size for size in divisors(shape.num_heads) if shape.vocab_size % size == 0]
            raise ConfigError(
                f"{number} {what} cannot be cut in {layout.tensor}",
                where=settings.member,
                expected=f"tensor-parallel ranks: {_listed(both)}",
                found=layout.tensor,
                fix=f"--tensor-parallel {max(size for size in both if size < layout.tensor)}",
            )
    if training.reproducible and layout.tensor > 1:
        raise ConfigError(
            "tensor parallel adds in another order than one rank does",
            where=settings.member,
            expected="data-parallel ranks alone, whose bits do not depend on their number",
            fix="--set training.reproducible=false, which is recorded",
        )


def divisors(number: int) -> list[int]:
    """All of them, ascending."""
    return [one for one in range(1, number + 1) if number % one == 0]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
