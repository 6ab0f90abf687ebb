"""Sums whose bits do not depend on how the work is laid out: a fixed binary tree.

Leaf m is micro batch m of an update. At micro step j rank r of N has leaf jN + r: ranks are summed
pair by pair in their order, micro steps by a binary counter. Then N = 1, 2, 4, ... add the same
numbers in the same order, as floating-point sums must be to come out equal. The number of leaves
is a power of two, so that the tree is whole for each of these.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def sum_pairs(parts: Sequence[Tensor]) -> Tensor:
    """The sum of a power of two of tensors, neighbours first; the first of them holds it."""
    while len(parts) > 1:
        parts = [left.add_(right) for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


class Tree:
    """The sum of leaves that come one after another: what is held is one sum a level.

    At most log2(leaves) + 1 times the memory of a leaf.
    """

    def __init__(self) -> None:
        self._levels: list[list[Tensor] | None] = []

    def add(self, leaf: list[Tensor]) -> None:
        """Add the tensors of the next leaf; they are overwritten."""
        for level, held in enumerate(self._levels):
            if held is None:
                self._levels[level] = leaf
                return
            leaf = [left.add_(right) for left, right in zip(held, leaf, strict=True)]
            self._levels[level] = None
        self._levels.append(leaf)

    def total(self) -> list[Tensor]:
        """The sum of all leaves."""
        total, *others = (held for held in self._levels if held is not None)
        for held in others:  # none where the leaves are a power of two
            total = [left.add_(right) for left, right in zip(held, total, strict=True)]
        return total
