"""Asking what a run, or an original file, saw: opens it together with the indexes of its stores.

An index is an artifact beside its store, named after it and its own key, and built when it is first
asked for. Texts are looked for in all their forms. Not here: printing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ontogeny.artifact import MANIFEST, keyed
from ontogeny.errors import ConfigError, DataError, OrderError
from ontogeny.order.lookup import lookup_in
from ontogeny.order.rows import Rows
from ontogeny.order.seen import History, Seen
from ontogeny.order.spans import named
from ontogeny.order.trace import trace
from ontogeny.questions.sources import Source
from ontogeny.ranges import is_remote
from ontogeny.steps import METRICS, checkpoint_steps, list_steps, step_folder
from ontogeny.tokens.forms import Forms, require_unicode
from ontogeny.tokens.ranged import open_pair
from ontogeny.tokens.store import DocumentStore, Store, open_store
from ontogeny.tokens.suffixes import (
    KIND,
    Observe,
    Suffixes,
    build_index,
    identity,
    open_index,
    standard_shard,
)
from ontogeny.tokens.vocabulary import Vocabulary
from ontogeny.training.metrics import whole_lines

PLACE = ("update", "row", "column", "document", "offset", "id", "source")
NUM_LINEAR = 12  # steps that are told of where no checkpoints are

Begin = Callable[[Path], Observe]  # told where an index is about to be built


class Memory:
    """What can be asked of a source: what its updates saw that are done."""

    def __init__(self, source: Source, begin: Begin, folder: Path | None = None) -> None:
        self.source = source
        opened: dict[str, Suffixes] = {}

        def once(store: Store) -> Suffixes:
            if str(store.bin) not in opened:
                opened[str(store.bin)] = index_of(store, begin, folder)
            return opened[str(store.bin)]

        lookup = lookup_in(source.batches.order, once)
        self.history = History(source.batches, _updates_done(source), lookup)

    @property
    def steps(self) -> list[int]:
        """The steps that counts are told of: checkpoints, or such as a run of this length keeps."""
        num_updates, path = self.history.num_updates, Path(self.source.name)
        if (path / MANIFEST).is_file():
            return [step for step in list_steps(path) if step <= num_updates]
        return checkpoint_steps(num_updates, NUM_LINEAR)

    @cached_property
    def _forms(self) -> Forms:
        return Forms(self.vocabulary, self.history.lookup.indexes)

    def _read(self, tokens: Sequence[int]) -> str | None:
        vocabulary = self.source.vocabulary
        return None if vocabulary is None else vocabulary.decode(tokens)

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the source. Raises ConfigError where none is known."""
        if self.source.vocabulary is None:
            raise ConfigError(
                "a text needs the vocabulary it was encoded with",
                where=self.source.name,
                fix="--vocabulary tokenizer.json, or --tokens 12,34",
            )
        return self.source.vocabulary

    def text(self, text: str, before: int | None, first: int, limit: int) -> dict[str, Any]:
        """All about a text in all its forms; see `strings`, and `ontogeny.tokens.forms`."""
        return {"text": text} | self.strings(self._forms(text), before, first, limit)

    def strings(
        self, forms: Sequence[Sequence[int]], before: int | None, first: int, limit: int
    ) -> dict[str, Any]:
        """All about some strings of tokens, of which no two begin at the same token.

        How often each was seen before a step, and all before every checkpoint until then; the first
        and last update that saw any; `limit` places from the `first` on, by update, row, column.
        """
        before = self.history.num_updates if before is None else before
        steps = [*(step for step in self.steps if step < before), before]
        counts = np.array([self.history.counts(form, steps) for form in forms], np.int64)
        told = [
            {"text": self._read(form), "tokens": list(form), "count": count}
            for form, count in zip(forms, counts[:, -1].tolist(), strict=True)
        ]
        seen = [form for form, own in zip(forms, counts, strict=True) if own[-1]]
        sightings = [self.history.sighting(form, before) for form in seen]
        several = [self.history.places(form, before, 0, first + limit) for form in seen]
        places = sorted((row for one in several for row in self._named(one)), key=_moment)
        return {
            "before": before,
            "count": int(counts[:, -1].sum()),
            "first": min((one.first for one in sightings), default=None),
            "last": max((one.last for one in sightings), default=None),
            "forms": sorted(told, key=lambda form: -form["count"]),
            "counts": dict(zip(steps, counts.sum(0).tolist(), strict=True)),
            "places": places[first : first + limit],
        }

    def trace(
        self, text: str, *, least: int, before: int | None, limit: int
    ) -> list[dict[str, Any]]:
        """The longest parts of a text that were seen, in its order, each with some places."""
        require_unicode(text)
        tokens, spans = self.vocabulary.encode(text), []
        if len(tokens) < least:
            raise ConfigError(
                "the text is shorter than any part looked for",
                expected=f"{least} tokens or more",
                found=len(tokens),
                fix=f"a longer text, or --least {max(len(tokens), 1)}",
            )
        for span in trace(self.history, tokens, least=least, before=before):
            own, sighting = tokens[span.start : span.stop], span.sighting
            spans.append(
                {
                    "text": self._read(own),
                    "start": span.start,
                    "tokens": own,
                    **asdict(sighting),
                    "places": self._named(self.history.places(own, before, 0, limit)),
                }
            )
        return spans

    def document(self, name: str, before: int | None, first: int, limit: int) -> dict[str, Any]:
        """Where any of a document was seen, which of its tokens, and by how many updates.

        `name` is its id, or its number in a store that knows no ids. Raises DataError for unknown.
        """
        if isinstance(self.source.batches.order, Rows):
            raise OrderError(
                "its windows are written down, not of documents", where=self.source.name
            )
        rows, found = [], False
        for number, index in enumerate(self.history.lookup.indexes):
            if number and not isinstance(index.store, DocumentStore):
                continue  # what a branch wrote down
            for item in _items_called(index.store, name):
                seen, lengths = self.history.document(number, item, before)
                places = zip(self._named(seen), lengths.tolist(), strict=True)
                rows += [place | {"tokens": length} for place, length in places]
                found = True
        if not found:
            raise DataError(f"has no document {name!r}", where=self.source.store.bin)
        rows.sort(key=_moment)
        updates = [row["update"] for row in rows]
        return {
            "document": name,
            "before": self.history.num_updates if before is None else before,
            "count": len(rows),
            "first": min(updates, default=None),
            "last": max(updates, default=None),
            "places": rows[first : first + limit],
        }

    def _named(self, seen: Seen) -> list[dict[str, Any]]:
        """Places and the documents they are of, None where windows are written down."""
        hits, rows = seen.hits, []
        columns = (seen.updates, seen.rows, hits.columns, hits.items, hits.offsets, hits.numbers)
        for *moment, item, offset, number in zip(*(one.tolist() for one in columns), strict=True):
            of: tuple[object, ...] = (None,) * 4
            if item >= 0:
                of = item, offset, *named(self.history.lookup.indexes[number].store, item)
            rows.append(dict(zip(PLACE, [*moment, *of], strict=True)))
        return rows


def _moment(place: dict[str, Any]) -> tuple[int, int, int]:
    return place["update"], place["row"], place["column"]


def _items_called(store: Store, name: str) -> list[int]:
    """The documents of an id, or the one of a number where a store knows no ids."""
    if isinstance(store, DocumentStore):
        return store.documents_called(name)
    return [int(name)] if name.isdecimal() and int(name) < len(store) else []


def _updates_done(source: Source) -> int:
    """The updates a run has done by now, or all that can be done."""
    path = Path(source.name)
    if not (path / MANIFEST).is_file() or step_folder(path, source.num_updates).is_dir():
        return source.num_updates
    return len(whole_lines(path / METRICS))


def open_any_store(place: str) -> Store:
    """Open a store of ours, or a .bin/.idx pair."""
    if (Path(place) / MANIFEST).is_file():
        return open_store(Path(place))
    return open_pair(place)


def index_of(store: Store, begin: Begin, folder: Path | None = None) -> Suffixes:
    """Open the index of a store, in `folder` or beside it; it is built where there is none.

    Raises DataError for a store on a server.
    """
    if is_remote(store.bin):
        raise DataError(
            "cannot be searched from afar: an index needs all of the tokens",
            where=store.bin,
            fix="fetch the .bin and the .idx, and name them",
        )
    home = Path(store.idx).resolve().with_suffix("")
    if isinstance(store, DocumentStore):
        home = home.parent
    elif (home.parent / MANIFEST).is_file():  # nothing is put into an artifact
        home = home.parent.with_name(f"{home.parent.name}.{home.name}")
    place = (folder or home.parent) / f"{home.name}.{KIND}"
    path = keyed(place, KIND, {"shard_tokens": standard_shard(store)}, {"store": identity(store)})
    if not path.exists():
        build_index(store, path, observe=begin(path))
    return open_index(path, store)
