"""One line an update in `metrics.jsonl`, exactly one whatever restarts happened.

The file is cut to the update a run goes on from, which also mends a line that a kill tore. Other
sinks are functions of an update's metrics: TensorBoard, Weights & Biases.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from ontogeny.errors import ConfigError
from ontogeny.results import UpdateMetrics, parse_metrics

Sink = Callable[[UpdateMetrics], None]
SHOWN = ("loss", "learning_rate", "gradient_norm", "tokens")  # by TensorBoard and W&B


def whole_rows(path: Path) -> Iterator[UpdateMetrics]:
    """The updates of each well-formed line, up to the first that is torn or out of turn."""
    for row, _ in _whole(path):
        yield row


def whole_lines(path: Path) -> list[int]:
    """Where each well-formed line ends, up to the first that is torn or out of turn."""
    return [end for _, end in _whole(path)]


def _whole(path: Path) -> Iterator[tuple[UpdateMetrics, int]]:
    if not path.is_file():
        return
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            row = parse_metrics(line.decode("utf-8", errors="replace"))
            if row is None or row.update != number or not line.endswith(b"\n"):
                return
            end += len(line)
            yield row, end


class MetricsFile(AbstractContextManager["MetricsFile"]):
    """The metrics of a run, open for the updates from `update` on."""

    def __init__(self, path: Path, update: int) -> None:
        ends = whole_lines(path)
        assert update <= len(ends), "a state is only gone on from when its metrics are whole"
        self._file: IO[bytes] = path.open("ab")
        self._file.truncate(ends[update - 1] if update else 0)

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def write(self, row: UpdateMetrics) -> None:
        """Append a line and hand it to the operating system."""
        self._file.write(row.line().encode())
        self._file.flush()

    def sync(self) -> None:
        """Put the lines on disk: before a checkpoint that would outlive them."""
        os.fsync(self._file.fileno())


def tensorboard_sink(folder: Path) -> Sink:
    """Write every update as TensorBoard scalars. Raises ConfigError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("TensorBoard is not installed", fix="pip install 'ontogeny[tensorboard]'"
                          ) from error  # fmt: skip
    writer: Any = SummaryWriter(str(folder))

    def write(row: UpdateMetrics) -> None:
        for name in SHOWN:
            writer.add_scalar(name, getattr(row, name), row.update)
        writer.flush()

    return write


def wandb_sink(project: str, member: str, config: dict[str, Any]) -> Sink:
    """Log every update to Weights & Biases. Raises ConfigError if it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("W&B is not installed", fix="pip install 'ontogeny[wandb]'") from error
    run = wandb.init(project=project, name=member, config=config)

    def write(row: UpdateMetrics) -> None:
        run.log({name: getattr(row, name) for name in SHOWN}, step=row.update)

    return write
