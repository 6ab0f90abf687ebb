"""Sums, norms and steps whose bits do not depend on how a tensor or the work is cut."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import grown
from ontogeny.model import arithmetic
from ontogeny.model.neox import NeoX
from ontogeny.training.optimizer import AdamW
from ontogeny.training.tree import Tree, sum_pairs
from ontogeny.training.update import row_norms

SEEDS = st.integers(0, 2**32 - 1)


def wild(seed: int, *size: int) -> Tensor:
    """Numbers of both signs from 1e-9 to 1e9, whose sums depend on their order."""
    random = np.random.default_rng(seed)
    magnitudes = 10.0 ** random.uniform(-9, 9, size)
    return torch.from_numpy((random.choice([-1, 1], size) * magnitudes).astype(np.float32))


def summed_by_ranks(leaves: Tensor, num_ranks: int) -> Tensor:
    """The sum of leaves [M, ...] as so many ranks make it."""
    tree = Tree()
    for micro_step in leaves.clone().split(num_ranks):
        tree.add([sum_pairs(list(micro_step))])
    return tree.total()[0]


def halves(leaves: Tensor) -> Tensor:
    """The sum of a power of two of leaves: that of one half plus that of the other."""
    if len(leaves) == 1:
        return leaves[0]
    middle = len(leaves) // 2
    return halves(leaves[:middle]) + halves(leaves[middle:])


@given(SEEDS, st.integers(0, 5), st.integers(0, 5))
def test_any_number_of_ranks_adds_the_same_tree(seed: int, levels: int, share: int) -> None:
    leaves = wild(seed, 2**levels, 3)
    assert torch.equal(summed_by_ranks(leaves, 2 ** min(share, levels)), halves(leaves))


def test_a_plain_sum_is_not_that_tree() -> None:
    leaves = wild(0, 16, 50)
    assert not torch.equal(reduce(torch.add, leaves), halves(leaves))


@given(st.integers(1, 40), st.integers(1, 6))
def test_leaves_that_are_no_power_of_two_are_all_added(number: int, width: int) -> None:
    leaves = torch.arange(number * width, dtype=torch.float32).view(number, width)
    assert torch.equal(summed_by_ranks(leaves, 1), leaves.sum(dim=0))


def test_a_tree_holds_a_sum_a_level() -> None:
    tree = Tree()
    most = 0
    for _ in range(64):
        tree.add([torch.ones(1)])
        most = max(most, sum(held is not None for held in tree._levels))
    assert tree.total() == [torch.tensor([64.0])]
    assert most == 6


@st.composite
def cuts(draw: st.DrawFn, most_rows: int, most_columns: int) -> tuple[Tensor, list[int]]:
    """A matrix, and into how many rows each its parts are cut."""
    rows, columns = draw(st.integers(1, most_rows)), draw(st.integers(1, most_columns))
    places = draw(st.lists(st.integers(0, rows), max_size=4))
    bounds = [0, *sorted(places), rows]
    return wild(draw(SEEDS), rows, columns), [b - a for a, b in pairwise(bounds)]


@given(cuts(200, 600), st.integers(1, 3), st.integers(1, 3))
def test_the_norm_of_a_row_does_not_know_its_neighbours(
    cut: tuple[Tensor, list[int]], threads_of_whole: int, threads_of_parts: int
) -> None:
    matrix, sizes = cut
    with arithmetic.threads(threads_of_whole):
        whole = row_norms(matrix)
    with arithmetic.threads(threads_of_parts):
        parts = [row_norms(part) for part in matrix.split(sizes)]
    assert torch.equal(whole, torch.cat(parts))


class Parts(nn.Module):
    """The parts of one parameter, as if each were a model's own."""

    def __init__(self, parts: list[Tensor]) -> None:
        super().__init__()
        self.parts = nn.ParameterList([part.clone() for part in parts])


def stepped(parts: list[Tensor], gradients: list[list[Tensor]]) -> Iterator[Tensor]:
    """The parts after a step of AdamW for each list of gradients, then their moments."""
    model = Parts(parts)
    names = [name for name, _ in model.named_parameters()]
    optimizer = AdamW(cast("NeoX", model), grown.settings())
    for number, of_parts in enumerate(gradients):
        copies = [part.clone() for part in of_parts]
        optimizer.step(dict(zip(names, copies, strict=True)), 1e-2 / (number + 1))
    yield torch.cat([part.detach() for part in model.parts])
    state = optimizer.named_state()
    for moment in ("exp_avg", "exp_avg_sq"):
        yield torch.cat([state[f"{moment}.{name}"] for name in names])


@pytest.mark.parametrize("is_matrix", [True, False])
@settings(max_examples=60)
@given(cut=cuts(60, 40))
def test_a_step_moves_a_number_the_same_wherever_it_is_cut(
    is_matrix: bool, cut: tuple[Tensor, list[int]]
) -> None:
    matrix, sizes = cut
    weights = matrix.clamp(-2, 2) if is_matrix else matrix[:, 0].clamp(-2, 2)
    gradients = [
        torch.randn(weights.shape, generator=torch.Generator().manual_seed(s)) for s in range(3)
    ]
    whole = stepped([weights], [[gradient] for gradient in gradients])
    parts = stepped(list(weights.split(sizes)), [list(one.split(sizes)) for one in gradients])
    for left, right in zip(whole, parts, strict=True):
        assert torch.equal(left, right)
