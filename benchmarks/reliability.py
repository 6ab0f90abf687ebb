"""What a run survives, counted: the figures of docs/reliability.md.

A tiny run is killed -9 at random moments, also while it writes; runs out of disk; has bits flipped
in every file; is started twice; is replayed at random steps. What comes out is compared with a run
that nothing happened to: the digest of every checkpoint and every line of metrics but the seconds.

    python benchmarks/reliability.py            about two minutes; a small disk needs root
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from grown import CONTEXT, Ground, prepare, saved, settings
from killed import PLACES, Site, is_clean, proof
from ontogeny.artifact import faults, open_artifact
from ontogeny.checkpoints.store import list_states, load_checkpoint
from ontogeny.errors import CheckpointError, OntogenyError
from ontogeny.results import UpdateMetrics
from ontogeny.steps import METRICS, list_steps, step_folder
from ontogeny.training.loop import train
from ontogeny.training.replay import replay
from ontogeny.training.run import Run

ROWS = 4
NUM_UPDATES = 96
SETTINGS = settings(tokens=NUM_UPDATES * ROWS * CONTEXT, num_linear=12, rolling_seconds=0.02)


@dataclass(frozen=True)
class Trial:
    """A place for runs, and the run that nothing happened to."""

    home: Path
    ground: Ground
    undisturbed: Run

    def site(self, name: str) -> Site:
        return Site(self.ground, self.home / name / "run", SETTINGS)

    def is_same(self, run: Run) -> bool:
        """Whether a run came out as the undisturbed one, and left nothing else behind."""
        return proof(run) == proof(self.undisturbed) and is_clean(run)


def kills(trial: Trial, number: int, moments: random.Random) -> Iterator[str]:
    """Runs that are killed once, replayed at a random step as they are, and gone on with."""
    deaths: Counter[str] = Counter()
    num_same = num_replayed = 0
    for place in range(number):
        site = trial.site(f"killed-{place}")
        deaths[site.kill(("any", *PLACES)[place % 3], moments)] += 1
        step = moments.randint(0, NUM_UPDATES)
        batches = trial.ground.batches(ROWS)
        found = [replay(run, batches, step).digest for run in (site.open(), trial.undisturbed)]
        num_replayed += found[0] == found[1]
        num_same += trial.is_same(site.finish())
    yield from (f"killed -9: {death}: {times}" for death, times in sorted(deaths.items()))
    yield f"gone on with to the same digests: {num_same} of {number}"
    yield f"replayed as the kill left it, at a random step, to the same state: {num_replayed}"


def one_run_killed_over_and_over(trial: Trial, moments: random.Random) -> Iterator[str]:
    """One run that is killed until it is done."""
    site, deaths = trial.site("over-and-over"), 0
    while site.kill(moments.choice(("any", *PLACES)), moments) != "finished":
        deaths += 1
    yield f"one run killed {deaths} times until done; same digests: {trial.is_same(site.finish())}"


def full_disk(trial: Trial, number: int, moments: random.Random) -> Iterator[str]:
    """A disk that fills up at random moments to within random bytes of its end."""
    disk = trial.home / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        yield "a full disk: not measured, mounting one is not permitted here"
        return
    num_told = num_intact = num_same = 0
    for place in range(number):
        site = Site(trial.ground, disk / f"{place}" / "run", SETTINGS)
        left = moments.choice((0, 4096, 50_000, 160_000))
        num_told += "o space left" in fill_up(site, disk / "ballast", moments, left)
        run = site.open()
        folders = [step_folder(run.path, step) for step in list_steps(run.path)]
        num_intact += not any(faults(open_artifact(folder)) for folder in folders)
        num_same += trial.is_same(site.finish())
        shutil.rmtree(run.path)
    subprocess.run(["umount", str(disk)], check=True)
    yield f"a disk that fills up at random updates, told as such: {num_told} of {number}"
    yield f"  checkpoints before that are intact: {num_intact}; same digests: {num_same}"


def fill_up(site: Site, ballast: Path, moments: random.Random, left: int) -> str:
    """Train until a random update, from which on the disk has `left` bytes; the error."""
    update = moments.randrange(NUM_UPDATES)

    def fill(row: UpdateMetrics) -> None:
        if row.update == update:
            free = shutil.disk_usage(ballast.parent).free
            ballast.write_bytes(bytes(max(0, free - left)))

    try:
        train(site.open(), site.ground.batches(ROWS), [fill])
    except (CheckpointError, OSError) as error:
        return str(error)
    finally:
        ballast.unlink(missing_ok=True)
    return ""


def flips(trial: Trial, per_file: int, moments: random.Random) -> Iterator[str]:
    """Single bits flipped in every file that loading a checkpoint or a state reads."""
    copy = trial.home / "flipped" / "run"
    shutil.copytree(trial.undisturbed.path, copy)
    run = replace(trial.undisturbed, artifact=open_artifact(copy, "run"))
    outcomes: Counter[str] = Counter()
    num_files = 0
    for place, step in [
        *((step_folder(copy, step), step) for step in list_steps(copy)),
        *((copy / "states" / f"step{step}", step) for step in list_states(copy)),
    ]:
        whole = load(run, place, step)
        for path in sorted(place.iterdir()):
            num_files += 1
            data = path.read_bytes()
            for _ in range(per_file):
                damaged = bytearray(data)
                damaged[moments.randrange(len(data))] ^= 1 << moments.randrange(8)
                path.write_bytes(damaged)
                outcomes[outcome(run, place, step, whole)] += 1
            path.write_bytes(data)
    yield f"bits flipped, one at a time, in {num_files} files: {outcomes.total()}"
    yield from (f"  {what}: {times}" for what, times in sorted(outcomes.items()))


def outcome(run: Run, place: Path, step: int, whole: dict[str, torch.Tensor]) -> str:
    try:
        found = load(run, place, step)
    except OntogenyError:
        return "refused on load"
    same = all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    return "without effect (comment of a file of tensors)" if same else "LOADED WRONG"


def load(run: Run, place: Path, step: int) -> dict[str, torch.Tensor]:
    if place.parent.name == "states":
        state = saved(run, step)
        return {**state.model.state_dict(), **state.named_state()}
    return load_checkpoint(run.path, step).state_dict()


def owners(trial: Trial, number: int) -> Iterator[str]:
    """Second processes on a run: while the first lives, and right after it was killed."""
    num_refused = num_same = 0
    waits = []
    for place in range(number):
        site = trial.site(f"owned-{place}")
        with site.training():
            while not (site.folder / METRICS).exists():
                time.sleep(0.001)
            try:
                site.finish()
            except CheckpointError as error:
                num_refused += "another process is writing" in str(error)
        run, seconds = take_over(site)
        waits.append(seconds)
        num_same += trial.is_same(run)
    yield f"second process while the first lives: refused {num_refused} of {number}"
    yield f"  after kill -9 of the first: computing again {max(waits):.2f} s later at most"
    yield f"  and the same digests: {num_same} of {number}"


def take_over(site: Site) -> tuple[Run, float]:
    """Finish a run; the seconds until its first update began."""
    began, waits = time.perf_counter(), []

    def note(row: UpdateMetrics) -> None:
        waits.append(time.perf_counter() - row.seconds - began)

    run = site.open()
    train(run, site.ground.batches(ROWS), [note])
    return run, waits[0]


def replays(trial: Trial, number: int, moments: random.Random) -> Iterator[str]:
    """Random steps from every state before them."""
    run, batches = trial.undisturbed, trial.ground.batches(ROWS)
    num_equal, num_updates, seconds = 0, 0, 0.0
    for _ in range(number):
        step = moments.randint(0, NUM_UPDATES)
        starts = [kept for kept in list_states(run.path) if kept <= step]
        found = [replay(run, batches, step, start=start) for start in starts]
        num_equal += len({one.digest for one in found}) == 1
        num_updates += sum(step - one.start for one in found)
        seconds += sum(one.seconds for one in found)
    yield f"random steps replayed from every state before them, that agree: {num_equal} of {number}"
    yield f"  replayed updates a second: {num_updates / seconds:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    moments = random.Random(asked.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        ground = prepare(home / "ground")
        undisturbed = Site(ground, home / "undisturbed" / "run", SETTINGS).finish()
        trial = Trial(home, ground, undisturbed)
        for lines in (
            kills(trial, asked.kills, moments),
            one_run_killed_over_and_over(trial, moments),
            full_disk(trial, 10, moments),
            flips(trial, 20, moments),
            owners(trial, 5),
            replays(trial, 10, moments),
        ):
            for line in lines:
                print(line, flush=True)
        print(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
