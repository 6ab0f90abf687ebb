"""The splices a branch may ask for: a table by name, the settings of each and what it changes.

In: a table of TOML, a stretch of the parent's windows, the run's store and vocabulary. Out: a
splice artifact. Not here: how windows are changed and kept (`ontogeny.order.splice`), the run that
goes through them (`branch.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ontogeny.artifact import Artifact, keyed, open_artifact, open_input
from ontogeny.config import Settings, build, nearest, read_toml
from ontogeny.errors import ConfigError
from ontogeny.order.edits import Edited, Inserted, documents_in, pieces_of
from ontogeny.order.plan import build_order, order_config
from ontogeny.order.shuffle import named_stream
from ontogeny.order.splice import Splice, Stretch, write_splice
from ontogeny.stages.materials import Materials
from ontogeny.steps import RecipeChanges
from ontogeny.suite import OrderSettings
from ontogeny.tokens.rewrite import (
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


class SpliceSettings(Settings):
    """What every splice may state: the update from which on the windows are the parent's again."""

    until: int | None = Field(default=None, ge=1)

    def splice(self, ground: Ground) -> Splice:
        """What happens in the stretch. Raises ConfigError for what cannot be."""
        raise NotImplementedError


class Identity(SpliceSettings):
    """Nothing is changed: the branch goes through its parent's own windows."""


class Selection(SpliceSettings):
    """Splices about some documents, by id or by source."""

    documents: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def named(self, store: DocumentStore) -> np.ndarray:
        """Whether each document is named: bool [documents]. Raises ConfigError for unknown ones."""
        named = np.isin(store.sources, _sources_called(store, self.sources))
        named[_documents_called(store, self.documents)] = True
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


class Named(Selection):
    """Splices that need documents to be named."""

    @model_validator(mode="after")
    def _some_named(self) -> Named:
        if not (self.documents or self.sources):
            raise ValueError("name documents or sources")
        return self


class Replace(Selection):
    """The text of documents with words or matches of a pattern replaced, and encoded again.

    Words are matched whole and all at once; the replacement follows their case unless it is to be
    exact.
    """

    words: dict[str, str] = Field(default_factory=dict)
    case: Literal["follow", "exact"] = "follow"
    pattern: str | None = Field(default=None, min_length=1)
    replacement: str = ""

    @model_validator(mode="after")
    def _one_way(self) -> Replace:
        if (self.pattern is None) == (not self.words):
            raise ValueError("give either words or a pattern with its replacement")
        cased = [word.lower() if self.case == "follow" else word for word in self.words]
        if "" in cased or len(set(cased)) < len(cased):
            raise ValueError("words must be different ones, whatever their case, and not empty")
        return self

    def splice(self, ground: Ground) -> Splice:
        """Rewrite the documents that match; their windows keep their places."""
        substitute = (
            substitute_words(self.words, follow_case=self.case == "follow")
            if self.pattern is None
            else substitute_pattern(self.pattern, self.replacement)
        )
        store, vocabulary, counts = ground.store, ground.vocabulary, {"documents": 0, "matches": 0}
        edited = rewritten(store, self.there(ground), vocabulary, substitute, counts)
        change = Edited(ground.stretch, write_edit(store, edited, ground.scratch), vocabulary.eod)
        return Splice(change, counts=(counts, change.counts))


class Drop(Named):
    """Documents leave the windows, which end in end-of-document tokens instead."""

    def splice(self, ground: Ground) -> Splice:
        """Empty the documents."""
        documents = self.there(ground)
        edit = write_edit(ground.store, emptied(ground.store, documents), ground.scratch)
        change = Edited(ground.stretch, edit, ground.vocabulary.eod)
        return Splice(change, counts=({"documents": len(documents)}, change.counts))


class Drawn(Settings):
    """Splices that put something in drawn windows, so many times."""

    times: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    def inserted(
        self, ground: Ground, num_pieces: int, piece: Callable[[int], np.ndarray]
    ) -> Inserted:
        """The change that puts each of the pieces in so many windows."""
        return Inserted(
            ground.stretch,
            num_pieces * self.times,
            lambda number: piece(number % num_pieces),
            end=ground.vocabulary.eod,
            seed=self.seed,
        )


class Repeat(Named, Drawn):
    """Documents once more, or several times, cut into pieces of at most a window."""

    def splice(self, ground: Ground) -> Splice:
        """Put every piece of the documents into windows."""
        store, stretch = ground.store, ground.stretch
        documents = np.flatnonzero(self.named(store))
        which, offsets, lengths = pieces_of(store.sizes[documents], stretch.parent.context_length)

        def piece(part: int) -> np.ndarray:
            return store.tokens(int(documents[which[part]]), int(offsets[part]), int(lengths[part]))

        change = self.inserted(ground, len(which), piece)
        return Splice(change, counts=({"documents": len(documents)}, change.counts))


class Insert(SpliceSettings, Drawn):
    """Texts of one's own, such as canaries, each ended like a document."""

    texts: tuple[str, ...] = Field(min_length=1)

    def splice(self, ground: Ground) -> Splice:
        """Put every text into windows."""
        vocabulary, width = ground.vocabulary, ground.stretch.parent.context_length + 1
        texts = [np.array([*ids, vocabulary.eod]) for ids in vocabulary.encode_all(self.texts)]
        for text, tokens in zip(self.texts, texts, strict=True):
            if not 1 < len(tokens) <= width:
                raise ConfigError(
                    f"the text {text[:40]!r} does not fit a window",
                    where="splice.texts",
                    expected=f"1 to {width - 1} tokens",
                    found=len(tokens) - 1,
                )
        change = self.inserted(ground, len(texts), texts.__getitem__)
        return Splice(change, counts=(change.counts,))


class Seed(SpliceSettings):
    """The same windows in another order."""

    seed: int = Field(ge=0, lt=2**32)

    def splice(self, ground: Ground) -> Splice:
        """Draw the order of the stretch anew."""
        order, at = ground.stretch.order
        sequence = np.array(order.indices.windows)
        named_stream(f"splice/seed/{self.seed}").shuffle(sequence[at : at + ground.stretch.count])
        return Splice(sequence=sequence)


class OtherStore(SpliceSettings):
    """The windows of another store, in an order of their own from its beginning."""

    store: str  # the folder of the artifact, relative to the file
    seed: int = Field(default=1234, ge=0, lt=2**32)

    def resolved(self) -> dict[str, Any]:
        """The settings but the path: the store is known by its digest, as an input."""
        return {name: value for name, value in super().resolved().items() if name != "store"}

    def splice(self, ground: Ground) -> Splice:
        """Nothing more: the order is an input."""
        return Splice()


SPLICES: Mapping[str, type[SpliceSettings]] = {
    "identity": Identity,
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
    splice: dict[str, Any]
    recipe: RecipeChanges = RecipeChanges()


@dataclass(frozen=True, slots=True)
class Spec:
    """How a branch differs from its parent. Paths begin at `base`."""

    kind: str
    settings: SpliceSettings
    recipe: RecipeChanges
    name: str | None
    base: Path


def read_spec(given: str) -> Spec:
    """A branch file, or the name of a splice that needs no settings: `identity`."""
    path = Path(given)
    if given in SPLICES:
        file = BranchFile(splice={"kind": given})
    elif path.exists() or path.suffix:
        file = build(BranchFile, read_toml(path), path)
    else:
        raise ConfigError(
            "neither a file nor a splice",
            where=given,
            expected=f"a TOML file, or one of {', '.join(SPLICES)}",
            fix=nearest(given, SPLICES),
        )
    kind = str(file.splice.get("kind"))
    if kind not in SPLICES:
        raise ConfigError(
            f"no splice is called {kind!r}" if "kind" in file.splice else "missing key 'kind'",
            where=f"{given}: splice",
            expected=f"one of {', '.join(SPLICES)}",
            fix=nearest(kind, SPLICES),
        )
    values = {name: value for name, value in file.splice.items() if name != "kind"}
    settings = build(SPLICES[kind], values, f"{given}: splice")
    return Spec(kind, settings, file.recipe, file.name, path.parent)


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
    place = keyed(stem.with_name(f"{stem.name}-splice"), "splice", config, inputs)
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
    config, inputs = order_config(order, recipe, stretch.count), {"store": store.artifact}
    place = keyed(stem.with_name(f"{stem.name}-order"), "order", config, inputs)
    if place.exists():
        return open_artifact(place, "order")
    return build_order(store, order, recipe=recipe, num_windows=stretch.count, folder=place)


def _documents_called(store: DocumentStore, ids: tuple[str, ...]) -> list[int]:
    wanted = {id_.encode(): id_ for id_ in ids}
    names, found = store.document_ids, {}
    for number in np.flatnonzero(np.isin(names.sizes, [len(name) for name in wanted])).tolist():
        name = names.tokens(number).tobytes()
        if name in wanted:
            found[name] = number
    for name, id_ in wanted.items():
        if name not in found:
            known = (store.document_id(number) for number in range(min(len(store), LOOKED_AT)))
            raise ConfigError(f"no document {id_!r}", where="splice", fix=nearest(id_, known))
    return list(found.values())


def _sources_called(store: DocumentStore, names: tuple[str, ...]) -> list[int]:
    for name in names:
        if name not in store.source_names:
            known = ", ".join(store.source_names)
            raise ConfigError(
                f"no source {name!r}",
                where="splice",
                expected=f"one of {known}",
                fix=nearest(name, store.source_names),
            )
    return [store.source_names.index(name) for name in names]
