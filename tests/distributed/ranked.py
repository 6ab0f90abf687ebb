"""Functions run by several ranks, each a process of its own, as torchrun would start them."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from killed import FORKS
from ontogeny.training.layout import Layout
from ontogeny.training.ranks import joined

GRACE = 5.0  # seconds that the others have when one rank has failed


class RankFailed(Exception):  # noqa: N818
    """What went wrong on the rank that failed first, with its traceback."""


def on_ranks(layout: Layout, task: Callable[..., Any], *args: object, seconds: float = 90) -> Any:
    """What `task(ranks, *args)` gives on the first rank, called by all ranks of a layout.

    The task is a function of a module. Raises RankFailed with the words of the rank that failed
    first; after `seconds`, or soon after a failure, what still runs is killed.
    """
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    receivers, processes = [], []
    for rank in range(layout.num_ranks):
        receiver, sender = FORKS.Pipe(duplex=False)
        words = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": layout.num_ranks,
                 "MASTER_ADDR": "localhost", "MASTER_PORT": store.port,
                 "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
        process = FORKS.Process(target=_be_rank, args=(words, sender, layout, task, args))
        process.start()
        sender.close()
        receivers.append(receiver)
        processes.append(process)
    try:
        return _first_of(receivers, seconds)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _be_rank(
    words: dict[str, object],
    sender: Connection,
    layout: Layout,
    task: Callable[..., Any],
    args: tuple[object, ...],
) -> None:
    """What a rank's process does."""
    os.environ |= {name: str(word) for name, word in words.items()}
    torch.set_num_threads(1)
    try:
        with joined(layout) as ranks:
            answer = task(ranks, *args)
        sender.send((True, answer if ranks.is_first else None))
    except BaseException:
        sender.send((False, f"rank {words['RANK']}: {traceback.format_exc()}"))


def _first_of(receivers: list[Connection], seconds: float) -> Any:
    """The first rank's answer once all are done; the failure of the first to fail, if one does."""
    until, failures = time.monotonic() + seconds, list[str]()
    answers: dict[int, Any] = {}
    while len(answers) < len(receivers):
        left = {one: rank for rank, one in enumerate(receivers) if rank not in answers}
        ready = wait(list(left), max(0, until - time.monotonic()))
        if not ready:
            break
        for one in ready:
            rank = left[one]  # type: ignore[index]
            try:
                is_well, answers[rank] = receivers[rank].recv()
            except EOFError:
                is_well, answers[rank] = False, f"rank {rank}: died without a word"
            if not is_well:
                failures.append(answers[rank])
                until = min(until, time.monotonic() + GRACE)
    if failures:
        raise RankFailed("\n".join(failures))
    if len(answers) < len(receivers):
        missing = sorted(set(range(len(receivers))) - set(answers))
        raise RankFailed(f"ranks {missing} were not done after {seconds:.0f} s")
    return answers[0]
