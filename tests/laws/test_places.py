"""The places of documents, against a reading of the rules one document at a time."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.errors import DataError
from ontogeny.suite import TextSettings
from ontogeny.text.dedup import normalised
from ontogeny.text.documents import Document, work_of
from ontogeny.text.places import Place, Tables, _fitting, decide, repeated_row
from ontogeny.text.shards import Shard, shards_of, write_shards

TEXTS = ("", " \n", "a", "a ", "bb", "ccc" * 5, "dd" * 9, "e" * 40, "f" * 7)


@dataclass(frozen=True)
class Case:
    """Documents, how many of the last are planted, what is nearly alike, what is held out."""

    documents: list[Document]
    num_planted: int
    near: list[int] | None
    share: float
    shard_bytes: int
    most_rows: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    works = st.tuples(st.sampled_from("ABC"), st.integers(0, 5), st.sampled_from(TEXTS))
    count = draw(st.integers(1, 40))
    drawn = draw(st.lists(works, min_size=count, max_size=count))
    documents = [
        Document(f"{source}{work}#{place}", text, source)
        for place, (source, work, text) in enumerate(drawn)
    ]
    near = None
    if draw(st.booleans()):
        clusters = draw(st.lists(st.integers(0, 8), min_size=len(TEXTS), max_size=len(TEXTS)))
        of = [clusters[TEXTS.index(one.text.rstrip() or "")] for one in documents]
        near = [of.index(cluster) for cluster in of]  # equal texts are in one cluster
    return Case(
        documents,
        draw(st.integers(0, min(3, len(documents) - 1))),
        near,
        draw(st.sampled_from((0.05, 0.2, 0.45))),
        draw(st.sampled_from((20, 10**6))),
        draw(st.sampled_from((1, 3, 1000))),
    )


def shards(folder: Path, documents: Sequence[Document], shard_bytes: int) -> list[Shard]:
    """The documents as shards, from two tasks."""
    half = len(documents) // 2
    parts = documents[:half], documents[half:]

    def read(part: Sequence[Document]) -> list[tuple[Document, str]]:
        return [(document, "here") for document in part]

    return shards_of(
        write_shards(
            folder / str(number),
            lambda part=part: read(part),  # type: ignore[misc]
            normalise="none",
            seed=7,
            shard_bytes=shard_bytes,
        )
        for number, part in enumerate(parts)
    )


def expected(case: Case) -> list[Place]:
    """The rules, read as they are written."""
    documents, first_planted = case.documents, len(case.documents) - case.num_planted
    held = held_out_works(case)
    exact = [normalised(document.text) for document in documents]
    likenesses: list[Sequence[object]] = [exact, *([case.near] if case.near else [])]
    held_rows = [
        row
        for row in range(first_planted)
        if exact[row] and (documents[row].source, work_of(documents[row].id)) in held
    ]
    places = []
    for row, document in enumerate(documents):
        if not document.text.strip():
            places.append(Place.EMPTY)
            continue
        place = Place.HELD_OUT if row in held_rows else Place.FIRST
        for keys in likenesses:
            alike = [other for other in held_rows if keys[other] == keys[row]]
            if row < first_planted and alike and alike[0] != row:
                place = Place.ALSO_HELD_OUT
        places.append(place)
    for keys, again in zip(likenesses, (Place.DUPLICATE, Place.NEAR_DUPLICATE), strict=False):
        seen = set()
        for row, place in enumerate(places):
            if place == Place.FIRST:
                places[row] = again if keys[row] in seen else place
                seen.add(keys[row])
    return places


def held_out_works(case: Case) -> set[tuple[str, str]]:
    sizes: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for document in case.documents[: len(case.documents) - case.num_planted]:
        if document.text.strip():
            sizes[document.source][work_of(document.id)] += len(document.text.encode())
    held = set()
    for source, works in sizes.items():

        def turn(work: str, source: str = source) -> bytes:
            return hashlib.sha256("\0".join(("7", source, work)).encode()).digest()

        left = int(case.share * sum(works.values()))
        fitting = []
        for work in sorted(works, key=turn):
            if works[work] <= left:
                left -= works[work]
                fitting.append(work)
        smallest = min(sorted(works, key=turn), key=works.__getitem__)
        if len(works) > 1:
            held |= {(source, work) for work in fitting or [smallest]}
    return held


@given(cases())
@settings(max_examples=30)
def test_places_are_those_of_the_rules(
    tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    folder = tmp_path_factory.mktemp("places")
    near = None if case.near is None else np.array(case.near)
    tables = Tables(shards(folder, case.documents, case.shard_bytes), near, case.most_rows)
    text = TextSettings(path="x", held_out=case.share, seed=7)
    places, counts = decide(tables, len(case.documents) - case.num_planted, text)
    assert [Place(place) for place in places] == expected(case)
    assert (counts == 1).all()
    assert repeated_row(tables) is None
    shutil.rmtree(folder)


def test_the_first_repeated_id_is_found(tmp_path: Path) -> None:
    documents = [Document(name, str(place), "s") for place, name in enumerate("abcdecbb")]
    for most_rows in (1, 100):
        assert (
            repeated_row(Tables(shards(tmp_path / str(most_rows), documents, 1), None, most_rows))
            == 5
        )


def test_more_sources_than_can_be_told_apart_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In what one task reads, and in what all of them do."""
    each = [Document(f"{number}", "x", f"{number:05d}") for number in range((1 << 16) + 1)]
    message = "source '65536': too many sources: .*; expected at most 65536; found 65537"
    with pytest.raises(DataError, match=message):
        shards(tmp_path / "one", [*each, *each], 1 << 20)
    several = shards(tmp_path / "several", each[:6], 1 << 20)
    monkeypatch.setattr("ontogeny.text.shards.MOST_SOURCES", 5)
    with pytest.raises(DataError, match="expected at most 5; found 6; try: leave 'source'"):
        Tables(several)


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(0, 60))
def test_what_fits_is_taken_in_order(sizes: list[int], room: int) -> None:
    left, taken = room, []
    for place, size in enumerate(sizes):
        if size <= left:
            left -= size
            taken.append(place)
    assert _fitting(np.array(sizes, np.int64), room).tolist() == taken
