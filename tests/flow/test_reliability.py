"""What may happen to a run: killed, out of disk, damaged, started twice. It loses time only.

The same at full length, with the figures of docs/reliability.md: benchmarks/reliability.py.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from grown import Ground, begin, saved, settings
from killed import PLACES, WRITING, Site, is_clean, proof
from ontogeny.artifact import faults, open_artifact
from ontogeny.checkpoints.store import load_checkpoint
from ontogeny.errors import CheckpointError, OntogenyError
from ontogeny.results import UpdateMetrics
from ontogeny.steps import METRICS, list_steps, step_folder
from ontogeny.training.loop import train
from ontogeny.training.replay import replay
from ontogeny.training.run import Run

SETTINGS = settings(rolling_seconds=0.01)


@pytest.fixture(scope="module")
def undisturbed(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Site(ground, tmp_path_factory.mktemp("undisturbed") / "run", SETTINGS).finish()


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_no_trace(
    ground: Ground, undisturbed: Run, tmp_path: Path
) -> None:
    site, moments = Site(ground, tmp_path / "run", SETTINGS), random.Random(0)
    deaths = [site.kill(aim, moments) for aim in ("state", "checkpoint", "any", "state")]
    assert "writing a checkpoint" in deaths
    assert {"writing a state", "freeing a state"} & set(deaths)
    step = moments.randint(1, 24)
    found = [replay(run, ground.batches(4), step) for run in (site.open(), undisturbed)]
    assert found[0].digest == found[1].digest
    run = site.finish()
    assert proof(run) == proof(undisturbed)
    assert is_clean(run)


def test_what_a_killed_writer_left_is_removed(ground: Ground, tmp_path: Path) -> None:
    site = Site(ground, tmp_path / "run", SETTINGS)
    run = site.open()
    for place in ("steps/.step8.writing-1", "states/.step7.writing-99999999"):
        (run.path / place).mkdir(parents=True)
        (run.path / place / "model.safetensors").write_bytes(b"half")
    assert is_clean(site.finish())


@pytest.mark.slow
def test_two_processes_on_one_run(ground: Ground, undisturbed: Run, tmp_path: Path) -> None:
    site = Site(ground, tmp_path / "run", SETTINGS)
    with site.training() as owner:
        while not (site.folder / METRICS).exists():
            assert owner.is_alive()
        with pytest.raises(CheckpointError, match="another process is writing this run; try: wait"):
            site.finish()
        assert owner.is_alive()
    assert owner.exitcode == -9
    assert proof(site.finish()) == proof(undisturbed)


def is_intact(run: Run) -> bool:
    return not any(
        faults(open_artifact(step_folder(run.path, step))) for step in list_steps(run.path)
    )


@pytest.mark.parametrize("left", [0, 4096, 40_000, 150_000, 250_000])
def test_a_disk_that_fills_up(
    ground: Ground, undisturbed: Run, small_disk: Path, left: int
) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    site, ballast = Site(ground, small_disk / "run", SETTINGS), small_disk / "ballast"

    def fill(row: UpdateMetrics) -> None:
        if row.update == 10:
            ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - left))

    run = site.open()
    with pytest.raises((CheckpointError, OSError), match="o space left"):
        train(run, ground.batches(4), [fill])
    assert 8 in list_steps(run.path)
    assert is_intact(run)
    assert not list(run.path.rglob(".step*"))
    ballast.unlink()
    assert proof(site.finish()) == proof(undisturbed)
    assert is_clean(run)


def test_what_cannot_be_saved_is_not_left_quietly(ground: Ground, small_disk: Path) -> None:
    run = Site(ground, small_disk / "run", SETTINGS).open()

    def fill_and_ask_to_leave(row: UpdateMetrics) -> None:
        (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises((CheckpointError, OSError), match="o space left"):
        train(run, ground.batches(4), [fill_and_ask_to_leave])


def test_updates_go_on_while_files_are_written(ground: Ground, tmp_path: Path) -> None:
    run, seen = Site(ground, tmp_path / "run", SETTINGS).open(), list[bool]()

    def look(row: UpdateMetrics) -> None:
        seen.append(any(any((run.path / place).glob(WRITING)) for place in PLACES.values()))

    train(run, ground.batches(4), [look])
    assert any(seen)


@pytest.mark.parametrize("limit", [1000, 20_000, 70_000])
def test_a_file_that_may_not_grow(
    ground: Ground, undisturbed: Run, tmp_path: Path, limit: int
) -> None:
    site, before = (
        Site(ground, tmp_path / "run", SETTINGS),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )

    def restrict(row: UpdateMetrics) -> None:
        if row.update == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    run = site.open()
    try:
        with pytest.raises((CheckpointError, OSError), match="File too large"):
            train(run, ground.batches(4), [restrict])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_intact(run)
    assert proof(site.finish()) == proof(undisturbed)
    assert is_clean(run)


LOADED = ("steps/step8", "steps/step12", "states/step8")


def load(run: Run, place: str) -> dict[str, torch.Tensor]:
    """What the folder at `place` of a run holds, as training and scoring load it."""
    if place.startswith("states"):
        state = saved(run, 8)
        return {**state.model.state_dict(), **state.named_state()}
    return load_checkpoint(run.path, int(place.removeprefix("steps/step"))).state_dict()


@pytest.mark.parametrize("place", LOADED)
def test_damage_in_any_file_is_refused_on_load(
    undisturbed: Run, ground: Ground, tmp_path: Path, place: str
) -> None:
    shutil.copytree(undisturbed.path, tmp_path / "run")
    run, moments = begin(ground, tmp_path / "run", SETTINGS), random.Random(place)
    whole, num_tried, num_refused = load(run, place), 0, 0
    for path in sorted((run.path / place).iterdir()):
        data = path.read_bytes()
        for damaged in (b"", data[: len(data) // 2], *(flipped(data, moments) for _ in range(20))):
            path.write_bytes(damaged)
            num_tried += 1
            try:
                found = load(run, place)
            except OntogenyError as error:
                num_refused += 1
                assert path.parent.name in str(error)  # noqa: PT017
            else:  # such as a bit of a comment in the header of a file of tensors
                assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
        path.write_bytes(data)
    assert num_refused > 0.95 * num_tried


def flipped(data: bytes, moments: random.Random) -> bytes:
    place = moments.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << moments.randrange(8)]) + data[place + 1 :]


def test_a_checkpoint_under_another_step_is_refused(undisturbed: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(undisturbed.path, copy)
    shutil.rmtree(step_folder(copy, 12))
    shutil.copytree(step_folder(copy, 16), step_folder(copy, 12))
    with pytest.raises(CheckpointError, match="of another step; expected step 12; found step 16"):
        load_checkpoint(copy, 12)
