"""Long works into parts, and wiki markup into plain prose.

In: the text of a work. Out: parts that join to the work again, or the prose of an article. Only
the markup that shapes sentences is understood; what only decorates is dropped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from xml.etree import ElementTree

PART_BYTES = 20_000

_PARAGRAPH_END = re.compile(r"\n(?:[ \t]*\r?\n)+")
_LINE_END = re.compile(r"(?<=\n)")
# Markup in the order in which it goes, from the inside out where it is nested, and what stays of
# it. A dot is any character, `^` and `$` are the ends of a line.
_MARKUP = {
    r"<!--.*?-->": "",
    r"<(ref|math|gallery|timeline|score|imagemap|syntaxhighlight|source|table|div)\b"
    r"[^<>]*?(?:/>|>.*?</\1\s*>)": "",
    r"\{\{(?:lang|transl|nowrap|IAST|small)\|(?:[^{}|]*\|)*([^{}|]*)\}\}": r"\1",
    r"\{\{(?:convert|cvt)\|([^{}|]*)\|([^{}|]*)[^{}]*\}\}": r"\1 \2",
    r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\|).)*?\|\}": "",
    r"\[\[\s*(?:File|Image|Category|[a-z]{2,3}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]": "",
    r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]": r"\1",
    r"\[(?:https?:)?//[^\s\]]*\s*([^\]]*)\]": r"\1",
    r"</?[a-z][^<>]*>|(?-i:__[A-Z]+__)|'{2,}": "",
    r"^==\s*(?:See also|References|Notes|Footnotes|External links|Further reading|Bibliography|"
    r"Sources|Citations)\s*==\s*$.*?(?=^==[^=]|\Z)": "",
    r"^=+[ \t]*([^\n]*?)[ \t]*=+[ \t]*$": r"\1",
    r"^[*#:;]+[ \t]*": "- ",
}
_RULES = tuple((re.compile(mark, re.S | re.M | re.I), kept) for mark, kept in _MARKUP.items())


def cut(text: str, headings: str | None = None, limit: int = PART_BYTES) -> list[str]:
    """Cut a text into parts of at most `limit` bytes of UTF-8 that join to the text again.

    Cuts fall before a paragraph whose first line matches `headings` once a part is half full,
    before any paragraph that no longer fits, and inside a paragraph (after a line, else after a
    character) only where it alone is over the limit.
    """
    heading = re.compile(headings) if headings else None
    parts: list[str] = []
    size = limit  # of the last part; full, so that the first piece opens one
    for piece in _pieces(text, limit):
        num_bytes = len(piece.encode())
        is_break = heading is not None and heading.match(piece) and 2 * size >= limit
        if is_break or size + num_bytes > limit:
            parts.append(piece)
            size = num_bytes
        else:
            parts[-1] += piece
            size += num_bytes
    return parts


def wiki_articles(dump: str) -> Iterator[tuple[str, str]]:
    """The title and prose of every article of a MediaWiki XML export, redirects left out."""
    for page in ElementTree.fromstring(dump).iterfind("{*}page"):
        title, space = page.findtext("{*}title", ""), page.findtext("{*}ns", "")
        if space == "0" and page.find("{*}redirect") is None:
            yield title, f"{title}\n\n" + wiki_prose(page.findtext("{*}revision/{*}text", ""))


def wiki_prose(markup: str) -> str:
    """The sentences, headings and lists of a wiki article, without notes, tables and links."""
    text = markup
    for mark, kept in _RULES:
        count = 1
        while count:
            text, count = mark.subn(kept, text)
    text = html.unescape(text).replace("\xa0", " ")
    text = re.sub(r"[ \t]?\([\s,;]*\)", "", text)  # brackets that held but markup
    text = re.sub(r" +(?=[,.;])", "", text)
    text = re.sub(r"[ \t]+$|^- $", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _pieces(text: str, limit: int) -> Iterator[str]:
    """Paragraphs, and where one is over the limit its lines, and where one of these is, slices."""
    start = 0
    ends = [match.end() for match in _PARAGRAPH_END.finditer(text)]
    for end in [*ends, len(text)]:
        paragraph = text[start:end]
        start = end
        if len(paragraph.encode()) <= limit:
            yield from (p for p in (paragraph,) if p)
            continue
        for line in _LINE_END.split(paragraph):
            step = len(line) if len(line.encode()) <= limit else limit // 4  # 4 bytes a character
            yield from (line[at : at + step] for at in range(0, len(line), max(step, 1)))
