"""What the manifests of checkpoints say, held against their tensors and against each other.

A tensor is found by its byte range in the safetensors file, so one of a file far away is checked
by reading that range alone. The chain of checkpoints is checked from manifests, without weights.
Not here: files as a whole (`artifact.py`), rows and metrics (`ontogeny.questions`).
The format is that of github.com/huggingface/safetensors: eight bytes that give the length of a
JSON header, the header with each tensor's place, the tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

from ontogeny.artifact import Artifact, file_fault
from ontogeny.digest import digest_json
from ontogeny.errors import CheckpointError, Fault, OntogenyError
from ontogeny.ranges import Ranges, open_ranges
from ontogeny.results import parse_metrics
from ontogeny.steps import METRICS, step_folder
from ontogeny.suite import RECIPES, RunSettings

LENGTH = 8  # bytes in front of the header
MAX_HEADER = 100_000_000  # as the format allows
CHUNK = 1 << 20  # bytes of a tensor held at a time
UNKNOWN = "unknown"  # in place of a digest
DTYPES = {  # as torch names what the format does
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Span:
    """What a tensor is, and the bytes of its file where it lies."""

    dtype: str
    shape: list[int]
    begin: int
    end: int


def tensor_spans(file: Ranges) -> dict[str, Span]:
    """The tensors of a safetensors file in the order of their bytes, from its header alone.

    Raises CheckpointError or DataError for a file that is none, or that ends before its tensors do.
    """
    length = int.from_bytes(file.read(0, LENGTH), "little")
    if length > MAX_HEADER:
        raise CheckpointError("not a safetensors file", where=file.name)
    start, spans = LENGTH + length, {}
    try:
        header = json.loads(file.read(LENGTH, length).decode("utf-8"))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = (start + index(offset) for offset in entry["data_offsets"])
            dtype = DTYPES.get(entry["dtype"], str(entry["dtype"]))
            spans[name] = Span(dtype, list(entry["shape"]), begin, end)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"not a safetensors file ({type(error).__name__}: {error})"
        raise CheckpointError(problem, where=file.name) from error
    for name, span in spans.items():
        if not start <= span.begin <= span.end <= file.size:
            raise CheckpointError(
                f"tensor {name} lies outside the file",
                where=file.name,
                expected=f"bytes {start} to {file.size}",
                found=f"{span.begin} to {span.end}",
            )
    return dict(sorted(spans.items(), key=lambda item: item[1].begin))


def recorded_tensors(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Dtype, shape and digest that a manifest records of each tensor; none where it does not."""
    tensors = artifact.facts.get("tensors", {})
    entries = tensors.values() if isinstance(tensors, dict) else [None]
    is_bare = artifact.kind == "checkpoint" and not tensors
    if is_bare or not all(isinstance(entry, dict) and _is_record(entry) for entry in entries):
        raise CheckpointError("the tensors it records have no digests", where=artifact.path)
    return tensors


def _is_record(entry: Mapping[str, Any]) -> bool:
    texts, shape = (entry.get("dtype"), entry.get("sha256")), entry.get("shape")
    is_shape = isinstance(shape, list) and all(isinstance(size, int) for size in shape)
    return is_shape and all(isinstance(text, str) for text in texts)


def tensor_problem(file: Ranges, span: Span, recorded: Mapping[str, Any] | None) -> str | None:
    """How the tensor at a place of a file differs from what was recorded; None if it does not."""
    if recorded is None:
        return "expected no such tensor"
    form, expected = [span.dtype, span.shape], [recorded["dtype"], recorded["shape"]]
    if form != expected:
        return f"expected {expected}; found {form}"
    state = hashlib.sha256()
    for offset in range(span.begin, span.end, CHUNK):
        state.update(file.read(offset, min(CHUNK, span.end - offset)))
    if state.hexdigest() == recorded["sha256"]:
        return None
    return f"expected sha256 {recorded['sha256']}; found {state.hexdigest()}"


def weight_faults(artifact: Artifact, others: Mapping[tuple[str, str], int]) -> Iterator[Fault]:
    """The first tensor of each file that is not the one recorded, and what no file holds.

    Files that are missing or of another size are left to `file_fault`. `others` knows the step of
    a tensor by its name and digest, for the likely cause.
    """
    recorded = recorded_tensors(artifact)
    names = [name for name in artifact.files if name.endswith(".safetensors") and recorded]
    left, fix = set(recorded), f"fetch {artifact.path} again, or derive it anew: ontogeny replay"
    for name in names:
        if file_fault(artifact, name, rehash=False) is not None:
            return
        try:
            file = open_ranges(artifact.path / name)
            spans = tensor_spans(file)
        except OntogenyError as error:
            yield error.fault("its header was damaged: the size is right", fix)
            return
        left -= spans.keys()
        checked = ((one, tensor_problem(file, span, recorded.get(one)))
                   for one, span in spans.items())  # fmt: skip
        found = [(one, problem) for one, problem in checked if problem]
        if found:
            first, problem = found[0]
            also = f" (nor are {len(found) - 1} more of its tensors)" if found[1:] else ""
            step = others.get((first, problem.rpartition(" ")[2]))
            cause = "flipped bits or an edit: the size is right"
            if step is not None:
                cause = f"it is the tensor of step{step}: that step's file was put here"
            told = f"tensor {first} is not the one recorded{also}; {problem}"
            yield Fault(file.name, told, cause, fix)
    for one in sorted(left):
        cause = "the manifest is of other weights"
        yield Fault(str(artifact.path), f"no file holds the tensor {one}", cause, fix)


def chain_faults(
    run: Artifact, settings: RunSettings, checkpoints: Mapping[int, Artifact | None]
) -> Iterator[Fault]:
    """Where the checkpoints of a run, by the step of their folder, do not make one chain.

    Each must be the run's own and of its step, the settings' schedule must keep it, the one before
    it must be its parent, and no other may have its weights. None: the manifest is unreadable.
    """
    weights: dict[str, int] = {}
    parent = run.inputs.get("parent")  # of a branch
    kept = [step for step in settings.steps if step <= max(checkpoints, default=-1)]
    for step in sorted({*kept, *checkpoints}):
        place = str(step_folder(run.path, step))
        again = f"fetch it again, or derive it: ontogeny replay {run.path} --step {step} --out DIR"
        if step not in checkpoints:
            cause = "removed, or never copied: later ones are there"
            yield Fault(place, "missing checkpoint", cause, again)
        elif step not in kept:
            problem = "a step that the settings of its run do not keep"
            yield Fault(place, problem, "from another run, or relabelled", "remove it")
        one = checkpoints.get(step)
        if one is None or step not in kept:
            parent = parent if step not in kept else UNKNOWN
            continue
        for problem, cause in _wrong_links(run, settings, step, one, parent):
            yield Fault(place, problem, cause, again)
        parent = one.digest
        earlier = weights.setdefault(digest_json(one.facts.get("tensors")), step)
        first_moves_nothing = RECIPES[settings.recipe].first_rate_is_zero
        may_be_equal = first_moves_nothing and step == settings.origin + 1
        if earlier != step and not may_be_equal and not _rested(run, earlier, step):
            cause = "one of the two was saved or copied under a wrong step"
            yield Fault(place, f"has the very weights of step{earlier}", cause, again)


def _rested(run: Artifact, first: int, last: int) -> bool:
    """Whether the run's metrics say of every update between two steps that it moved nothing."""
    path = run.path / METRICS
    lines = path.read_bytes().splitlines()[first:last] if path.is_file() else []
    rows = [parse_metrics(line.decode("utf-8", errors="replace")) for line in lines]
    return len(rows) == last - first and all(
        row is not None and (row.skipped or row.learning_rate == 0) for row in rows
    )


def _wrong_links(
    run: Artifact, settings: RunSettings, step: int, one: Artifact, parent: str | None
) -> Iterator[tuple[str, str]]:
    """What a checkpoint says of its place in the run that is not so, and the likely cause."""
    facts, held, mother = one.facts, one.facts.get("step"), one.inputs.get("parent")
    before = 0 if settings.branch is None else settings.branch.tokens
    tokens = before + (step - settings.first_step) * settings.tokens_per_update
    copied = f"the folder of step{held} was copied or renamed"
    foreign = "it is of another run, or the run's manifest was replaced"
    replaced = "the one before it was replaced or relabelled, or it is itself of another run"
    for what, expected, found, cause in (
        ("step", step, held, copied),
        ("run", run.digest, one.inputs.get("run"), foreign),
        ("config", digest_json(run.config), facts.get("config"), foreign),
        ("member", settings.member, facts.get("member"), foreign),
        ("number of tokens", tokens, facts.get("tokens"), copied),
        ("full state", step in settings.full_state_steps, facts.get("full_state"), foreign),
        ("parent", mother if parent == UNKNOWN else parent, mother, replaced),
    ):
        if expected != found:
            yield f"not the {what} it must have; expected {expected}; found {found}", cause
