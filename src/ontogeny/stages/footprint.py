"""What a layout makes each rank hold and send: closed forms of what `training` does on a GPU.

They are checked against the cut model, and against tensors counted while real ranks take an update
(`tests/distributed/test_footprint.py`). Not here: how long it takes (`forecast.py`).

Symbols: h hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from ontogeny.model.loss import ACCELERATOR_CHUNK_BYTES
from ontogeny.suite import RunSettings
from ontogeny.training.layout import Layout

MASTER = 4  # bytes of a parameter, of a summed gradient and of each of the two moments
HALF = 2  # bytes of what is computed, and of a block's parameters and gradients when sent
# Numbers of width h that a block keeps of a token for the backward pass. On every tensor rank: its
# input and both norms' outputs. Cut among them: query, key and value, the former two again turned,
# attention's output and its copy in the order of the heads, both sides of the activation function.
KEPT_WHOLE, KEPT_CUT = 3, 15


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a run's work and parameters that falls to the first rank, who has the most."""

    settings: RunSettings
    layout: Layout

    @property
    def micro_steps(self) -> int:
        return self.settings.num_leaves // self.layout.data

    @property
    def tokens(self) -> int:
        """Of one forward pass."""
        return self.settings.tokens_per_update // self.settings.num_leaves

    @property
    def num_gathers(self) -> int:
        """How often an update gathers the parameters: once, or for every pass anew."""
        return 1 if self.layout.shard == "optimizer" else 2 * self.micro_steps

    @property
    def num_ids(self) -> int:
        """Of the vocabulary."""
        return self.settings.shape.vocab_size // self.layout.tensor

    def block(self, data: int = 1) -> int:
        """Parameters of a block, of which `data` ranks hold some rows each."""
        h, tensor = self.settings.shape.hidden_size, self.layout.tensor
        wide = sum(-(-rows * h // tensor // data) * (h + 1) for rows in (3, 4))  # and their biases
        narrow = -(-h // data) * (5 * h // tensor)
        return wide + narrow + 6 * -(-h // data)  # two more biases, two norms

    def root(self, data: int = 1) -> int:
        """Parameters outside the blocks: both embeddings and the last norm."""
        h = self.settings.shape.hidden_size
        return 2 * -(-self.num_ids // data) * h + 2 * -(-h // data)

    def parameters(self, data: int = 1) -> int:
        """All of them."""
        return self.settings.shape.num_layers * self.block(data) + self.root(data)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a rank, by what they are for; not all of them at the same moment."""

    parameters: int
    moments: int
    gradients: int  # the sums of the tree, of the rank's own part
    gathered: int  # parameters of all ranks, while they are needed
    activations: int  # all that the backward pass needs
    logits: int  # a chunk of them, and what the loss makes of it
    block_exchange: int  # gradients of a block on their way to their ranks
    root_exchange: int  # those of the embeddings, when the activations are gone

    @property
    def total(self) -> int:
        """What there is at the fullest moment of an update.

        The last gradient that is added to the tree comes as the activations go.
        """
        last = self.parameters
        kept = self.parameters + self.moments + self.gathered + self.gradients - last
        turning = self.activations + max(self.logits, self.block_exchange)
        return kept + max(turning, last + self.root_exchange)


def memory(share: Share) -> Memory:
    """What a rank holds, of a run whose arithmetic is in half precision."""
    layout, shape = share.layout, share.settings.shape
    own = MASTER * share.parameters(layout.data)
    gathered = in_blocks = at_root = 0
    if layout.num_ranks > 1:
        num_blocks = shape.num_layers if layout.shard == "optimizer" else min(2, shape.num_layers)
        gathered = num_blocks * HALF * share.block() + MASTER * share.root()
        # As computed and side by side to be sent; to be added in order, also as sent and received.
        in_order = share.settings.training.reproducible
        in_blocks = share.block() * (2 * MASTER + 2 * HALF if in_order else HALF + MASTER)
        at_root = share.root() * 2 * MASTER
    chunk = min(ACCELERATOR_CHUNK_BYTES, HALF * share.num_ids * share.tokens)
    return Memory(
        parameters=own,
        moments=2 * own,
        gradients=own * share.micro_steps.bit_length(),
        gathered=gathered,
        activations=activations(share),
        # A chunk with two like it in float32, and the matrix with its gradient.
        logits=chunk + 2 * chunk * MASTER // HALF + 2 * HALF * share.num_ids * shape.hidden_size,
        block_exchange=in_blocks,
        root_exchange=at_root,
    )


def block_activations(share: Share, kept_cut: int = KEPT_CUT) -> int:
    """Bytes that a block keeps of a micro batch for the backward pass.

    A rank alone, whose parameters are float32, keeps the matrices too, as they were multiplied.
    """
    shape, tensor = share.settings.shape, share.layout.tensor
    widths = HALF * shape.hidden_size * (KEPT_WHOLE + kept_cut / tensor)
    a_token = widths + 4 * (shape.num_heads / tensor + 4)  # attention's and the norms' statistics
    matrices = HALF * share.block() if share.layout.num_ranks == 1 else 0
    return int(share.tokens * a_token) + matrices


def activations(share: Share, kept_cut: int = KEPT_CUT) -> int:
    """Bytes that are kept for the backward pass when it starts.

    With recomputation, the input of every block, and all of one block at a time.
    """
    shape, block = share.settings.shape, block_activations(share, kept_cut)
    inputs = HALF * shape.hidden_size * share.tokens
    recompute = share.layout.recompute
    blocks = shape.num_layers * inputs + block if recompute else shape.num_layers * block
    # Outside: the last norm's input, the loss's gradients of its input and of its matrix, ids.
    return blocks + 2 * inputs + MASTER * share.num_ids * shape.hidden_size + 8 * share.tokens


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that each rank sends an update: for blocks, for the embeddings, within products."""

    gather: float
    reduce: float
    gather_ends: float
    reduce_ends: float
    tensor: float

    @property
    def total(self) -> float:
        return self.gather + self.reduce + self.gather_ends + self.reduce_ends + self.tensor


def traffic(share: Share) -> Traffic:
    """What a rank sends: parameters gathered, gradients summed, and what tensor parallel adds."""
    layout, shape = share.layout, share.settings.shape
    others = (layout.data - 1) / layout.data
    gathers, reduces = others * share.num_gathers, others * share.micro_steps
    blocks, ends = shape.num_layers * share.block(), MASTER * share.root()
    # Two sums of a block's outputs, of which one is needed again to recompute; two of its inputs'
    # gradients; that of the embeddings, in float32; that of the gradient behind the loss.
    sums = shape.num_layers * (4 + layout.recompute) + 2 + 1
    summed = sums * HALF * shape.hidden_size * share.tokens * share.micro_steps
    return Traffic(
        gather=gathers * HALF * blocks,
        reduce=reduces * (HALF if share.settings.training.reproducible else MASTER) * blocks,
        gather_ends=gathers * ends,
        reduce_ends=reduces * ends,
        tensor=2 * (layout.tensor - 1) / layout.tensor * summed,
    )
