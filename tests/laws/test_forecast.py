"""The plan for GPUs that are not here: every layout is found, what it says is counted again."""

from __future__ import annotations

import re
import weakref
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ontogeny
from ontogeny.config import build
from ontogeny.errors import ConfigError
from ontogeny.model.attention import rotate
from ontogeny.model.loss import linear_cross_entropy
from ontogeny.model.neox import Block, rotary_tables
from ontogeny.stages.footprint import Share, block_activations, memory, traffic
from ontogeny.stages.forecast import (
    MOVED_BACKWARD,
    MOVED_FORWARD,
    MOVED_LOGIT,
    SHARE_OF_PEAK,
    against_paper,
    choose,
    counted,
    data_rates,
    forecast,
    layouts,
    ranked,
    with_micro_batch,
)
from ontogeny.stages.gpus import GPUS, NODE, PAPER
from ontogeny.suite import RunSettings, load_suite
from ontogeny.training.layout import Layout, divisors, require_layout
from ontogeny.training.tree import Tree

PYTHIA = Path(ontogeny.__file__).parent / "suites" / "pythia.toml"
PRODUCTS = ("addmm", "mm", "_scaled_dot_product_flash_attention")


def run_of(size: str, *changes: str) -> RunSettings:
    suite = load_suite(PYTHIA, list(changes))
    (member,) = (one for one in suite.table() if one.name == size)
    return suite.run_settings(member, 50277, "bf16")


def small(rows: int, heads: int, vocab_size: int, *, reproducible: bool) -> RunSettings:
    shape = {"num_layers": 2, "hidden_size": heads * 16, "num_heads": heads,
             "vocab_size": vocab_size, "context_length": 8}  # fmt: skip
    training = {"tokens": rows * 8, "rows_per_update": rows, "micro_batch_rows": 1,
                "reproducible": reproducible}  # fmt: skip
    values = {"member": "small", "recipe": "sound", "init": "normal", "init_seed": 0}
    if reproducible and rows.bit_count() > 1:
        training["micro_batch_rows"] = rows
    return build(RunSettings, values | {"shape": shape, "training": training}, "test")


def is_possible(settings: RunSettings, layout: Layout, rows: int) -> bool:
    """As the trainer itself judges it."""
    try:
        again = build(RunSettings, with_micro_batch(settings, rows).resolved(), "test")
        require_layout(layout, again)
    except ConfigError:
        return False
    return True


@given(
    rows=st.integers(1, 24),
    num_gpus=st.integers(1, 16),
    heads=st.sampled_from([1, 3, 4, 8]),
    reproducible=st.booleans(),
)
def test_the_layouts_are_those_that_the_trainer_takes(
    rows: int, num_gpus: int, heads: int, reproducible: bool
) -> None:
    settings = small(rows, heads, 48, reproducible=reproducible)
    expected = {
        (num_gpus // tensor, tensor, micro_batch)
        for tensor, micro_batch in product(divisors(num_gpus), divisors(rows))
        if NODE % tensor == 0
        if is_possible(settings, Layout(num_gpus // tensor, tensor), micro_batch)
    }
    try:
        found = layouts(settings, num_gpus)
    except ConfigError:
        found = []
    assert {(a.data, a.tensor, run.training.micro_batch_rows) for run, a in found} == expected
    assert len(found) == len({(run.training.micro_batch_rows, one) for run, one in found})


@pytest.mark.parametrize(
    ("size", "layout"),
    [
        ("14m", Layout(1)),
        ("14m", Layout(256)),  # more ranks than rows of some tensors
        ("70m", Layout(4, shard="all", recompute=True)),
        ("70m", Layout(3, 2)),  # which divides nothing evenly
        ("160m", Layout(8, 4)),
        pytest.param("12b", Layout(64, 4), marks=pytest.mark.slow),
    ],
)
def test_a_cut_model_holds_what_the_closed_form_says(size: str, layout: Layout) -> None:
    settings = run_of(size, "training.reproducible=false", "training.rows_per_update=1536",
                      "training.micro_batch_rows=1")  # fmt: skip
    one = forecast(settings, layout, GPUS["h100"])
    assert counted(one) * 4 == one.memory.parameters
    assert Share(settings, Layout()).parameters() == settings.shape.num_parameters


class Reading(TorchDispatchMode):
    """Bytes that operators read and write, but for views and products; what they change, twice."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved = Counter[str]()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        name = operator._schema.name.split("::")[1]
        is_view = any(
            one.alias_info and not one.alias_info.is_write for one in operator._schema.returns
        )
        if not is_view and name not in ("detach", "_unsafe_view") and not name.startswith(PRODUCTS):
            touched = tree_leaves((args, kwargs, result))
            self.moved[name] += sum(one.nbytes for one in touched if isinstance(one, Tensor))
        return result


def as_on_a_gpu(block: Block, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A block whose attention goes the way it goes on a GPU, here through torch's for the CPU.

    Its linear maps do if they are left to torch.
    """
    attention = block.attention
    qkv = attention.query_key_value(block.input_layernorm(x))
    qkv = qkv.unflatten(-1, (-1, 3 * attention.head_size))
    q, k, v = (part.transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    return x + (attention.dense(out.flatten(2)) + block.mlp(block.post_attention_layernorm(x)))


def test_a_block_keeps_and_moves_what_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ontogeny.model.linear.is_for_kernel", lambda x, weight: False)
    h, rows, length = 128, 2, 512
    settings = build(
        RunSettings,
        small(rows, 2, 128, reproducible=True).resolved()
        | {"shape": {"num_layers": 1, "hidden_size": h, "num_heads": 2, "vocab_size": 128,
                     "context_length": length},
           "training": {"tokens": rows * length, "rows_per_update": rows}},
        "test",
    )  # fmt: skip
    block = Block(settings.shape)
    x = torch.randn(rows, length, h, dtype=torch.bfloat16, requires_grad=True)
    cos, sin = rotary_tables(settings.shape, length, torch.bfloat16, x.device)
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with Reading() as forward, torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        y = as_on_a_gpu(block, x, cos, sin)
    grad = torch.ones_like(y)
    with Reading() as backward:
        y.backward(grad)
    found = sum(storage.nbytes() for storage in kept.values())
    assert found == pytest.approx(block_activations(Share(settings, Layout())), rel=0.05)
    width = 2 * rows * length * h
    for reading, planned in ((forward, MOVED_FORWARD), (backward, MOVED_BACKWARD)):
        del reading.moved["_to_copy"]  # of the weights, counted apart
        assert reading.moved.total() / width == pytest.approx(sum(planned), rel=0.1)


def test_the_loss_moves_what_is_planned() -> None:
    hidden = torch.empty(4096, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.empty(1024, 8, device="meta", requires_grad=True)
    with Reading() as reading:
        linear_cross_entropy(hidden, weight, torch.empty(4096, dtype=torch.int64, device="meta"))
    all_columns = ("amax", "_softmax", "mul_", "_to_copy", "copy_")
    moved = sum(reading.moved[name] for name in all_columns)
    assert moved / (4096 * 1024) == pytest.approx(MOVED_LOGIT, rel=0.1)


@given(st.integers(1, 40))
def test_a_tree_holds_as_many_sums_as_are_planned(number: int) -> None:
    tree, held_at_once, leaves = Tree(), 0, list[weakref.ref[Tensor]]()
    for _ in range(number):
        leaf = torch.ones(1)
        leaves.append(weakref.ref(leaf))
        held_at_once = max(held_at_once, sum(one() is not None for one in leaves))
        tree.add([leaf])
        del leaf
    settings = small(number, 1, 8, reproducible=False)
    planned = memory(Share(settings, Layout()))
    assert held_at_once == planned.gradients // planned.parameters
    assert tree.total()[0].item() == number


def test_rates_are_those_of_every_byte_on_its_way() -> None:
    gpu = GPUS["h100"]
    for data, tensor in product((2, 4, 16, 64), (1, 2, 8)):
        layout = Layout(data, tensor)
        places = [rank * tensor // NODE for rank in range(data)]  # the nodes of one group's ranks
        beyond = sum(node != places[0] for node in places[1:]) / (data - 1)
        crossing = gpu.link_rate if not beyond else gpu.network_rate / beyond
        ring, straight = data_rates(gpu, layout)
        assert straight == pytest.approx(crossing)
        if beyond:  # groups share their node's network, each in proportion to its ranks there
            groups, near = tensor, places.count(places[0])
            assert ring == min(gpu.link_rate, NODE * gpu.network_rate / groups)
            assert near * groups == NODE


@pytest.mark.parametrize("shard", ["optimizer", "all"])
def test_what_is_sent_hides_behind_what_is_computed(shard: Literal["optimizer", "all"]) -> None:
    settings, layout = run_of("410m"), Layout(32, 1, shard)
    fast = replace(GPUS["h100"], flops=1e30, memory_rate=1e30)
    slow = replace(GPUS["h100"], flops=1e6)
    sent = traffic(Share(settings, layout))
    ring, straight = (SHARE_OF_PEAK * rate for rate in data_rates(fast, layout))
    ends = sent.gather_ends / ring + sent.reduce_ends / straight
    assert forecast(settings, layout, slow).exposed_seconds == pytest.approx(ends)
    late = sent.gather / ring + sent.reduce / straight
    assert forecast(settings, layout, fast).exposed_seconds == pytest.approx(ends + late)


def test_the_best_is_the_fastest_that_fits() -> None:
    found = ranked(run_of("2.8b"), GPUS["a100-80gb"], 64)
    fitting = [one for one in found if one.excess <= 0]
    assert found[0].seconds <= min(one.seconds for one in fitting) * (1 + 1e-5)
    assert 0 < len(fitting) < len(found)
    assert found[: len(fitting)] == fitting


def test_members_that_cost_the_same_are_planned_once() -> None:
    choices = list(choose(load_suite(PYTHIA), GPUS["h100"], 256))
    assert choices[1:3] == [("31m",), ("70m", "70m-deduped")]
    assert len(choices) == 10


def test_the_hours_of_the_paper_are_met() -> None:
    rows = against_paper(load_suite(PYTHIA))
    assert [one.settings.member for one, _ in rows] == list(PAPER)
    assert 4 * sum(hours for _, hours in rows) == 544_280  # two corpora, trained twice
    for one, hours in rows:
        assert one.gpu_hours == pytest.approx(hours, rel=0.15)
        assert one.excess < 0  # it did fit


def test_the_layouts_of_the_paper_are_those_of_its_configurations(reference: Path) -> None:
    for name, (layout, micro_batch, _) in PAPER.items():
        size = name.upper()
        file = reference / "pythia" / "models" / size / f"pythia-{name}.yml"
        found = dict(re.findall(r'"([a-z_-]+)": *(\d+)', file.read_text()))
        (num_gpus,) = re.findall(r"trained on (\d+) gpus", file.read_text())
        assert layout.num_ranks == int(num_gpus)
        assert layout.tensor == int(found["model-parallel-size"])
        assert micro_batch == int(found["train_micro_batch_size_per_gpu"])
