"""Progress on the terminal: a bar a member, a line a finished stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ontogeny.cli.app import out
from ontogeny.suite import RunSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from ontogeny.results import UpdateMetrics
    from ontogeny.stages.lanes import Report


class Bars:
    """A bar a member, and a line for every stage that is done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def began(self, stage: str) -> None:
        self._tasks[stage] = self._progress.add_task(stage, total=None)

    def ended(self, stage: str, seconds: float, was_there: bool) -> None:
        task = self._tasks.pop(stage, None)
        if task is not None:
            self._progress.remove_task(task)
        told = "there" if was_there else f"{seconds:.1f} s"
        self._progress.console.print(f"{stage:<24} {told:>8}")

    def reported(self, report: Report) -> None:
        name = f"{'scores' if report.phase == 'score' else 'runs'}/{report.member}"
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=report.total)
        self._progress.update(
            self._tasks[name], completed=report.done, total=report.total, tokens=report.tokens
        )


def update_bar(
    progress: Progress, settings: RunSettings, num_updates: int | None = None
) -> Callable[[UpdateMetrics], None]:
    """A sink that moves a bar of `num_updates`, or of all the run's."""
    bar = progress.add_task(settings.member, total=num_updates or settings.num_updates)
    seen = 0

    def move(row: UpdateMetrics) -> None:
        nonlocal seen
        seen += settings.tokens_per_update
        progress.update(bar, completed=row.update + 1, tokens=seen)

    return move


def bars(unit: str = "tokens") -> Progress:
    """How far each thing is, its tokens (or so) a second, the time it has left."""
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeRemainingColumn(),
        console=out,
    )


class RateColumn(ProgressColumn):
    """Tokens trained on, or items asked, a second, where the task counts them."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        count, seconds = task.fields.get(self._unit), task.elapsed
        return Text(f"{count / seconds:,.0f} {self._unit}/s" if count and seconds else "")
