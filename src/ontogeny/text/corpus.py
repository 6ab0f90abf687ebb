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

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ontogeny.artifact import Artifact, writing
from ontogeny.digest import digest_bytes
from ontogeny.errors import DataError
from ontogeny.suite import TextSettings
from ontogeny.text.components import component_documents, component_facts, digest_components
from ontogeny.text.dedup import text_digest
from ontogeny.text.documents import (
    Document,
    DocumentWriter,
    digest_documents,
    read_documents,
    work_of,
)
from ontogeny.text.planted import planted_documents

CorpusName = Literal["standard", "deduped", "held-out"]
CORPORA: tuple[CorpusName, ...] = ("standard", "deduped", "held-out")

Work = tuple[str, str]  # source, name


def text_inputs(settings: TextSettings, base: Path) -> dict[str, str]:
    """The digests that, with the settings, determine the text: of the user's files or the pins."""
    if settings.path is not None:
        return {"path": digest_documents(base / settings.path)}
    return {"components": digest_components(settings.components)}


def build_text(settings: TextSettings, folder: Path, *, cache: Path | None, base: Path) -> Artifact:
    """Build the text artifact at `folder` from pinned components or the files at `base / path`.

    Raises DataError when nothing is left to train on or to hold out, and what the readers raise.
    """
    stream = _stream_of(settings, cache, base)
    works = _survey(stream())
    held_out = _held_out(works, settings.held_out, settings.seed)
    held_digests = {digest for work in held_out for digest in works[work].digests}
    planted, truth = planted_documents(settings.planted) if settings.planted else ([], [])
    inputs = text_inputs(settings, base)
    with writing(folder, "text", config=settings.resolved(), inputs=inputs) as draft:
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(DocumentWriter(corpus_file(draft.folder, name)))
                for name in CORPORA
            }
            cut = _Cut(writers, held_out, held_digests)
            for document in stream():
                cut.place(document)
            cut.require_text(settings.path or "[text.components]")
            for document in planted:
                cut.train_on(document)
        draft.facts |= cut.facts() | {
            "components": component_facts(settings.components),
            "planted": [_with_counts(fact, cut.dropped_ids) for fact in truth],
        }
    return draft.artifact


def corpus_file(folder: Path, name: CorpusName) -> Path:
    """Where a text artifact keeps one of its corpora."""
    return folder / f"{name}.jsonl"


@dataclass(slots=True)
class _Size:
    """What is known of a work, or counted of a source, without its text."""

    num_documents: int = 0
    num_bytes: int = 0
    digests: list[bytes] = field(default_factory=list)

    def add(self, document: Document) -> None:
        self.num_documents += 1
        self.num_bytes += len(document.text.encode())

    def row(self) -> dict[str, int]:
        return {"documents": self.num_documents, "bytes": self.num_bytes}


Tally = defaultdict[str, _Size]


class _Cut:
    """Sends every document to the corpora it belongs to, and counts."""

    def __init__(
        self,
        writers: Mapping[CorpusName, DocumentWriter],
        held_out: set[Work],
        held_digests: set[bytes],
    ) -> None:
        self.dropped_ids: set[str] = set()  # of planted documents that are not in `deduped`
        self._writers = writers
        self._held_out = held_out
        self._held_digests = held_digests
        self._held_seen: set[bytes] = set()
        self._seen: set[bytes] = set()
        self._kept: dict[str, Tally] = {name: defaultdict(_Size) for name in CORPORA}
        self._removed: dict[str, Tally] = {
            reason: defaultdict(_Size) for reason in ("duplicate", "also held out", "empty")
        }

    def place(self, document: Document) -> None:
        """Put a document where the cut says, and nowhere when it is empty or a duplicate there."""
        digest = text_digest(document.text)
        is_held_out = _work(document) in self._held_out
        if not document.text.strip():
            self._remove("empty", document)
        elif is_held_out and digest not in self._held_seen:
            self._held_seen.add(digest)
            self._keep("held-out", document)
        elif digest in self._held_digests:
            self._remove("also held out", document)
        else:
            self._train_on(document, digest)

    def train_on(self, document: Document) -> None:
        """Put a planted document in training, and in `deduped` unless an equal text is there."""
        if not self._train_on(document, text_digest(document.text)):
            self.dropped_ids.add(document.id)

    def require_text(self, where: str) -> None:
        """Raise DataError unless there is text to train on and text to hold out."""
        for name, fix in (("standard", "add text"), ("held-out", "add documents or works")):
            if not self._kept[name]:
                raise DataError(
                    f"the {name} part is empty",
                    where=where,
                    expected="at least two works: a file, or a line of JSON Lines, is one",
                    fix=f"{fix}: split the text into several files or lines",
                )

    def facts(self) -> dict[str, Any]:
        """Documents and bytes, by corpus and source, and of what was removed, by reason."""
        return {
            "corpora": {name: _rows(tally) for name, tally in self._kept.items()},
            "removed": {reason: _rows(tally) for reason, tally in self._removed.items()},
        }

    def _train_on(self, document: Document, digest: bytes) -> bool:
        self._keep("standard", document)
        is_first = digest not in self._seen
        self._seen.add(digest)
        if is_first:
            self._keep("deduped", document)
        else:
            self._remove("duplicate", document)
        return is_first

    def _keep(self, name: CorpusName, document: Document) -> None:
        self._writers[name].write(document)
        self._kept[name][document.source].add(document)

    def _remove(self, reason: str, document: Document) -> None:
        self._removed[reason][document.source].add(document)


def _stream_of(
    settings: TextSettings, cache: Path | None, base: Path
) -> Callable[[], Iterable[Document]]:
    if settings.path is not None:
        path = base / settings.path
        return lambda: read_documents(path)
    documents = component_documents(settings.components, cache)
    return lambda: documents


def _survey(documents: Iterable[Document]) -> dict[Work, _Size]:
    works: defaultdict[Work, _Size] = defaultdict(_Size)
    for document in documents:
        if document.text.strip():
            work = works[_work(document)]
            work.add(document)
            work.digests.append(text_digest(document.text))
    return works


def _held_out(works: Mapping[Work, _Size], share: float, seed: int) -> set[Work]:
    sources: defaultdict[str, list[Work]] = defaultdict(list)
    for work in sorted(works, key=lambda w: digest_bytes("\0".join((str(seed), *w)).encode())):
        sources[work[0]].append(work)
    chosen: set[Work] = set()
    for candidates in sources.values():
        if len(candidates) < 2:
            continue
        budget = share * sum(works[work].num_bytes for work in candidates)
        fitting = []
        for work in candidates:
            if works[work].num_bytes <= budget:
                budget -= works[work].num_bytes
                fitting.append(work)
        chosen.update(fitting or [min(candidates, key=lambda work: works[work].num_bytes)])
    return chosen


def _work(document: Document) -> Work:
    return document.source, work_of(document.id)


def _rows(tally: Tally) -> dict[str, Any]:
    return {
        "documents": sum(size.num_documents for size in tally.values()),
        "bytes": sum(size.num_bytes for size in tally.values()),
        "sources": {source: size.row() for source, size in sorted(tally.items())},
    }


def _with_counts(fact: dict[str, Any], dropped: set[str]) -> dict[str, Any]:
    """The truth about one plant with the number of its documents in each corpus."""
    kept = sum(name not in dropped for name in fact["ids"])
    return fact | {"documents": {"standard": len(fact["ids"]), "deduped": kept}}
