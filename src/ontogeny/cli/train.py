"""Verbs about a single run: `train`, alone or by several ranks, and `prune`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ontogeny.cli.app import STOPPED, Changes, OtherBits, RunFolder, app, leave, out
from ontogeny.cli.progress import bars, update_bar
from ontogeny.config import build, read_toml, with_changes
from ontogeny.errors import ConfigError
from ontogeny.suite import RunFile

if TYPE_CHECKING:
    from ontogeny.order.batches import Batches
    from ontogeny.training.run import Run


@app.command()
def train(
    what: Annotated[Path, typer.Argument(help="A run file, or the folder of a run to go on with")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="The folder of a run file's run")
    ] = None,
    changes: Changes = None,
    num_ranks: Annotated[int, typer.Option("--ranks", min=1, help="Processes that share it")] = 1,
    tensor: Annotated[
        int, typer.Option("--tensor-parallel", min=1, help="Ranks that share each matrix")
    ] = 1,
    shard: Annotated[
        Literal["optimizer", "all"], typer.Option(help="What each rank holds only a part of")
    ] = "optimizer",
    recompute: Annotated[
        bool, typer.Option(help="Forget activations, compute them again going backward")
    ] = False,
    patience: Annotated[
        float, typer.Option(help="Seconds a rank may be silent before the others give up")
    ] = 600.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no bar")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard scalars too")] = False,
    wandb: Annotated[str | None, typer.Option(metavar="PROJECT", help="Log to W&B too")] = None,
    other_bits: OtherBits = False,
) -> None:
    """Train a single run, or go on with it; with --ranks, or under torchrun, by several ranks."""
    from ontogeny.training import metrics
    from ontogeny.training.launch import launch, num_started
    from ontogeny.training.layout import Layout, require_layout
    from ontogeny.training.loop import train as train_run
    from ontogeny.training.ranks import joined

    number = num_started() or num_ranks
    layout = Layout(number // tensor or 1, tensor, shard, recompute)
    if number > 1 and not num_started():
        run, _ = begun(what, folder, changes)
        require_layout(layout, run.settings)
        try:
            raise typer.Exit(launch(sys.argv[1:], number))
        except KeyboardInterrupt:
            leave(STOPPED, 130)
    with joined(layout, patience) as ranks, ExitStack() as shown:
        run, batches = ranks.first(lambda: begun(what, folder, changes))
        settings, sinks = run.settings, []
        if ranks.is_first and not run.is_finished:
            sinks = [metrics.tensorboard_sink(run.path / "tensorboard")] if tensorboard else []
            if wandb is not None:
                sinks.append(metrics.wandb_sink(wandb, settings.member, settings.resolved()))
            if not quiet:
                sinks.append(update_bar(shown.enter_context(bars()), settings))
        if not run.is_finished:
            train_run(run, batches, sinks, ranks=ranks, other_bits=other_bits)
    if ranks.is_first and not quiet:
        out.print(f"{run.path}: step {settings.num_updates} of {settings.num_updates}")


def begun(what: Path, folder: Path | None, changes: list[str] | None) -> tuple[Run, Batches]:
    """The run that `what` is the folder or the file of, and its batches.

    Raises ConfigError when the two are mixed up.
    """
    from ontogeny.questions.materials import open_materials
    from ontogeny.stages.single import begin_single

    if what.is_dir():
        if folder or changes:
            raise ConfigError(
                "the folder of a run knows its settings and its place",
                where=what,
                fix="leave out --out and --set, or name a run file",
            )
        materials = open_materials(what)
        return materials.run, materials.batches
    values = with_changes(read_toml(what), changes or [])
    single = build(RunFile, values, what)
    if folder is None:
        raise ConfigError("a run file needs a folder to run in", where=what, fix="--out FOLDER")
    return begin_single(single, what.parent, folder)


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
