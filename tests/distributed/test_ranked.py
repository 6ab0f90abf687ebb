"""That functions run on ranks tell what became of them."""

from __future__ import annotations

import os

import pytest
import torch
from ranked import RankFailed, on_ranks

from ontogeny.training.layout import Layout
from ontogeny.training.ranks import Ranks


def places(ranks: Ranks) -> list[list[int]]:
    number = ranks.number
    return ranks.gathered(torch.tensor([number, ranks.place])).tolist()


def fail(ranks: Ranks, how: str) -> None:
    if ranks.number == 1:
        if how == "dies":
            os._exit(9)
        raise ValueError("the second rank failed")
    ranks.any(True)  # waits for the other


def test_all_ranks_run_and_the_first_answers() -> None:
    assert on_ranks(Layout(2), places) == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("how", "told"), [("raises", "the second rank failed"), ("dies", "rank 1")]
)
def test_a_rank_that_fails_is_told(how: str, told: str) -> None:
    with pytest.raises(RankFailed, match=told):
        on_ranks(Layout(2), fail, how)
