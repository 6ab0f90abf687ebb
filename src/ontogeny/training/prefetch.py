"""The rows of a run's updates, read by a thread while the updates before are computed.

What is read is a function of the update's number, so reading ahead changes nothing but the time.
An error of the thread is raised where the update it belongs to asks for its rows. Not here: which
rows an update has (`order/batches.py`), what they are used for (`update.py`).
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ontogeny.checkpoints.store import Progress
from ontogeny.order.batches import Batches, roll

AHEAD = 2  # updates whose rows are held besides the one that is computed


@dataclass(frozen=True, slots=True)
class Rows:
    """What an update sees: int64 [rows, T + 1] on the device, from `place` of the order on.

    `digest` is the rolling digest of all rows up to the last of these.
    """

    tokens: Tensor
    place: int
    digest: str


class Feed(AbstractContextManager["Feed"]):
    """Gives the rows of one update after another, from a run's progress up to update `end`.

    `waited` counts the seconds for which rows were asked for and not there yet.
    """

    def __init__(
        self, batches: Batches, progress: Progress, end: int, device: torch.device
    ) -> None:
        self._batches, self._device = batches, device
        self._digest = progress.rows_digest  # rolled by the thread, in turn
        self._left = iter(range(progress.step, end))
        self._thread = ThreadPoolExecutor(1, "rows")
        self._ahead: deque[Future[Rows]] = deque()
        self.waited = 0.0
        for _ in range(AHEAD):
            self._read_one_more()

    def __exit__(self, *raised: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self) -> Rows:
        """The rows of the next update. Raises what kept them from being read."""
        self._read_one_more()
        began = time.perf_counter()
        rows = self._ahead.popleft().result()
        self.waited += time.perf_counter() - began
        return rows

    def _read_one_more(self) -> None:
        update = next(self._left, None)
        if update is not None:
            self._ahead.append(self._thread.submit(self._read, update))

    def _read(self, update: int) -> Rows:
        rows = self._batches(update)
        self._digest = roll(self._digest, rows)
        tokens = torch.from_numpy(rows)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # pinned memory is for the thread's own
            tokens = tokens.pin_memory().to(self._device, non_blocking=True)
        return Rows(tokens, self._batches.place(update), self._digest)
