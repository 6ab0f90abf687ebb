"""How often `ontogeny lint` is right: false alarms on clean runs, faults found in altered ones.

Tiny runs are trained with many checkpoints, of several seeds, widths, lengths, schedules and
learning rates, half of them with a loss spike (the learning rate times 20 for some updates). Then
noise is put into one matrix of one step, and steps are given each other's weights.

    python benchmarks/lint.py [RUNS]           20 runs: about four minutes
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faulty import add_noise, copy_of, many_steps, matrices, put, rounded
from grown import prepare
from ontogeny.checkpoints.lint import lint_run
from ontogeny.checkpoints.lint_folders import find_steps

LENGTHS = ((160, 40), (320, 20), (512, 4), (240, 60))  # updates, evenly spaced checkpoints
NUM_FAULTS = 5  # of each kind, a run


def alarms(run: Path) -> set[int]:
    """The steps of which something is alarming, missing ones apart."""
    found = lint_run(run).findings
    return {
        step
        for one in found
        if one.severity == "alarm" and one.problem != "missing"
        for step in one.steps
    }


def relabel(run: Path, clean: Path, step: int, served: int, *, moved: bool) -> None:
    """Serve one step's weights under another number, where they are missing then if `moved`."""
    put(run, step, find_steps(clean)[served])
    if moved:
        shutil.rmtree(run / f"step{served}")


def try_faults(clean: Path, home: Path, draw: random.Random, counts: Counter[str]) -> None:
    """Put faults into copies of a run, one at a time, and count what is named."""
    steps = list(find_steps(clean))
    doubled = [step for step in steps if step >= 4 and 2 * step in steps[:-1]]
    for _ in range(NUM_FAULTS):
        run = copy_of(clean, home / "noise")
        step, name = draw.choice(steps[1:-1]), draw.choice(matrices(clean))
        add_noise(run, step, name, seed=draw.randrange(1000))
        count(
            counts, f"noise, {'over' if len(steps) > 20 else 'under'} 20 steps", alarms(run), {step}
        )
        for moved in (False, True):
            run, low = copy_of(clean, home / "relabelled"), draw.choice(doubled)
            step, served = draw.choice(((low, 2 * low), (2 * low, low)))
            relabel(run, clean, step, served, moved=moved)
            both = {step} if moved else {step, served}
            kind = "relabelled, its own number missing" if moved else "copied over another"
            count(counts, kind, alarms(run), {step}, both)


def count(
    counts: Counter[str], kind: str, found: set[int], right: set[int], *also: set[int]
) -> None:
    verdict = "exactly" if found == right else "with its twin" if found in also else "wrongly"
    counts[f"{kind}: {verdict if found else 'not'} named"] += 1


def main() -> int:
    number, draw, counts = (
        int(sys.argv[1] if sys.argv[1:] else 20),
        random.Random(0),
        Counter[str](),
    )
    began, measured, raised = time.perf_counter(), 0, 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        ground = prepare(home / "ground")
        for seed in range(number):
            updates, linear = LENGTHS[seed % len(LENGTHS)]
            at = draw.randrange(8, updates - 20)
            spike = range(at, at + draw.randrange(3, 9)) if seed % 2 else range(0)
            run = many_steps(
                ground, home / f"run{seed}", seed=seed, num_updates=updates, num_linear=linear,
                spike=spike, learning_rate=draw.choice((3e-3, 1e-2, 2e-2)),
            )  # fmt: skip
            found = alarms(run)
            for dtype in (torch.float16, torch.bfloat16):
                found |= alarms(rounded(run, home / "rounded", dtype))
            raised += bool(found)
            measured += len(find_steps(run))
            print(
                f"run {seed}: {updates} updates, spike {spike}: alarms {sorted(found)}", flush=True
            )
            try_faults(run, home, draw, counts)
    print(
        f"{raised} of {number} clean runs ({measured} steps, also rounded to 16 bits) gave an alarm"
    )
    for words, times in sorted(counts.items()):
        print(f"{times:4d}  {words}")
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
