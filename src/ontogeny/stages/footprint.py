"""What a layout makes each rank hold and send: closed forms of what `training` does on a GPU.

The forms are checked against the cut model itself and against tensors counted while real ranks
train. What a tensor rank has of a matrix follows the table of `training/parallel.py`.

Symbols: h hidden size, V vocabulary, D data-parallel ranks, T tensor-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ontogeny.model.loss import CHUNK_BYTES
from ontogeny.shape import Shape
from ontogeny.suite import RunSettings
from ontogeny.training.layout import Layout

MASTER = 4  # bytes of a parameter, of a summed gradient and of each of the two moments
HALF = 2  # bytes of what is computed, and of a block's parameters and gradients when sent
# Numbers of width h that a block keeps of a token for the backward pass. On every tensor rank: its
# input and both norms' outputs. Cut among them: query, key and value, the former two again turned,
# attention's output and its copy in the order of the heads, both sides of the activation function.
KEPT_WHOLE, KEPT_CUT = 3, 15

Parts = Sequence[tuple[int, int]]  # rows and columns of tensors


def block_parts(shape: Shape, tensor: int = 1) -> Parts:
    """What one of `tensor` ranks has of a block's tensors; a vector has one column."""
    h = shape.hidden_size
    qkv, inner, attention = 3 * h // tensor, 4 * h // tensor, h // tensor
    columnwise = [(qkv, h), (qkv, 1), (inner, h), (inner, 1)]
    rowwise = [(h, attention), (h, 1), (h, inner), (h, 1)]
    return [*columnwise, *rowwise, *[(h, 1)] * 4]  # and two norms


def root_parts(shape: Shape, tensor: int = 1) -> Parts:
    """What it has of the tensors outside the blocks: both embeddings, and the last norm."""
    h = shape.hidden_size
    return [(shape.vocab_size // tensor, h)] * 2 + [(h, 1)] * 2


def count(parts: Parts, data: int = 1) -> int:
    """How many numbers the first of `data` ranks has, who has the most of every tensor."""
    return sum(-(-rows // data) * columns for rows, columns in parts)


@dataclass(frozen=True, slots=True)
class Held:
    """Numbers of parameters: of a block and of all else, as tensor ranks have them, and its own."""

    block: int
    root: int
    whole: int
    own: int


def held(shape: Shape, layout: Layout) -> Held:
    """The parameters of a layout's first rank."""
    block, root = block_parts(shape, layout.tensor), root_parts(shape, layout.tensor)
    num_layers, data = shape.num_layers, layout.data
    return Held(
        count(block),
        count(root),
        num_layers * count(block) + count(root),
        num_layers * count(block, data) + count(root, data),
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a rank, by what they are for; not all of them at the same moment."""

    parameters: int
    moments: int
    gradients: int  # the sums of the tree, of the rank's own part
    gathered: int  # parameters of other ranks, as long as they are needed
    activations: int  # what the backward pass needs, weights in the dtype of the arithmetic too
    logits: int  # a chunk of them, and what the loss makes of it
    block_exchange: int  # gradients of a block on their way to their ranks
    root_exchange: int  # those of the embeddings, when the activations are gone

    @property
    def total(self) -> int:
        """What there is at the fullest moment of an update.

        The last gradient of the tree comes into being while the activations go.
        """
        gradient = self.parameters
        kept = self.parameters + self.moments + self.gathered + self.gradients - gradient
        turning = self.activations + max(self.logits, self.block_exchange)
        return kept + max(turning, gradient + self.root_exchange)


def memory(settings: RunSettings, layout: Layout) -> Memory:
    """What a rank holds, of a run whose arithmetic is in half precision."""
    shape, parts = settings.shape, held(settings.shape, layout)
    sums = (settings.num_leaves // layout.data).bit_length()
    gathered = in_blocks = at_root = 0
    if layout.num_ranks > 1:
        is_kept = layout.shard == "optimizer"
        num_blocks = shape.num_layers if is_kept else min(2, shape.num_layers)  # used and coming
        gathered = HALF * num_blocks * parts.block + MASTER * parts.root
        # As computed, side by side to be sent, and as received, to be added in order.
        in_order = settings.training.reproducible
        in_blocks = parts.block * (2 * MASTER + 2 * HALF if in_order else HALF + MASTER)
        at_root = parts.root * 2 * MASTER
    return Memory(
        parameters=MASTER * parts.own,
        moments=2 * MASTER * parts.own,
        gradients=MASTER * parts.own * sums,
        gathered=gathered,
        activations=activations(settings, layout),
        logits=logits(settings, layout),
        block_exchange=in_blocks,
        root_exchange=at_root,
    )


def micro_batch_tokens(settings: RunSettings) -> int:
    """The tokens of one forward pass of a rank."""
    return settings.tokens_per_update // settings.num_leaves


def block_activations(settings: RunSettings, layout: Layout, kept_cut: int = KEPT_CUT) -> int:
    """Bytes that a block keeps of a micro batch for the backward pass.

    A rank alone, whose parameters are float32, keeps the matrices too, as they were multiplied.
    """
    h, heads, tensor = settings.shape.hidden_size, settings.shape.num_heads, layout.tensor
    a_token = HALF * h * (KEPT_WHOLE + kept_cut / tensor) + 4 * (heads / tensor + 4)
    matrices = count(block_parts(settings.shape)) if layout.num_ranks == 1 else 0
    return int(micro_batch_tokens(settings) * a_token) + HALF * matrices


def activations(settings: RunSettings, layout: Layout, kept_cut: int = KEPT_CUT) -> int:
    """Bytes that are kept for the backward pass when it starts.

    With recomputation, the input of every block, and all of one block at a time.
    """
    shape, tokens = settings.shape, micro_batch_tokens(settings)
    inputs = HALF * shape.hidden_size * tokens
    block = block_activations(settings, layout, kept_cut)
    blocks = shape.num_layers * inputs + block if layout.recompute else shape.num_layers * block
    # Outside: the last norm's input, the loss's gradients of its input and of its matrix, ids.
    outside = 2 * inputs + MASTER * shape.vocab_size * shape.hidden_size // layout.tensor
    return blocks + outside + 8 * tokens


def logits(settings: RunSettings, layout: Layout) -> int:
    """Bytes while the loss is computed: a chunk of logits, twice in float32, and the matrix."""
    columns = settings.shape.vocab_size // layout.tensor
    chunk = min(CHUNK_BYTES, HALF * columns * micro_batch_tokens(settings))
    return 5 * chunk + 2 * HALF * columns * settings.shape.hidden_size


def num_gathers(settings: RunSettings, layout: Layout) -> int:
    """How often an update gathers the parameters: once, or for every pass anew."""
    return 1 if layout.shard == "optimizer" else 2 * settings.num_leaves // layout.data


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that each rank sends an update: of blocks, of the embeddings, within their products."""

    gather: float
    reduce: float
    gather_ends: float
    reduce_ends: float
    tensor: float

    @property
    def total(self) -> float:
        return self.gather + self.reduce + self.gather_ends + self.reduce_ends + self.tensor


def traffic(settings: RunSettings, layout: Layout) -> Traffic:
    """What a rank sends: parameters gathered, gradients summed, and what tensor parallel adds."""
    shape, parts = settings.shape, held(settings.shape, layout)
    micro_steps = settings.num_leaves // layout.data
    others = (layout.data - 1) / layout.data
    gathers = others * num_gathers(settings, layout)
    blocks, ends = shape.num_layers * parts.block, MASTER * parts.root
    summed_as = HALF if settings.training.reproducible else MASTER
    # Two sums of a block's outputs, of which one is needed again to recompute; two of its inputs'
    # gradients; that of the embeddings, in float32; that of the gradient behind the loss.
    sums = shape.num_layers * (4 + layout.recompute) + 2 + 1
    summed = HALF * micro_batch_tokens(settings) * shape.hidden_size * micro_steps * sums
    return Traffic(
        gather=gathers * HALF * blocks,
        reduce=others * micro_steps * summed_as * blocks,
        gather_ends=gathers * ends,
        reduce_ends=others * micro_steps * ends,
        tensor=2 * (layout.tensor - 1) / layout.tensor * summed,
    )
