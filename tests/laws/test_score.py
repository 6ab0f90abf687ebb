"""Scoring: requests that share what they can give what each gives alone; text that goes on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.errors import EvaluationError
from ontogeny.evaluation import score, tries
from ontogeny.evaluation.score import Answer, NeoXScorer, Request, answer, continue_text
from ontogeny.model.init import initial_model
from ontogeny.model.loss import choices
from ontogeny.model.neox import NeoX
from ontogeny.shape import Shape
from ontogeny.tokens.vocabulary import train_vocabulary

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


@st.composite
def alike(draw: st.DrawFn) -> list[Request]:
    """Requests of few different tokens, behind a header, so that many begin alike."""
    token = st.integers(0, draw(st.sampled_from([1, 2, VOCAB - 1])))
    header = draw(st.lists(token, max_size=6))
    found = []
    for _ in range(draw(st.integers(0, 12))):
        context = header + draw(st.lists(token, min_size=1, max_size=CONTEXT - len(header)))
        room = CONTEXT + 1 - len(context)
        found.append(
            Request(tuple(context), tuple(draw(st.lists(token, min_size=1, max_size=room))))
        )
    return found


@settings(max_examples=25)
@given(
    asked=alike(),
    limits=st.tuples(st.integers(1, 100), st.integers(1, 60), st.integers(1, 8)),
)
def test_equal_to_the_definition_however_laid_out(
    model: NeoX, asked: list[Request], limits: tuple[int, int, int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in zip(LIMITS, limits, strict=True):
            patch.setattr(tries, name, limit)
        found = answer(model, asked, FP32, greedy=True)
    assert len(found) == len(asked)
    for request, one in zip(asked, found, strict=True):
        expected = naive(model, request)
        assert one.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-5, abs=1e-4)
        assert one.is_greedy == expected.is_greedy


LIMITS = ("TOKENS_PER_BATCH", "TOKENS_PER_ROW", "SHORTEST_PAST")


@given(asked=alike(), shortest=st.sampled_from([1, 100]))
def test_what_is_shared_is_read_once(asked: list[Request], shortest: int) -> None:
    """For a model so wide that sharing always pays: one token for every different beginning."""
    whole = [one.context + one.target for one in asked]
    firsts = [len(one.context) for one in asked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tries, "SHORTEST_PAST", shortest)
        past, rows = tries.lay_out(whole, firsts, 10**9)
    beginnings = {one[:stop] for one in whole for stop in range(1, len(one))}
    roots = {one[: len(past) + 1] for one in whole}
    assert len(past) + sum(len(row.tokens) for row in rows) == len(beginnings)
    assert len(rows) == len(roots)
    assert past == () or len(past) >= shortest


@given(asked=alike(), width=st.sampled_from([1, 16, 512]))
def test_rows_spell_every_sequence(asked: list[Request], width: int) -> None:
    """The tokens that see a scored place, as attention is told, are what comes before it."""
    whole = [one.context + one.target for one in asked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tries, "TOKENS_PER_ROW", 20)
        past, rows = tries.lay_out(whole, [len(one.context) for one in asked], width)
    assert all(len(row.tokens) <= 20 for row in rows)  # none is longer alone
    spelled: dict[int, list[int]] = {number: [] for number in range(len(asked))}
    for row in rows:
        assert row.past == len(past)
        for number, place, target in row.scored:
            seen = [at for at in range(place + 1) if place < row.ends[at]]
            assert [row.depths[at] for at in seen] == list(range(len(past), len(past) + len(seen)))
            before = past + tuple(row.tokens[at] for at in seen)
            assert before == whole[number][: len(before)]
            assert target == whole[number][len(before)]
            spelled[number].append(len(before))
    for number, one in enumerate(asked):
        assert spelled[number] == list(range(len(one.context), len(whole[number])))


def test_one_row_where_it_saves_more_than_it_costs() -> None:
    header, far = tuple(range(40)), tuple(range(50, 90))
    pair = [(*header, 41, 42), (*header, 43, 44)]
    past, (row,) = tries.lay_out(pair, [40, 40], 16)
    assert (past, row.tokens) == (header[:39], [39, 41, 43])
    apart = [*pair, (*far, 1, 2), (*far, 3, 4)]
    assert [len(row.tokens) for row in tries.lay_out(apart, [40] * 4, 16)[1]] == [42, 42]
    brief = [(1, *header), (1, *far)]
    assert [len(row.tokens) for row in tries.lay_out(brief, [1, 1], 16)[1]] == [40, 40]


@pytest.fixture(scope="module")
def many() -> list[Request]:
    """Items of three options behind one header, with another request of no kin."""
    draw = torch.Generator().manual_seed(3)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCAB, (count,), generator=draw).tolist())

    header = tokens(3)
    contexts = [header + tokens(4) for _ in range(8)]
    return [Request(one, tokens(size)) for one in contexts for size in (1, 3, 9)]


@pytest.mark.parametrize("shortest_past", [2, 32])
def test_bits_know_neither_order_nor_company_in_time(
    model: NeoX, many: list[Request], monkeypatch: pytest.MonkeyPatch, shortest_past: int
) -> None:
    monkeypatch.setattr(tries, "SHORTEST_PAST", shortest_past)
    first = answer(model, many, FP32, greedy=True)
    answer(model, many[5:], FP32)
    assert answer(model, many, FP32, greedy=True) == first
    assert answer(model, many[::-1], FP32, greedy=True) == first[::-1]
    assert answer(model, many + many, FP32, greedy=True) == first + first


@pytest.mark.parametrize("heads", [1, 2])  # of a size for the kernel, and of none
def test_bfloat16_with_a_past_and_without(
    many: list[Request], monkeypatch: pytest.MonkeyPatch, heads: int
) -> None:
    shape = SHAPE.model_copy(update={"num_heads": heads, "rotary_fraction": 0.5})
    model = initial_model(shape, "small-wang", 0)
    with torch.no_grad():
        for embedding in (model.embed_in, model.embed_out):
            embedding.weight.mul_(10)
    exact = [naive(model, one).log_likelihood for one in many]
    for shortest in (2, 32):
        monkeypatch.setattr(tries, "SHORTEST_PAST", shortest)
        found = [one.log_likelihood for one in answer(model, many, torch.bfloat16)]
        assert found == pytest.approx(exact, rel=0.03, abs=0.1)


def test_a_scorer_answers_as_its_model(model: NeoX, many: list[Request]) -> None:
    vocabulary = train_vocabulary(iter(["a"]), 258)
    scorer = NeoXScorer(copy.deepcopy(model), vocabulary, torch.bfloat16)
    assert scorer.answer(many, greedy=True) == answer(model, many, torch.bfloat16, greedy=True)
    assert scorer.model.embed_in.weight.dtype is torch.bfloat16
    assert (scorer.vocabulary, scorer.context_length) == (vocabulary, CONTEXT)


def test_no_number_is_returned_as_it_is(model: NeoX) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.embed_in.weight[7] = torch.nan
    asked = [Request((1, 2), (3,)), Request((1, 7), (3,))]
    whole, none = answer(broken, asked, FP32, greedy=True)
    assert whole.log_likelihood == pytest.approx(naive(model, asked[0]).log_likelihood, rel=1e-5)
    assert none.log_likelihood != none.log_likelihood
    assert none.is_greedy is False


@pytest.mark.parametrize("dtype", [FP32, torch.bfloat16])
def test_of_equal_logits_the_first_is_greedy(dtype: torch.dtype) -> None:
    weight = torch.tensor([[0.0], [1.0], [1.0], [0.5]]).repeat(1, 16)
    hidden = torch.ones(2, 16, dtype=dtype)
    rows, targets = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 2, 3, 2])
    scores, hits = choices(hidden, weight, rows, targets)
    exact = F.log_softmax((hidden.float() @ weight.T).double(), dim=-1)[rows, targets]
    assert hits.tolist() == [True, False, False, False]
    assert scores.tolist() == pytest.approx(exact.tolist(), abs=1e-6)


@pytest.fixture
def matmul() -> Iterator[Any]:
    """torch's setting for float32 products, at the strictest, and put back."""
    found = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, found.fp32_precision = found.fp32_precision, "ieee"
    score._is_exact.cache_clear()
    yield found
    found.fp32_precision = before
    score._is_exact.cache_clear()


def test_products_stay_exact_and_the_setting_is_left(matmul: Any) -> None:
    x = torch.randn(300, 300, generator=torch.Generator().manual_seed(1))
    with score.exact_products(FP32):
        exact = x.double() @ x.double()
        assert ((x @ x) - exact).norm() <= score.EXACT * exact.norm()
    assert matmul.fp32_precision == "ieee"
    with pytest.raises(KeyError), score.exact_products(FP32):
        raise KeyError
    assert matmul.fp32_precision == "ieee"
    with score.exact_products(torch.bfloat16):
        assert matmul.fp32_precision == "ieee"


@pytest.mark.parametrize(("bound", "chosen"), [(score.EXACT, "bf16"), (0.0, "ieee")])
def test_products_that_round_too_much_are_left_alone(
    matmul: Any, monkeypatch: pytest.MonkeyPatch, bound: float, chosen: str
) -> None:
    matmul.fp32_precision = "bf16"
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    if score._error(x, x) > score.EXACT:
        pytest.skip("oneDNN rounds on this processor")
    matmul.fp32_precision = "ieee"
    monkeypatch.setattr(score, "EXACT", bound)
    with score.exact_products(FP32):
        assert matmul.fp32_precision == chosen
    assert matmul.fp32_precision == "ieee"


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
    assert drawn(0, temperature=1e-300) == greedy_tokens(model, [3], 12)
    assert all(0 <= token < VOCAB for token in drawn(5, temperature=100.0))


def test_no_prompt(model: NeoX) -> None:
    with pytest.raises(EvaluationError, match="nothing to continue; expected a prompt of at least"):
        list(continue_text(model, [], 3, FP32))
