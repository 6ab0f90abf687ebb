"""The verb `plan`: what a suite would take on GPUs that are not here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ontogeny.cli.app import Changes, app, out, print_json, print_table
from ontogeny.errors import ConfigError
from ontogeny.suite import Suite, load_suite

if TYPE_CHECKING:
    from ontogeny.stages.forecast import Forecast

TIME = ["member", "data", "tensor", "shard", "recompute", "micro batch", "update", "tokens/s",
        "of peak", "hours", "GPU-hours"]  # fmt: skip
MEMORY = ["a GPU of", "parameters", "weights", "moments", "gradients", "gathered", "activations",
          "logits", "exchange", "in all", "fits", "sent an update"]  # fmt: skip


@app.command()
def plan(
    context: typer.Context,
    suite: Annotated[str, typer.Argument(help="A suite file, or one of ours, such as pythia")],
    num_gpus: Annotated[int, typer.Option("--gpus", min=1, help="How many GPUs")] = 8,
    kind: Annotated[str, typer.Option("--gpu", help="Their kind, such as a100-80gb")] = "h100",
    member: Annotated[str | None, typer.Option(help="All layouts of one member")] = None,
    price: Annotated[
        float | None, typer.Option("--gpu-hour-price", min=0, help="To add what it costs")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--against-paper", help="Pythia's layouts beside its published hours")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All layouts, as JSON")] = False,
    changes: Changes = None,
) -> None:
    """Plan a suite for GPUs that are not here: layouts, memory, traffic, hours."""
    from ontogeny.stages.forecast import against_paper, choose, counted
    from ontogeny.stages.gpus import find_gpu

    opened = open_suite(suite, changes)
    if paper:
        _require_defaults(context, "num_gpus", "kind", "member", "price")
        planned = against_paper(opened)
        published = [hours for _, hours in planned]
        if as_json:
            rows = [one.as_json() | {"published_gpu_hours": hours} for one, hours in planned]
            print_json(rows, indent=2)
            return
        print_forecasts({one.settings.member: one for one, _ in planned}, published=published)
        return
    choices = choose(opened, find_gpu(kind), num_gpus, only=member)
    best = {", ".join(group): found[0] for group, found in choices.items()}
    counts = [counted(one) for one in best.values()]
    hours = sum(len(group) * found[0].gpu_hours for group, found in choices.items())
    if as_json:
        plans = [
            {"members": group, "parameters": count, "layouts": [one.as_json() for one in found]}
            for (group, found), count in zip(choices.items(), counts, strict=True)
        ]
        print_json({"gpu": kind, "gpu_hours": hours, "plans": plans}, indent=2)
        return
    if member is None:
        print_forecasts(best, counts)
    else:
        (found,) = choices.values()
        print_forecasts({f"{member} {place}": one for place, one in enumerate(found, 1)})
    cost = "" if price is None else f", {hours * price:,.0f} at {price:g} each"
    out.print(f"\nall of it: {hours / num_gpus:,.0f} hours, {hours:,.0f} GPU-hours{cost}")


def _require_defaults(context: typer.Context, *names: str) -> None:
    """Refuse options that would count for nothing: the paper's layouts are what they were."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            (option,) = (one.opts[0] for one in context.command.params if one.name == name)
            raise ConfigError(
                "counts for nothing with --against-paper", where=option, fix="one of them"
            )


def print_forecasts(
    forecasts: dict[str, Forecast], counts: Sequence[int] = (), published: Sequence[int] = ()
) -> None:
    """Layouts with their time, beside published GPU-hours if given, and with a GPU's memory.

    `counts` are parameters of models that were really cut.
    """
    from ontogeny.stages.plan import as_bytes

    times, sizes = [], []
    for (name, one), count, hours in zip_longest(forecasts.items(), counts, published):
        layout, memory = one.layout, one.memory
        kind = [layout.data, layout.tensor, layout.shard, "yes" if layout.recompute else "no"]
        times.append(
            [
                name,
                *map(str, [*kind, one.settings.training.micro_batch_rows]),
                f"{one.seconds:.3g} s",
                f"{one.tokens_per_second:,.0f}",
                f"{one.share_of_peak:.0%}",
                f"{one.gpu_hours / layout.num_ranks:,.1f}",
                f"{one.gpu_hours:,.0f}",
                *([f"{hours:,}", f"{one.gpu_hours / hours:.2f}"] if hours else []),
            ]
        )
        exchange = max(memory.block_exchange, memory.root_exchange)
        parts = [memory.parameters, memory.moments, memory.gradients, memory.gathered,
                 memory.activations, memory.logits, exchange, memory.total]  # fmt: skip
        number = f"{memory.parameters // 4 if count is None else count:,}"
        fits = "no" if one.excess > 0 else "yes"
        sizes.append([name, number, *map(as_bytes, parts), fits, as_bytes(one.traffic.total)])
    print_table([*TIME, *(["published", "of it"] if published else [])], times)
    out.print()
    print_table(MEMORY, sizes)


def open_suite(words: str, changes: list[str] | None) -> Suite:
    """A suite file, or one of ours by its name."""
    folder = resources.files("ontogeny") / "suites"
    ours = sorted(file.name.removesuffix(".toml") for file in folder.iterdir())
    with resources.as_file(folder / f"{words}.toml") as file:
        return load_suite(file if words in ours else Path(words), changes)
