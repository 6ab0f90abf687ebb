"""How a suite sees its members train: by the metrics, which a run that goes on cuts first."""

from __future__ import annotations

from pathlib import Path

from grown import Ground, begin, settings
from ontogeny.scores import ScoreStore
from ontogeny.stages.lanes import Job, Report, _Followed
from ontogeny.steps import METRICS
from ontogeny.suite import Member, SizeSettings
from ontogeny.training.loop import train


def test_updates_are_told_also_where_the_metrics_were_cut(ground: Ground, tmp_path: Path) -> None:
    run = begin(ground, tmp_path / "run", settings())
    train(run, ground.batches(4))
    metrics = run.path / METRICS
    lines = metrics.read_bytes().splitlines(keepends=True)
    size = SizeSettings(num_layers=2, hidden_size=16, num_heads=2, learning_rate=1e-2)
    member = Member("tiny", "tiny", "standard", 0, 4, 1e-2, size)
    job = Job(member, run.settings, run.path, {}, (), ScoreStore(tmp_path), other_bits=False)
    told: list[Report] = []
    metrics.write_bytes(b"".join(lines[:20]))
    followed = _Followed(job)
    followed.tell(told.append)
    assert told == []  # all of it was there before
    metrics.write_bytes(b"".join(lines[:8]))
    followed.tell(told.append)
    with metrics.open("ab") as file:
        file.write(b"".join(lines[8:11]) + lines[11][:9])
    followed.tell(told.append)
    with metrics.open("ab") as file:
        file.write(lines[11][9:])
    followed.tell(told.append)
    tokens = run.settings.tokens_per_update
    assert [(one.done, one.tokens) for one in told] == [(11, 3 * tokens), (12, 4 * tokens)]
    assert {(one.member, one.phase, one.total) for one in told} == {("tiny", "train", 24)}
