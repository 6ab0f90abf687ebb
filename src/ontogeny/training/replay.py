"""Any step of a run, derived again: from a full state before it, by the very updates training took.

What the run has on record is compared on the way: the arithmetic, the weights of every checkpoint
passed, the rows and the loss of every update. A run is only read, without its lock, so it may be
replayed while it trains. Not here: what an update does (`update.py`), writing the result.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ontogeny.artifact import open_artifact
from ontogeny.checkpoints.store import (
    Progress,
    digest_tensor,
    list_states,
    load_checkpoint,
    save_checkpoint,
    save_state,
    tensor_digests,
)
from ontogeny.digest import SHORT, digest_json
from ontogeny.errors import CheckpointError, ConfigError, OntogenyError, OrderError
from ontogeny.model import arithmetic, hf
from ontogeny.model.neox import NeoX
from ontogeny.order.batches import Batches
from ontogeny.results import UpdateMetrics
from ontogeny.steps import METRICS, list_steps, state_folder, step_folder
from ontogeny.training import machine
from ontogeny.training.metrics import Sink, whole_rows
from ontogeny.training.prefetch import Feed
from ontogeny.training.ranks import ALONE
from ontogeny.training.run import Run, Start
from ontogeny.training.update import State, require_fit, resumed, take_update


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far weights are from those recorded.

    `absolute` is the largest difference of one weight; `relative` the norm of the difference over
    the recorded norm, of all weights; `worst` the same of `worst_tensor`, where it is largest.
    """

    absolute: float
    relative: float
    worst: float
    worst_tensor: str


@dataclass(frozen=True, slots=True)
class Passed:
    """A checkpoint of the run that was passed; without deviation it is equal bit for bit."""

    step: int
    digest: str
    deviation: Deviation | None


@dataclass(slots=True)
class Replayed:
    """The full state of a run after some step, and what was compared to get there."""

    model: NeoX
    moments: dict[str, Tensor]  # what a full state holds besides the weights
    progress: Progress
    start: int  # the step it was derived from
    is_from_settings: bool  # no state was kept there: from the initial model
    passed: list[Passed]
    num_compared: int  # updates whose metrics are on record
    loss_deviation: float  # the largest among those
    seconds: float  # of the updates

    @property
    def digest(self) -> str:
        """The digest of weights, moments and progress: equal for equal states."""
        return digest_json(
            {
                "step": self.progress.step,
                "rows_digest": self.progress.rows_digest,
                "weights": tensor_digests(self.model),
                "optimizer": {name: digest_tensor(moment) for name, moment in self.moments.items()},
            }
        )


def replay(
    run: Run,
    batches: Batches,
    step: int,
    *,
    start: int | None = None,
    tolerant: bool = False,
    observe: Sink | None = None,
) -> Replayed:
    """Derive the full state after `step` updates from the nearest one kept before, or from `start`.

    Raises ConfigError for a step that is not the run's, OrderError when the rows are not those on
    record, CheckpointError when the arithmetic is another or anything comes out otherwise. The
    last kind is measured and not raised where `tolerant`.
    """
    require_fit(run, batches)
    first, last = run.settings.first_step, run.settings.num_updates
    if not first <= step <= last:
        raise ConfigError(
            f"no step {step}", where=run.path, expected=f"a step from {first} to {last}"
        )
    machine.keep_freed_memory()
    with ExitStack() as stack:
        stack.enter_context(machine.arithmetic(run.settings.training))
        origin, state = _origin(run, batches, step, start)
        if origin.progress.step < step and not tolerant:
            _require_same_bits(run, origin, step)
        record = _Record(run, origin.progress.step, step, tolerant)
        feed = stack.enter_context(Feed(batches, state.progress, step, machine.device()))
        record.compare_weights(state)
        while state.progress.step < step:
            row = take_update(run, feed, state)
            record.compare_metrics(row)
            record.compare_weights(state)
            if observe is not None:
                observe(row)
    return Replayed(
        state.model, state.named_state(), state.progress, origin.progress.step,
        origin.moments is None, record.passed, record.num_compared, record.loss_deviation,
        record.seconds,
    )  # fmt: skip


def publish(run: Run, replayed: Replayed, folder: Path | None, state: Path | None) -> None:
    """Write the checkpoint to `folder` and the full state to `state`, where they are given.

    The checkpoint is the very one the run saved, or would have saved, at that step.
    """
    model, progress = replayed.model, replayed.progress
    with arithmetic.threads(run.settings.training.threads):
        provenance = {"bits": ALONE.bits(run.settings), "replayed_from": replayed.start}
    if folder is not None:
        parent = run.parent_of(progress.step)
        save_checkpoint(
            run.artifact, model, progress, parent=parent, provenance=provenance, folder=folder
        )
    if state is not None:
        save_state(
            run.artifact, replayed.moments, progress, weights=hf.named_weights(model),
            provenance=provenance, folder=state,
        )  # fmt: skip


class _Record:
    """What a run says of its steps `start` to `step`, and how a replay compares with it."""

    def __init__(self, run: Run, start: int, step: int, tolerant: bool) -> None:
        rows = islice(whole_rows(run.path / METRICS), start, step)
        self._metrics = {row.update: row for row in rows}
        self._kept = frozenset(list_steps(run.path))
        self._run, self._tolerant = run, tolerant
        self.passed: list[Passed] = []
        self.num_compared, self.loss_deviation, self.seconds = 0, 0.0, 0.0

    def compare_weights(self, state: State) -> None:
        """Compare the state with the run's checkpoint of its step, where there is one."""
        progress = state.progress
        if progress.step not in self._kept:
            return
        kept = open_artifact(step_folder(self._run.path, progress.step), "checkpoint")
        self._require_same_rows(progress.rows_digest, str(kept.facts.get("rows_digest")), kept.path)
        recorded, deviation = kept.facts.get("tensors", {}), None
        found = tensor_digests(state.model)
        if found != recorded:
            others = (name for name in found if found[name] != recorded.get(name))
            other = next(others, "set of tensors")
            if not self._tolerant:
                raise CheckpointError(
                    f"replayed, step {progress.step} has another {other} than recorded",
                    where=kept.path,
                    fix="--from another state, or --tolerance to measure how far apart they are",
                )
            deviation = deviation_of(state.model, load_checkpoint(self._run.path, progress.step))
        self.passed.append(Passed(progress.step, kept.digest, deviation))

    def compare_metrics(self, row: UpdateMetrics) -> None:
        """Compare an update with the run's line about it, where there is one."""
        self.seconds += row.seconds
        recorded = self._metrics.get(row.update)
        if recorded is None:
            return
        place = f"{self._run.path / METRICS}:{row.update + 1}"
        self._require_same_rows(row.rows_digest, recorded.rows_digest, place)
        self.num_compared += 1
        self.loss_deviation = max(self.loss_deviation, abs(row.loss - recorded.loss))
        if not self._tolerant and replace(row, seconds=recorded.seconds) != recorded:
            raise CheckpointError(
                f"replayed, update {row.update} comes out otherwise than recorded",
                where=place,
                expected=f"loss {recorded.loss}, gradient norm {recorded.gradient_norm}",
                found=f"loss {row.loss}, gradient norm {row.gradient_norm}",
                fix="--from another state, or --tolerance to measure how far apart they are",
            )

    def _require_same_rows(self, found: str, recorded: str, where: object) -> None:
        if found != recorded:
            raise OrderError(
                "the rows read are not those the run consumed",
                where=where,
                expected=f"rolling digest {recorded[:SHORT]}",
                found=found[:SHORT],
                fix="the order and the store the run was made from",
            )


def deviation_of(model: NeoX, recorded: NeoX) -> Deviation:
    """How far a model's weights are from recorded ones of the same shape."""
    theirs = recorded.state_dict()
    names = [hf.to_file_name(name) for name in theirs]
    differences = [
        tensor.detach().cpu().double() - theirs[name].detach().double()
        for name, tensor in model.state_dict().items()
    ]
    sizes = torch.tensor([one.norm().item() for one in differences]).double()
    norms = torch.tensor([one.detach().double().norm().item() for one in theirs.values()]).double()
    shares = torch.where(sizes > 0, sizes / norms, 0.0)
    worst = int(shares.argmax())
    return Deviation(
        max(one.abs().max().item() for one in differences),
        (sizes.norm() / norms.norm()).item(),
        shares[worst].item(),
        names[worst],
    )


def _origin(run: Run, batches: Batches, step: int, start: int | None) -> tuple[Start, State]:
    """What a replay begins from: the nearest kept state, that of `start`, or the initial model."""
    states = [kept for kept in list_states(run.path) if kept <= step]
    for kept in reversed(states):
        if start is None or kept == start:
            try:
                origin = run.saved(kept)
                return origin, resumed(run, origin, ALONE)
            except (OSError, OntogenyError):
                if state_folder(run.path, kept).exists():
                    raise
                # freed in the meantime by the process that trains the run
    if not start:
        origin = run.initial(batches.start)
        return origin, resumed(run, origin, ALONE)
    raise CheckpointError(
        f"no full state of step {start} to come to step {step} from",
        where=run.path,
        expected=f"one of the steps {', '.join(map(str, states))}" if states else "--from 0",
    )


def _require_same_bits(run: Run, origin: Start, step: int) -> None:
    """Refuse other arithmetic than that of the state and of the checkpoints up to that after."""
    start, here = origin.progress.step, ALONE.bits(run.settings)
    after = [there for there in list_steps(run.path) if there > start]
    up_to = next((there for there in after if there >= step), step)
    fix = "--tolerance to measure the deviation"
    machine.require_same_bits(origin.bits, here, start, run.path, fix)
    for there in after:
        if there <= up_to:
            kept = open_artifact(step_folder(run.path, there), "checkpoint")
            recorded = kept.provenance.get("bits", {})
            machine.require_same_bits(recorded, here, there, run.path, fix)
