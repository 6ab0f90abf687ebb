"""Benchmark rows as their sources lay them out, turned into the columns the harness's prompts name.

Which layout a file has stands in `packs.toml`. Not here: reading files (`packs.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, Literal

Row = dict[str, Any]
Layout = Literal["super_glue_wsc", "winograd_pairs", "arc_queries", "arc_requests", "logiqa"]

QUESTION, ANSWER = "Question: ", "\nAnswer:"
LETTERS = "ABCDEFGH"


def super_glue_wsc(rows: list[Row]) -> list[Row]:
    """Spans out of their own table, spelled as in the text, and the label as a number.

    So are they in `wsc.fixed`, which the harness asks for. Source: the loading script super_glue.py
    of Hugging Face datasets.
    """
    found = []
    for row in rows:
        flat = {"text": row["text"], "idx": row["idx"], "label": int(row["label"]), **row["target"]}
        for span in ("span1", "span2"):
            flat[f"{span}_text"] = _spelled(
                flat["text"], flat[f"{span}_text"], flat[f"{span}_index"]
            )
        found.append(flat)
    return found


def _spelled(text: str, span: str, place: int) -> str:
    """A span with the case of the word at its place in the text, where that makes it part of it."""
    if span in text:
        return span
    to_case = str.lower if text.split()[place][0].islower() else str.upper
    changed = (to_case(span[0]) + span[1:]).rstrip(".").replace("\n", " ")
    return changed if changed in text else span


def winograd_pairs(rows: list[Row]) -> list[Row]:
    """Texts with a pronoun again, of pairs that have its two readings filled in.

    The pronoun itself is lost; it is in no prompt. The readings differ from some word on.
    """
    found = []
    for row in rows:
        first, second = row["context_options"]
        # The last word is in the readings, though one be the beginning of the other.
        words = zip(first.split(" ")[:-1], second.split(" ")[:-1], strict=False)
        begin = sum(len(one) + 1 for one, _ in takewhile(lambda pair: pair[0] == pair[1], words))
        found.append(
            {
                "text": f"{first[:begin]}they {row['continuation']}",
                "pronoun": "they",
                "pronoun_loc": begin,
                "options": [first[begin:], second[begin:]],
                "label": row["gold"],
            }
        )
    return found


def arc_queries(rows: list[Row]) -> list[Row]:
    """Questions out of their prompts, with lettered choices."""
    found = []
    for row in rows:
        letters = list(LETTERS[: len(row["choices"])])
        found.append(
            {
                "id": row["id"],
                "question": row["query"].removeprefix(QUESTION).removesuffix(ANSWER),
                "choices": {"text": row["choices"], "label": letters},
                "answerKey": letters[row["gold"]],
            }
        )
    return found


def arc_requests(rows: list[Row]) -> list[Row]:
    """The questions behind requests, of which every choice has several."""
    return arc_queries(list({row["doc"]["id"]: row["doc"] for row in rows}.values()))


def logiqa(rows: list[Row]) -> list[Row]:
    """Paragraphs of seven lines: the answer's letter, passage, question and four options.

    As the harness's own copy was made: options stand in the order of the lines, which is not that
    of their letters everywhere, and every stop is followed by a space.
    Source: lm-evaluation-harness 0.3, lm_eval/datasets/logiqa/logiqa.py.
    """
    lines = [row["line"] for row in rows if row["line"]]
    found: list[Row] = []
    for begin in range(0, len(lines), 7):
        label, passage, question, *options = lines[begin : begin + 7]
        if len(options) != 4:
            raise ValueError(f"item {len(found)} has {len(options)} options")
        found.append(
            {
                "label": label.strip(),
                "context": _spaced(passage),
                "question": _spaced(question),
                "options": [_spaced(option[2:]) for option in options],
            }
        )
    return found


def _spaced(text: str) -> str:
    return text.replace(".", ". ").strip()


LAYOUTS: Mapping[Layout, Callable[[list[Row]], list[Row]]] = {
    "super_glue_wsc": super_glue_wsc,
    "winograd_pairs": winograd_pairs,
    "arc_queries": arc_queries,
    "arc_requests": arc_requests,
    "logiqa": logiqa,
}
