"""The text stage: documents in, one `text` artifact out, with the held-out part cut off once.

Payload: `standard.jsonl`, its exactly deduplicated twin `deduped.jsonl` (the first of equal texts
stays), and `held-out.jsonl`, the same for every member. The documents are
streamed twice, so memory grows with their number and not with their size.

The rule of the cut: whole works (all parts of one play, all releases of one module) go in the
order of a digest of the seed and their name as long as they fit in the source's share; a source
in which none fits gives its smallest work, and a source with a single work gives none. Every
training document that is an exact duplicate of a held-out one is then dropped from training.
Planted documents are never held out. Not here: tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ontogeny.artifact import Artifact, writing
from ontogeny.digest import digest_bytes
from ontogeny.errors import DataError
from ontogeny.suite import TextSettings
from ontogeny.text.components import component_documents, component_facts, digest_components
from ontogeny.text.dedup import text_digest
from ontogeny.text.documents import Document, digest_documents, json_line, read_documents, work_of
from ontogeny.text.planted import planted_documents

CorpusName = Literal["standard", "deduped", "held-out"]
CORPORA: tuple[CorpusName, ...] = ("standard", "deduped", "held-out")
REMOVED = ("duplicate", "also held out", "empty")

Work = tuple[str, str]  # source, name
Sizes = defaultdict[str, list[int]]  # bytes of every document, by source


def text_inputs(settings: TextSettings, base: Path) -> dict[str, str]:
    """The digests that, with the settings, determine the text: of the user's files or the pins."""
    if settings.path is not None:
        return {"path": digest_documents(base / settings.path)}
    return {"components": digest_components(settings.components)}


def build_text(settings: TextSettings, folder: Path, *, cache: Path | None, base: Path) -> Artifact:
    """Build the text artifact at `folder` from pinned components or the files at `base / path`.

    Raises DataError when nothing is left to train on or to hold out, and what the readers raise.
    """
    stream: Callable[[], Iterable[Document]]
    if settings.path is None:
        stream = partial(iter, component_documents(settings.components, cache))
    else:
        stream = partial(read_documents, base / settings.path)
    held_out, held_digests = _held_out(stream(), settings)
    planted, truth = planted_documents(settings.planted) if settings.planted else ([], [])
    inputs = text_inputs(settings, base)
    with (
        writing(folder, "text", config=settings.resolved(), inputs=inputs) as draft,
        ExitStack() as stack,
    ):
        cut = _Cut(held_out, held_digests)
        for name in CORPORA:
            cut.files[name] = stack.enter_context(corpus_file(draft.folder, name).open("wb"))
        for document in stream():
            cut.place(document)
        cut.require_text(settings.path or "[text.components]")
        first = {d.id for d in planted if cut.train_on(d, text_digest(d.text))}
        for fact in truth:
            num_first = len(first.intersection(fact["ids"]))
            fact["documents"] = {"standard": len(fact["ids"]), "deduped": num_first}
        draft.facts |= {
            "corpora": {name: _counts(cut.sizes[name]) for name in CORPORA},
            "removed": {reason: _counts(cut.sizes[reason]) for reason in REMOVED},
            "components": component_facts(settings.components),
            "planted": truth,
        }
    return draft.artifact


def corpus_file(folder: Path, name: CorpusName) -> Path:
    """Where a text artifact keeps one of its corpora."""
    return folder / f"{name}.jsonl"


@dataclass(slots=True)
class _Cut:
    """Sends every document to the corpora it belongs to, and counts, also what is removed."""

    held_out: set[Work]
    held_digests: set[bytes]
    files: dict[str, BinaryIO] = field(default_factory=dict)
    sizes: dict[str, Sizes] = field(
        default_factory=lambda: {place: defaultdict(list) for place in (*CORPORA, *REMOVED)}
    )
    held_seen: set[bytes] = field(default_factory=set)
    seen: set[bytes] = field(default_factory=set)

    def place(self, document: Document) -> None:
        """Put a document where the cut says, and nowhere when it is empty or a duplicate there."""
        digest = text_digest(document.text)
        if not document.text.strip():
            self._put("empty", document)
        elif _work(document) in self.held_out and digest not in self.held_seen:
            self.held_seen.add(digest)
            self._put("held-out", document)
        elif digest in self.held_digests:
            self._put("also held out", document)
        else:
            self.train_on(document, digest)

    def train_on(self, document: Document, digest: bytes) -> bool:
        """Put a document in training; whether it is in `deduped`, as the first of its text."""
        is_first = digest not in self.seen
        self.seen.add(digest)
        self._put("standard", document)
        self._put("deduped" if is_first else "duplicate", document)
        return is_first

    def require_text(self, where: str) -> None:
        """Raise DataError unless there is text to train on and text to hold out."""
        for name, fix in (("standard", "add text"), ("held-out", "add documents or works")):
            if not self.sizes[name]:
                raise DataError(
                    f"the {name} part is empty",
                    where=where,
                    expected="at least two works: a file, or a line of JSON Lines, is one",
                    fix=f"{fix}: split the text into several files or lines",
                )

    def _put(self, place: str, document: Document) -> None:
        self.sizes[place][document.source].append(len(document.text.encode()))
        if place in self.files:
            self.files[place].write(json_line(document))


def _held_out(
    documents: Iterable[Document], settings: TextSettings
) -> tuple[set[Work], set[bytes]]:
    """The works that are held out, and the digests of their texts."""
    sizes: Counter[Work] = Counter()
    digests: defaultdict[Work, list[bytes]] = defaultdict(list)
    for document in documents:
        if document.text.strip():
            sizes[_work(document)] += len(document.text.encode())
            digests[_work(document)].append(text_digest(document.text))
    order = {w: digest_bytes("\0".join((str(settings.seed), *w)).encode()) for w in sizes}
    sources: defaultdict[str, list[Work]] = defaultdict(list)
    for work in sorted(sizes, key=lambda work: order[work]):
        sources[work[0]].append(work)
    chosen: set[Work] = set()
    for works in sources.values():
        if len(works) > 1:
            chosen.update(_fitting(works, sizes, settings.held_out))
    return chosen, {digest for work in chosen for digest in digests[work]}


def _fitting(works: list[Work], sizes: Mapping[Work, int], share: float) -> list[Work]:
    """The works, in their order, that fit in the share; the smallest if none does."""
    left = share * sum(sizes[work] for work in works)
    fitting = []
    for work in works:
        if sizes[work] <= left:
            left -= sizes[work]
            fitting.append(work)
    return fitting or [min(works, key=lambda work: sizes[work])]


def _work(document: Document) -> Work:
    return document.source, work_of(document.id)


def _counts(sizes: Sizes) -> dict[str, Any]:
    rows = {
        source: {"documents": len(numbers), "bytes": sum(numbers)}
        for source, numbers in sorted(sizes.items())
    }
    total = {key: sum(row[key] for row in rows.values()) for key in ("documents", "bytes")}
    return {**total, "sources": rows}
