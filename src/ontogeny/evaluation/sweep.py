"""The sweep: every task on every checkpoint of a run, as rows with intervals and their items."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ontogeny.artifact import Artifact, Input, open_artifact, writing
from ontogeny.checkpoints.store import load_checkpoint
from ontogeny.evaluation.held_out import HeldOutDocument, LastWord, held_out_documents, last_words
from ontogeny.evaluation.score import answer
from ontogeny.intervals import mean_interval, ratio_interval
from ontogeny.model.neox import SCORING_DTYPES, NeoX
from ontogeny.results import ITEMS, SCORES, Item, Score, write_items, write_scores
from ontogeny.steps import list_steps, step_folder
from ontogeny.suite import EvaluationSettings
from ontogeny.tokens.store import DocumentStore
from ontogeny.tokens.vocabulary import Vocabulary

HELD_OUT, LAST_WORD = "held-out", "last-word"


@dataclass(frozen=True, slots=True)
class Tasks:
    """What is asked of every checkpoint."""

    documents: list[HeldOutDocument]
    last_words: list[LastWord]


@dataclass(slots=True)
class Rows:
    """The rows of a sweep so far."""

    scores: list[Score] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Place:
    """Which checkpoint a row is about."""

    member: str
    step: int
    tokens: int

    def score(self, task: str, metric: str, interval: tuple[float, float, float], n: int) -> Score:
        return Score(self.member, self.step, self.tokens, task, metric, *interval, n)

    def item(self, task: str, item: str, metric: str, value: float) -> Item:
        nothing = None, None, 0.0, None, 0
        return Item(self.member, self.step, task, 0, item, *nothing, {metric: value})


def held_out_tasks(
    store: DocumentStore, vocabulary: Vocabulary, context_length: int, settings: EvaluationSettings
) -> Tasks:
    """The tasks a held-out store gives to models of one context length."""
    documents = held_out_documents(store, vocabulary, context_length, settings.held_out_tokens)
    words = last_words(store, vocabulary, context_length, settings.last_word_items)
    return Tasks(documents, words)


def sweep_inputs(run: Path, store: DocumentStore) -> dict[str, Input]:
    """What a run's scores are made from; the last checkpoint's digest stands for all before it."""
    last = step_folder(run, list_steps(run)[-1])
    return {
        "run": open_artifact(run, "run"),
        "checkpoint": open_artifact(last, "checkpoint"),
        "store": store.artifact,
    }


def sweep_run(
    run: Path,
    tasks: Tasks,
    folder: Path,
    *,
    settings: EvaluationSettings,
    inputs: Mapping[str, Input],
    device: torch.device,
    observe: Callable[[int], None] = lambda step: None,
) -> Artifact:
    """Score every checkpoint of a run, on a device, and publish the rows and their items.

    `observe` is told of every step that is done.
    """
    opened = open_artifact(run, "run")
    dtype = SCORING_DTYPES[opened.config["training"]["precision"]]
    rows = Rows()
    with writing(folder, "scores", config=settings.resolved(), inputs=inputs) as draft:
        for step in list_steps(run):
            facts = open_artifact(step_folder(run, step), "checkpoint").facts
            place = Place(str(facts["member"]), step, int(facts["tokens"]))
            model = load_checkpoint(run, step).to(device)
            score_held_out(model, dtype, tasks.documents, place, rows)
            if tasks.last_words:
                score_last_words(model, dtype, tasks.last_words, place, rows)
            observe(step)
        write_scores(draft.folder / SCORES, rows.scores)
        write_items(draft.folder / ITEMS, rows.items)
        draft.facts.update(num_scores=len(rows.scores), num_items=len(rows.items))
    return draft.artifact


def score_held_out(
    model: NeoX, dtype: torch.dtype, documents: list[HeldOutDocument], place: Place, rows: Rows
) -> None:
    """Add bits per byte of each source and of all, with every document as an item."""
    requests = [request for document in documents for request in document.requests]
    found = iter(answer(model, requests, dtype))
    bits = np.array(
        [-sum(next(found).log_likelihood for _ in document.requests) for document in documents]
    ) / math.log(2)
    sizes = np.array([document.num_bytes for document in documents], float)
    sources = np.array([document.source for document in documents])
    for name in (None, *dict.fromkeys(sources)):
        chosen = np.full(len(sources), True) if name is None else sources == name
        task = HELD_OUT if name is None else f"{HELD_OUT}/{name}"
        interval = ratio_interval(bits[chosen], sizes[chosen])
        rows.scores.append(place.score(task, "bits_per_byte", interval, int(chosen.sum())))
    for document, value, size in zip(documents, bits, sizes, strict=True):
        task = f"{HELD_OUT}/{document.source}"
        rows.items.append(place.item(task, document.id, "bits_per_byte", value / size))


def score_last_words(
    model: NeoX, dtype: torch.dtype, words: list[LastWord], place: Place, rows: Rows
) -> None:
    """Add the mean log-probability of the last word and how often it is the greedy choice."""
    found = answer(model, [word.request for word in words], dtype, greedy=True)
    columns = {
        "log_probability": [one.log_likelihood for one in found],
        "accuracy": [float(bool(one.is_greedy)) for one in found],
    }
    for metric, values in columns.items():
        interval = mean_interval(np.array(values))
        rows.scores.append(place.score(LAST_WORD, metric, interval, len(values)))
        rows.items.extend(
            place.item(LAST_WORD, word.id, metric, value)
            for word, value in zip(words, values, strict=True)
        )
