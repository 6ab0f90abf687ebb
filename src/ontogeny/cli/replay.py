"""The verb that derives a step anew: `replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ontogeny.artifact import open_artifact
from ontogeny.cli.app import RunFolder, app, out, print_table
from ontogeny.cli.progress import bars, update_bar
from ontogeny.digest import SHORT
from ontogeny.errors import DataError

if TYPE_CHECKING:
    from ontogeny.training.replay import Passed, Replayed


@app.command()
def replay(
    run: RunFolder,
    step: Annotated[int, typer.Option(help="The step to derive, saved or not")],
    start: Annotated[
        int | None, typer.Option("--from", help="From this full state; default: the nearest before")
    ] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Write the checkpoint here")] = None,
    state: Annotated[Path | None, typer.Option(help="Write the full state here")] = None,
    tolerance: Annotated[
        bool, typer.Option("--tolerance", help="Measure what deviates; do not refuse it")
    ] = False,
) -> None:
    """Derive any step of a run again, and compare what the run recorded on the way."""
    from ontogeny.questions.materials import open_materials
    from ontogeny.training.replay import publish
    from ontogeny.training.replay import replay as derive

    for place in (folder, state):
        if place is not None and place.exists():
            raise DataError("already exists", where=place, fix="choose another folder")
        if place is not None and place.resolve().is_relative_to(run.resolve()):
            raise DataError("a replay writes nothing into the run", where=place,
                            fix="choose another folder")  # fmt: skip
    if folder is not None and state is not None and folder.resolve() == state.resolve():
        raise DataError("the checkpoint goes there", where=state, fix="another --state")
    materials = open_materials(run)
    with bars() as progress:
        found = derive(
            materials.run, materials.batches, step, start=start, tolerant=tolerance,
            observe=update_bar(progress, materials.run.settings, step),
        )  # fmt: skip
    publish(materials.run, found, folder, state)
    if found.passed:
        print_table(*passed_table(found.passed))
    tell(found)
    for what, place in (("checkpoint", folder), ("full state", state)):
        if place is not None:
            out.print(f"{what}: {place}, {open_artifact(place).digest}")


def passed_table(passed: list[Passed]) -> tuple[list[str], list[list[str]]]:
    """A row a checkpoint; how far it is off only where one is."""
    header = ["step", "recorded", "replayed", "off by", "at most", "worst tensor", "off by"]
    rows = []
    for one in passed:
        found, cells = one.deviation, ["equal", "-", "-", "-", "-"]
        if found is not None:
            cells = ["differs", f"{found.relative:.2g}", f"{found.absolute:.2g}",
                     found.worst_tensor, f"{found.worst:.2g}"]  # fmt: skip
        rows.append([f"step{one.step}", one.digest[:SHORT], *cells])
    width = len(header) if any(one.deviation for one in passed) else 3
    return header[:width], [row[:width] for row in rows]


def tell(found: Replayed) -> None:
    """Say where a replay began, what it compared, how fast it was, and what it gave."""
    step = found.progress.step
    updates = step - found.start
    origin = f"the full state of step {found.start}"
    if found.is_from_settings:
        origin = "the initial model (no full state of it is kept)"
    if any(one.deviation for one in found.passed):
        out.print("off by: norm of the difference over the norm; at most: of any one weight")
    out.print(f"{updates} updates from {origin}")
    if updates:
        losses = f"off by up to {found.loss_deviation:.2g}" if found.loss_deviation else "equal"
        out.print(
            f"{updates / found.seconds:.1f} updates a second; the losses of {found.num_compared} "
            "of them are on record" + (f": {losses}" if found.num_compared else ""),
        )
    out.print(f"step {step}: weights, optimizer and rows {found.digest}")
