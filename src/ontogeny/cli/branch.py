"""The verb that asks what would have been: `branch`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ontogeny.cli.app import OtherBits, RunFolder, app, out, print_table
from ontogeny.cli.grow import DryRun
from ontogeny.cli.progress import bars, update_bar

if TYPE_CHECKING:
    from ontogeny.artifact import Artifact
    from ontogeny.stages.branch import Branch


@app.command()
def branch(
    run: RunFolder,
    step: Annotated[int, typer.Option("--at", min=0, help="The step to leave the run at")],
    spec: Annotated[
        str,
        typer.Option("--splice", metavar="SPEC", help="A TOML file of what differs, or identity"),
    ],
    folder: Annotated[Path, typer.Option("--out", help="The folder of the branch")],
    dry_run: DryRun = False,
    train: Annotated[bool, typer.Option(help="Train it, or only make it")] = True,
    other_bits: OtherBits = False,
) -> None:
    """Branch off a run at any step, with a stated change of the data or the recipe."""
    from ontogeny.stages.branch import begin_branch, plan_branch
    from ontogeny.stages.splices import read_spec
    from ontogeny.training.loop import train as train_run

    planned = plan_branch(run, step, read_spec(spec))
    if dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            tell(planned, planned.order(Path(scratch) / "branch"))
        return
    begun, batches = begin_branch(planned, folder)
    settings = begun.settings
    tell(planned, planned.order(folder))
    if train and not begun.is_finished:
        with bars() as progress:
            train_run(begun, batches, [update_bar(progress, settings)], other_bits=other_bits)
    if begun.is_finished:
        out.print(f"{folder}: step {settings.num_updates} of {settings.num_updates}")


def tell(planned: Branch, order: Artifact) -> None:
    """Say what a branch is and how far what it sees differs from what its parent sees."""
    settings, kind = planned.settings, planned.spec.kind
    updates = settings.num_updates - settings.first_step
    out.print(
        f"{settings.member}: {updates:,} updates from step {settings.first_step} of "
        f"{planned.parent.run.path}, {updates * settings.tokens_per_update:,} tokens",
    )
    summary = order.facts.get("summary", {})
    rows = [[name.replace("_", " "), f"{number:,}"] for name, number in summary.items()]
    print_table([kind, "number"], rows or [["windows changed", "0"], ["tokens changed", "0"]])
