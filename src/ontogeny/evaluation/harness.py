"""Tasks of lm-eval, asked of a checkpoint: its prompts, worked examples and measures, our answers.

A task is lm-eval's own object over rows that a pack found (`packs.py`), or over what the hub gives.
Its requests are built once and tokenised once a vocabulary, then answered by every checkpoint.
`OntogenyLM` is the model lm-eval sees; `lm_eval.simple_evaluate` takes it too. Which tasks exist
and how one is built is in `benchmarks.py`. Not here: any prompt or measure.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from lm_eval.api.metrics import bits_per_byte, mean, perplexity, weighted_perplexity
from lm_eval.api.model import TemplateLM
from lm_eval.utils import env, get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ontogeny.errors import EvaluationError
from ontogeny.evaluation.rows import option_item, score_rows
from ontogeny.evaluation.score import NeoXScorer, Request, continue_text
from ontogeny.evaluation.tasks import Scorer, Spec, UnansweredError
from ontogeny.intervals import ratio_interval
from ontogeny.results import Item, Score
from ontogeny.scores import Place

MOST_NEW_TOKENS = 256  # of a generated answer whose task sets no limit; lm-eval's own

Interval = tuple[float, float, float]
Aggregation = Callable[[list[Any]], float]


class OntogenyLM(TemplateLM):  # type: ignore[misc]
    """A scorer as a model of lm-eval.

    Contexts are cut on their left where a request is too long, as lm-eval's own `hf` model does;
    `num_cut` counts the requests that were. Without `greedy` no answer says whether it is the
    likeliest. `task` is named in errors.
    """

    def __init__(self, scorer: Scorer, *, greedy: bool = True, task: str | None = None) -> None:
        super().__init__()
        self.scorer, self.greedy, self.task = scorer, greedy, task
        self.num_cut = 0
        # A few texts are kept: the options of an item then share the ids of their context.
        self._encoded = functools.lru_cache(maxsize=4)(self._encode)

    @property
    def eot_token_id(self) -> int:
        return self.scorer.vocabulary.eod

    def tok_encode(self, string: str, **_: object) -> tuple[int, ...]:
        """The ids of a text."""
        return self._encoded(string)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.scorer.vocabulary.encode(text))

    def request(self, context: Sequence[int], target: Sequence[int]) -> Request:
        """The question for a target after a context of at least one token."""
        room = self.scorer.context_length + 1 - len(target)
        if room < 1 or not target:
            raise UnansweredError(
                "an answer that does not fit the model",
                where=self.task,
                expected=f"1 to {self.scorer.context_length} tokens",
                found=f"{len(target)} tokens",
                fix="leave the task out",
            )
        self.num_cut += len(context) > room
        return Request(tuple(context[-room:]), tuple(target))

    def answered(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """The answers in lm-eval's form."""
        found = self.scorer.answer(requests, greedy=self.greedy)
        return [(answer.log_likelihood, bool(answer.is_greedy)) for answer in found]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: object) -> list[Any]:
        return self.answered([self.request(*ids) for _, *ids in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], **_: object) -> list[float]:
        """The log-likelihoods of whole texts, in windows that overlap by one token."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                list(self.tok_encode(text)), self.prefix_token_id, self.scorer.context_length, 1
            )
            asked = [self.request(*make_disjoint_window(window)) for window in windows]
            totals.append(sum(found for found, _ in self.answered(asked)))
        return totals

    def generate_until(self, requests: Sequence[Any], **_: object) -> list[str]:
        """The likeliest continuations, each up to a stop of its task."""
        return [self._continued(*request.args) for request in requests]

    def _continued(self, context: str, options: dict[str, Any]) -> str:
        scorer = self.scorer
        num_tokens = int(options.get("max_gen_toks", MOST_NEW_TOKENS))
        room = scorer.context_length - num_tokens
        if not isinstance(scorer, NeoXScorer) or options.get("do_sample") or room < 1:
            raise EvaluationError(
                "the task asks for text that cannot be generated here",
                where=self.task,
                expected="our own model, the likeliest text, and fewer tokens than it can hold",
                found=f"{num_tokens} tokens of {scorer.context_length}",
                fix="leave the task out",
            )
        until = options.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        prompt = self.tok_encode(context) or (self.prefix_token_id,)
        self.num_cut += len(prompt) > room
        ids, text, end = [], "", self.eot_token_id
        for token in continue_text(scorer.model, prompt[-room:], num_tokens, scorer.dtype, end=end):
            ids.append(token)
            text = scorer.vocabulary.decode(ids)
            if any(stop in text for stop in stops):
                break
        for stop in stops:
            text = text.split(stop)[0]
        return text


class _Tokeniser(OntogenyLM):
    """Gives requests instead of their answers: lm-eval cuts texts into tokens in its own way."""

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: object) -> list[Any]:
        return [self.request(*ids) for _, *ids in requests]


@dataclass
class HarnessTask:
    """A task of lm-eval with its requests built.

    `choices` are the right option's place and the number of options by item; empty where the task
    has none.
    """

    task: Any
    spec: Spec
    choices: dict[int, tuple[int, int]]
    _tokenised: tuple[tuple[str, int], list[Request], int] | None = field(default=None, init=False)

    def measure(self, scorer: Scorer, place: Place) -> tuple[list[Score], list[Item]]:
        """Ask all items. Raises NotFiniteError naming an item whose answer is no number."""
        num_cut = self._answer(scorer)
        with at_work():
            values, metrics = self._processed()
        instances = by_item(self.task.instances)
        items = [
            self._item(place, number, asked, metrics[number]) for number, asked in instances.items()
        ]
        differs = self.spec.differs
        if num_cut:
            cut = f"{num_cut} of {len(self.task.instances)} prompts cut to the model's length"
            differs = "; ".join(filter(None, [differs, cut]))
        spec = replace(self.spec, differs=differs)
        scores = [row for row in score_rows(place, spec, items) if not math.isnan(row.value)]
        for name, each in values.items():
            if name not in items[0].metrics:
                aggregation = self.task.aggregation()[name.partition(",")[0]]
                value, low, high = _aggregated(aggregation, each)
                row = Score(place.member, place.step, place.tokens, spec.name, name, value, low,
                            high, len(items), spec.shots, differs=differs)  # fmt: skip
                scores.append(row)
        return scores, items

    def _answer(self, scorer: Scorer) -> int:
        """Put a scorer's answers into the instances; how many prompts had to be cut."""
        lm = OntogenyLM(scorer, greedy=self._asks_greedy(), task=self.spec.name)
        by_type = defaultdict(list)
        for instance in self.task.instances:
            by_type[instance.request_type].append(instance)
        for kind, instances in by_type.items():
            if kind == "loglikelihood":
                answers: list[Any] = lm.answered(self._requests(scorer, instances))
            else:
                answers = getattr(lm, kind)(instances)
            for instance, answer in zip(instances, answers, strict=True):
                instance.resps, instance.filtered_resps = [answer], {}
        self.task.apply_filters()
        return self._tokenised[2] if self._tokenised else lm.num_cut

    def _asks_greedy(self) -> bool:
        config = self.task.config
        measured = {metric["metric"] for metric in config.metric_list or []}
        own = config.process_results is not None or "exact_match" in measured
        return bool(own or config.output_type != "multiple_choice")

    def _requests(self, scorer: Scorer, instances: Sequence[Any]) -> list[Request]:
        key = scorer.vocabulary.digest, scorer.context_length
        if self._tokenised is None or self._tokenised[0] != key:
            tokeniser = _Tokeniser(scorer, task=self.spec.name)
            requests = tokeniser.loglikelihood(instances, disable_tqdm=True)
            self._tokenised = key, requests, tokeniser.num_cut
        return self._tokenised[1]

    def _processed(self) -> tuple[dict[str, list[Any]], dict[int, dict[str, float]]]:
        """What lm-eval makes of the answers: values by metric, and by item those that average."""
        aggregations = self.task.aggregation()
        values: dict[str, list[Any]] = defaultdict(list)
        metrics: dict[int, dict[str, float]] = defaultdict(dict)
        filters = list(self.task.instances[0].filtered_resps)
        for number, asked in by_item(self.task.instances).items():
            for name in filters:
                responses = [instance.filtered_resps[name] for instance in asked]
                for metric, value in self.task.process_results(asked[0].doc, responses).items():
                    title = metric if len(filters) == 1 else f"{metric},{name}"
                    values[title].append(value)
                    if aggregations.get(metric, mean) is mean:
                        metrics[number][title] = float(value)
        return values, metrics

    def _item(
        self, place: Place, number: int, asked: Sequence[Any], metrics: dict[str, float]
    ) -> Item:
        name, shots = self.spec.name, self.spec.shots
        responses = [instance.resps[0] for instance in asked]
        kind = asked[0].request_type
        if kind == "generate_until":
            nothing = None, None, math.nan, None, 0
            return Item(place.member, place.step, name, shots, str(number), *nothing, metrics)
        if kind == "loglikelihood_rolling":
            found, texts = responses, [instance.args[0] for instance in asked]
        else:
            found = [log_likelihood for log_likelihood, _ in responses]
            texts = [instance.args[1] for instance in asked]
        gold, num_options = self.choices.get(number, (0, 1))
        return option_item(
            place,
            name,
            shots,
            str(number),
            gold,
            found[:num_options],  # lm-eval asks some tasks' options without their context too
            [len(text.encode()) for text in texts[:num_options]],
            metrics,
        )


def by_item(instances: Sequence[Any]) -> dict[int, list[Any]]:
    """The requests of every item, in the order of its options."""
    found: dict[int, list[Any]] = defaultdict(list)
    for instance in sorted(instances, key=lambda instance: (instance.doc_id, instance.idx)):
        found[instance.doc_id].append(instance)
    return found


def _aggregated(aggregation: Aggregation, values: list[Any]) -> Interval:
    """lm-eval's value, with an interval over items for the measures that are no plain mean."""
    value, low, high = _value(aggregation, values), math.nan, math.nan
    if aggregation is perplexity:
        aggregation, values = weighted_perplexity, [(each, 1.0) for each in values]
    if aggregation in (weighted_perplexity, bits_per_byte):
        # Of both a higher log-likelihood makes a lower value.
        _, *ends = ratio_interval(*np.array(values, float).T)
        high, low = (_value(aggregation, [(end, 1.0)]) for end in ends)
    return value, low, high


def _value(aggregation: Aggregation, values: list[Any]) -> float:
    try:
        return float(aggregation(values))
    except OverflowError:  # the perplexity of a model that has learned nothing
        return math.inf


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """Let lm-eval work without its progress bars and notices on the terminal, and faster.

    It compiles the template of a prompt for every item, nine tenths of the time it takes to build
    a task; here each is compiled once.
    """
    tqdm.set_lock(threading.RLock())  # its own is the system's, and outlives a killed process
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    env.from_string = _compiled
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        del env.from_string
        logging.disable(disabled)


@functools.cache
def _compiled(template: str) -> Any:
    return type(env).from_string(env, template)
