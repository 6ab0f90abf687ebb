"""Artifacts: whole or absent, true to their manifest, named by content alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ontogeny.artifact import (
    FORMAT,
    MANIFEST,
    Artifact,
    faults,
    key,
    key_of,
    keyed,
    open_artifact,
    open_input,
    require_space,
    writing,
)
from ontogeny.digest import digest_json
from ontogeny.errors import DataError

CONFIG, INPUTS = {"size": 3}, {"text": "0" * 64}
FILES = {"a.bin": b"12345678", "inner/b.txt": b"text", "empty": b""}


def write(
    path: Path, files: dict[str, bytes] = FILES, provenance: dict[str, Any] | None = None
) -> Artifact:
    with writing(path, "thing", config=CONFIG, inputs=INPUTS, provenance=provenance) as draft:
        for name, data in files.items():
            (draft.folder / name).parent.mkdir(exist_ok=True)
            (draft.folder / name).write_bytes(data)
        draft.facts["count"] = len(files)
    return draft.artifact


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact no test writes to."""
    return write(tmp_path_factory.mktemp("sample") / "thing").path


def copied(sample: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample, tmp_path / "copy"))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    made = write(tmp_path / "deep" / "thing", provenance={"threads": 2})
    opened = open_artifact(tmp_path / "deep" / "thing", "thing")
    assert opened == made
    assert (opened.kind, opened.config, opened.inputs) == ("thing", CONFIG, INPUTS)
    assert opened.facts == {"count": 3}
    assert opened.provenance["threads"] == 2
    assert {name: entry["bytes"] for name, entry in opened.files.items()} == {
        name: len(data) for name, data in FILES.items()
    }
    assert faults(opened) == []
    assert names(tmp_path / "deep") == ["thing"]


def test_identity_is_content_alone(tmp_path: Path) -> None:
    made = write(tmp_path / "one")
    backwards = dict(reversed(FILES.items()))
    again = write(tmp_path / "elsewhere" / "two", backwards, {"threads": 7, "host": "another"})
    assert made.digest == again.digest
    assert made.provenance != again.provenance
    assert write(tmp_path / "three", FILES | {"a.bin": b"12345679"}).digest != made.digest


def test_files_are_listed_in_order(tmp_path: Path) -> None:
    names = [f"{7 * number % 20:02}" for number in range(20)]
    made = write(tmp_path / "thing", dict.fromkeys(names, b"") | {"05x/inner": b""})
    assert list(made.files) == sorted([*names, "05x/inner"])


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit, DataError])
def test_nothing_is_left_of_what_failed(tmp_path: Path, stop: type[BaseException]) -> None:
    def fail() -> None:
        with writing(tmp_path / "thing", "thing", config={}, inputs={}) as draft:
            (draft.folder / "half").write_bytes(b"ha")
            raise stop("in the middle")

    with pytest.raises(stop):
        fail()
    assert names(tmp_path) == []


def test_nothing_is_left_of_facts_that_are_no_json(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="not JSON compliant"),
        writing(tmp_path / "thing", "thing", config={}, inputs={}) as draft,
    ):
        draft.facts["rate"] = float("nan")
    assert names(tmp_path) == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    made = write(tmp_path / "thing")
    with pytest.raises(DataError, match=r"already exists; try: remove .*thing or choose another"):
        write(tmp_path / "thing", {})
    assert faults(open_artifact(made.path)) == []


def test_leftovers_of_the_dead_go_and_of_the_living_stay(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as writer:
        theirs = tmp_path / f".thing.writing-{writer.pid}"
        others = tmp_path / f".other.writing-{writer.pid}"
        for folder in (theirs, others):
            folder.mkdir()
            (folder / "part").write_bytes(b"...")
        shutil.rmtree(write(tmp_path / "thing").path)
        assert theirs.is_dir()
        writer.communicate(b"\n")
    write(tmp_path / "thing")
    assert names(tmp_path) == [others.name, "thing"]


@pytest.mark.parametrize("name", ["thing", "thing [1]*"])
def test_a_leftover_of_a_dead_writer_with_our_number_goes(tmp_path: Path, name: str) -> None:
    # In a container every start may have the same process number.
    ours = tmp_path / f".{name}.writing-{os.getpid()}"
    ours.mkdir()
    (ours / "part").write_bytes(b"...")
    assert set(write(tmp_path / name).files) == set(FILES)
    assert names(tmp_path) == [name]


def test_a_place_that_holds_no_artifact(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="not an artifact; expected a folder with manifest"):
            open_artifact(place)


def test_another_kind(sample: Path) -> None:
    with pytest.raises(DataError, match="wrong kind of artifact; expected store; found thing"):
        open_artifact(sample, "store")


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and make its digests true again."""
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    manifest["digest"] = digest_json(manifest["content"])
    manifest["provenance_digest"] = digest_json(manifest["provenance"])
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_another_format(sample: Path, tmp_path: Path) -> None:
    path = copied(sample, tmp_path)
    rewrite(path, lambda manifest: manifest["content"].update(format=FORMAT + 1))
    with pytest.raises(DataError, match="unknown format; expected 1; found 2"):
        open_artifact(path)


@pytest.mark.parametrize("part", ["content", "provenance"])
def test_an_altered_manifest(sample: Path, tmp_path: Path, part: str) -> None:
    path = copied(sample, tmp_path)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest[part]["added"] = 1
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="manifest was altered"):
        open_artifact(path)


@pytest.mark.parametrize("missing", ["kind", "format", "config", "inputs", "facts", "files"])
def test_a_manifest_that_lacks_a_part(sample: Path, tmp_path: Path, missing: str) -> None:
    path = copied(sample, tmp_path)
    rewrite(path, lambda manifest: manifest["content"].pop(missing))
    with pytest.raises(DataError, match=f"unreadable manifest .*{missing}.*; try: remove"):
        open_artifact(path)


@pytest.mark.parametrize("files", [[], {"a": 5}, {"a": {}}, {"a": {"bytes": "x"}}, None, 3])
def test_a_manifest_with_nonsense_for_files(sample: Path, tmp_path: Path, files: Any) -> None:
    path = copied(sample, tmp_path)
    rewrite(path, lambda manifest: manifest["content"].update(files=files))
    with pytest.raises(DataError, match="unreadable manifest"):
        open_artifact(path)


def refusal(path: Path, manifest: bytes) -> str:
    (path / MANIFEST).write_bytes(manifest)
    with pytest.raises(DataError) as caught:
        open_artifact(path)
    return str(caught.value)


@settings(max_examples=60)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_truncated_manifest(
    sample: Path, tmp_path_factory: pytest.TempPathFactory, cut: float
) -> None:
    path = copied(sample, tmp_path_factory.mktemp("cut"))
    whole = (path / MANIFEST).read_bytes().rstrip()
    assert "manifest" in refusal(path, whole[: int(cut * len(whole))])


@settings(max_examples=60)
@given(st.binary() | st.text().map(str.encode))
def test_a_manifest_of_random_bytes(
    sample: Path, tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    assert "manifest" in refusal(copied(sample, tmp_path_factory.mktemp("noise")), noise)


def test_a_manifest_nested_without_end(sample: Path, tmp_path: Path) -> None:
    assert "manifest" in refusal(copied(sample, tmp_path), b'{"content":' + b"[" * 200_000)


@settings(max_examples=60)
@given(place=st.integers(min_value=0), byte=st.integers(1, 255))
def test_a_flipped_byte_of_the_manifest(
    sample: Path, tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    path = copied(sample, tmp_path_factory.mktemp("flip"))
    data = bytearray((path / MANIFEST).read_bytes())
    data[place % len(data)] ^= byte
    (path / MANIFEST).write_bytes(bytes(data))
    try:
        opened = open_artifact(path)
    except DataError:
        return
    # Only white space between values may change without notice.
    assert (opened.content, opened.provenance) == (
        open_artifact(sample).content,
        open_artifact(sample).provenance,
    )


@given(
    name=st.sampled_from(["a.bin", "inner/b.txt"]),
    place=st.integers(0, 7),
    byte=st.integers(1, 255),
)
@settings(max_examples=30)
def test_a_flipped_byte_of_the_payload(
    sample: Path, tmp_path_factory: pytest.TempPathFactory, name: str, place: int, byte: int
) -> None:
    path = copied(sample, tmp_path_factory.mktemp("payload"))
    data = bytearray((path / name).read_bytes())
    data[place % len(data)] ^= byte
    (path / name).write_bytes(bytes(data))
    found = faults(open_artifact(path))
    assert len(found) == 1
    assert str(found[0]).startswith(f"{path / name}: other bytes; expected sha256 ")


def test_a_missing_and_a_truncated_file(sample: Path, tmp_path: Path) -> None:
    path = copied(sample, tmp_path)
    opened = open_artifact(path)
    (path / "a.bin").write_bytes(b"1234567")
    with pytest.raises(DataError, match=r"a\.bin: truncated .*expected 8 bytes; found 7 bytes"):
        open_artifact(path)
    (path / "a.bin").unlink()
    with pytest.raises(DataError, match=r"a\.bin: missing file; try: fetch a.bin again"):
        open_artifact(path)
    assert [str(fault) for fault in faults(opened)] == [f"{path / 'a.bin'}: missing file"]


def test_keys_know_config_and_inputs_before_there_is_anything(sample: Path) -> None:
    expected = key_of("thing", CONFIG, INPUTS)
    assert key(open_artifact(sample)) == expected
    others = {
        key_of("other", CONFIG, INPUTS),
        key_of("thing", {"size": 4}, INPUTS),
        key_of("thing", CONFIG, {"text": "1" * 64}),
        key_of("thing", {}, {}),
    }
    assert len(others | {expected}) == 5
    place = keyed(Path("out/text"), "thing", CONFIG, INPUTS)
    assert place == Path(f"out/text-{expected[:8]}")


def test_space(tmp_path: Path) -> None:
    require_space(tmp_path, 0)
    require_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(DataError, match=r"too little disk space; expected 10{21}\.00 GB free"):
        require_space(tmp_path / "not" / "there", 10**30)
    with pytest.raises(DataError, match=r"found [\d.]+ GB; try: free some space"):
        require_space(Path("relative"), 10**30)


def write_while_another_does(place: Path) -> None:
    with writing(place, "store", config={}, inputs={}) as draft:
        (draft.folder / "mine").write_text("mine")
        place.mkdir()
        (place / "theirs").write_text("theirs")


def test_a_folder_made_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="made meanwhile by another process"):
        write_while_another_does(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "theirs"]


def test_inputs_that_are_artifacts_are_found_again_after_a_move(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with writing(home / "text", "text", config={}, inputs={"file": "0" * 64}) as text:
        pass
    (home / "link").symlink_to("text")
    linked = open_artifact(home / "link")
    with writing(home / "a" / "store", "store", config={}, inputs={"text": linked}) as store:
        pass
    assert store.artifact.inputs == {"text": text.artifact.digest}
    assert key_of("store", {}, {"text": linked}) == key_of("store", {}, store.artifact.inputs)
    home.rename(tmp_path / "moved")
    moved = open_artifact(tmp_path / "moved" / "a" / "store")
    assert open_input(moved, "text").digest == text.artifact.digest
    with pytest.raises(DataError, match="no file is known among what it was made from"):
        open_input(open_artifact(tmp_path / "moved" / "text"), "file")
    (tmp_path / "moved" / "text").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"its text is not there; expected .* at .*moved/text"):
        open_input(moved, "text")
    with writing(tmp_path / "moved" / "text", "text", config={"other": 1}, inputs={}):
        pass
    with pytest.raises(DataError, match=r"is not the text that .* was made from"):
        open_input(moved, "text")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("config", []),
        ("facts", "none"),
        ("inputs", {"text": 3}),
        ("kind", None),
        ("files", {"a.bin": {"bytes": "8", "sha256": "0"}}),
        ("files", {"a.bin": {"bytes": 8, "sha256": None}}),
    ],
)
def test_a_manifest_of_another_form(sample: Path, tmp_path: Path, part: str, value: object) -> None:
    path = copied(sample, tmp_path)
    rewrite(path, lambda manifest: manifest["content"].update({part: value}))
    with pytest.raises(DataError, match="unreadable manifest"):
        open_artifact(path)
