"""What a suite would take on GPUs that are not here: layouts, memory, traffic, hours.

Every layout that a run can have is counted in closed form (`footprint.py`); the fastest that fits
is chosen. The time is a roofline: products, plus what else moves through memory, plus the traffic
that nothing hides, each at one share of the data sheet's rate. The share is the one free number;
`docs/performance.md` has what it was held to. Not counted: the starting of kernels, latency,
checkpoints, failures.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ontogeny.config import nearest
from ontogeny.errors import ConfigError
from ontogeny.model.neox import NeoX
from ontogeny.shape import PYTHIA_VOCABULARY
from ontogeny.stages.footprint import Memory, Share, Traffic, memory, traffic
from ontogeny.stages.gpus import GPUS, NODE, PAPER, Gpu
from ontogeny.stages.plan import as_bytes
from ontogeny.suite import Member, RunSettings, Suite
from ontogeny.training.layout import Layout, divisors
from ontogeny.training.objective import Objective
from ontogeny.training.parts import own
from ontogeny.training.ranks import Ranks

SHARE_OF_PEAK = 0.5  # of every rate of a data sheet; a round number, chosen in view of PAPER
MARGIN = 0.1  # of a GPU's memory: the driver's, the libraries', what lies between blocks
SHARDS: tuple[Literal["optimizer", "all"], ...] = ("optimizer", "all")
# Numbers of width h that a block's operators read and write a token, products and attention left
# out: on every tensor rank, and cut among them. `tests/laws/test_forecast.py` counts them.
MOVED_FORWARD, MOVED_BACKWARD = (10, 19), (12, 58)
MOVED_LOGIT = 36  # bytes that the loss reads and writes a logit
# Bytes moved a parameter: of all that a rank gathers, a micro step (its gradient cast, laid out to
# be sent, added) and a gathering; of its own, an update and a micro step.
MOVED_WHOLE, MOVED_GATHERED, MOVED_OWN, MOVED_SUMMED = 22, 6, 40, 12


@dataclass(frozen=True, slots=True)
class Forecast:
    """One layout of one run: what a GPU holds and sends, and how long an update takes."""

    settings: RunSettings
    layout: Layout
    gpu: Gpu
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
    def gpu_hours(self) -> float:
        """Of the whole run."""
        return self.settings.num_updates * self.seconds / 3600 * self.layout.num_ranks

    def as_json(self) -> dict[str, Any]:
        """All of it, in bytes and seconds."""
        parts = ("arithmetic_seconds", "memory_seconds", "exposed_seconds", "seconds",
                 "tokens_per_second", "share_of_peak", "gpu_hours")  # fmt: skip
        return {
            "member": self.settings.member,
            "layout": self.layout.as_json(),
            "micro_batch_rows": self.settings.training.micro_batch_rows,
            "fits": self.excess <= 0,
            "memory": asdict(self.memory) | {"total": self.memory.total},
            "traffic": asdict(self.traffic) | {"total": self.traffic.total},
            **{name: getattr(self, name) for name in parts},
        }


def forecast(settings: RunSettings, layout: Layout, gpu: Gpu) -> Forecast:
    """Count one layout of a run."""
    share = Share(settings, layout)
    sent = traffic(share)
    arithmetic = operations(share) / (SHARE_OF_PEAK * gpu.flops)
    moving = bytes_moved(share) / (SHARE_OF_PEAK * gpu.memory_rate)
    exposed = exposed_seconds(share, sent, gpu, arithmetic + moving)
    return Forecast(settings, layout, gpu, memory(share), sent, arithmetic, moving, exposed)


def operations(share: Share) -> float:
    """What a rank computes in an update, recomputation included."""
    shape = share.settings.shape
    again = shape.flops_per_token / 3 - 2 * shape.vocab_size * shape.hidden_size
    a_token = shape.flops_per_token + share.layout.recompute * again
    return share.settings.tokens_per_update * a_token / share.layout.num_ranks


def bytes_moved(share: Share) -> float:
    """What a rank's operators other than products read and write in an update."""
    shape, layout, steps = share.settings.shape, share.layout, share.micro_steps
    whole, cut = (
        forward * (1 + layout.recompute) + backward
        for forward, backward in zip(MOVED_FORWARD, MOVED_BACKWARD, strict=True)
    )
    widths = 2 * shape.num_layers * shape.hidden_size * (whole + cut / layout.tensor)
    per_whole = MOVED_WHOLE * steps + MOVED_GATHERED * share.num_gathers
    return (
        share.tokens * steps * (widths + MOVED_LOGIT * share.num_ids)
        + share.parameters() * per_whole
        + share.parameters(layout.data) * (MOVED_OWN + MOVED_SUMMED * steps)
    )


def exposed_seconds(share: Share, sent: Traffic, gpu: Gpu, computing_seconds: float) -> float:
    """Seconds of an update in which a rank waits for others.

    Other blocks compute while a block's parameters arrive and its gradients leave. Nothing hides
    the embeddings, which are first and last, nor the sums of tensor parallel.
    """
    layout = share.layout
    ring, straight = (SHARE_OF_PEAK * rate for rate in data_rates(gpu, layout))
    reducing = straight if share.settings.training.reproducible else ring
    forward = computing_seconds / (3 + layout.recompute)
    backward = computing_seconds - forward
    gather, reduce = sent.gather / ring, sent.reduce / reducing
    if layout.shard == "all":  # half of the gathering is for the backward passes
        late = max(0, gather / 2 - forward) + max(0, gather / 2 + reduce - backward)
    else:  # all of it is for the first micro step
        late = max(0, gather - forward / share.micro_steps) + max(0, reduce - backward)
    at_ends = sent.gather_ends / ring + sent.reduce_ends / reducing
    return late + at_ends + sent.tensor / (SHARE_OF_PEAK * gpu.link_rate)


def data_rates(gpu: Gpu, layout: Layout) -> tuple[float, float]:
    """Bytes a second between data-parallel ranks: around a ring, and each straight to each.

    A ring crosses the network once a node, and those of a node share its network; for sums in a
    fixed order every part goes to its rank, most of them through the network.
    """
    if layout.num_ranks <= NODE:
        return gpu.link_rate, gpu.link_rate
    near = NODE // layout.tensor  # data-parallel ranks of a node
    beyond = (layout.data - near) / (layout.data - 1)
    return min(gpu.link_rate, near * gpu.network_rate), gpu.network_rate / beyond


def choose(
    suite: Suite, gpu: Gpu, num_gpus: int, only: str | None = None
) -> dict[tuple[str, ...], list[Forecast]]:
    """For members that cost the same, or one, all layouts over so many GPUs, the best first.

    Raises ConfigError when a member has no layout over so many, or none that fits.
    """
    alike: dict[str, list[RunSettings]] = {}
    for member in suite.table():
        if only in (None, member.name):
            settings = in_half_precision(suite, member)
            key = settings.model_copy(update={"member": "", "init_seed": 0}).model_dump_json()
            alike.setdefault(key, []).append(settings)
    if not alike:
        fix = nearest(str(only), [member.name for member in suite.table()])
        raise ConfigError(f"no member {only!r}", where=suite.name, fix=fix)
    return {
        tuple(one.member for one in group): ranked(group[0], gpu, num_gpus)
        for group in alike.values()
    }


def in_half_precision(suite: Suite, member: Member) -> RunSettings:
    """A member's settings, `auto` being what it is on GPUs. Raises ConfigError for float32."""
    asked = suite.training.precision
    if asked == "fp32":
        fix = "--set training.precision=bf16"
        raise ConfigError("plans are for half precision", where=member.name, found=asked, fix=fix)
    vocab_size = suite.vocabulary.size or PYTHIA_VOCABULARY
    return suite.run_settings(member, vocab_size, "bf16" if asked == "auto" else asked)


def ranked(settings: RunSettings, gpu: Gpu, num_gpus: int) -> list[Forecast]:
    """The layouts of a run over so many GPUs: those that fit first, the fastest of them first."""
    found = [forecast(*one, gpu) for one in layouts(settings, num_gpus)]
    found.sort(key=order_of_choice)
    best = found[0]
    if best.excess > 0:
        raise ConfigError(
            f"no layout fits on {num_gpus} x {gpu.name}",
            where=settings.member,
            expected=f"at most {as_bytes((1 - MARGIN) * gpu.memory_bytes)} a GPU",
            found=f"{as_bytes(best.memory.total)} at the least ({as_bytes(best.excess)} too much), "
            f"with shard {best.layout.shard}, tensor {best.layout.tensor}",
            fix="more GPUs, or larger ones",
        )
    return found


def order_of_choice(one: Forecast) -> tuple[float, ...]:
    """Least first: what fits, then time, then work, then memory."""
    seconds = float(f"{one.seconds:.6g}")  # the same, summed in another order, is no difference
    return max(0, one.excess), seconds, one.layout.recompute, one.memory.total


def layouts(settings: RunSettings, num_gpus: int) -> list[tuple[RunSettings, Layout]]:
    """Every layout over so many GPUs that a run can have, with its settings for each micro batch.

    Raises ConfigError with the numbers of GPUs that there are layouts for.
    """
    shape, in_order = settings.shape, settings.training.reproducible
    rows, cuts = settings.training.rows_per_update, [1]
    if not in_order:
        cut = (shape.num_heads, shape.vocab_size)
        cuts = [size for size in divisors(NODE) if not any(number % size for number in cut)]
    leaves = [number for number in divisors(rows) if number.bit_count() == 1 or not in_order]
    found = [
        (with_micro_batch(settings, rows // number), Layout(num_gpus // tensor, tensor, *kind))
        for tensor, number in product(cuts, leaves)
        if num_gpus % tensor == 0 and number % (num_gpus // tensor) == 0
        for kind in product(SHARDS[: num_gpus // tensor], (False, True))  # nobody to share with
    ]
    if not found:
        valid = sorted({data * tensor for data in leaves for tensor in cuts})
        raise ConfigError(
            f"{num_gpus} GPUs cannot share {rows} rows an update",
            where=settings.member,
            expected=f"one of {', '.join(map(str, valid))}",
            fix=f"--gpus {max(size for size in valid if size < num_gpus)}",
        )
    return found


def with_micro_batch(settings: RunSettings, rows: int) -> RunSettings:
    """The settings with so many rows a micro batch."""
    training = settings.training.model_copy(update={"micro_batch_rows": rows})
    return settings.model_copy(update={"training": training})


def counted(one: Forecast) -> int:
    """How many parameters the first rank really has: the model is cut, but takes no memory.

    By the code that trains, on the meta device, among ranks that only pretend to be there.
    """
    # torch's own means to test layouts; importing it registers the backend.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from ontogeny.training.parallel import distribute

    layout = one.layout
    with torch.device("meta"):
        model = NeoX(one.settings.shape)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=layout.num_ranks)
    try:
        names = ("data", "tensor")
        mesh = init_device_mesh("cpu", (layout.data, layout.tensor), mesh_dim_names=names)
        distribute(Objective(model), Ranks(layout, 0, mesh), one.settings.training)
        return sum(own(parameter).numel() for parameter in model.parameters())
    finally:
        dist.destroy_process_group()


def against_paper(suite: Suite) -> list[tuple[Forecast, int]]:
    """The members that Pythia's paper has GPU-hours for, in the layout they had, and those hours.

    Raises ConfigError when the suite has none of them.
    """
    rows = []
    for member in suite.table():
        if member.name in PAPER:
            layout, micro_batch, gpu_hours = PAPER[member.name]
            settings = with_micro_batch(in_half_precision(suite, member), micro_batch)
            training = settings.training.model_copy(update={"reproducible": False})
            theirs = settings.model_copy(update={"training": training})
            rows.append((forecast(theirs, layout, GPUS["a100-40gb"]), gpu_hours))
    if not rows:
        raise ConfigError("no member is in the paper", expected=f"one of {', '.join(PAPER)}")
    return rows
