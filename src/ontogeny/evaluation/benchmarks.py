"""From the name of a harness task to its requests: groups, data, worked examples, digests.

Where the pack has no training split, worked examples come from the validation split, or else from
the evaluated items without the one that is asked; the score then says so. lm-eval itself leaves the
item out only where its settings name the evaluated split as that of the examples, so they do here.
Not here: where data lies (`packs.py`), how a checkpoint answers (`harness.py`).
"""

from __future__ import annotations

import difflib
import functools
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from jinja2 import TemplateError
from lm_eval.tasks import TaskManager

from ontogeny.digest import digest_json
from ontogeny.errors import EvaluationError
from ontogeny.evaluation.harness import HarnessTask, at_work, by_item
from ontogeny.evaluation.packs import Items, data_folders, find_items, missing, open_pack
from ontogeny.evaluation.tasks import Spec

HUB = "hub"
ROLLING = "loglikelihood_rolling"
EXAMPLES_SEED = 1234  # of worked examples; lm-eval's own
# What lm-eval raises over rows that its prompts do not fit, and over a hub that gives none.
MISFITS: tuple[type[Exception], ...] = (LookupError, ValueError, TypeError, AttributeError)
MISFITS += (AssertionError, TemplateError, OSError, RuntimeError)


def expand(name: str, embedded: Collection[str]) -> dict[str, bool]:
    """The tasks a name of the harness stands for, and whether each takes worked examples.

    Raises EvaluationError for a name that nobody knows, giving the nearest, also of `embedded`.
    """
    groups = open_pack().groups
    index = {} if name in groups else _manager(name).task_index
    if name not in groups and name not in index:
        near = difflib.get_close_matches(name, [*embedded, *groups, *index], n=3)
        raise EvaluationError(
            "no such task",
            where=name,
            expected="a name of the embedded tasks or of lm-eval",
            fix=" or ".join(near) or f"one of {', '.join([*embedded, *groups])}",
        )
    members: Any = groups.get(name)
    if members is None:  # a tag knows its tasks, a group those it names, a task its own name
        entry = index[name]
        members = sorted(entry.tags) if entry.kind.name == "TAG" else entry.cfg["task"]
    if isinstance(members, str):
        config = index[name].cfg
        fixed = config.get("num_fewshot") == 0 or config.get("output_type") == ROLLING
        return {name: not fixed}
    found: dict[str, bool] = {}
    for member in members:
        if not isinstance(member, str):
            raise EvaluationError(
                "a group that changes its tasks", where=name, fix="name the tasks themselves"
            )
        found |= expand(member, embedded)
    return found


def load_harness_task(name: str, shots: int, data: Sequence[str], limit: int | None) -> HarnessTask:
    """A task with its requests built, from folders of data or from the hub.

    Raises EvaluationError for data that is missing or that the task's prompts do not fit.
    """
    if HUB in data and len(data) > 1:
        raise EvaluationError(
            "tasks are read from folders or from the hub",
            where="--data",
            expected="one or the other",
            found=" ".join(data),
        )
    config = _manager(name).task_index[name].cfg
    evaluated = config.get("test_split") or config.get("validation_split")
    if not evaluated:
        raise EvaluationError("the task names no split to evaluate", where=name)
    found = None if HUB in data else _local(name, config, evaluated, shots, data)
    notes = [items.differs for items in (found or {}).values()]
    examples, note = _examples(_example_splits(config), evaluated, found)
    changes: dict[str, Any] = {}
    if not shots or note:
        changes = dict.fromkeys(("training_split", "validation_split"))
        changes |= {"test_split": evaluated, "fewshot_split": examples if shots else evaluated}
    if shots and note:
        notes.append(note)
    if limit is not None:
        notes.append(f"the first {limit} items")
    if found is not None:
        changes["custom_dataset"] = lambda **_: datasets.DatasetDict(
            {split: datasets.Dataset.from_list(items.rows) for split, items in found.items()}
        )
    task, choices, asked = _built(name, changes, shots, limit, data)
    digests = {split: items.sha256 for split, items in (found or {}).items()}
    spec = Spec(
        name=name,
        shots=shots,
        digest=asked,
        data=digest_json(digests or _rows(task)),
        harness=f"lm-eval {version('lm_eval')}",
        chance=_chance(choices),
        majority=_majority(choices),
        differs="; ".join(dict.fromkeys(filter(None, notes))),
    )
    return HarnessTask(task, spec, choices)


def _local(
    name: str, config: Mapping[str, Any], evaluated: str, shots: int, data: Sequence[str]
) -> dict[str, Items]:
    """The items of every split that is needed and at hand, by split."""
    folders = data_folders(data)
    found = {}
    for split in (evaluated, *(_example_splits(config) if shots else ())):
        items = find_items(name, split, folders, str(config.get("dataset_name")))
        if items is not None:
            found[split] = items
        elif split == evaluated:
            raise missing(name, split, folders)
    return found


def _example_splits(config: Mapping[str, Any]) -> list[str]:
    """Where worked examples may come from, best first."""
    splits = (config.get(f"{role}_split") for role in ("fewshot", "training", "validation"))
    return [split for split in dict.fromkeys(splits) if split]


def _examples(
    wanted: Sequence[str], evaluated: str, splits: Collection[str] | None
) -> tuple[str, str]:
    """The split worked examples come from, and what to say where it is not the harness's own."""
    at_hand = (split for split in wanted if splits is None or split in splits)
    chosen = next(at_hand, evaluated)
    if chosen == evaluated:
        return chosen, "worked examples are other items of the same file"
    return chosen, "" if chosen == wanted[0] else f"worked examples are from the {chosen} items"


def _built(
    name: str, changes: dict[str, Any], shots: int, limit: int | None, data: Sequence[str]
) -> tuple[Any, dict[int, tuple[int, int]], str]:
    """lm-eval's task with its requests, right option and number of options by item, and digest."""
    # A group is lm-eval's way to change the settings of a task it knows.
    group = {"group": "ours", "task": [{"task": name, **changes}]}
    try:
        with at_work():
            task = _manager(name).load(group)["tasks"][name]
            task.set_config("num_fewshot", shots)
            task.set_fewshot_seed(EXAMPLES_SEED)
            task.build_all_requests(limit=limit)
            choices = {
                number: _choice(task, asked[0].doc)
                for number, asked in by_item(task.instances).items()
                if task.OUTPUT_TYPE == "multiple_choice"
            }
            return task, choices, _requests_digest(task, choices)
    except MISFITS as error:
        raise EvaluationError(
            f"the harness can make no items of this data ({type(error).__name__}: {error})",
            where=name,
            expected="rows with the columns its prompts name, each with its right answer",
            fix=_fix(data, shots),
        ) from error


def _fix(data: Sequence[str], shots: int) -> str:
    if HUB in data:
        return "look whether the hub can be reached, or --data FOLDER"
    return "look at the file" + (", or ask for fewer --shots" if shots else "")


def _choice(task: Any, doc: Mapping[str, Any]) -> tuple[int, int]:
    """The right option's place, the first of several, and how many options there are."""
    options = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, list):
        gold = gold[0]
    if isinstance(gold, str):
        gold = options.index(gold)
    if not 0 <= gold < len(options):
        raise ValueError(f"the right answer is option {gold} of {len(options)}")
    return gold, len(options)


def _requests_digest(task: Any, choices: Mapping[int, tuple[int, int]]) -> str:
    """The digest of all that is asked, of what is right, and of how it is measured."""
    asked = [
        digest_json([instance.request_type, json.loads(json.dumps(instance.args))])
        for instance in task.instances
    ]
    right = [
        gold if (gold := choices.get(number)) else str(task.doc_to_target(each[0].doc))
        for number, each in by_item(task.instances).items()
    ]
    measures = [str(metric["metric"]) for metric in task.config.metric_list or []]
    return digest_json([asked, right, measures])


def _rows(task: Any) -> list[str]:
    """The evaluated rows as text: what the hub gave has no file to take the digest of."""
    return [json.dumps(row, sort_keys=True, default=str) for row in task.eval_docs]


def _chance(choices: Mapping[int, tuple[int, int]]) -> float | None:
    return sum(1 / count for _, count in choices.values()) / len(choices) if choices else None


def _majority(choices: Mapping[int, tuple[int, int]]) -> float | None:
    """What the commonest place of the right option gives; None where it is one by construction."""
    golds = Counter(gold for gold, _ in choices.values())
    return max(golds.values()) / golds.total() if len(golds) > 1 else None


def _manager(name: str) -> Any:
    """lm-eval's tasks: those of our packs, which are found at once, or all, which takes a while.

    A tag may be on tasks anywhere, so all are looked at for it.
    """
    entry = _tasks(everywhere=False).task_index.get(name)
    return _tasks(everywhere=entry is None or entry.kind.name == "TAG")


@functools.cache
def _tasks(*, everywhere: bool) -> Any:
    root = Path(lm_eval.tasks.__file__).parent
    ours = [root / entry.harness for entry in open_pack().tasks.values()]
    with at_work():
        return TaskManager(include_path=None if everywhere else ours, include_defaults=everywhere)
