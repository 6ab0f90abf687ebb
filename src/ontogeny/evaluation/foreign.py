"""Models from elsewhere that can be asked: whatever transformers loads, from a folder or a GGUF.

GPT-NeoX in a form that `NeoX` computes is asked as ours are. Of any other model the logits come
from its own forward pass, so that every architecture is computed right; nothing is shared between
requests. What starts a text without context is chosen as lm-eval's `hf` backend does, except that
`<|endoftext|>` goes first. Not here: hubs; no code that comes with a model is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from ontogeny.errors import CheckpointError, EvaluationError
from ontogeny.evaluation.score import Answer, NeoXScorer, Request, exact_products, require_fitting
from ontogeny.evaluation.tasks import Scorer
from ontogeny.evaluation.tries import TOKENS_PER_BATCH
from ontogeny.model.hf import CONFIG, load, read_config, shape_of
from ontogeny.model.loss import choices_of
from ontogeny.model.neox import DTYPES
from ontogeny.tokens.vocabulary import END_OF_DOCUMENT, TOKENIZER, Vocabulary, load_vocabulary

GGUF = ".gguf"
USUAL_LENGTH = 2048  # of a context, where a configuration does not say it; lm-eval's choice
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx")  # what configurations call it
ENDS = ("bos_token_id", "eos_token_id")
# What transformers raises at files that are damaged, of another kind, or incomplete.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError,
              ImportError, SafetensorError)  # fmt: skip


@dataclass(frozen=True)
class ForeignVocabulary(Vocabulary):
    """A vocabulary whose texts begin with a token that a model's configuration names."""

    start: int = 0

    @cached_property
    def eod(self) -> int:
        return self.start


@dataclass(frozen=True, slots=True)
class TransformersScorer:
    """A model of transformers that can be asked."""

    model: Any
    vocabulary: Vocabulary
    context_length: int

    @torch.no_grad()
    def answer(self, requests: Sequence[Request], *, greedy: bool = False) -> list[Answer]:
        """Log-likelihoods of the targets, in the order given; equal requests are asked once."""
        require_fitting(requests, self.context_length)
        order = sorted(set(requests), key=lambda one: (-one.num_inputs, one.context, one.target))
        answers: dict[Request, Answer] = {}
        with exact_products(self.model.dtype):
            while len(answers) < len(order):
                start = len(answers)
                size = max(1, TOKENS_PER_BATCH // order[start].num_inputs)
                answers |= self._answers(order[start : start + size], greedy=greedy)
        return [answers[request] for request in requests]

    def _answers(self, batch: Sequence[Request], *, greedy: bool) -> dict[Request, Answer]:
        """Padded at the end, which a causal model does not see before it is past."""
        lengths = torch.tensor([one.num_inputs for one in batch])
        tokens = torch.zeros(len(batch), int(lengths.max()), dtype=torch.int64)
        for row, one in zip(tokens, batch, strict=True):
            row[: one.num_inputs] = torch.tensor((one.context + one.target)[:-1])
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        answers = {}
        for row, one in enumerate(batch):
            first = len(one.context) - 1
            seen = logits[row, first : one.num_inputs].contiguous()
            scores, hits = choices_of(seen, torch.arange(len(seen)), torch.tensor(one.target))
            hit = bool(hits.all()) if greedy else None
            answers[one] = Answer(float(scores.double().sum()), hit)
        return answers


def open_foreign(path: Path, dtype: str) -> Scorer:
    """The model of a folder in the form of transformers, or of a GGUF file, ready to be asked.

    `dtype` is `fp32` or `bf16`. Raises EvaluationError or CheckpointError where there is no model,
    no tokenizer, or they do not fit.
    """
    if path.suffix != GGUF:
        config = read_config(path)
        vocabulary = load_vocabulary(path / TOKENIZER)
        if _is_ours(config, path):
            model = load(path)
            _require_ids(vocabulary, model.shape.vocab_size, path)
            return NeoXScorer(model, _begun(vocabulary, config), DTYPES[dtype])
    foreign = _load(path)
    known = vars(foreign.config)
    if path.suffix == GGUF:
        vocabulary = _packed_vocabulary(path)
    _require_ids(vocabulary, foreign.get_input_embeddings().num_embeddings, path)
    length = next((known[name] for name in LENGTHS if known.get(name)), USUAL_LENGTH)
    foreign.eval().to(DTYPES[dtype])
    return TransformersScorer(foreign, _begun(vocabulary, known), length)


def _is_ours(config: dict[str, Any], path: Path) -> bool:
    try:
        return bool(shape_of(config, path / CONFIG))
    except CheckpointError:
        return False


def _require_ids(vocabulary: Vocabulary, num_rows: int, path: Path) -> None:
    if vocabulary.size > num_rows:
        raise EvaluationError(
            "the tokenizer does not match the model",
            where=path,
            expected=f"at most {num_rows} ids, one a row of the embedding",
            found=f"{vocabulary.size}",
            fix=f"put the model's own {TOKENIZER} there",
        )


def _begun(vocabulary: Vocabulary, config: dict[str, Any]) -> Vocabulary:
    """The vocabulary, with the model's first token where it has no end of documents."""
    if vocabulary.tokenizer.token_to_id(END_OF_DOCUMENT) is not None:
        return vocabulary
    named = (config.get(name) for name in ENDS)
    start = next((int(np.atleast_1d(one)[0]) for one in named if one is not None), None)
    if start is None:
        return vocabulary
    return ForeignVocabulary(vocabulary.definition, vocabulary.where, start)


def _packed_vocabulary(path: Path) -> Vocabulary:
    """The tokenizer of a GGUF file."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True
        )
        return Vocabulary(tokenizer.backend_tokenizer.to_str(), path)
    except UNREADABLE as error:
        raise EvaluationError(f"no tokenizer could be read ({error})", where=path) from error


def _load(path: Path) -> Any:
    """The model, whole. Raises EvaluationError for what transformers cannot read or completes."""
    is_packed = path.suffix == GGUF
    if is_packed and not path.is_file():
        raise EvaluationError("no such file", where=path)
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise EvaluationError(
            "reading this model needs transformers", where=path, fix='pip install "ontogeny[eval]"'
        ) from error
    logging.disable_progress_bar()  # bars of its own would run through that of the sweep
    source = {"gguf_file": path.name} if is_packed else {}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent if is_packed else path,
            local_files_only=True,
            output_loading_info=True,
            **source,
        )
    except UNREADABLE as error:
        raise EvaluationError(
            f"transformers cannot read it ({error})",
            where=path,
            fix="pip install gguf" if "gguf>" in str(error) else None,
        ) from error
    if report["missing_keys"]:
        raise EvaluationError(f"missing tensor {min(report['missing_keys'])}", where=path)
    return model
