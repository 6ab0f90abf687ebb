"""The embedded pack: tasks made from a suite's own held-out store, with nothing to download.

An artifact of kind "tasks": a file of questions a task, one readable JSON line each, and in the
manifest how many there are, their chance and majority levels, and the digest of the whole. The same
store, vocabulary and settings give the same bytes. *Held-out* is bits per byte of whole documents,
per source; the other tasks are made of sentences (`sentences.py`). Questions are text, so that any
model with any vocabulary can be asked them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ontogeny.artifact import Artifact, Input, file_fault, open_artifact, writing
from ontogeny.digest import canonical_json, digest_json
from ontogeny.errors import DataError, EvaluationError
from ontogeny.evaluation.rows import ACC, option_item, score_rows
from ontogeny.evaluation.score import Answer, Request
from ontogeny.evaluation.sentences import (
    Question,
    Text,
    agreements,
    balanced,
    in_turn,
    last_words,
    next_sentences,
    word_orders,
)
from ontogeny.evaluation.tasks import Scorer, Spec
from ontogeny.results import Item, Score
from ontogeny.scores import Place
from ontogeny.suite import EvaluationSettings
from ontogeny.tokens.store import DocumentStore
from ontogeny.tokens.vocabulary import Vocabulary

KIND = "tasks"
HELD_OUT, LAST_WORD, NEXT_SENTENCE = "held-out", "last-word", "next-sentence"
AGREEMENT, WORD_ORDER = "agreement", "word-order"
TASKS = (HELD_OUT, LAST_WORD, NEXT_SENTENCE, AGREEMENT, WORD_ORDER)
RULES = "ontogeny 1"  # counts the changes of what is asked for the same settings
READ_TOKENS = 1 << 17  # of a source, where the held-out store is that of a large corpus


def pack_config(settings: EvaluationSettings, context_length: int) -> dict[str, Any]:
    """The config of a pack's artifact, for its key."""
    return settings.resolved() | {"context_length": context_length, "rules": RULES}


def build_pack(
    store: DocumentStore,
    vocabulary: Vocabulary,
    context_length: int,
    settings: EvaluationSettings,
    folder: Path,
    inputs: Mapping[str, Input],
) -> Artifact:
    """Make the tasks of a held-out store for models that read so many tokens.

    Raises EvaluationError naming the tasks that the text has no question for.
    """
    questions = _questions(store, vocabulary, context_length, settings)
    missing = [name for name, asked in questions.items() if not asked]
    if missing:
        settings_off = " ".join(f"--set evaluation.{_setting(name)}=0" for name in missing)
        raise EvaluationError(
            f"the held-out text has no question for {', '.join(missing)}",
            where=store.artifact.path,
            expected=f"plain English sentences that fit {context_length} tokens",
            fix=f"hold out more text, or leave them out: {settings_off}",
        )
    config = pack_config(settings, context_length)
    with writing(folder, KIND, config=config, inputs=inputs) as draft:
        for name, asked in questions.items():
            lines = "".join(canonical_json(asdict(question)) + "\n" for question in asked)
            (draft.folder / _file(name)).write_text(lines, encoding="utf-8")
            draft.facts[name] = {
                "num_items": len(asked),
                "chance": 1 / len(asked[0].options) if len(asked[0].options) > 1 else None,
                "majority": None if name == HELD_OUT else _majority(asked),
                "digest": digest_json([RULES, name, context_length, lines]),
            }
    return draft.artifact


def open_task(folder: Path, name: str) -> PackTask:
    """A task of a pack. Raises EvaluationError where the pack has none of that name."""
    pack, file = open_artifact(folder, KIND), _file(name)
    if name not in pack.facts or file not in pack.files:
        raise EvaluationError(
            f"the pack has no task {name!r}",
            where=folder,
            expected=f"one of {', '.join(pack.facts)}",
            fix=f"--set evaluation.{_setting(name)}=100" if name in TASKS else None,
        )
    fault = file_fault(pack, file)
    if fault is not None:
        raise DataError(fault.problem, where=fault.place, fix=fault.fix)
    try:
        facts, config = pack.facts[name], pack.config
        levels = facts["chance"], facts["majority"]
        data = pack.files[file]["sha256"]
        spec = Spec(name, 0, facts["digest"], data, config["rules"], *levels, differs="")
        lines = (folder / file).read_bytes().splitlines()
        return PackTask(spec, tuple(map(_question, lines)), config["context_length"])
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"not a task of this version ({type(error).__name__}: {error})",
            where=folder / file,
            fix=f"remove {folder} and make it again",
        ) from error


@dataclass(frozen=True)
class PackTask:
    """A task of a pack, ready to be asked."""

    spec: Spec
    questions: tuple[Question, ...]
    context_length: int
    _asked: dict[str, list[tuple[Request, ...]]] = field(default_factory=dict, compare=False)

    def measure(self, scorer: Scorer, place: Place) -> tuple[list[Score], list[Item]]:
        """Ask all questions of a checkpoint's model. Raises NotFiniteError naming an item."""
        asked = self.requests(scorer.vocabulary)
        requests = [piece for pieces in asked for piece in pieces]
        answers = iter(scorer.answer(requests, greedy=self.spec.name == LAST_WORD))
        found = iter([[next(answers) for _ in pieces] for pieces in asked])
        items = [
            self._item(place, question, [next(found) for _ in question.options])
            for question in self.questions
        ]
        scores = score_rows(place, self.spec, items)
        if self.spec.name == HELD_OUT:
            for part in dict.fromkeys(item.task for item in items):
                of_part = [item for item in items if item.task == part]
                scores += score_rows(place, self.spec, of_part, part)
        return scores, items

    def requests(self, vocabulary: Vocabulary) -> list[tuple[Request, ...]]:
        """What is asked of each option of each question; kept for the next checkpoint."""
        if vocabulary.digest not in self._asked:
            self._asked[vocabulary.digest] = [
                _read(vocabulary, question.context, option, self.context_length)
                for question in self.questions
                for option in question.options
            ]
        return self._asked[vocabulary.digest]

    def _item(self, place: Place, question: Question, answers: Sequence[Sequence[Answer]]) -> Item:
        name = self.spec.name
        totals = [sum(piece.log_likelihood for piece in pieces) for pieces in answers]
        metrics = None
        if name == LAST_WORD:
            metrics = {ACC: float(all(piece.is_greedy for piece in answers[0]))}
        elif name in (AGREEMENT, WORD_ORDER):
            metrics = {ACC: float(totals.index(max(totals)) == question.gold)}
        return option_item(
            place,
            f"{name}/{question.source}" if name == HELD_OUT else name,
            self.spec.shots,
            question.id,
            question.gold,
            totals,
            [len(option.encode()) for option in question.options],
            metrics,
        )


def _read(
    vocabulary: Vocabulary, context: str, option: str, context_length: int
) -> tuple[Request, ...]:
    """The requests that together score each token of an option once.

    Context and option are encoded as one, after the end-of-document token. What has no context is
    read in pieces, each later one after the last token of the piece before.
    """
    ids = (vocabulary.eod, *vocabulary.encode(context + option))
    if context:
        border = 1 + len(vocabulary.encode(context))
        return (Request(ids[:border], ids[border:]),)
    return tuple(
        Request(ids[start : start + 1], ids[start + 1 : start + 1 + context_length])
        for start in range(0, len(ids) - 1, context_length)
    )


def _questions(
    store: DocumentStore,
    vocabulary: Vocabulary,
    context_length: int,
    settings: EvaluationSettings,
) -> dict[str, list[Question]]:
    """The questions of every task that is wanted, in their order."""

    def fits(question: Question) -> bool:
        """Whether every option fits the model and is tokens of its own after the context."""
        for option in question.options:
            (first, *more) = _read(vocabulary, question.context, option, context_length)
            joined = list(first.target) != vocabulary.encode(option)
            if more or joined or first.num_inputs > context_length:
                return False
        return True

    share = settings.held_out_tokens // max(1, len(store.source_names))
    read = _read_documents(store, vocabulary, max(share, READ_TOKENS))
    texts = [Text(question.id, question.source, question.options[0]) for question in read]
    pairs = filter(fits, in_turn(map(agreements, texts)))
    made = {
        LAST_WORD: (settings.last_word_items, filter(fits, in_turn(map(last_words, texts)))),
        NEXT_SENTENCE: (settings.next_sentence_items, filter(fits, next_sentences(texts))),
        AGREEMENT: (settings.agreement_items, balanced(pairs)),
        WORD_ORDER: (settings.word_order_items, filter(fits, in_turn(map(word_orders, texts)))),
    }
    return {HELD_OUT: _read_documents(store, vocabulary, share)} | {
        name: [_placed(question, place) for place, question in enumerate(islice(found, number))]
        for name, (number, found) in made.items()
        if number
    }


def _read_documents(
    store: DocumentStore, vocabulary: Vocabulary, num_tokens: int
) -> list[Question]:
    """The first documents of each source, up to so many tokens of it but at least one."""
    used: Counter[str] = Counter()
    chosen = []
    for number in range(len(store)):
        source, size = store.source_names[int(store.sources[number])], int(store.sizes[number])
        if used[source] and used[source] + size > num_tokens:
            continue
        text = vocabulary.decode(
            [id_ for id_ in store.tokens(number).tolist() if id_ != vocabulary.eod]
        )
        if text:
            used[source] += size
            chosen.append(Question(store.document_id(number), source, "", (text,)))
    return chosen


def _placed(question: Question, place: int) -> Question:
    """A question with the right option, until now the first, where its own place puts it."""
    gold = place % len(question.options)
    right, *others = question.options
    return replace(question, options=(*others[:gold], right, *others[gold:]), gold=gold)


def _majority(questions: Sequence[Question]) -> float:
    """How often the commonest answer is right: a place among options, or a last word."""
    answers: Counter[object] = Counter(
        question.gold if len(question.options) > 1 else question.options[0]
        for question in questions
    )
    return max(answers.values()) / len(questions)


def _question(line: bytes) -> Question:
    told = json.loads(line)
    return Question(**told | {"options": tuple(told["options"])})


def _file(name: str) -> str:
    return f"{name}.jsonl"


def _setting(name: str) -> str:
    return f"{name.replace('-', '_')}_items"
