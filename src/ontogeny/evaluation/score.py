"""The only inference code: log-likelihoods of given tokens, and text a model continues with.

Requests are batched with others of near length and padded on the right, where a causal model does
not look; the output embedding is applied only where a token is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ontogeny.errors import EvaluationError
from ontogeny.model.loss import log_likelihoods
from ontogeny.model.neox import NeoX

TOKENS_PER_BATCH = 4096
PADDING = 0  # any id: nothing that is scored can see it


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


@torch.no_grad()
def answer(
    model: NeoX, requests: Sequence[Request], dtype: torch.dtype, *, greedy: bool = False
) -> list[Answer]:
    """Score every request, in the order given. Raises EvaluationError for one that is too long."""
    answers: list[Answer | None] = [None] * len(requests)
    for batch in _batches(requests, model.shape.context_length):
        inputs, places, targets = _padded([requests[index] for index in batch])
        device = model.embed_in.weight.device
        hidden = model.hidden(inputs.to(device), dtype).flatten(0, 1)[places.to(device)]
        targets = targets.to(device)
        scores = log_likelihoods(hidden, model.embed_out.weight, targets).double().cpu()
        hits = _is_greedy(hidden, model.embed_out.weight, targets) if greedy else None
        end = 0
        for index in batch:
            start, end = end, end + len(requests[index].target)
            hit = None if hits is None else bool(hits[start:end].all())
            answers[index] = Answer(float(scores[start:end].sum()), hit)
    return [found for found in answers if found is not None]


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
    odds = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(odds, 1, generator=generator))


def _batches(requests: Sequence[Request], context_length: int) -> Iterator[list[int]]:
    """Indices of requests of near length, longest first, up to the tokens a batch may hold."""
    for request in requests:
        if not request.context or not request.target or request.num_inputs > context_length:
            raise EvaluationError(
                "a request does not fit the model",
                expected=f"a context, a target, and at most {context_length} tokens read",
                found=f"{len(request.context)} + {len(request.target)} tokens",
            )
    longest_first = sorted(range(len(requests)), key=lambda index: -requests[index].num_inputs)
    start = 0
    while start < len(longest_first):
        length = requests[longest_first[start]].num_inputs
        size = max(1, TOKENS_PER_BATCH // length)
        yield longest_first[start : start + size]
        start += size


def _padded(batch: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [B, T], places in them flattened whose output is scored [N], target tokens [N]."""
    time = max(request.num_inputs for request in batch)
    inputs = torch.full((len(batch), time), PADDING)
    places, targets = [], []
    for row, request in enumerate(batch):
        tokens = (request.context + request.target)[:-1]
        inputs[row, : len(tokens)] = torch.tensor(tokens)
        first = row * time + len(request.context) - 1
        places.append(torch.arange(first, first + len(request.target)))
        targets.append(torch.tensor(request.target))
    return inputs, torch.cat(places), torch.cat(targets)


def _is_greedy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = hidden @ weight.to(hidden.dtype).T
    return (logits.argmax(dim=-1) == targets).cpu()
