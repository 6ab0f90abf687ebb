"""States of several ranks: every rank writes its part, and any other layout goes on from them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from ranked import on_ranks

from grown import Enough, Ground, settings, stop_after
from killed import Site, is_clean, proof
from ontogeny.training.layout import Layout
from ontogeny.training.loop import train
from ontogeny.training.ranks import Ranks
from ontogeny.training.run import Run

SETTINGS = settings(micro_batch_rows=1)


def go_on(ranks: Ranks, site: Site, until: int | None = None) -> None:
    """Train a run to its end, or to a kill as far as the run can tell."""
    run = ranks.first(site.open)
    batches = site.ground.batches(site.settings.training.rows_per_update)
    with suppress(Enough):
        train(run, batches, [] if until is None else [stop_after(until)], ranks=ranks)


@pytest.fixture(scope="module")
def alone(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Site(ground, tmp_path_factory.mktemp("alone") / "run", SETTINGS).finish()


@pytest.mark.slow
def test_ranks_save_what_one_would(ground: Ground, alone: Run, tmp_path: Path) -> None:
    site = Site(ground, tmp_path / "run", SETTINGS)
    on_ranks(Layout(2), go_on, site)
    run = site.open()
    assert proof(run) == proof(alone)
    assert is_clean(run)
