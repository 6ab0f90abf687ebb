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
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_ELEMENT = re.compile(
    r"<(ref|math|gallery|timeline|score|imagemap|syntaxhighlight|source|table|div)\b"
    r"[^<>]*?(?:/>|>.*?</\1\s*>)",
    re.DOTALL | re.IGNORECASE,
)
_INNERMOST = re.compile(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)
_FOREIGN = re.compile(
    r"\{\{(?:lang|transl|nowrap|IAST|small)\|(?:[^{}|]*\|)*([^{}|]*)\}\}", re.IGNORECASE
)
_MEASURE = re.compile(r"\{\{(?:convert|cvt)\|([^{}|]*)\|([^{}|]*)[^{}]*\}\}", re.IGNORECASE)
_FILE_LINK = re.compile(
    r"\[\[\s*(?:File|Image|Category|[a-z]{2,3}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", re.IGNORECASE
)
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]")
_WEB_LINK = re.compile(r"\[(?:https?:)?//[^\s\]]*\s*([^\]]*)\]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|__[A-Z]+__|'{2,}")
_BACK_MATTER = re.compile(
    r"^==\s*(?:See also|References|Notes|Footnotes|External links|Further reading|Bibliography|"
    r"Sources|Citations)\s*==\s*$.*?(?=^==[^=]|\Z)",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
_HEADING = re.compile(r"^=+[ \t]*(.*?)[ \t]*=+[ \t]*$", re.MULTILINE)
_LIST_MARK = re.compile(r"^[*#:;]+[ \t]*", re.MULTILINE)
_EMPTY_BRACKETS = re.compile(r"[ \t]?\([\s,;]*\)")


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
    text = _ELEMENT.sub("", _COMMENT.sub("", markup))
    text = _MEASURE.sub(r"\1 \2", _FOREIGN.sub(r"\1", text))
    text = _repeated(_INNERMOST, text)
    text = _LINK.sub(r"\1", _repeated(_FILE_LINK, text))
    text = _TAG.sub("", _WEB_LINK.sub(r"\1", text))
    text = _HEADING.sub(r"\1", _BACK_MATTER.sub("", text))
    text = html.unescape(_LIST_MARK.sub("- ", text)).replace("\xa0", " ")
    text = re.sub(r" +(?=[,.;])", "", _EMPTY_BRACKETS.sub("", text))
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


def _repeated(pattern: re.Pattern[str], text: str) -> str:
    """Remove what matches until nothing does: nested markup, from the inside out."""
    count = 1
    while count:
        text, count = pattern.subn("", text)
    return text
