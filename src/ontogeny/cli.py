"""The command line: words in, words out.

Every verb is a few lines around a function of another room. A user's mistake is one line and exit
code 2; anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import signal
import time
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
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
from rich.table import Table
from rich.text import Text

from ontogeny.config import build, read_toml, with_changes
from ontogeny.errors import OntogenyError
from ontogeny.shape import PYTHIA_VOCABULARY, SIZES, Shape, padded
from ontogeny.suite import RunFile, RunSettings, load_suite

if TYPE_CHECKING:
    from collections.abc import Callable

    from ontogeny.results import UpdateMetrics
    from ontogeny.stages.lanes import Report

MENDABLE = {
    errno.ENOSPC: "no space is left; try: free some, or another folder with --out",
    errno.EDQUOT: "the quota is used up; try: free some, or another folder with --out",
    errno.EACCES: "not allowed; try: another folder with --out, or change its permissions",
    errno.EPERM: "not allowed; try: another folder with --out, or change its permissions",
    errno.EROFS: "cannot be written; try: another folder with --out",
}

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

RunFolder = Annotated[Path, typer.Argument(help="The folder of a run, such as demo/runs/2m")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; do nothing")]
OtherBits = Annotated[
    bool, typer.Option("--other-bits", help="Go on from states of another torch or processor")
]
Cache = Annotated[Path | None, typer.Option("--cache", help="Where fetched packages are kept")]


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version")] = False,
) -> None:
    """Grow controlled suites of language models and study how they grow."""
    if version:
        out.print(metadata.version("ontogeny"), highlight=False)
        raise typer.Exit


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option("--out", help="Default: demo, or quick")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The same path, much smaller")] = False,
    prefetch: Annotated[bool, typer.Option("--prefetch", help="Only fetch the text")] = False,
    changes: Changes = None,
    dry_run: DryRun = False,
    cache: Cache = None,
    other_bits: OtherBits = False,
) -> None:
    """From real text to a trained suite and a report, in minutes on two CPU cores."""
    name = "quick" if quick else "demo"
    with resources.as_file(resources.files("ontogeny") / "suites" / f"{name}.toml") as file:
        if prefetch:
            fetch_text(file, cache)
        else:
            grow(file, folder or Path(name), changes, dry_run, cache, other_bits)


@app.command()
def run(
    suite: Annotated[Path, typer.Argument(help="A suite file, such as suites/demo.toml")],
    folder: Annotated[Path, typer.Option("--out", help="The folder the suite grows in")],
    changes: Changes = None,
    dry_run: DryRun = False,
    cache: Cache = None,
    other_bits: OtherBits = False,
) -> None:
    """Grow a suite: make every stage that is missing, from text to report."""
    grow(suite, folder, changes, dry_run, cache, other_bits)


@app.command()
def train(
    run_file: Annotated[Path, typer.Argument(help="A run file: a size and the store to train on")],
    folder: Annotated[Path, typer.Option("--out", help="The folder of the run")],
    changes: Changes = None,
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard scalars too")] = False,
    wandb: Annotated[str | None, typer.Option(metavar="PROJECT", help="Log to W&B too")] = None,
    other_bits: OtherBits = False,
) -> None:
    """Train a single run, or go on with it."""
    from ontogeny.stages.single import begin_single
    from ontogeny.training import metrics
    from ontogeny.training.loop import train as train_run

    values = with_changes(read_toml(run_file), changes or [])
    single = build(RunFile, values, run_file)
    begun, batches = begin_single(single, run_file.parent, folder)
    settings = begun.settings
    if not begun.is_finished:
        sinks = [metrics.tensorboard_sink(folder / "tensorboard")] if tensorboard else []
        if wandb is not None:
            sinks.append(metrics.wandb_sink(wandb, settings.member, settings.resolved()))
        with bars() as progress:
            sinks.append(update_bar(progress, settings))
            train_run(begun, batches, sinks, other_bits=other_bits)
    out.print(f"{folder}: step {settings.num_updates} of {settings.num_updates}")


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Argument(help="The text to go on from")],
    step: Annotated[int, typer.Option(help="Which checkpoint")],
    tokens: Annotated[int, typer.Option(min=1, help="At most so many")] = 50,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Continue a text with any checkpoint."""
    from ontogeny.checkpoints.store import load_checkpoint
    from ontogeny.evaluation.score import continue_text
    from ontogeny.model.neox import DTYPES
    from ontogeny.tokens.vocabulary import TOKENIZER, load_vocabulary
    from ontogeny.training.run import open_run

    settings = open_run(run).settings
    vocabulary = load_vocabulary(run / TOKENIZER)
    ids = continue_text(
        load_checkpoint(run, step),
        vocabulary.encode(prompt) or [vocabulary.eod],
        tokens,
        DTYPES[settings.training.precision],
        temperature=temperature,
        seed=seed,
        end=vocabulary.eod,
    )
    out.print(prompt + vocabulary.decode(list(ids)), markup=False, highlight=False)


@app.command()
def prune(run: RunFolder) -> None:
    """Free the full states of a run; its checkpoints and their lineage stay whole.

    A run that is not finished keeps its latest state, to go on from.
    """
    from ontogeny.checkpoints.store import drop_states, list_states
    from ontogeny.training.run import locked, open_run

    opened = open_run(run)
    with locked(run):
        latest = list_states(run)[-1:]
        freed = drop_states(run, frozenset() if opened.is_finished else frozenset(latest))
    out.print(f"{run}: freed {freed / 1e6:.1f} MB of full states")


@app.command()
def report(
    home: Annotated[Path, typer.Argument(help="The folder of a suite, such as demo")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where the page goes; default: the suite's folder")
    ] = None,
) -> None:
    """Write the page about a suite that has been grown."""
    from ontogeny.report.site import build_report
    from ontogeny.stages.graph import report_on

    if folder is None:
        folder = report_on(home)
    else:
        build_report(home, folder)
    out.print(f"page: {folder / 'index.html'}")


@app.command()
def models(
    vocab_size: Annotated[int, typer.Option(min=1, help="Ids before padding")] = PYTHIA_VOCABULARY,
) -> None:
    """Print every size of Pythia and what follows from it."""
    header = ["size", "non-embedding", "total", "layers", "width", "heads", "head size",
              "learning rate", "rows/update", "same shape"]  # fmt: skip
    rows = []
    for size in SIZES.values():
        shape = Shape(
            num_layers=size.num_layers,
            hidden_size=size.hidden_size,
            num_heads=size.num_heads,
            vocab_size=padded(vocab_size, size.vocab_multiple),
            context_length=2048,
        )
        rows.append(
            [
                size.name,
                f"{shape.num_non_embedding:,}",
                f"{shape.num_parameters:,}",
                str(size.num_layers),
                str(size.hidden_size),
                str(size.num_heads),
                str(shape.head_size),
                f"{size.learning_rate:g}",
                str(size.rows_per_update),
                ", ".join(size.equivalents) or "-",
            ]
        )
    print_table(header, rows)


def fetch_text(suite_file: Path, cache: Path | None) -> None:
    """Fetch the packages a suite's text comes from, for a machine that goes offline later."""
    from ontogeny.text.components import prefetch

    for file in prefetch(load_suite(suite_file).text.components, cache):
        out.print(f"{file}")


def grow(
    suite_file: Path,
    folder: Path,
    changes: list[str] | None,
    dry_run: bool,
    cache: Path | None,
    other_bits: bool,
) -> None:
    """Grow a suite in `folder`, or print what that would take."""
    from ontogeny.artifact import require_space
    from ontogeny.report.evidence import gather
    from ontogeny.report.tables import summary_rows
    from ontogeny.stages.graph import Growth
    from ontogeny.stages.plan import as_bytes, as_time, plan_rows, plan_suite, stage_rows

    began = time.monotonic()
    suite = load_suite(suite_file, changes)
    plan = plan_suite(suite, suite_file.parent)
    out.print(
        f"{suite.name}: {len(plan.members)} members, {plan.num_lanes} at a time, "
        f"{plan.precision}, about {as_bytes(plan.num_bytes)} on disk and {as_time(plan.seconds)}"
    )
    progress = bars()
    base, watch = suite_file.parent, Bars(progress)
    growth = Growth(suite, folder, base, cache, plan.num_lanes, watch, other_bits)
    if dry_run:
        obstacle = growth.look()
        print_table(*stage_rows(plan, growth.found))
        if obstacle is not None:
            out.print(f"not there yet: {obstacle}", markup=False, highlight=False)
        out.print()
        print_table(*plan_rows(plan))
        return
    require_space(folder, plan.num_bytes)
    try:
        with progress:
            growth.run()
    except KeyboardInterrupt:
        _leave("stopped; the same command goes on from the last saved state", 130)
    print_table(*summary_rows(gather(folder)))
    out.print(f"page: {folder / 'report' / 'index.html'}")
    out.print(f"all of it took {as_time(time.monotonic() - began)}")


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
        self._progress.console.print(f"{stage:<24} {told:>8}", highlight=False)

    def reported(self, report: Report) -> None:
        name = f"{'scores' if report.phase == 'score' else 'runs'}/{report.member}"
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=report.total)
        self._progress.update(
            self._tasks[name], completed=report.done, total=report.total, tokens=report.tokens
        )


def update_bar(progress: Progress, settings: RunSettings) -> Callable[[UpdateMetrics], None]:
    """A sink that moves a bar of updates."""
    bar = progress.add_task(settings.member, total=settings.num_updates)
    seen = 0

    def move(row: UpdateMetrics) -> None:
        nonlocal seen
        seen += settings.tokens_per_update
        progress.update(bar, completed=row.update + 1, tokens=seen)

    return move


def bars() -> Progress:
    """How far each thing is, its tokens a second, the time it has left."""
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TokensColumn(),
        TimeRemainingColumn(),
        console=out,
    )


class TokensColumn(ProgressColumn):
    """Tokens trained on a second, where the task counts them."""

    def render(self, task: Task) -> Text:
        tokens, seconds = task.fields.get("tokens"), task.elapsed
        return Text(f"{tokens / seconds:,.0f} tokens/s" if tokens and seconds else "")


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as they need to be, words to the left and numbers to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, title in enumerate(header):
        is_words = not any(character.isdigit() for character in rows[0][place][:2])
        table.add_column(title, justify="left" if place == 0 or is_words else "right")
    for row in rows:
        table.add_row(*row)
    width = sum(max(map(len, column)) + 2 for column in zip(header, *rows, strict=True))
    Console(width=max(width, 1)).print(table)


def main() -> None:
    """The console command: a user's mistake is one line on standard error and exit code 2."""
    from ontogeny.training.loop import Stopped

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except OntogenyError as error:
        _leave(f"error: {error}", 2)
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        _leave(f"error: {error.filename or 'disk'}: {error.strerror}; {MENDABLE[error.errno]}", 2)
    except Stopped as stopped:
        _leave(str(stopped), 128 + stopped.signal_number)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _leave(words: str, code: int) -> NoReturn:
    err.print(words, markup=False, highlight=False)
    raise SystemExit(code)
