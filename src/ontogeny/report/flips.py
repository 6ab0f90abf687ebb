"""The map of items: which item of a task was answered rightly at which checkpoint.

In: the item rows of a store. Out: a figure with a row of maps a task, a map a member; in a map a
line an item, sorted by when it turns right for good, and a column a checkpoint. Not here: how often
items turn, in numbers (`ontogeny scores`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib import style
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ontogeny.report.figures import SETTINGS, WIDTH, short_count, write
from ontogeny.report.measured import Measured
from ontogeny.results import ITEMS, reading
from ontogeny.scores import ScoreStore

RIGHT = "acc"  # the metric that says whether an item was answered rightly
COLOURS = ListedColormap(["#e9e4d8", "#31688e"])
MOST_MAPS = 3  # in a row
CAPTION = (
    "Which items are answered rightly (dark) at which checkpoint. A line is an item; they are "
    "sorted by when they turn right for good, so the border rises to the right as a model learns; "
    "dark specks above it are right answers that did not last."
)


@dataclass(frozen=True, slots=True)
class Maps:
    """A figure: its file's name, its columns, and of each task a map a member, None for none."""

    name: str
    members: list[str]
    rows: list[tuple[str, list[pd.DataFrame | None]]]


def item_maps(store: ScoreStore, measured: Measured, tasks: Sequence[str]) -> list[Maps]:
    """A figure for each number of shots with which tasks were asked whose items are known."""
    members = _chosen(measured)
    found = {member: read_flips(store, member, tasks) for member in members}
    figures = []
    for shots in measured.shots:
        rows = [
            (task, [found[member].get((task, shots)) for member in members])
            for task in tasks
            if any((task, shots) in found[member] for member in members)
        ]
        if rows:
            figures.append(Maps(f"items-{shots}-shot", members, rows))
    return figures


def read_flips(
    store: ScoreStore, member: str, tasks: Sequence[str]
) -> dict[tuple[str, int], pd.DataFrame]:
    """Whether a member's items were right, by task and number of shots, where any are known.

    A row is an item, in the order of `by_lasting`, a column a checkpoint by its tokens. An item
    counts that was asked at every checkpoint at which its task was. All rows are in memory at once:
    2.1 million take 0.7 GiB and 3 seconds.
    """
    steps = [step for name, step in store.places() if name == member]
    tokens = {step: store.place(member, step).tokens for step in steps}
    tables = [_right_items(store.path(member, step) / ITEMS, tasks) for step in steps]
    with reading(store.of_member(member)):
        items = pa.concat_tables(tables).to_pandas()
    found = {}
    for cell, of_cell in items.groupby(["task", "shots"]):
        wide = of_cell.pivot(index="item", columns="step", values="right").dropna()
        if wide.shape[1] < 2:
            continue  # of one checkpoint there is nothing to map
        wide = wide.astype(bool).iloc[by_lasting(wide.to_numpy(bool))]
        found[cell] = wide.rename(columns=tokens)
    return found


def by_lasting(right: np.ndarray) -> np.ndarray:
    """The items of right [items, checkpoints] in the order in which they turn right for good.

    Of those that do so at once, or never do, those that were right more often come first.
    """
    num_steps = right.shape[1]
    since = np.where(right.all(axis=1), 0, num_steps - np.argmin(right[:, ::-1], axis=1))
    return np.lexsort((-right.sum(axis=1), since))


def draw_maps(maps: Maps, folder: Path) -> None:
    """Draw a figure and write it as SVG and PNG under its name."""
    num_rows, num_columns = len(maps.rows), len(maps.members)
    with style.context(SETTINGS, after_reset=True):
        figure = Figure(figsize=(WIDTH, 0.4 + 2.1 * num_rows), layout="constrained")
        grid = figure.subplots(num_rows, num_columns, squeeze=False)
        for axes_row, (task, of_members) in zip(grid, maps.rows, strict=True):
            for axes, member, right in zip(axes_row, maps.members, of_members, strict=True):
                _draw_map(axes, f"{task}, {member}", right)
        figure.supylabel("items, the soonest right for good at the bottom")
        figure.supxlabel("tokens seen, a column a checkpoint")
        write(figure, folder / maps.name)


def _right_items(path: Path, tasks: Sequence[str]) -> Any:
    """Step, task, shots, item, and whether it is right, of the items that are right or wrong."""
    columns = ["step", "task", "shots", "item", "metrics"]
    with reading(path):
        table = pq.read_table(path, columns=columns, filters=[("task", "in", tasks)])
        right = pc.greater(pc.map_lookup(table["metrics"], RIGHT, "first"), 0.5)
    return table.set_column(4, "right", right).filter(pc.is_valid(right))


def _chosen(measured: Measured) -> list[str]:
    """The smallest, a middle and the largest of the plain members of the first corpus."""
    variants = measured.variants
    plain = [model for model in measured.models if model.member not in variants] or measured.models
    alike = [model for model in plain if model.corpus == plain[0].corpus]
    places = np.unique(np.linspace(0, len(alike) - 1, MOST_MAPS).round().astype(int))
    return [alike[int(place)].member for place in places]


def _draw_map(axes: Any, title: str, right: pd.DataFrame | None) -> None:
    axes.set_title(title)
    if right is None or right.empty:
        axes.set_axis_off()
        return
    num_items, num_steps = right.shape
    axes.imshow(
        right,
        cmap=COLOURS,
        vmin=0,
        vmax=1,
        aspect="auto",
        origin="lower",
        interpolation_stage="rgba",
    )
    axes.grid(visible=False)
    shown = sorted({round(at) for at in np.linspace(0, num_steps - 1, 4)})
    axes.set_xticks(shown, [short_count(right.columns[at]) for at in shown])
    axes.set_yticks([0, num_items - 1], ["1", str(num_items)])
