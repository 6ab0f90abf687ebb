"""Models from elsewhere: asked right, as lm-eval asks them, and refused where they do not fit."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ontogeny.errors import CheckpointError, EvaluationError
from ontogeny.evaluation.foreign import TransformersScorer, open_foreign
from ontogeny.evaluation.score import NeoXScorer, Request
from ontogeny.evaluation.weights import foreign_checkpoint, open_scorer
from ontogeny.model import hf
from ontogeny.model.init import initial_model
from ontogeny.shape import Shape
from ontogeny.tokens.vocabulary import train_vocabulary

pytestmark = pytest.mark.slow  # importing transformers takes seconds

VOCAB, CONTEXT = 300, 48
DEFINITION = train_vocabulary(iter(["a b c"]), 258).definition


def add_tokenizer(folder: Path) -> Path:
    (folder / "tokenizer.json").write_text(DEFINITION)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-NeoX that prefers something, as it is exported."""
    shape = Shape(
        num_layers=3, hidden_size=64, num_heads=4, vocab_size=VOCAB, context_length=CONTEXT
    )
    model = initial_model(shape, "small-wang", 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    folder = tmp_path_factory.mktemp("neox")
    hf.save(model, folder)
    return add_tokenizer(folder)


@pytest.fixture(scope="module")
def gpt2(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with learned positions, which padding at the wrong end would move."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2,
        initializer_range=0.3, bos_token_id=7, eos_token_id=9,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("gpt2")
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return add_tokenizer(folder)


@pytest.fixture
def copied(gpt2: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gpt2, tmp_path / "model"))


def items() -> list[Request]:
    """Two options behind a context, some alike at first, some behind a header of 33 tokens."""
    draw = torch.Generator().manual_seed(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCAB, (count,), generator=draw).tolist())

    asked = []
    for number in range(40):
        context = tokens(2 + number % 9)
        shared = tokens(number % 4)
        asked += [Request(context, shared + tokens(1 + number % 5)) for _ in range(2)]
    header = tokens(33)
    return asked + [Request(header + one.context[:5], one.target[:6]) for one in asked]


@pytest.mark.parametrize("part", [slice(None), slice(80, None)])  # without a past, and with one
def test_equal_to_the_harness_on_what_it_reads(transformers: Any, neox: Path, part: slice) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    asked = items()[part]
    ours = open_foreign(neox, "fp32").answer(asked, greedy=True)
    model = huggingface.HFLM(pretrained=str(neox), dtype="float32", device="cpu", batch_size=8)
    theirs = model._loglikelihood_tokens(
        [(("", ""), list(one.context), list(one.target)) for one in asked], disable_tqdm=True
    )
    for mine, (score, is_greedy) in zip(ours, theirs, strict=True):
        assert mine.log_likelihood == pytest.approx(score, rel=1e-5, abs=2e-4)
        assert mine.is_greedy == is_greedy
    scores = [(mine.log_likelihood, score) for mine, (score, _) in zip(ours, theirs, strict=True)]
    for (a, theirs_a), (b, theirs_b) in zip(scores[::2], scores[1::2], strict=True):
        assert (a > b) == (theirs_a > theirs_b) or abs(theirs_a - theirs_b) < 4e-4


def test_our_exports_are_asked_by_our_model(neox: Path, tmp_path: Path) -> None:
    scorer = open_foreign(neox, "fp32")
    assert isinstance(scorer, NeoXScorer)
    assert scorer.dtype is torch.float32
    assert (scorer.context_length, scorer.vocabulary.eod) == (CONTEXT, 0)
    hf.save(hf.load(neox), tmp_path, torch.bfloat16)
    rounded = open_scorer(foreign_checkpoint(add_tokenizer(tmp_path)), "cpu")
    assert isinstance(rounded, NeoXScorer)
    assert rounded.dtype is torch.bfloat16


def test_any_other_model_by_the_definition(transformers: Any, gpt2: Path) -> None:
    scorer = open_foreign(gpt2, "fp32")
    assert isinstance(scorer, TransformersScorer)
    assert scorer.context_length == CONTEXT
    model = transformers.GPT2LMHeadModel.from_pretrained(gpt2).eval()
    asked = items()
    found = scorer.answer([*asked, asked[0]], greedy=True)
    assert found[-1] == found[0]
    assert scorer.answer(asked[::-1], greedy=True) == found[-2::-1]
    assert scorer.answer(asked[:1])[0].is_greedy is None
    for request, one in zip(asked, found, strict=False):
        with torch.no_grad():
            logits = model(torch.tensor([request.context + request.target])).logits[0].double()
        logits = logits[len(request.context) - 1 : -1]
        target = torch.tensor(request.target)
        exact = F.log_softmax(logits, dim=-1).gather(1, target[:, None]).sum()
        assert one.log_likelihood == pytest.approx(float(exact), rel=1e-5, abs=2e-4)
        assert one.is_greedy == bool((logits.argmax(dim=1) == target).all())


def test_loading_shows_no_bars(
    transformers: Any, gpt2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers.logging.enable_progress_bar()
    open_foreign(gpt2, "fp32")
    assert capfd.readouterr().err == ""


def test_a_neox_that_ours_does_not_compute(transformers: Any, neox: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(neox, tmp_path / "serial"))
    config = json.loads((folder / "config.json").read_text()) | {"use_parallel_residual": False}
    (folder / "config.json").write_text(json.dumps(config))
    scorer = open_foreign(folder, "bf16")
    assert isinstance(scorer, TransformersScorer)
    assert scorer.model.dtype is torch.bfloat16
    assert scorer.answer(items()[:1])[0].log_likelihood < 0


def test_a_text_begins_with_what_the_model_says(transformers: Any, copied: Path) -> None:
    assert open_foreign(copied, "fp32").vocabulary.eod == 0
    other = DEFINITION.replace("<|endoftext|>", "<s>")
    (copied / "tokenizer.json").write_text(other)
    assert open_foreign(copied, "fp32").vocabulary.eod == 7
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(
        json.dumps(config | {"bos_token_id": None, "eos_token_id": [9, 11]})
    )
    assert open_foreign(copied, "fp32").vocabulary.eod == 9


def without_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({name: one for name, one in weights.items() if "ln_f.weight" not in name}, path,
              metadata={"format": "pt"})  # fmt: skip


def other_ids(folder: Path) -> None:
    larger = train_vocabulary(iter([" ".join(map(str, range(1000)))]), VOCAB + 1)
    (folder / "tokenizer.json").write_text(larger.definition)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda at: (at / "model.safetensors").unlink(), "transformers cannot read it"),
    "torn": (lambda at: (at / "model.safetensors").write_bytes(b"\0" * 64), "cannot read it"),
    "another kind": (lambda at: (at / "config.json").write_text("{}"), "cannot read it"),
    "a tensor gone": (without_a_tensor, "missing tensor transformer.ln_f.weight"),
    "other ids": (
        other_ids,
        "the tokenizer does not match the model; expected at most 300 ids, one a row of the "
        "embedding; found 301; try: put the model's own tokenizer.json there",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_model_is_refused(transformers: Any, copied: Path, name: str) -> None:
    spoil, message = SPOILED[name]
    spoil(copied)
    with pytest.raises(EvaluationError) as caught:
        open_foreign(copied, "fp32")
    assert message in str(caught.value)
    assert str(copied) in str(caught.value)


def test_nothing_there(transformers: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"unreadable config\.json"):
        open_foreign(tmp_path, "fp32")
    with pytest.raises(EvaluationError, match="no such file"):
        open_foreign(tmp_path / "model.gguf", "fp32")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    with pytest.raises(EvaluationError, match="transformers cannot read it"):
        open_foreign(tmp_path / "broken.gguf", "fp32")


def test_without_transformers(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EvaluationError) as caught:
        open_foreign(gpt2, "fp32")
    assert str(caught.value) == (
        f'{gpt2}: reading this model needs transformers; try: pip install "ontogeny[eval]"'
    )


def test_what_does_not_fit_a_foreign_context(transformers: Any, gpt2: Path) -> None:
    with pytest.raises(EvaluationError, match="at most 48 tokens read; found 48"):
        open_foreign(gpt2, "fp32").answer([Request((1,) * CONTEXT, (2, 3))])
