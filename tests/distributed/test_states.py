"""States of several ranks: each writes its part, and any other layout goes on from them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranked import RankFailed, on_ranks
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import distribute_tensor

from grown import Ground, settings
from killed import WRITING, Site, is_clean, proof
from ontogeny.artifact import open_artifact
from ontogeny.checkpoints import shards
from ontogeny.checkpoints.store import list_states, read_tensors
from ontogeny.config import build
from ontogeny.errors import CheckpointError, Stopped
from ontogeny.questions.verify import verify
from ontogeny.results import UpdateMetrics
from ontogeny.steps import STATES, state_folder, step_folder
from ontogeny.suite import RunSettings
from ontogeny.training.layout import Layout
from ontogeny.training.loop import train
from ontogeny.training.parts import gathered, own, part_of, staged
from ontogeny.training.ranks import ALONE, Ranks
from ontogeny.training.replay import replay
from ontogeny.training.run import Run
from ontogeny.training.update import resumed
from spoiled import flip
from spoken import Type

SETTINGS = settings(micro_batch_rows=1)
PARTS = [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)]


def go_on(ranks: Ranks, site: Site, stop_at: int = 0) -> None:
    """Train a run to its end, or until it is asked to leave after an update."""

    def leave(row: UpdateMetrics) -> None:
        if row.update + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    run = ranks.first(site.open)
    with suppress(Stopped):
        train(run, site.ground.batches(4), [leave], ranks=ranks)


@pytest.fixture(scope="module")
def alone(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that one rank trained."""
    return Site(ground, tmp_path_factory.mktemp("alone") / "run", SETTINGS).finish()


@pytest.fixture(scope="module")
def shared(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, trained by two ranks; never written to."""
    site = Site(ground, tmp_path_factory.mktemp("shared") / "run", SETTINGS)
    on_ranks(Layout(2), go_on, site)
    return site.open()


@pytest.fixture
def site(shared: Run, ground: Ground, tmp_path: Path) -> Site:
    """A copy of it whose newest state is that of step 16, to spoil."""
    shutil.copytree(shared.path, tmp_path / "run")
    for step in (20, 24):
        shutil.rmtree(step_folder(tmp_path / "run", step))
    shutil.rmtree(state_folder(tmp_path / "run", 24))
    return Site(ground, tmp_path / "run", SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("second", [Layout(1), Layout(4), Layout(2, shard="all")], ids=str)
def test_any_layout_goes_on_to_the_same_bits(
    ground: Ground, alone: Run, tmp_path: Path, second: Layout
) -> None:
    site = Site(ground, tmp_path / "run", SETTINGS)
    on_ranks(Layout(2), go_on, site, 11)
    assert list_states(site.folder) == [0, 8, 11]
    if second == Layout(4):  # from a state whose weights are the checkpoint's
        shutil.rmtree(state_folder(site.folder, 11))
    on_ranks(second, go_on, site, 18) if second.num_ranks > 1 else go_on(ALONE, site, 18)
    assert list_states(site.folder) == [0, 8, 16, 18]
    on_ranks(Layout(2), go_on, site)
    assert proof(site.open()) == proof(alone)
    assert is_clean(site.open())


@pytest.mark.slow
def test_each_rank_writes_its_part_once_and_nothing_is_pickled(shared: Run) -> None:
    state = open_artifact(state_folder(shared.path, 8), "state")
    assert sorted(state.files) == PARTS
    assert {path.name for path in state.path.iterdir()} == {*PARTS, "manifest.json"}
    assert state.provenance["layout"] == {
        "data": 2, "tensor": 1, "shard": "optimizer", "recompute": False,
    }  # fmt: skip
    rows, moments = {}, 2 * shared.settings.shape.num_parameters
    for name in PARTS:
        with safe_open(state.path / name, framework="pt") as file:
            parts = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        rows[name] = parts["exp_avg.embed_in.weight"]
        moments -= sum(torch.Size(shape).numel() for key, shape in parts.items() if "exp" in key)
    assert list(rows.values()) == [[192, 16], [192, 16]]
    assert moments == 0


@pytest.mark.slow
def test_a_state_is_a_function_of_run_and_layout(
    ground: Ground, shared: Run, tmp_path: Path
) -> None:
    site = Site(ground, tmp_path / "run", SETTINGS)
    on_ranks(Layout(2), go_on, site, 9)
    for step in (0, 8):
        both = (open_artifact(state_folder(run, step)) for run in (site.folder, shared.path))
        assert len({one.digest for one in both}) == 1


@pytest.mark.slow
def test_readers_take_states_of_ranks_as_those_of_one(
    say: Type, ground: Ground, shared: Run, alone: Run, tmp_path: Path
) -> None:
    assert [fault for one in verify(shared.path) for fault in one.faults] == []
    assert "states" in say("show", shared.path).out
    assert say("lint", shared.path).code == 0
    found = [replay(run, ground.batches(4), 12, start=8) for run in (shared, alone)]
    assert found[0].digest == found[1].digest
    copy = Path(shutil.copytree(shared.path, tmp_path / "run"))
    assert "freed" in say("prune", copy).out
    assert not any((copy / STATES).iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_part_is_named(site: Site, damage: str) -> None:
    path = state_folder(site.folder, 16) / PARTS[1]
    flip(path, -7, 4) if damage == "flipped" else path.unlink()
    told = f"step16/{PARTS[1]}: (other bytes|missing file)"
    with pytest.raises(Exception, match=told):
        go_on(ALONE, site)
    with pytest.raises(RankFailed, match=told):
        on_ranks(Layout(2), go_on, site)
    faults = [fault for one in verify(site.folder) for fault in one.faults]
    assert any(fault.place.endswith(PARTS[1]) for fault in faults)


@pytest.mark.slow
def test_a_part_of_another_model_is_refused(site: Site, tmp_path: Path) -> None:
    folder = state_folder(site.folder, 16)
    with pytest.raises(CheckpointError, match=r"does not fit the model \(.*wrong"):
        read_tensors(folder, {"wrong": torch.empty(3)})
    with pytest.raises(CheckpointError, match=r"does not fit the model \(Size mismatch"):
        read_tensors(folder, {"exp_avg.embed_in.weight": torch.empty(384, 17)})


def fill_up(ranks: Ranks, site: Site, update: int, left: int) -> None:
    """Train; from an update on, the disk has so many bytes left."""

    def fill(row: UpdateMetrics) -> None:
        if row.update == update:
            disk = site.folder.parent
            (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - left))

    train(ranks.first(site.open), site.ground.batches(4), [fill], ranks=ranks)


@pytest.mark.slow
@pytest.mark.parametrize(("update", "left"), [(10, 0), (23, 60_000)])
def test_a_disk_that_fills_up_is_told(
    ground: Ground, alone: Run, small_disk: Path, update: int, left: int
) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    site = Site(ground, small_disk / "run", SETTINGS)
    with pytest.raises(RankFailed, match=r"[nN]o space left"):
        on_ranks(Layout(2), fill_up, site, update, left)
    assert not list(site.folder.rglob(WRITING))
    (small_disk / "ballast").unlink()
    on_ranks(Layout(2), go_on, site)
    assert proof(site.open()) == proof(alone)
    assert is_clean(site.open())


@pytest.mark.slow
def test_a_state_that_cannot_be_begun_ends_all_ranks(ground: Ground, tmp_path: Path) -> None:
    site = Site(ground, tmp_path / "run", SETTINGS)
    (site.open().path / STATES).write_text("in the way")
    with pytest.raises(RankFailed) as caught:
        on_ranks(Layout(2), go_on, site)
    assert all(words in str(caught.value) for words in ("rank 0: ", "rank 1: ", "File exists"))


def die_writing(ranks: Ranks, site: Site) -> None:
    """Train; the second rank is killed while the state of step 16 is written."""
    run = ranks.first(site.open)

    def die() -> None:
        while not any((site.folder / STATES).glob(".step16.writing-*")):
            time.sleep(0)
        os.kill(os.getpid(), signal.SIGKILL)

    if not ranks.is_first:
        threading.Thread(target=die, daemon=True).start()
    train(run, site.ground.batches(4), ranks=ranks)


@pytest.mark.slow
def test_kill_9_while_a_state_is_written(ground: Ground, alone: Run, tmp_path: Path) -> None:
    site = Site(ground, tmp_path / "run", SETTINGS)
    with pytest.raises(RankFailed, match="rank 1"):
        on_ranks(Layout(2), die_writing, site)
    on_ranks(Layout(2), go_on, site)
    assert proof(site.open()) == proof(alone)
    assert is_clean(site.open())


def peaks(ranks: Ranks, site: Site) -> list[float]:
    """By how many MB start and save raised each rank's memory at most."""
    run = ranks.first(site.open)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    state = resumed(run, run.start(site.ground.batches(4).start, ranks), ranks)
    gathered(state.model, ranks)
    staged(state.named_state())
    found: list[Any] = [None] * ranks.layout.num_ranks
    dist.all_gather_object(found, memory("VmHWM") - before)
    return found


def memory(name: str) -> float:
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if name in one)
    return int(line.split()[1]) / 1000


@pytest.mark.slow
def test_only_the_first_rank_ever_holds_the_whole(ground: Ground, tmp_path: Path) -> None:
    values: Any = SETTINGS.resolved()
    values["shape"] |= {"num_layers": 24, "hidden_size": 256, "vocab_size": 4096}
    large = build(RunSettings, values, "test")
    first, *others = on_ranks(Layout(4), peaks, Site(ground, tmp_path / "run", large))
    whole = 4 * large.shape.num_parameters / 1e6
    # A quarter of weights, moments and the copy of those; 20 MB or so come with the engine.
    assert max(others) < 1.25 * whole + 45 < 2 * whole
    assert first > max(others)


SHAPES = [(), (1,), (3,), (4, 2), (5, 3), (13, 1), (1, 7)]
MESHES = [Layout(2), Layout(4), Layout(2, 2)]


def number(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def write_parts(ranks: Ranks, folder: Path) -> None:
    assert ranks.beside is not None
    shards.write(parts(ranks), folder, ranks.beside)


def read_parts(ranks: Ranks, folder: Path) -> bool:
    """Whether each rank reads what is its part."""
    wanted = parts(ranks)
    found = {name: torch.zeros_like(one) for name, one in wanted.items()}
    shards.read(found, folder)
    equal = all(torch.equal(own(found[name]), own(one)) for name, one in wanted.items())
    return not ranks.any(not equal)[0]


def parts(ranks: Ranks) -> dict[str, Tensor]:
    """Tensors of all shapes, cut by rows and then by columns as far as ranks and sizes go."""
    from torch.distributed.tensor import Replicate, Shard

    assert ranks.mesh is not None
    made: dict[str, Tensor] = {}
    for shape in SHAPES:
        places = [Shard(0) if shape else Replicate(), Shard(1) if shape[1:] else Replicate()]
        cut = distribute_tensor(number(shape), ranks.mesh, places)
        assert torch.equal(part_of(number(shape), cut), own(cut))
        made[str(shape)] = cut
    return made


@pytest.mark.slow
@pytest.mark.parametrize("layout", MESHES, ids=str)
def test_parts_fit_together_in_any_other_way(tmp_path: Path, layout: Layout) -> None:
    on_ranks(layout, write_parts, tmp_path)
    assert all(on_ranks(other, read_parts, tmp_path) for other in MESHES)
    found = {str(shape): torch.zeros(shape) for shape in SHAPES}
    shards.read(found, tmp_path)
    assert all(torch.equal(found[str(shape)], number(shape)) for shape in SHAPES)
