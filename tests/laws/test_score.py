"""Scoring: one request at a time gives the same, in any batch; text goes on as it must."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.errors import EvaluationError
from ontogeny.evaluation import tries
from ontogeny.evaluation.score import Answer, Request, answer, continue_text
from ontogeny.model.init import initial_model
from ontogeny.model.neox import NeoX
from ontogeny.shape import Shape

CONTEXT, VOCAB = 16, 23
SHAPE = Shape(
    num_layers=2, hidden_size=16, num_heads=2, vocab_size=VOCAB, context_length=CONTEXT
)  # fmt: skip
FP32 = torch.float32


@pytest.fixture(scope="module")
def model() -> NeoX:
    """A model whose predictions differ: embeddings far larger than they start."""
    model = initial_model(SHAPE, "small-wang", 0)
    with torch.no_grad():
        model.embed_in.weight.mul_(10)
        model.embed_out.weight.mul_(10)
    return model


def naive(model: NeoX, request: Request) -> Answer:
    """The definition: every target token given all before it, one forward pass a token."""
    total, greedy = 0.0, True
    tokens = list(request.context)
    for token in request.target:
        with torch.no_grad():
            scores = F.log_softmax(model(torch.tensor([tokens]))[0, -1].double(), dim=-1)
        total += float(scores[token])
        greedy = greedy and int(scores.argmax()) == token
        tokens.append(token)
    return Answer(total, greedy)


def greedy_tokens(model: NeoX, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[-CONTEXT:]]))[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


token = st.integers(0, VOCAB - 1)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    context = draw(st.lists(token, min_size=1, max_size=CONTEXT))
    target = draw(st.lists(token, min_size=1, max_size=CONTEXT + 1 - len(context)))
    return Request(tuple(context), tuple(target))


@settings(max_examples=30)
@given(asked=st.lists(requests(), max_size=12), tokens_per_batch=st.integers(1, 100))
def test_equal_to_the_definition_in_any_batch(
    model: NeoX, asked: list[Request], tokens_per_batch: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tries, "TOKENS_PER_BATCH", tokens_per_batch)
        found = answer(model, asked, FP32, greedy=True)
    assert len(found) == len(asked)
    for request, one in zip(asked, found, strict=True):
        expected = naive(model, request)
        assert one.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-5, abs=1e-4)
        assert one.is_greedy == expected.is_greedy


def test_greedy_targets_are_noticed(model: NeoX) -> None:
    prompts = [[first, 5, 7] for first in range(6)]
    right = [tuple(greedy_tokens(model, prompt, 4)) for prompt in prompts]
    asked = [Request(tuple(p), target) for p, target in zip(prompts, right, strict=True)]
    wrong = [
        Request(one.context, (*one.target[:-1], (one.target[-1] + 1) % VOCAB)) for one in asked
    ]
    assert [one.is_greedy for one in answer(model, asked, FP32, greedy=True)] == [True] * 6
    assert [one.is_greedy for one in answer(model, wrong, FP32, greedy=True)] == [False] * 6


def test_not_asked_not_told(model: NeoX) -> None:
    asked = [Request((1,), (2, 3))]
    (one,) = answer(model, asked, FP32)
    assert one.is_greedy is None
    assert answer(model, [], FP32, greedy=True) == []


def test_pieces_add_up(model: NeoX) -> None:
    tokens = tuple(range(10))
    whole, first, second = answer(
        model,
        [
            Request(tokens[:1], tokens[1:]),
            Request(tokens[:1], tokens[1:4]),
            Request(tokens[:4], tokens[4:]),
        ],
        FP32,
    )
    assert whole.log_likelihood == pytest.approx(
        first.log_likelihood + second.log_likelihood, rel=1e-5
    )


def test_bfloat16_is_near(model: NeoX) -> None:
    asked = [Request((1, 2, 3), (4, 5)), Request((9,), (8,) * 10)]
    for exact, rounded in zip(
        answer(model, asked, FP32), answer(model, asked, torch.bfloat16), strict=True
    ):
        assert rounded.log_likelihood == pytest.approx(exact.log_likelihood, rel=0.05)


def test_all_of_the_context_fits_and_no_more(model: NeoX) -> None:
    fits = Request((1,) * CONTEXT, (2,))
    assert answer(model, [fits], FP32)[0].log_likelihood < 0
    with pytest.raises(EvaluationError) as caught:
        answer(model, [fits, Request((1,) * CONTEXT, (2, 3))], FP32)
    assert str(caught.value) == (
        "a request does not fit the model; expected a context, a target, and at most 16 tokens "
        "read; found 16 + 2 tokens"
    )


@pytest.mark.parametrize("request_", [Request((), (1,)), Request((1,), ())])
def test_nothing_to_read_or_to_score(model: NeoX, request_: Request) -> None:
    with pytest.raises(EvaluationError, match="a request does not fit the model"):
        answer(model, [request_], FP32)


@pytest.mark.parametrize("prompt", [[3], [1, 2, 3], list(range(20))])
def test_the_likeliest_continuation(model: NeoX, prompt: list[int]) -> None:
    found = list(continue_text(model, prompt, 20, FP32))
    assert found == greedy_tokens(model, prompt, 20)
    assert list(continue_text(model, prompt, 5, FP32)) == found[:5]
    assert list(continue_text(model, prompt, 0, FP32)) == []


def test_the_end_stops_and_is_not_said(model: NeoX) -> None:
    for first in range(VOCAB):
        whole = greedy_tokens(model, [first], 8)
        end = whole[4]
        assert list(continue_text(model, [first], 8, FP32, end=end)) == whole[: whole.index(end)]


def test_drawn_continuations_know_only_their_seed(model: NeoX) -> None:
    def drawn(seed: int, temperature: float = 1.0) -> list[int]:
        return list(continue_text(model, [3], 12, FP32, temperature=temperature, seed=seed))

    torch.manual_seed(1)
    first = drawn(0)
    torch.manual_seed(2)
    assert drawn(0) == first
    assert len({tuple(drawn(seed)) for seed in range(6)}) > 3
    assert drawn(0, temperature=1e-4) == greedy_tokens(model, [3], 12)
    assert all(0 <= token < VOCAB for token in drawn(5, temperature=100.0))


def test_no_prompt(model: NeoX) -> None:
    with pytest.raises(EvaluationError, match="nothing to continue; expected a prompt of at least"):
        list(continue_text(model, [], 3, FP32))
