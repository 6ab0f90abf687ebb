"""The splices a branch may ask for: a table by name, the settings of each and what it changes.

In: a table of TOML, a stretch of the parent's windows, the run's store and vocabulary. Out: a
splice artifact. Not here: how windows are changed and kept (`ontogeny.order.splice`), the run that
goes through them (`branch.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from ontogeny.artifact import Artifact, keyed, open_artifact, open_input
from ontogeny.config import Settings, build, nearest, read_toml
from ontogeny.errors import ConfigError
from ontogeny.order.edits import Edited, Inserted, documents_in, pieces_of
from ontogeny.order.shuffle import named_stream
from ontogeny.order.splice import Splice, Stretch, write_splice
from ontogeny.questions.materials import Materials
from ontogeny.stages.single import beside, order_beside
from ontogeny.steps import RecipeChanges
from ontogeny.suite import OrderSettings
from ontogeny.tokens.rewrite import (
    EditedDocument,
    emptied,
    rewritten,
    substitute_pattern,
    substitute_words,
    write_edit,
)
from ontogeny.tokens.store import DocumentStore, open_store
from ontogeny.tokens.vocabulary import Vocabulary

LOOKED_AT = 10_000  # ids among which the nearest to an unknown one is looked for


@dataclass(frozen=True, slots=True)
class Ground:
    """What a splice works on: where it applies, and a folder for what is not kept."""

    stretch: Stretch
    vocabulary: Vocabulary
    scratch: Path

    @property
    def store(self) -> DocumentStore:
        """The store of the stretch's windows. Raises OrderError where the parent is spliced."""
        order, _ = self.stretch.order
        assert isinstance(order.store, DocumentStore)
        return order.store

    def edited(self, documents: Iterable[EditedDocument], counts: dict[str, int]) -> Splice:
        """Documents of the stretch with other tokens, in their windows."""
        edit = write_edit(self.store, documents, self.scratch)
        change = Edited(self.stretch, edit, self.vocabulary.eod, counts)
        return Splice(change, counts=counts)


class SpliceSettings(Settings):
    """What every splice may state: the update from which on the windows are the parent's again."""

    until: int | None = Field(default=None, ge=1)

    def splice(self, ground: Ground) -> Splice:
        """What happens in the stretch; nothing, unless a kind says so."""
        return Splice()


class Selection(SpliceSettings):
    """Splices of documents, by id or by source."""

    documents: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def named(self, store: DocumentStore) -> np.ndarray:
        """Whether each document is named: bool [documents]. Raises ConfigError for unknown ones."""
        named = np.zeros(len(store), bool)
        for id_ in self.documents:
            numbers = store.documents_called(id_)
            if not numbers:
                some = (store.document_id(one) for one in range(min(len(store), LOOKED_AT)))
                raise ConfigError(f"no document {id_!r}", where="splice", fix=nearest(id_, some))
            named[numbers] = True
        for name in self.sources:
            if name not in store.source_names:
                known = ", ".join(store.source_names)
                raise ConfigError(f"no source {name!r}", where="splice", expected=f"one of {known}")
            named |= store.sources == store.source_names.index(name)
        return named

    def there(self, ground: Ground) -> np.ndarray:
        """Numbers of the documents in the stretch that are named, or of all, ascending.

        Raises ConfigError when there is none.
        """
        there = documents_in(ground.stretch)
        if self.documents or self.sources:
            there &= self.named(ground.store)
        if not there.any():
            raise ConfigError(
                "none of the documents is in the windows to be spliced",
                where="splice",
                expected=f"one at places {ground.stretch.first} to {ground.stretch.last - 1}",
                fix="other documents, an earlier --at, or a later until",
            )
        return np.flatnonzero(there)


class Replace(Selection):
    """Words or matches of a pattern, in the text of all documents or of those named."""

    words: dict[str, str] = Field(default_factory=dict)
    pattern: str | None = Field(default=None, min_length=1)
    replacement: str = ""

    @model_validator(mode="after")
    def _one_way(self) -> Replace:
        if (self.pattern is None) == (not self.words):
            raise ValueError("give either words or a pattern with its replacement")
        if "" in self.words or len({word.lower() for word in self.words}) < len(self.words):
            raise ValueError("words must not be empty, and differ by more than their case")
        return self

    def splice(self, ground: Ground) -> Splice:
        """The documents are encoded again; their windows keep their places."""
        if self.pattern is None:
            substitute = substitute_words(self.words)
        else:
            substitute = substitute_pattern(self.pattern, self.replacement)
        counts = {"documents": 0, "matches": 0}
        documents = self.there(ground)
        edited = rewritten(ground.store, documents, ground.vocabulary, substitute, counts)
        return ground.edited(edited, counts)


class Named(Selection):
    """Splices that need documents to be named."""

    @model_validator(mode="after")
    def _some_named(self) -> Named:
        if not (self.documents or self.sources):
            raise ValueError("name documents or sources")
        return self


class Drop(Named):
    """Documents leave their windows."""

    def splice(self, ground: Ground) -> Splice:
        """The documents are emptied."""
        documents = self.there(ground)
        return ground.edited(emptied(ground.store, documents), {"documents": len(documents)})


class Drawn(SpliceSettings):
    """Splices that put pieces of tokens into drawn windows, each so many times."""

    times: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    def inserted(
        self, ground: Ground, number: int, piece: Callable[[int], np.ndarray], **counts: int
    ) -> Splice:
        """So many pieces, given by their number."""
        change = Inserted(
            ground.stretch,
            number * self.times,
            lambda place: piece(place % number),
            end=ground.vocabulary.eod,
            seed=self.seed,
            counts=counts,
        )
        return Splice(change, counts=counts)


class Repeat(Named, Drawn):
    """Documents once more, or several times, cut into pieces of at most a window."""

    def splice(self, ground: Ground) -> Splice:
        """All pieces of all the documents, whether or not they come again anyway."""
        store, context_length = ground.store, ground.stretch.parent.context_length
        documents = np.flatnonzero(self.named(store))
        which, offsets, lengths = pieces_of(store.sizes[documents], context_length)

        def piece(at: int) -> np.ndarray:
            return store.tokens(int(documents[which[at]]), int(offsets[at]), int(lengths[at]))

        return self.inserted(ground, len(which), piece, documents=len(documents))


class Insert(Drawn):
    """Texts of one's own, such as canaries, each ended like a document."""

    texts: tuple[str, ...] = Field(min_length=1)

    def splice(self, ground: Ground) -> Splice:
        """Every text as one piece. Raises ConfigError for those that do not fit a window."""
        vocabulary, width = ground.vocabulary, ground.stretch.parent.context_length + 1
        pieces = [np.array([*ids, vocabulary.eod]) for ids in vocabulary.encode_all(self.texts)]
        for text, piece in zip(self.texts, pieces, strict=True):
            if not 1 < len(piece) <= width:
                raise ConfigError(
                    f"the text {text[:40]!r} does not fit a window",
                    where="splice.texts",
                    expected=f"1 to {width - 1} tokens",
                    found=len(piece) - 1,
                )
        return self.inserted(ground, len(pieces), pieces.__getitem__)


class Seed(SpliceSettings):
    """The same windows in another order."""

    seed: int = Field(ge=0, lt=2**32)

    def splice(self, ground: Ground) -> Splice:
        """The sequence of the stretch is drawn anew."""
        order, at = ground.stretch.order
        sequence = np.array(order.indices.windows)
        named_stream(f"splice/seed/{self.seed}").shuffle(sequence[at : at + ground.stretch.count])
        return Splice(sequence=sequence)


class OtherStore(SpliceSettings):
    """The windows of another store, in an order of their own from its beginning."""

    store: str  # the folder of the artifact, relative to the file
    seed: int = Field(default=1234, ge=0, lt=2**32)

    def resolved(self) -> dict[str, Any]:
        """The settings but the path: the store is known by its digest, through its order."""
        return {name: value for name, value in super().resolved().items() if name != "store"}


SPLICES: Mapping[str, type[SpliceSettings]] = {
    "identity": SpliceSettings,
    "replace": Replace,
    "drop": Drop,
    "repeat": Repeat,
    "insert": Insert,
    "seed": Seed,
    "store": OtherStore,
}


class BranchFile(Settings):
    """How a branch differs, as its file states it."""

    name: str | None = Field(default=None, min_length=1)
    splice: dict[str, Any]  # `kind`, and the settings of that kind
    recipe: RecipeChanges = RecipeChanges()


@dataclass(frozen=True, slots=True)
class Spec:
    """A branch file with its splice understood; paths in it begin at `base`."""

    file: BranchFile
    kind: str
    settings: SpliceSettings
    base: Path


def read_spec(given: str) -> Spec:
    """A branch file, or the name of a splice that needs no settings: `identity`."""
    path = Path(given)
    if path.suffix or path.exists():
        file = build(BranchFile, read_toml(path), path)
    else:
        file = BranchFile(splice={"kind": given})
    values = dict(file.splice)
    kind = str(values.pop("kind", "without a kind"))
    if kind not in SPLICES:
        raise ConfigError(
            f"no splice is called {kind!r}",
            where=given,
            expected=f"one of {', '.join(SPLICES)}",
            fix=nearest(kind, SPLICES),
        )
    return Spec(file, kind, build(SPLICES[kind], values, f"{given}: splice"), path.parent)


def make_splice(spec: Spec, stretch: Stretch, parent: Materials, stem: Path) -> Artifact:
    """The splice of a stretch, found or made beside `stem`; the parent's order for the identity."""
    order = open_input(parent.run.artifact, "order")
    if spec.kind == "identity":
        return order
    config = {
        "splice": {"kind": spec.kind} | spec.settings.resolved(),
        "first": stretch.first,
        "last": stretch.last,
    }
    inputs = {"parent": order, "vocabulary": open_input(parent.run.artifact, "vocabulary")}
    if isinstance(spec.settings, OtherStore):
        inputs["order"] = _other_order(spec.settings, spec.base, stretch, parent, stem)
    place = keyed(beside(stem, "splice"), "splice", config, inputs)
    if place.exists():
        return open_artifact(place, "splice")

    def make(scratch: Path) -> Splice:
        return spec.settings.splice(Ground(stretch, parent.vocabulary, scratch))

    return write_splice(place, stretch, make, config=config, inputs=inputs)


def _other_order(
    settings: OtherStore, base: Path, stretch: Stretch, parent: Materials, stem: Path
) -> Artifact:
    """An order of another store, as long as the stretch. Raises ConfigError for other tokens."""
    store = open_store(base / settings.store)
    if store.artifact.facts["vocabulary"] != parent.vocabulary.digest:
        raise ConfigError(
            "the store was encoded with another vocabulary than the run's",
            where=store.artifact.path,
            expected=parent.vocabulary.digest,
            found=store.artifact.facts["vocabulary"],
        )
    length, recipe = stretch.parent.context_length, parent.run.settings.recipe
    order = OrderSettings(context_length=length, seed=settings.seed)
    return order_beside(stem, store, order, recipe, stretch.count)
