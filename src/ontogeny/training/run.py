"""A run's folder: who may write it, where it stands, and how it starts or goes on.

`manifest.json` is written when the run starts and states what it is to be: its settings and the
digests of its order and vocabulary. Metrics, checkpoints and states gather beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ontogeny import artifact
from ontogeny.artifact import Artifact, Input, open_artifact, open_input
from ontogeny.checkpoints.store import Progress, list_states, open_state, read_tensors
from ontogeny.digest import SHORT
from ontogeny.errors import CheckpointError
from ontogeny.model import hf
from ontogeny.model.init import initial_tensor
from ontogeny.steps import METRICS, list_steps, step_folder
from ontogeny.suite import RunSettings, settings_of
from ontogeny.training.metrics import whole_lines
from ontogeny.training.parts import own, part_of
from ontogeny.training.ranks import ALONE, Ranks
from ontogeny.workers import held

LOCK = ".lock"


Fill = Callable[[Mapping[str, Tensor]], None]  # writes tensors in place, by name


@dataclass(frozen=True, slots=True)
class Start:
    """What a run goes on from. `moments` is None where it begins, and `bits` is empty then.

    `weights` and `moments` write what is kept into tensors given by their names in files, whole
    ones or a rank's parts, so that no rank needs the whole of it; ranks call them together.
    `bits` is the arithmetic the state was computed with.
    """

    weights: Fill
    moments: Fill | None
    progress: Progress
    bits: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Run:
    """An opened run."""

    artifact: Artifact
    settings: RunSettings

    @property
    def path(self) -> Path:
        return self.artifact.path

    @property
    def is_finished(self) -> bool:
        return step_folder(self.path, self.settings.num_updates).is_dir()

    def parent_of(self, step: int) -> Artifact | None:
        """The last kept checkpoint before `step`; that of another run where a branch begins."""
        earlier = [kept for kept in list_steps(self.path) if kept < step]
        if not earlier:
            return None if self.settings.branch is None else open_input(self.artifact, "parent")
        return open_artifact(step_folder(self.path, earlier[-1]), "checkpoint")

    def start(self, first_digest: str, ranks: Ranks = ALONE) -> Start:
        """The latest full state whose metrics are whole, or step 0. To be called by all ranks.

        `first_digest` is the digest of no rows at all.
        """
        known = len(whole_lines(self.path / METRICS))
        for step in reversed(list_states(self.path)):
            if step <= known:
                return self.saved(step, ranks)
        return self.initial(first_digest)

    def saved(self, step: int, ranks: Ranks = ALONE) -> Start:
        """The full state of `step`, whose files the ranks read through, each some of them.

        Raises CheckpointError or DataError if it is damaged.
        """
        state, weights = open_state(self.artifact, step)
        files = {one.path / name: (one, name) for one in (state, weights) for name in one.files}
        share = list(files.values())[ranks.number :: ranks.layout.num_ranks]
        faults = (artifact.file_fault(one, name) for one, name in share)
        found = next((fault for fault in faults if fault is not None), None)
        (is_damaged,) = ranks.any(found is not None)
        if is_damaged:
            told = found or "another rank says where"
            raise CheckpointError(f"damaged state ({told})", where=state.path)
        facts = state.facts
        return Start(
            partial(read_tensors, weights.path),
            partial(read_tensors, state.path),
            Progress(step, int(facts["tokens"]), str(facts["rows_digest"])),
            dict(state.provenance.get("bits", {})),
        )

    def initial(self, first_digest: str) -> Start:
        """Where a run begins: a model that is a function of the settings.

        Raises CheckpointError for a branch from a later step.
        """
        settings = self.settings
        if settings.first_step:
            raise CheckpointError(
                f"the state of step {settings.first_step}, which the branch begins from, is gone",
                where=self.path,
                fix="the command that made the branch",
            )

        def draw(tensors: Mapping[str, Tensor]) -> None:
            shape, init, seed = settings.shape, settings.init, settings.init_seed
            for name, one in tensors.items():
                drawn = initial_tensor(hf.from_file_name(name), one.shape, shape, init, seed)
                own(one).copy_(part_of(drawn, one))

        return Start(draw, None, Progress(0, 0, first_digest), {})


def open_run(path: Path) -> Run:
    """Open a run's folder. Raises DataError or ConfigError if it is not one."""
    opened = open_artifact(path, "run")
    return Run(opened, settings_of(opened))


def create_run(
    path: Path,
    settings: RunSettings,
    inputs: Mapping[str, Input],
    *,
    tokenizer_files: Mapping[str, Path],
) -> Run:
    """Open the run at `path`, or start it there. Raises CheckpointError if it is another run's."""
    config = settings.resolved()
    if not path.exists():
        with artifact.writing(path, "run", config=config, inputs=inputs) as draft:
            for name, file in tokenizer_files.items():
                shutil.copyfile(file, draft.folder / name)
    run = open_run(path)
    wanted, found = artifact.key_of("run", config, inputs), artifact.key(run.artifact)
    if wanted != found:
        raise CheckpointError(
            "holds a run of another config",
            where=path,
            expected=wanted[:SHORT],
            found=f"{found[:SHORT]} ({_first_difference(config, run.artifact.config) or 'inputs'})",
            fix="choose another folder with --out",
        )
    return run


def locked(run: Path) -> AbstractContextManager[None]:
    """Be the only process that writes a run; the lock of a dead owner does not count.

    Raises CheckpointError when another process holds it.
    """
    busy = CheckpointError(
        "another process is writing this run", where=run, fix="wait for it, or stop it"
    )
    return held(run / LOCK, busy)


def _first_difference(left: Mapping[str, object], right: Mapping[str, object]) -> str | None:
    for name, value in left.items():
        other = right.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            inner = _first_difference(value, other)
            if inner is not None:
                return f"{name}.{inner}"
        elif value != other:
            return f"{name} is {other} there, {value} here"
    return None
