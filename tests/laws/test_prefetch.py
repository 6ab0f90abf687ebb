"""Rows that are read ahead: the same rows and digests, in turn, whatever happens to the reader."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import torch

from grown import Ground
from ontogeny.checkpoints.store import Progress
from ontogeny.errors import OrderError
from ontogeny.order.batches import Batches, roll
from ontogeny.training.prefetch import AHEAD, Feed

CPU = torch.device("cpu")


@dataclass
class Slow:
    """Batches that take their time, know what was asked of them, and end at a broken one."""

    batches: Batches
    seconds: float = 0.0
    broken: int = 1 << 30
    read: int = 0

    def place(self, update: int) -> int:
        return self.batches.place(update)

    def __call__(self, update: int) -> np.ndarray:
        if update == self.broken:
            raise OrderError(f"the disk of update {update} is gone")
        time.sleep(self.seconds)
        self.read += 1
        return self.batches(update)

    def feed(self, start: int, end: int) -> Feed:
        progress = Progress(start, 0, self.batches.start)
        return Feed(cast("Batches", self), progress, end, CPU)


def readers() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("rows")]


@pytest.mark.parametrize("start", [0, 7])
def test_rows_places_and_digests_are_those_read_one_by_one(ground: Ground, start: int) -> None:
    batches, digest = ground.batches(4), ground.batches(4).start
    with Slow(batches).feed(start, 12) as feed:
        for update in range(start, 12):
            digest = roll(digest, batches(update))
            rows = feed.take()
            assert torch.equal(rows.tokens, torch.from_numpy(batches(update)))
            assert (rows.place, rows.digest) == (4 * update, digest)
    assert readers() == []


def test_no_more_is_read_than_asked_for_and_a_little(ground: Ground) -> None:
    slow = Slow(ground.batches(4))
    with slow.feed(0, 100) as feed:
        feed.take()
        time.sleep(0.05)
        assert slow.read == 1 + AHEAD
    with slow.feed(0, 2) as feed:
        feed.take()
        feed.take()
    assert slow.read == 1 + AHEAD + 2


def test_an_error_comes_up_at_the_update_it_belongs_to(ground: Ground) -> None:
    with Slow(ground.batches(4), broken=2).feed(0, 9) as feed:
        time.sleep(0.05)  # it has met the broken one by now
        assert [feed.take().place for _ in range(2)] == [0, 4]
        with pytest.raises(OrderError, match="the disk of update 2 is gone"):
            feed.take()
    assert readers() == []


def test_waiting_is_only_for_what_is_not_there_yet(ground: Ground) -> None:
    slow = Slow(ground.batches(4), seconds=0.05)
    with slow.feed(0, 3) as feed:
        feed.take()
        assert feed.waited > 0.02
        while slow.read < 3:
            time.sleep(0.01)
        before = feed.waited
        feed.take()
        assert feed.waited - before < 0.02
