"""Starting the ranks of a run on this machine: torchrun's own agent, without its words.

Not here: more than one machine, for which torchrun itself is typed on each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ontogeny.errors import TrainingError


def num_started() -> int:
    """How many ranks torchrun started, this one among them; 0 where it started none."""
    return int(os.environ.get("WORLD_SIZE", 0))


def launch(words: Sequence[str], num_ranks: int) -> None:
    """Run `ontogeny` with these words as so many ranks, and wait for their end.

    Raises TrainingError naming the rank that failed first.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "ontogeny", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise TrainingError(
            f"rank {rank} of {num_ranks} ended with exit code {failure.exitcode}",
            fix="the same command again: it goes on from the last saved state",
        ) from error
