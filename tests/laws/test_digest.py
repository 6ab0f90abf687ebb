"""Digests: known values, and equal for equal content whatever its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.digest import (
    canonical_json,
    digest_bytes,
    digest_file,
    digest_json,
    digest_sources,
)

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    plain | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_the_known_digest_of_abc(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest_bytes(b"abc") == digest_bytes(memoryview(b"abc")) == ABC
    assert digest_file(tmp_path / "abc") == ABC


def test_canonical_json_literally() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"é": '"\n'}}
    assert canonical_json(value) == '{"a":{"é":"\\"\\n"},"b":[1,2.5,null,true]}'


@given(values)
def test_canonical_json_says_the_same(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value
    laid_out = json.dumps(value, indent=3, ensure_ascii=True)
    assert canonical_json(json.loads(laid_out)) == canonical_json(value)


@given(st.dictionaries(st.text(), plain, min_size=2), st.randoms())
def test_key_order_does_not_count(value: dict[str, Any], random: Any) -> None:
    keys = list(value)
    random.shuffle(keys)
    assert digest_json({key: value[key] for key in keys}) == digest_json(value)


@given(values, values)
def test_other_values_have_other_digests(one: Any, other: Any) -> None:
    equal = canonical_json(one) == canonical_json(other)
    assert (digest_json(one) == digest_json(other)) == equal


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": -float("inf")}])
def test_what_is_no_number_is_no_json(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_sources_by_name_and_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, names in ((one, ("a.py", "in/b.py")), (other, ("in/b.py", "a.py"))):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"# {name}\n")
    before = digest_sources(one)
    assert before == digest_sources(other)
    (one / "notes.txt").write_text("not code")
    assert digest_sources(one) == before
    (one / "a.py").rename(one / "c.py")
    assert digest_sources(one) != before
