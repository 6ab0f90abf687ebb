"""Verbs that grow suites: `demo`, `run`, `report`."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from ontogeny.cli.app import STOPPED, Changes, OtherBits, app, leave, out, print_table
from ontogeny.cli.progress import Bars, bars
from ontogeny.suite import load_suite
from ontogeny.workers import Workers, num_cores

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; do nothing")]
NumWorkers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that prepare text; default: cores")
]
Cluster = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Prepare text on a Ray cluster; local: here"),
]
Cache = Annotated[Path | None, typer.Option("--cache", help="Where fetched packages are kept")]


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option("--out", help="Default: demo, or quick")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The same path, much smaller")] = False,
    prefetch: Annotated[bool, typer.Option("--prefetch", help="Only fetch the text")] = False,
    changes: Changes = None,
    dry_run: DryRun = False,
    cache: Cache = None,
    workers: NumWorkers = None,
    ray: Cluster = None,
    other_bits: OtherBits = False,
) -> None:
    """From real text to a trained suite and a report, in minutes on two CPU cores."""
    name = "quick" if quick else "demo"
    with resources.as_file(resources.files("ontogeny") / "suites" / f"{name}.toml") as file:
        if prefetch:
            fetch_text(file, changes, cache)
        else:
            grow(
                file, folder or Path(name), changes, dry_run=dry_run, cache=cache,
                other_bits=other_bits, workers=Workers(workers or num_cores(), ray),
            )  # fmt: skip


@app.command()
def run(
    suite: Annotated[Path, typer.Argument(help="A suite file, such as suites/demo.toml")],
    folder: Annotated[Path, typer.Option("--out", help="The folder the suite grows in")],
    changes: Changes = None,
    dry_run: DryRun = False,
    cache: Cache = None,
    workers: NumWorkers = None,
    ray: Cluster = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that train each member")] = 1,
    other_bits: OtherBits = False,
) -> None:
    """Grow a suite: make every stage that is missing, from text to report."""
    grow(
        suite, folder, changes, dry_run=dry_run, cache=cache, other_bits=other_bits,
        workers=Workers(workers or num_cores(), ray), num_ranks=ranks,
    )  # fmt: skip


@app.command()
def report(
    home: Annotated[Path, typer.Argument(help="The folder of a suite, or a store of scores")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where the page goes; default: that folder")
    ] = None,
) -> None:
    """Write the page about a suite that has been grown, or about scores alone."""
    from ontogeny.report.site import build_report
    from ontogeny.stages.graph import report_on

    if folder is None:
        folder = report_on(home)
    else:
        build_report(home, folder)
    out.print(f"page: {folder / 'index.html'}")


def fetch_text(suite_file: Path, changes: list[str] | None, cache: Path | None) -> None:
    """Fetch the packages a suite's text comes from, for a machine that goes offline later."""
    from ontogeny.text.components import prefetch

    for file in prefetch(load_suite(suite_file, changes).text.components, cache):
        out.print(f"{file}")


def grow(
    suite_file: Path,
    folder: Path,
    changes: list[str] | None,
    *,
    dry_run: bool,
    cache: Path | None,
    other_bits: bool,
    workers: Workers,
    num_ranks: int = 1,
) -> None:
    """Grow a suite in `folder`, or print what that would take."""
    from ontogeny.artifact import require_space
    from ontogeny.report.evidence import gather
    from ontogeny.report.tables import MARK, MARKED, summary_rows
    from ontogeny.stages.graph import Growth
    from ontogeny.stages.plan import as_bytes, as_time, plan_rows, plan_suite, stage_rows

    began = time.monotonic()
    suite = load_suite(suite_file, changes)
    plan = plan_suite(suite, suite_file.parent, num_ranks)
    out.print(
        f"{suite.name}: {len(plan.members)} members, {plan.num_lanes} at a time, "
        f"{plan.precision}, about {as_bytes(plan.num_bytes)} on disk and {as_time(plan.seconds)}"
    )
    progress = bars()
    growth = Growth(
        suite, folder, suite_file.parent, cache, plan.num_lanes, Bars(progress),
        other_bits=other_bits, workers=workers, num_ranks=num_ranks,
    )  # fmt: skip
    if dry_run:
        obstacle = growth.look()
        print_table(*stage_rows(plan, growth.stages))
        if obstacle is not None:
            out.print(f"not there yet: {obstacle}")
        out.print()
        print_table(*plan_rows(plan))
        return
    require_space(folder, plan.missing_bytes(folder))
    try:
        with progress:
            growth.run()
    except KeyboardInterrupt:
        leave(STOPPED, 130)
    header, rows = summary_rows(gather(folder))
    print_table(header, rows)
    if any(MARK in cell for row in rows for cell in row):
        out.print(MARKED)
    out.print(f"page: {folder / 'report' / 'index.html'}")
    out.print(f"all of it took {as_time(time.monotonic() - began)}")
