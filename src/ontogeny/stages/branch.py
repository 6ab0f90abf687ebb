"""A branch: a run that leaves another after some step and differs from there on as stated.

In: a run, a step, what is to differ. Out: a run that begins with the parent's full state of that
step, kept or derived, and with its metrics up to there. Not here: which splices there are
(`splices.py`), training (`ontogeny.training.loop`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ontogeny.artifact import Artifact, open_artifact, open_input
from ontogeny.checkpoints.store import list_states, save_state
from ontogeny.config import build
from ontogeny.errors import CheckpointError, ConfigError, OrderError
from ontogeny.model import arithmetic, hf
from ontogeny.order.batches import Batches
from ontogeny.order.splice import Stretch, open_windows
from ontogeny.questions.materials import Materials, batches_of, open_materials
from ontogeny.stages.splices import OtherStore, Spec, make_splice
from ontogeny.steps import METRICS, list_steps, state_folder, step_folder
from ontogeny.suite import RunSettings
from ontogeny.tokens.vocabulary import TOKENIZER, TOKENIZER_CONFIG
from ontogeny.training.metrics import whole_lines
from ontogeny.training.ranks import ALONE
from ontogeny.training.replay import replay
from ontogeny.training.run import Run, create_run, locked


@dataclass(frozen=True, slots=True)
class Branch:
    """What a branch is to be."""

    parent: Materials
    settings: RunSettings
    spec: Spec
    stretch: Stretch

    @property
    def step(self) -> int:
        return self.settings.first_step

    def order(self, stem: Path) -> Artifact:
        """What it goes through: found or made beside `stem`, or the parent's order."""
        return make_splice(self.spec, self.stretch, self.parent, stem)


def plan_branch(run: Path, step: int, spec: Spec) -> Branch:
    """Work out a branch without making anything.

    Raises ConfigError or CheckpointError for a step the run has not come to and for changes that do
    not fit, OrderError where the parent's order ends before the branch does.
    """
    parent = open_materials(run)
    settings = _settings(parent.run, step, spec)
    batches = batches_of(settings, parent.batches.order, parent.batches)
    until = spec.settings.until or settings.num_updates
    if not step < until <= settings.num_updates:
        raise ConfigError(
            f"no update {until} to end the splice at",
            where="splice.until",
            expected=f"{step + 1} to {settings.num_updates}",
        )
    there, last = parent.batches.order.num_windows, batches.place(settings.num_updates)
    to_the_end = isinstance(spec.settings, OtherStore) and until == settings.num_updates
    if there < last and not to_the_end:
        raise OrderError(
            "the parent's order is too short for the branch",
            where=run,
            expected=f"{last} windows",
            found=there,
            fix="train for fewer tokens, or go on with another store",
        )
    stretch = Stretch(parent.batches.order, batches.place(step), batches.place(until))
    return Branch(parent, settings, spec, stretch)


def begin_branch(branch: Branch, folder: Path) -> tuple[Run, Batches]:
    """The branch at `folder`, begun if it is not there, and the batches it trains on."""
    parent, order = branch.parent, branch.order(folder)
    inputs = {
        "parent": _checkpoint_before(parent.run, branch.step),
        "order": order,
        "vocabulary": open_input(parent.run.artifact, "vocabulary"),
    }
    files = {name: parent.run.path / name for name in (TOKENIZER, TOKENIZER_CONFIG)}
    run = create_run(folder, branch.settings, inputs, tokenizer_files=files)
    with locked(run.path):
        if not list_states(run.path):
            _copy_metrics(parent.run, run, branch.step)
            bits = _bits(parent.run, branch.step)
            state = replay(parent.run, parent.batches, branch.step)
            save_state(
                run.artifact, state.moments, state.progress,
                weights=hf.named_weights(state.model), provenance={"bits": bits},
            )  # fmt: skip
    return run, batches_of(branch.settings, open_windows(order), parent.batches)


def _settings(parent: Run, step: int, spec: Spec) -> RunSettings:
    theirs, recipe = parent.settings, spec.file.recipe
    if not theirs.first_step <= step <= theirs.num_updates:
        raise ConfigError(
            f"no step {step}",
            where=parent.path,
            expected=f"a step from {theirs.first_step} to {theirs.num_updates}",
        )
    known = len(whole_lines(parent.path / METRICS))
    if step > known:
        raise CheckpointError(
            f"the run has not come to step {step} yet",
            where=parent.path,
            found=f"step {known}",
            fix="train it on, or an earlier --at",
        )
    before = 0 if theirs.branch is None else theirs.branch.tokens
    before += (step - theirs.first_step) * theirs.tokens_per_update
    training = theirs.training.resolved()
    training |= recipe.model_dump(include={"learning_rate", "rows_per_update"}, exclude_none=True)
    tokens = recipe.tokens
    if recipe.num_updates is not None:
        tokens = recipe.num_updates * training["rows_per_update"] * theirs.shape.context_length
    if tokens is not None:
        training["tokens"] = before + tokens
    branch = {"parent": theirs.member, "step": step, "tokens": before, "recipe": recipe.resolved()}
    values = theirs.resolved() | {
        "member": spec.file.name or f"{theirs.member}-at{step}-{spec.kind}",
        "training": training,
        "branch": branch,
    }
    return build(RunSettings, values, f"branch of {parent.path}")


def _checkpoint_before(run: Run, step: int) -> Artifact:
    """The last kept checkpoint up to `step`."""
    kept = [there for there in list_steps(run.path) if there <= step]
    if not kept:
        raise CheckpointError(
            f"no checkpoint up to step {step}", where=run.path, fix="train the run first"
        )
    return open_artifact(step_folder(run.path, kept[-1]), "checkpoint")


def _copy_metrics(parent: Run, run: Run, step: int) -> None:
    """Begin a branch's metrics with its parent's, up to the step it leaves at."""
    if len(whole_lines(run.path / METRICS)) >= step:
        return
    source = parent.path / METRICS
    with source.open("rb") as file:
        (run.path / METRICS).write_bytes(file.read(whole_lines(source)[step - 1]))


def _bits(parent: Run, step: int) -> dict[str, object]:
    """What computed the parent's full state: as recorded where one is kept, else this machine."""
    if step in list_states(parent.path):
        state = open_artifact(state_folder(parent.path, step), "state")
        return dict(state.provenance.get("bits", {}))
    with arithmetic.threads(parent.settings.training.threads):
        return ALONE.bits(parent.settings)
