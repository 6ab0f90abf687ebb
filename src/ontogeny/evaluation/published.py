"""Published scores: result files of lm-eval, read into the tables that our own scores are in.

Read are the layouts of the Pythia repository's `evals/` (harness of 2022 and 2023: metrics under
bare names, or a list of prompts beside `table_results`) and today's (`acc,none`, `n-samples`). The
checkpoint is what the file itself says of the model, and only then what its name says. Metrics have
today's names (`METRICS`); a task keeps the name it was published under. The files have no items:
the number of a share's is recovered from its standard error, s**2 = p (1 - p) / (n - 1).
Assumed: every run of the suite went through the same number of tokens, in steps of one size.
Not here: any judgement of the scores (`lint.py`).
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontogeny.digest import digest_bytes
from ontogeny.errors import DataError, EvaluationError
from ontogeny.intervals import share_interval
from ontogeny.results import Score
from ontogeny.scores import Cell, Place, ScoreStore
from ontogeny.shape import SIZES

TOKENS = 143_000 << 21  # of every run, whatever its rows per update
INIT_SEED = 1234  # of every run whose name has none
# What the first release called them.
OLD_SIZES = {
    "19m": "70m", "125m": "160m", "350m": "410m", "800m": "1b", "1.3b": "1.4b", "2.7b": "2.8b",
    "6.7b": "6.9b", "13b": "12b",
}  # fmt: skip
METRICS = {"ppl": "perplexity", "em": "exact_match", "likelihood_difference": "likelihood_diff"}
SHARES = ("acc", "acc_norm", "pct_stereotype", "exact_match")  # of the items
# What guessing gives, and always giving the commonest answer where that is known, by task.
LEVELS: dict[str, tuple[float, float | None]] = {
    "piqa": (0.5, None), "winogrande": (0.5, None), "wsc": (0.5, 66 / 104),
    "arc_easy": (0.25, None), "arc_challenge": (0.25, None), "sciq": (0.25, None),
    "logiqa": (0.25, None), "hendrycksTest": (0.25, None), "crows_pairs": (0.5, None),
}  # fmt: skip
# The words of a model's name: what tells members apart, numbers, and what tells nothing.
MARKS = ("deduped", "long", "intervention", "baseline", "bf16", "v0")
NUMBER = re.compile(
    r"(?P<size>[\d.]+[mb])|(?P<batch>0\.25|0\.5|1)mtokbs|seed(?P<seed>\d{1,9})|pythia|v1(\.\d)?"
)


@dataclass(frozen=True, slots=True)
class Told:
    """What a file tells of a task: value and standard error by metric, and of how many items.

    The number is 0, and a standard error NaN, where it does not tell.
    """

    cell: Cell
    measures: Mapping[str, tuple[float, float]]
    num_items: int

    def scores(self, place: Place, num_items: int) -> list[Score]:
        """The rows of a checkpoint, with 95 % intervals."""
        found, (chance, majority) = [], _levels(self.cell.task)
        for metric, (value, error) in self.measures.items():
            low, high = value - 1.96 * error, value + 1.96 * error
            is_share = metric in SHARES
            if is_share and num_items:
                low, high = share_interval(value, num_items)
            row = Score(place.member, place.step, place.tokens, self.cell.task, metric, value,
                        low, high, num_items, self.cell.shots, chance if is_share else None,
                        majority if is_share else None)  # fmt: skip
            found.append(row)
        return found


@dataclass(frozen=True, slots=True)
class ResultFile:
    """What one file tells of a checkpoint."""

    path: Path
    place: Place
    tasks: Sequence[Told]


def import_scores(folder: Path, place: Path) -> list[EvaluationError]:
    """Read the result files below `folder` into a new score store; say what cannot be read.

    Raises EvaluationError where nothing can be, and DataError if `place` is there.
    """
    if place.exists():
        raise DataError("already exists", where=place, fix="choose another place with --out")
    groups, faults = defaultdict[tuple[str, int], list[ResultFile]](list), list[EvaluationError]()
    for path in sorted(folder.rglob("*.json")):
        try:
            file = read_result_file(path)
            group = groups[file.place.member, file.place.step]
            if group and group[0].place != file.place:
                raise EvaluationError("other tokens by that step", where=path, found=group[0].path)
            group.append(file)
        except EvaluationError as error:
            faults.append(error)
    if not groups:
        raise EvaluationError(
            "no scores that can be read", where=folder, expected="*.json written by lm-eval",
            found=faults[0] if faults else "none",
        )  # fmt: skip
    aside = ScoreStore(place.with_name(f".{place.name}.new"))
    shutil.rmtree(aside.folder, ignore_errors=True)  # of an import that was killed
    sizes = _sizes(file for group in groups.values() for file in group)
    with aside.locked():
        for group in groups.values():
            taken = _taken(group, sizes, faults)
            scores = [row for _, rows in taken for row in rows]
            aside.add(group[0].place, [cell for cell, _ in taken], scores, [], {})
    aside.folder.rename(place)
    return faults


def _taken(
    group: Sequence[ResultFile], sizes: Mapping[str, int], faults: list[EvaluationError]
) -> list[tuple[Cell, list[Score]]]:
    """All that is told of one checkpoint, but what two files tell differently: a fault."""
    taken: dict[tuple[str, int], tuple[Cell, list[Score]]] = {}
    disputed = set[tuple[str, int]]()
    for file in group:
        differing = []
        for told in file.tasks:
            key = told.cell.task, told.cell.shots
            rows = told.scores(file.place, told.num_items or sizes.get(key[0], 0))
            if taken.setdefault(key, (told.cell, rows))[1] != rows:
                differing.append(key)
        if differing:
            disputed.update(differing)
            fault = EvaluationError(
                f"tells otherwise than another file of {file.place.member} at step "
                f"{file.place.step}", where=file.path, fix="keep one of the two files",
                found=f"{len(differing)} tasks, such as {differing[0][0]}, of which none is taken",
            )  # fmt: skip
            faults.append(fault)
    return [said for key, said in taken.items() if key not in disputed]


def read_result_file(path: Path) -> ResultFile:
    """What a result file tells. Raises EvaluationError where it is none, or names no checkpoint."""
    try:
        content = path.read_bytes()
        data = _mapping(json.loads(content, parse_int=float))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError("cannot be read", where=path, found=error) from error
    measures = _tasks(path, data)
    try:
        place = _place(path, data)
    except EvaluationError as error:
        raise EvaluationError(error.problem, where=path) from error
    shots, counts = _mapping(data.get("n-shot")), _mapping(data.get("n-samples"))
    usual = _mapping(data.get("config")).get("num_fewshot")
    versions, digest = _mapping(data.get("versions")), digest_bytes(content)
    harness = f"lm-eval {_version(data.get('lm_eval_version'))}, task version "
    tasks = [
        Told(
            Cell(task, _whole(shots.get(task, usual)) or 0, "", "", "", digest, "",
                 harness + _version(versions.get(task))),
            values,
            _whole(_mapping(counts.get(task)).get("effective")) or _recovered(values),
        )
        for task, values in measures.items()
    ]  # fmt: skip
    return ResultFile(path, place, tasks)


def member_place(name: str, step: int | None, num_updates: int | None = None) -> Place:
    """The checkpoint of a model of the suite, by any name it went by; no step: the last one.

    `num_updates` is of the whole run, where its settings say it.
    """
    words = ["deduped" if word == "dedup" else word for word in re.split("[-_]", name.lower())]
    numbers: dict[str, str] = {}
    for word in {*words} - {*MARKS}:
        match = NUMBER.fullmatch(word)
        if match is None:
            raise EvaluationError("not a name of the Pythia suite", found=f"{name!r} ({word!r})")
        numbers |= {key: value for key, value in match.groupdict().items() if value}
    size = OLD_SIZES.get(numbers.get("size", ""), numbers.get("size"))
    if size not in SIZES:
        raise EvaluationError("a name without a size of the Pythia suite", found=repr(name))
    batch, seed = numbers.get("batch"), numbers.get("seed")
    usual = round(float(batch or 2) * (1 << 20))
    tokens_per_update, rest = divmod(TOKENS, num_updates) if num_updates else (usual, 0)
    if rest:
        raise EvaluationError("a run of the suite has another number of updates", found=num_updates)
    marks = [mark for mark in MARKS if mark in words]
    marks += [f"seed{seed}"] if seed else []
    marks += [f"{batch}MtokBS"] if batch else []
    last = TOKENS // tokens_per_update
    step = last if step is None else step
    if step > last:
        raise EvaluationError("a step after the run's last", expected=last, found=step)
    return Place(
        member="-".join([size, *marks]),
        step=step,
        tokens=step * tokens_per_update,
        size=size,
        num_parameters=SIZES[size].published_non_embedding,
        corpus="deduped" if "deduped" in words else "standard",
        init_seed=int(seed or INIT_SEED),
    )


def _place(path: Path, data: Mapping[str, Any]) -> Place:
    """The checkpoint that a file is about: as its settings have it, else as it is called."""
    arguments = _mapping(data.get("config")).get("model_args", data.get("model_args"))
    if isinstance(arguments, str):
        arguments = dict(pair.partition("=")[::2] for pair in arguments.split(","))
    arguments = _mapping(arguments)
    name, called = "", re.search(r"[-_]step(\d+)", path.stem)
    step, num_updates = _whole(arguments.get("iteration")), _whole(arguments.get("train_iters"))
    if isinstance(arguments.get("pretrained"), str):
        name = arguments["pretrained"].rstrip("/").rpartition("/")[2]
        revision = str(arguments.get("revision", "main"))
        match = re.fullmatch(r"step(\d{1,9})", revision)
        if match is None and revision != "main":
            raise EvaluationError("a revision that is no step", found=revision)
        step = int(match[1]) if match else None
    elif called:  # the harness in GPT-NeoX, asked for the first release
        name = path.stem[: called.start()] + "-v0"
    elif step is not None:
        name = str(arguments.get("load", "")).rpartition("/")[2]
        name = name or re.sub(r"_\d+$", "", path.stem.removeprefix("eval_results_"))
    if not name:
        raise EvaluationError("does not say which checkpoint was asked", expected="model_args")
    if called and step is not None and step != int(called[1]):
        raise EvaluationError(f"called step {called[1]}", found=f"step {step} inside")
    marks = ["baseline"] if path.stem.startswith("baseline-") else []
    marks += ["intervention"] if path.parent.parent.name.startswith("intervene_") else []
    return member_place("-".join([name, *marks]), step, num_updates)


def _tasks(path: Path, data: Mapping[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """What is told of each task. Raises EvaluationError for names or shares that cannot be such."""
    results = data.get("table_results") or data.get("results")
    measures = {task: _measures(values) for task, values in _mapping(results).items()}
    measures = {task: values for task, values in measures.items() if values}
    if not measures:
        raise EvaluationError("holds no scores", where=path, expected="results of lm-eval")
    for task, values in measures.items():
        if not all(name.isprintable() and "/" not in name for name in (task, *values)):
            raise EvaluationError("names of tasks or metrics that cannot be such", where=path)
        for metric, (value, _) in values.items():
            if metric in SHARES and not 0 <= value <= 1:
                raise EvaluationError(f"{metric} of {task} is no share of items", where=path,
                                      expected="0 to 1", found=value)  # fmt: skip
    return measures


def _measures(values: object) -> dict[str, tuple[float, float]]:
    """Value and standard error (NaN where there is none) of each metric, under today's names."""
    numbers = {key: value for key, value in _mapping(values).items() if isinstance(value, float)}
    found = {}
    for key, value in numbers.items():
        metric, _, filtered = key.partition(",")
        if metric == "sample_len" or metric.endswith("_stderr") or math.isnan(value):
            continue
        after = f",{filtered}" if filtered else ""
        name = METRICS.get(metric, metric) + after.removesuffix(",none")
        error = numbers.get(f"{metric}_stderr{after}", math.nan)
        found[name] = value, error if math.isfinite(error) else math.nan
    return found


def _recovered(measures: Mapping[str, tuple[float, float]]) -> int:
    """The number of items that a share and its standard error come from; 0: they do not say."""
    for share, error in (measures[metric] for metric in SHARES if metric in measures):
        if 0 < share < 1 and 1e-6 < error < 1:
            n = share * (1 - share) / error**2 + 1
            if max(abs(n - round(n)), abs(share * n - round(share * n))) < 1e-6 * n:
                return round(n)
    return 0


def _sizes(files: Iterable[ResultFile]) -> dict[str, int]:
    """The number of items of each task on which all files that tell it agree."""
    found = defaultdict[str, set[int]](set)
    for told in (told for file in files for told in file.tasks if told.num_items):
        found[told.cell.task].add(told.num_items)
    return {task: min(numbers) for task, numbers in found.items() if len(numbers) == 1}


def _levels(task: str) -> tuple[float | None, float | None]:
    """Chance and majority of a task, or of the group it is in."""
    known = (name for name in LEVELS if task == name or task.startswith((f"{name}-", f"{name}_")))
    return LEVELS.get(next(known, ""), (None, None))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int | None:
    """A whole number of the file, which all were read as floats; None: it is none."""
    return (
        int(value) if isinstance(value, float) and value.is_integer() and 0 <= value < 1e9 else None
    )


def _version(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) and value.isprintable() else "unknown"
