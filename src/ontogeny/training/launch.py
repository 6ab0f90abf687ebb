"""Starting the ranks of a run on this machine, by torchrun's own agent.

Not here: more than one machine, for which torchrun itself is typed on each.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ontogeny.errors import TrainingError
from ontogeny.workers import signal_name

TOLD = 2  # the exit code of a rank that said itself what is wrong
ENDED = {-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT}  # because another failed


def num_started() -> int:
    """How many ranks torchrun started, this one among them; 0 where it started none."""
    return int(os.environ.get("WORLD_SIZE", 0))


def launch(words: Sequence[str], num_ranks: int) -> int:
    """Run `ontogeny` with these words as so many ranks, and wait; the exit code of them all.

    Raises TrainingError naming the rank that was killed, and KeyboardInterrupt once all have saved
    and left because they were asked to.
    """
    logging.disable(logging.ERROR)  # the agent's words: what matters is said below
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id="ontogeny",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "ontogeny", *words)
    except SignalException as asked:
        raise KeyboardInterrupt from asked
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        silent = [rank for rank, code in codes.items() if code != TOLD and code not in ENDED]
        if silent:
            raise TrainingError(
                f"rank {silent[0]} of {num_ranks} {_how(codes[silent[0]])}",
                fix="the same command again: it goes on from the last saved state",
            ) from error
        return TOLD
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _how(code: int) -> str:
    if code < 0:
        return f"was killed by {signal_name(-code)}"
    return f"ended with exit code {code}"
