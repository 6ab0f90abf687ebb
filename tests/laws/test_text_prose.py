"""Cutting works into parts, and wiki markup into prose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny.text.prose import cut, wiki_articles, wiki_prose


@given(st.text(st.sampled_from("aé𝄞 \n\t\r")), st.integers(4, 40))
def test_parts_join_to_the_work_and_fit(text: str, limit: int) -> None:
    for headings in (None, "a"):
        parts = cut(text, headings, limit)
        assert "".join(parts) == text
        assert all(0 < len(part.encode()) <= limit for part in parts)


def test_cuts_fall_before_headings() -> None:
    scene = "Some lines of a scene.\n\n"
    play = "".join(f"ACT {n}\n\n{scene * 4}" for n in range(3))
    assert [part[:5] for part in cut(play, "ACT", 150)] == ["ACT 0", "ACT 1", "ACT 2"]
    assert [part[:5] for part in cut(play, None, 150)] != ["ACT 0", "ACT 1", "ACT 2"]


def test_indentation_stays_with_its_line() -> None:
    code = "def f():\n    a = 1\n\n    return a\n\n\ndef g():\n    pass\n"
    assert cut(code, "def", 40) == [
        "def f():\n    a = 1\n\n    return a\n\n\n",
        "def g():\n    pass\n",
    ]


@pytest.mark.parametrize(
    ("markup", "prose"),
    [
        ("'''Bold''' and ''slanted''", "Bold and slanted"),
        ("a [[town]], [[Paris|the city]]", "a town, the city"),
        ("see [http://a.example the page]", "see the page"),
        ("fact<ref name=x>{{cite|a=[[b]]}}</ref>, more<ref name=x/>.", "fact, more."),
        ("{{Infobox|a={{nested|b}}}}Text <!-- hidden -->here", "Text here"),
        ("{| class=x\n| cell {{t}}\n|}\nAfter", "After"),
        ("[[File:a.jpg|thumb|A [[link]] in it]]Text[[Category:X]]", "Text"),
        (
            "== History ==\nOld.\n\n== References ==\n* a\n\n== Later ==\nb",
            "History\nOld.\n\nLater\nb",
        ),
        ("* one\n** two", "- one\n- two"),
        ("{{convert|5|km|mi}} of {{lang|grc|logos}} &amp; more", "5 km of logos & more"),
        ("Angola ({{IPAc|x}}), a country", "Angola, a country"),
    ],
)
def test_wiki_markup_becomes_prose(markup: str, prose: str) -> None:
    assert wiki_prose(markup) == prose + "\n"


def test_articles_of_an_export() -> None:
    page = "<page><title>{}</title><ns>{}</ns>{}<revision><text>{}</text></revision></page>"
    dump = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{}</mediawiki>'.format(
        page.format("One", 0, "", "''Text''.")
        + page.format("Moved", 0, '<redirect title="One"/>', "#REDIRECT [[One]]")
        + page.format("Talk:One", 1, "", "chatter")
    )
    assert list(wiki_articles(dump)) == [("One", "One\n\nText.\n")]
