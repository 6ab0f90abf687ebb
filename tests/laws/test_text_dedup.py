"""Exact duplicates: equal but for encoding form, line ends and trailing white space."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ontogeny.text.dedup import normalised, text_digest

texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(st.lists(st.text("ab é", max_size=8)), st.sampled_from(["\n", "\r\n", "\r"]))
def test_line_ends_and_trails_do_not_matter(lines: list[str], end: str) -> None:
    plain = "\n".join(lines)
    assert text_digest(end.join(line + " \t" for line in lines) + end) == text_digest(plain)


@given(texts, texts)
def test_different_texts_differ(one: str, other: str) -> None:
    assert (text_digest(one) == text_digest(other)) == (normalised(one) == normalised(other))


def test_composed_and_decomposed_letters_are_equal() -> None:
    assert text_digest("caf\u00e9") == text_digest("cafe\u0301")
    assert text_digest("x\u00b2") != text_digest("x2")
    assert text_digest(" indented") != text_digest("indented")
    assert text_digest("Case") != text_digest("case")
