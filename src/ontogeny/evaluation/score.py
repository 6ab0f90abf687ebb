"""The only inference code: log-likelihoods of given tokens, and text a model continues with.

What requests share is computed once (`tries.py`), in batches of rows of near length. The output
embedding is applied where a token is scored, some rows at a time, and both the log-likelihood and
whether it is the greedy choice come of that. The bits of an answer depend on the requests of its
call alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from ontogeny.errors import EvaluationError
from ontogeny.evaluation.tries import Row, batches, lay_out
from ontogeny.model.attention import Trees
from ontogeny.model.loss import choices
from ontogeny.model.neox import NeoX
from ontogeny.tokens.vocabulary import Vocabulary

Past = Sequence[tuple[Tensor, Tensor] | None]  # of every layer
EXACT = 2e-6  # relative error of a float32 product that was not rounded on the way


@dataclass(frozen=True, slots=True)
class Request:
    """A context and the tokens to score after it; the context holds at least one token."""

    context: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def num_inputs(self) -> int:
        return len(self.context) + len(self.target) - 1


@dataclass(frozen=True, slots=True)
class Answer:
    """The log-likelihood (natural log) of a request's target, and whether it is the greedy choice.

    `is_greedy` is None where it was not asked for.
    """

    log_likelihood: float
    is_greedy: bool | None


class NeoXScorer:
    """A model that can be asked, with its vocabulary; its weights are cast to `dtype` in place."""

    def __init__(self, model: NeoX, vocabulary: Vocabulary, dtype: torch.dtype) -> None:
        self.model, self.vocabulary, self.dtype = model.to(dtype), vocabulary, dtype

    @property
    def context_length(self) -> int:
        return self.model.shape.context_length

    def answer(self, requests: Sequence[Request], *, greedy: bool = False) -> list[Answer]:
        return answer(self.model, requests, self.dtype, greedy=greedy)


@torch.no_grad()
def answer(
    model: NeoX, requests: Sequence[Request], dtype: torch.dtype, *, greedy: bool = False
) -> list[Answer]:
    """Score every request, in the order given. Raises EvaluationError for one that is too long."""
    require_fitting(requests, model.shape.context_length)
    prefix, rows = lay_out(
        [one.context + one.target for one in requests],
        [len(one.context) for one in requests],
        model.shape.hidden_size,
    )
    scores, misses = np.zeros(len(requests)), np.zeros(len(requests), int)
    with exact_products(dtype):
        past = model.past(_on(model, prefix), dtype) if prefix else [None] * model.shape.num_layers
        for batch in batches(rows):
            numbers, found, hits = _score(model, dtype, batch, past)
            np.add.at(scores, numbers, found.double().cpu().numpy())
            np.add.at(misses, numbers, ~hits.cpu().numpy())
    pairs = zip(scores.tolist(), (misses == 0).tolist(), strict=True)
    return [Answer(score, hit if greedy else None) for score, hit in pairs]


@torch.no_grad()
def continue_text(
    model: NeoX,
    prompt: Sequence[int],
    num_tokens: int,
    dtype: torch.dtype,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    end: int | None = None,
) -> Iterator[int]:
    """The tokens a model continues a prompt with: the likeliest, or drawn at a temperature.

    Stops after `num_tokens` or at the token `end`. The model sees its last context_length tokens.
    """
    if not prompt:
        raise EvaluationError("nothing to continue", expected="a prompt of at least one token")
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    device = model.embed_in.weight.device
    for _ in range(num_tokens):
        seen = torch.tensor([tokens[-model.shape.context_length :]], device=device)
        logits = model.embed_out(model.hidden(seen, dtype)[:, -1]).float().squeeze(0).cpu()
        token = _choose(logits, temperature, generator)
        if token == end:
            return
        tokens.append(token)
        yield token


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    below = (logits - logits.max()).double()  # of which even the least temperature makes no NaN
    odds = torch.softmax(below / temperature, dim=-1)
    return int(torch.multinomial(odds, 1, generator=generator))


def require_fitting(requests: Sequence[Request], context_length: int) -> None:
    """Raise EvaluationError for a request that a model cannot read or that asks for nothing."""
    for request in requests:
        if not request.context or not request.target or request.num_inputs > context_length:
            raise EvaluationError(
                "a request does not fit the model",
                expected=f"a context, a target, and at most {context_length} tokens read",
                found=f"{len(request.context)} + {len(request.target)} tokens",
            )


def _score(
    model: NeoX, dtype: torch.dtype, rows: Sequence[Row], past: Past
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Of each token to score in a batch: its request, log-likelihood, and if it is greedy."""
    hidden = _read(model, dtype, rows, past)
    starts = np.cumsum([0, *(len(row.tokens) for row in rows[:-1])])
    scored = np.concatenate(
        [row.scored + np.array([0, start, 0]) for row, start in zip(rows, starts, strict=True)]
    )
    scored = scored[np.argsort(scored[:, 1], kind="stable")]
    places, numbers = np.unique(scored[:, 1], return_inverse=True)
    scores, hits = choices(
        hidden[_on(model, places)],
        model.embed_out.weight,
        _on(model, numbers),
        _on(model, scored[:, 2]),
    )
    return scored[:, 0], scores, hits


def _read(model: NeoX, dtype: torch.dtype, rows: Sequence[Row], past: Past) -> Tensor:
    """What the output embedding multiplies for each token of the rows, [N, W].

    Rows that are no trees go the plain way, padded. What pads a row is a chain of its own.
    """
    on = partial(_on, model)
    lengths = np.array([len(row.tokens) for row in rows])
    time = int(lengths.max())
    place = np.arange(time)
    is_token = place < lengths[:, None]  # [B, T]
    spread = np.zeros(is_token.shape, int)
    spread[is_token] = np.arange(lengths.sum())
    tokens = np.concatenate([row.tokens for row in rows])
    kept = on(np.flatnonzero(is_token))
    stem = min(row.stem if row.stem < len(row.tokens) else time for row in rows)
    if stem == time and past[0] is None:
        return model.hidden(on(tokens[spread]), dtype).flatten(0, 1)[kept]
    depths, ends = np.zeros(is_token.shape, int), np.full(is_token.shape, time)
    depths[is_token] = np.concatenate([row.depths for row in rows])
    ends[is_token] = np.concatenate([row.ends for row in rows])
    sees = (place <= place[:, None]) & (place[:, None] < ends[:, None, :])  # [B, T, T]
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(torch.from_numpy(~sees), -torch.inf)
    trees = Trees(on(spread), kept, on(depths), on(mask), stem)
    layers = [replace(trees, past=one) for one in past]
    return model.hidden_of_trees(on(tokens), dtype, layers)


def _on(model: NeoX, values: object) -> Tensor:
    return torch.as_tensor(values, device=model.embed_in.weight.device)


@contextmanager
def exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Let oneDNN multiply float32 matrices where it does so exactly, and faster than the default.

    Its setting names bf16, and processors that multiply tiles in it do round: there nothing is
    changed. What the process had set is set again afterwards.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    try:
        if dtype is torch.float32 and _is_exact():
            matmul.fp32_precision = "bf16"
        yield
    finally:
        matmul.fp32_precision = before


@cache
def _is_exact() -> bool:
    """Whether the products of a model keep float32's precision by oneDNN, few rows and many."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    generator = torch.Generator().manual_seed(0)
    try:
        matmul.fp32_precision = "bf16"
        return all(
            _error(
                torch.randn(rows, depth, generator=generator),
                torch.randn(depth, 512, generator=generator),
            )
            <= EXACT
            for rows in (1, 16, 256)
            for depth in (64, 2048)
        )
    finally:
        matmul.fp32_precision = before


def _error(x: Tensor, y: Tensor) -> float:
    exact = x.double() @ y.double()
    return float((x @ y - exact).norm() / exact.norm())
