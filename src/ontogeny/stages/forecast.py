"""What a suite would take on GPUs that are not here: layouts, memory, traffic, hours.

Every layout a run can have is counted in closed form (`footprint.py`); the fastest that fits is
chosen, and its model is cut on the meta device under a fake process group, by the code that trains,
to count what a rank would really hold. The time is a roofline: products at a share of the peak,
plus what else moves through memory, plus the traffic that nothing hides, each at the same share of
the data sheet's rate. Not counted: starting kernels, latency, checkpoints, failures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ontogeny.errors import ConfigError
from ontogeny.model.neox import NeoX
from ontogeny.shape import PYTHIA_VOCABULARY
from ontogeny.stages.footprint import Memory, Traffic, held, memory, num_gathers, traffic
from ontogeny.stages.gpus import NODE, Gpu
from ontogeny.stages.plan import as_bytes
from ontogeny.suite import Member, RunSettings, Suite
from ontogeny.training.layout import Layout, divisors
from ontogeny.training.objective import Objective
from ontogeny.training.parts import own
from ontogeny.training.ranks import ALONE, Ranks

SHARE_OF_PEAK = 0.5  # of every rate of a data sheet; docs/performance.md says what supports it
SHARDS: tuple[Literal["optimizer", "all"], ...] = ("optimizer", "all")
MARGIN = 0.1  # of a GPU's memory: the driver's, the libraries', what lies between blocks
# Numbers of width h that a block's operators read and write a token, products and attention left
# out: on every tensor rank, and cut among them. `tests/laws/test_forecast.py` counts them.
MOVED_FORWARD, MOVED_BACKWARD = (10, 19), (12, 58)
MOVED_LOGIT = 36  # bytes that the loss reads and writes a logit
# Bytes moved a parameter: of all that a rank gathers, a micro step (cast, its gradient cast back,
# laid out to be sent, added) and a gathering; of its own, an update and a micro step.
MOVED_WHOLE, MOVED_GATHERED, MOVED_OWN, MOVED_SUMMED = 22, 6, 40, 12


@dataclass(frozen=True, slots=True)
class Forecast:
    """One layout of one run: what a GPU holds and sends, and how long an update takes."""

    settings: RunSettings
    gpu: Gpu
    layout: Layout
    memory: Memory
    traffic: Traffic
    arithmetic_seconds: float
    memory_seconds: float
    exposed_seconds: float

    @property
    def seconds(self) -> float:
        """Of one update."""
        return self.arithmetic_seconds + self.memory_seconds + self.exposed_seconds

    @property
    def excess(self) -> float:
        """Bytes by which it exceeds what the margin leaves of a GPU's memory."""
        return self.memory.total - (1 - MARGIN) * self.gpu.memory_bytes

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs."""
        return self.settings.tokens_per_update / self.seconds

    @property
    def share_of_peak(self) -> float:
        """The model's operations, none counted twice, over what the GPUs could do."""
        flops = self.settings.shape.flops_per_token * self.tokens_per_second
        return flops / (self.layout.num_ranks * self.gpu.flops)

    @property
    def hours(self) -> float:
        """Of the run."""
        return self.settings.num_updates * self.seconds / 3600

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.layout.num_ranks


def forecast(settings: RunSettings, gpu: Gpu, layout: Layout) -> Forecast:
    """Count one layout of a run."""
    arithmetic = operations(settings, layout) / (SHARE_OF_PEAK * gpu.flops)
    moving = bytes_moved(settings, layout) / (SHARE_OF_PEAK * gpu.memory_rate)
    sent = traffic(settings, layout)
    exposed = exposed_seconds(settings, gpu, layout, arithmetic + moving)
    return Forecast(
        settings, gpu, layout, memory(settings, layout), sent, arithmetic, moving, exposed
    )


def operations(settings: RunSettings, layout: Layout) -> float:
    """What a rank computes in an update, recomputation included."""
    shape = settings.shape
    blocks = shape.flops_per_token - 6 * shape.vocab_size * shape.hidden_size
    a_token = shape.flops_per_token + (blocks / 3 if layout.recompute else 0)
    return settings.tokens_per_update * a_token / layout.num_ranks


def bytes_moved(settings: RunSettings, layout: Layout) -> float:
    """What a rank's operators other than products read and write in an update."""
    shape, parts, tensor = settings.shape, held(settings.shape, layout), layout.tensor
    whole, cut = (
        forward * (1 + layout.recompute) + backward
        for forward, backward in zip(MOVED_FORWARD, MOVED_BACKWARD, strict=True)
    )
    a_token = 2 * shape.num_layers * shape.hidden_size * (whole + cut / tensor)
    a_token += MOVED_LOGIT * shape.vocab_size / tensor
    micro_steps = settings.num_leaves // layout.data
    gathered = MOVED_GATHERED * num_gathers(settings, layout) + MOVED_WHOLE * micro_steps
    ours = MOVED_OWN + MOVED_SUMMED * micro_steps
    return (
        settings.tokens_per_update / layout.data * a_token
        + parts.whole * gathered
        + parts.own * ours
    )


def exposed_seconds(
    settings: RunSettings, gpu: Gpu, layout: Layout, computing_seconds: float
) -> float:
    """Seconds of an update in which a rank waits for others.

    Other blocks compute while a block's parameters arrive and its gradients leave. Nothing hides
    the embeddings, which are first and last, nor the sums of tensor parallel.
    """
    sent = traffic(settings, layout)
    ring, straight = (SHARE_OF_PEAK * rate for rate in data_rates(gpu, layout))
    reducing = straight if settings.training.reproducible else ring
    forward = computing_seconds / (3 + layout.recompute)
    backward = computing_seconds - forward
    gather, reduce = sent.gather / ring, sent.reduce / reducing
    if layout.shard == "all":  # half of the gathering is for the backward passes
        late = max(0, gather / 2 - forward) + max(0, gather / 2 + reduce - backward)
    else:
        hidden = forward * layout.data / settings.num_leaves  # behind the first micro step alone
        late = max(0, gather - hidden) + max(0, reduce - backward)
    at_ends = sent.gather_ends / ring + sent.reduce_ends / reducing
    return late + at_ends + sent.tensor / (SHARE_OF_PEAK * gpu.link_rate)


def data_rates(gpu: Gpu, layout: Layout) -> tuple[float, float]:
    """Bytes a second between data-parallel ranks: around a ring, and each straight to each.

    A ring crosses the network once a node, and those of a node share its network; sums in a fixed
    order need every part at its rank, so most parts cross it.
    """
    if layout.num_ranks <= NODE:
        return gpu.link_rate, gpu.link_rate
    near = max(1, NODE // layout.tensor)  # data-parallel ranks of a node
    beyond = (layout.data - near) / (layout.data - 1)
    return min(gpu.link_rate, near * gpu.network_rate), gpu.network_rate / beyond


@dataclass(frozen=True, slots=True)
class Choice:
    """What members that cost the same would take: every layout, the best first."""

    members: tuple[str, ...]
    forecasts: tuple[Forecast, ...]


def choose(suite: Suite, gpu: Gpu, num_gpus: int) -> list[Choice]:
    """For every size of a suite, all layouts over so many GPUs, those that fit first.

    Raises ConfigError when a member has no layout over so many, or none that fits.
    """
    alike: dict[str, list[RunSettings]] = {}
    for member in suite.table():
        settings = in_half_precision(suite, member)
        key = settings.model_copy(update={"member": "", "init_seed": 0}).model_dump_json()
        alike.setdefault(key, []).append(settings)
    return [
        Choice(tuple(one.member for one in group), tuple(ranked(group[0], gpu, num_gpus)))
        for group in alike.values()
    ]


def in_half_precision(suite: Suite, member: Member) -> RunSettings:
    """A member's settings, `auto` being what it is on GPUs. Raises ConfigError for float32."""
    asked = suite.training.precision
    if asked == "fp32":
        raise ConfigError(
            "plans are for half precision",
            where=member.name,
            found="precision fp32",
            fix="--set training.precision=bf16",
        )
    vocab_size = suite.vocabulary.size or PYTHIA_VOCABULARY
    return suite.run_settings(member, vocab_size, "bf16" if asked == "auto" else asked)


def ranked(settings: RunSettings, gpu: Gpu, num_gpus: int) -> list[Forecast]:
    """The layouts of a run over so many GPUs: those that fit first, the fastest of them first."""
    found = [forecast(one, gpu, layout) for one, layout in layouts(settings, num_gpus)]
    found.sort(key=order_of_choice)
    best = found[0]
    if best.excess > 0:
        raise ConfigError(
            f"no layout fits on {num_gpus} x {gpu.name}",
            where=settings.member,
            expected=f"at most {as_bytes((1 - MARGIN) * gpu.memory_bytes)} a GPU",
            found=f"{as_bytes(best.memory.total)}, {as_bytes(best.excess)} too much, with the "
            f"least: {described(best)}",
            fix="more GPUs, or larger ones",
        )
    return found


def order_of_choice(one: Forecast) -> tuple[float, ...]:
    """Least first: what fits, then time, then work, then memory."""
    seconds = float(f"{one.seconds:.6g}")  # sums of the same in another order are no difference
    return max(0, one.excess), seconds, one.layout.recompute, one.memory.total


def described(one: Forecast) -> str:
    """A layout in words."""
    layout, rows = one.layout, one.settings.training.micro_batch_rows
    words = f"data {layout.data}, tensor {layout.tensor}, shard {layout.shard}"
    return f"{words}{', recompute' * layout.recompute}, micro batch {rows}"


def layouts(settings: RunSettings, num_gpus: int) -> list[tuple[RunSettings, Layout]]:
    """Every layout over so many GPUs that a run can have, with its settings for each micro batch.

    Raises ConfigError with the numbers of GPUs that there are layouts for.
    """
    num_heads, vocab_size = settings.shape.num_heads, settings.shape.vocab_size
    cuts = [1]
    if not settings.training.reproducible:
        cuts = [size for size in divisors(num_heads) if size <= NODE and vocab_size % size == 0]
    leaves = possible_leaves(settings)
    found = [
        (with_leaves(settings, number), Layout(num_gpus // tensor, tensor, shard, recompute))
        for tensor, number in product(cuts, leaves)
        if num_gpus % tensor == 0 and number % (num_gpus // tensor) == 0
        for shard, recompute in product(SHARDS, (False, True))
        if num_gpus > tensor or shard == "optimizer"
    ]
    if not found:
        data = {size for number in leaves for size in divisors(number)}
        valid = sorted({size * tensor for size in data for tensor in cuts})
        raise ConfigError(
            f"{num_gpus} GPUs cannot share {settings.training.rows_per_update} rows an update",
            where=settings.member,
            expected=f"one of {', '.join(map(str, valid))}",
            found=num_gpus,
            fix=f"--gpus {max(size for size in valid if size < num_gpus)}",
        )
    return found


def possible_leaves(settings: RunSettings) -> list[int]:
    """How many micro batches an update may have."""
    numbers = divisors(settings.training.rows_per_update)
    if settings.training.reproducible:
        return [number for number in numbers if number.bit_count() == 1]
    return numbers


def with_leaves(settings: RunSettings, number: int) -> RunSettings:
    """The settings with so many micro batches an update."""
    rows = settings.training.rows_per_update // number
    training = settings.training.model_copy(update={"micro_batch_rows": rows})
    return settings.model_copy(update={"training": training})


def counted(one: Forecast) -> int:
    """How many parameters the first rank really has: the model is cut, but takes no memory.

    By the code that trains, on the meta device, as one of ranks that only pretend to be there.
    """
    with torch.device("meta"):
        model = NeoX(one.settings.shape)
    with pretended(one.layout) as ranks:
        if ranks.mesh is not None:
            from ontogeny.training.parallel import distribute

            distribute(Objective(model), ranks, one.settings.training)
        return sum(own(parameter).numel() for parameter in model.parameters())


@contextmanager
def pretended(layout: Layout) -> Iterator[Ranks]:
    """Be the first rank of a layout whose others are not there: what is sent to them is lost."""
    if layout.num_ranks == 1:
        yield ALONE
        return
    # torch's own means to test layouts; importing it registers the backend.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=layout.num_ranks)
    try:
        sizes = (layout.data, layout.tensor)
        yield Ranks(layout, 0, init_device_mesh("cpu", sizes, mesh_dim_names=("data", "tensor")))
    finally:
        dist.destroy_process_group()
