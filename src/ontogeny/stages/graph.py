"""The stages of a suite, in the order of the flow: find each artifact, or make it.

An artifact's folder carries the first digits of its key, so a stage is done when the folder is
there, and a changed config or input makes a new one beside it. A link without the digits leads to
the one the suite uses now. `suite.json` lists them all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ontogeny.artifact import Artifact, Input, keyed, open_artifact
from ontogeny.errors import DataError
from ontogeny.evaluation.catalog import resolve
from ontogeny.evaluation.pack import build_pack, pack_config
from ontogeny.order.plan import build_order, order_config
from ontogeny.record import RECORD, Record, StageRecord, change_record, read_record, write_record
from ontogeny.report.site import build_report, report_origin
from ontogeny.scores import FOLDER, KIND, ScoreStore, stage_digest
from ontogeny.stages.evaluate import TASKS_STAGE, pack_tasks
from ontogeny.stages.lanes import Job, Outcome, Report, run_jobs, still_to_ask
from ontogeny.suite import Member, RunSettings, Suite
from ontogeny.text.corpus import build_text, read_corpus, shard_files, text_inputs
from ontogeny.tokens.encode import encode_files
from ontogeny.tokens.store import open_store
from ontogeny.tokens.vocabulary import (
    TOKENIZER,
    TOKENIZER_CONFIG,
    build_vocabulary,
    open_vocabulary,
    vocabulary_inputs,
)
from ontogeny.training.layout import Layout, require_layout
from ontogeny.training.machine import resolve_precision
from ontogeny.training.run import create_run, open_run
from ontogeny.workers import Workers

HELD_OUT = "held-out"


class Watch(Protocol):
    """What wants to know how a suite is doing."""

    def began(self, stage: str) -> None:
        """A stage is being made."""

    def ended(self, stage: str, seconds: float, was_there: bool) -> None:
        """A stage is done."""

    def reported(self, report: Report) -> None:
        """A member got further."""


class Missing(Exception):  # noqa: N818 (an answer, not an error)
    """A stage is not done, and was only looked for."""


@dataclass(slots=True)
class Growth:
    """A suite being grown in the folder `home`.

    `base` is the folder that paths in the suite file are relative to, `cache` where downloaded
    packages are kept. Every member is trained by `num_ranks`. `other_bits` lets runs go on that
    were computed with other arithmetic.
    """

    suite: Suite
    home: Path
    base: Path
    cache: Path | None
    num_lanes: int
    watch: Watch
    other_bits: bool = False
    workers: Workers = field(default_factory=Workers)
    num_ranks: int = 1
    only_look: bool = False
    found: dict[str, Artifact] = field(default_factory=dict)
    stages: dict[str, StageRecord] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> Artifact:
        """Make every stage that is missing; the report."""
        self.home.mkdir(parents=True, exist_ok=True)
        if (self.home / RECORD).is_file():
            stages = read_record(self.home).stages
            self.seconds = {stage.path: stage.seconds for stage in stages}
        self.prepare()
        self.grow()
        return self.report()

    def look(self) -> str | None:
        """Find the stages that are done, without making or writing anything.

        What stands in the way of finding more, such as text that is not there yet, or None.
        """
        self.only_look = True
        try:
            self.prepare()
            for job in self._jobs():
                self._stage_of_run(job)
            self.report()
        except Missing:
            pass
        except DataError as obstacle:
            return str(obstacle)
        return None

    def prepare(self) -> None:
        """From text to orders and tasks."""
        suite = self.suite
        text = self._stage(
            "text",
            "text",
            suite.text.resolved(),
            text_inputs(suite.text, self.base),
            lambda folder: build_text(
                suite.text, folder, cache=self.cache, base=self.base, workers=self.workers
            ),
        )
        self._vocabulary(text)
        for corpus in (*self._corpora(), HELD_OUT):
            self._store(text, corpus)
        for corpus in self._corpora():
            self._order(corpus)
        self._tasks()

    def grow(self) -> None:
        """Train and score every member that is not done."""
        jobs = {job.member: job for job in self._jobs() if not self._stage_of_run(job)}
        for job in jobs.values():
            require_layout(Layout(self.num_ranks), job.settings)
        vocabulary = self.found["vocabulary"].path
        tokenizer_files = {name: vocabulary / name for name in (TOKENIZER, TOKENIZER_CONFIG)}
        for job in jobs.values():
            create_run(job.run, job.settings, job.run_inputs, tokenizer_files=tokenizer_files)
        run_jobs(
            list(jobs.values()),
            self.num_lanes,
            self.watch.reported,
            lambda outcome: self._finish(jobs[outcome.member], outcome),
        )

    def report(self) -> Artifact:
        """The page about everything that is done."""
        home = self.home
        for name, stage in self.stages.items():
            if stage.kind == KIND:  # more may have been asked meanwhile
                digest = stage_digest(home, stage)
                self.stages[name] = stage.model_copy(update={"digest": digest})
        record = self._record()
        if not self.only_look:
            write_record(home, record)
        origin = report_origin(home, record)
        return self._stage("report", "report", *origin, lambda folder: build_report(home, folder))

    def _vocabulary(self, text: Artifact) -> Artifact:
        settings = self.suite.vocabulary
        inputs: Mapping[str, Input] = vocabulary_inputs(settings, self.base) or {"text": text}
        return self._stage(
            "vocabulary",
            "vocabulary",
            settings.resolved(),
            inputs,
            lambda folder: build_vocabulary(
                settings,
                (document.text for document in read_corpus(text, "standard")),
                folder,
                inputs=inputs,
                base=self.base,
            ),
        )

    def _store(self, text: Artifact, corpus: Any) -> None:
        vocabulary = self.found["vocabulary"]
        inputs = {"text": text, "vocabulary": vocabulary}
        self._stage(
            f"stores/{corpus}",
            "store",
            {"corpus": corpus, "eod": "end"},
            inputs,
            lambda folder: encode_files(
                shard_files(text, corpus),
                vocabulary,
                folder,
                config={"corpus": corpus},
                inputs=inputs,
                workers=self.workers,
            ),
        )

    def _order(self, corpus: str) -> None:
        suite, store = self.suite, self.found[f"stores/{corpus}"]
        num_windows = suite.training.tokens // suite.order.context_length
        self._stage(
            f"orders/{corpus}",
            "order",
            order_config(suite.order, suite.recipe, num_windows),
            {"store": store},
            lambda folder: build_order(
                open_store(store.path),
                suite.order,
                recipe=suite.recipe,
                num_windows=num_windows,
                folder=folder,
            ),
        )

    def _jobs(self) -> list[Job]:
        """Every member with what it is made from."""
        vocab_size = int(self.found["vocabulary"].facts["size"])
        precision = resolve_precision(self.suite.training.precision)
        return [
            self._job(member, self.suite.run_settings(member, vocab_size, precision))
            for member in self.suite.table()
        ]

    def _job(self, member: Member, settings: RunSettings) -> Job:
        found, place = self.found, self.home / f"runs/{member.name}"
        inputs = {
            "order": found[f"orders/{member.corpus}"],
            "vocabulary": found["vocabulary"],
        }
        pack = found[TASKS_STAGE].path.absolute()
        return Job(
            row=member,
            settings=settings,
            run=keyed(place, "run", settings.resolved(), inputs),
            run_inputs=inputs,
            tasks=tuple(resolve(pack_tasks(pack), [0], pack=pack)),
            scores=ScoreStore(self.home / FOLDER),
            other_bits=self.other_bits,
            num_ranks=self.num_ranks,
        )

    def _tasks(self) -> None:
        """The questions made of the held-out text: text that gives none is told before training."""
        suite, store = self.suite, self.found[f"stores/{HELD_OUT}"]
        vocabulary, length = self.found["vocabulary"], suite.order.context_length
        inputs = {"store": store, "vocabulary": vocabulary}
        self._stage(
            TASKS_STAGE,
            TASKS_STAGE,
            pack_config(suite.evaluation, length),
            inputs,
            lambda folder: build_pack(
                open_store(store.path),
                open_vocabulary(vocabulary.path),
                length,
                suite.evaluation,
                folder,
                inputs,
            ),
        )

    def _stage_of_run(self, job: Job) -> bool:
        """Note a member's run and scores if both are done; whether they are."""
        if not (job.run.exists() and open_run(job.run).is_finished) or still_to_ask(job):
            return False
        self._finish(job)
        return True

    def _finish(self, job: Job, outcome: Outcome | None = None) -> None:
        member, store = job.member, job.scores
        train, score = (outcome.train_seconds, outcome.score_seconds) if outcome else (None, None)
        self._done(f"runs/{member}", open_artifact(job.run, "run"), train)
        digest = store.digest(member)
        self._note(f"{FOLDER}/{member}", KIND, store.of_member(member), digest, score)

    def _stage(
        self,
        name: str,
        kind: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Input],
        make: Callable[[Path], Artifact],
    ) -> Artifact:
        folder = keyed(self.home / name, kind, config, inputs)
        if folder.exists():
            return self._done(name, open_artifact(folder, kind), None)
        if self.only_look:
            raise Missing(name)
        self.watch.began(name)
        began = time.monotonic()
        return self._done(name, make(folder), time.monotonic() - began)

    def _done(self, name: str, artifact: Artifact, seconds: float | None) -> Artifact:
        """Note an artifact; `seconds` is what making it took, None if it was there."""
        self.found[name] = artifact
        self._note(name, artifact.kind, artifact.path, artifact.digest, seconds)
        return artifact

    def _note(self, name: str, kind: str, folder: Path, digest: str, seconds: float | None) -> None:
        path = folder.relative_to(self.home).as_posix()
        spent = self.seconds.get(path, 0.0) + (seconds or 0.0)
        self.stages[name] = StageRecord(
            name=name, kind=kind, path=path, digest=digest, seconds=spent
        )
        if self.only_look:
            return
        self.seconds[path] = spent
        _link(self.home / name, folder)
        write_record(self.home, self._record())
        self.watch.ended(name, spent, seconds is None)

    def _record(self) -> Record:
        """What is done, in the order of the flow and of the table, whoever finished first."""
        members = [member.name for member in self.suite.table()]
        grown = [f"{room}/{name}" for name in members for room in ("runs", FOLDER)]
        prepared = [name for name in self.stages if name not in grown and name != "report"]
        names = (*prepared, *grown, "report")
        stages = tuple(self.stages[name] for name in names if name in self.stages)
        return Record(suite=self.suite, stages=stages)

    def _corpora(self) -> list[str]:
        return list(dict.fromkeys(member.corpus for member in self.suite.table()))


def report_on(home: Path) -> Path:
    """The folder of the page about a suite or a store of scores, written if it is not there."""
    place = home / "report"
    folder, began = keyed(place, "report", *report_origin(home)), time.monotonic()
    is_new = not folder.exists()
    made = build_report(home, folder) if is_new else open_artifact(folder, "report")
    _link(place, folder)
    if is_new and (home / RECORD).is_file():
        spent = time.monotonic() - began
        stage = StageRecord(
            name="report", kind=made.kind, path=folder.name, digest=made.digest, seconds=spent
        )
        change_record(home, lambda record: record.with_stages(stage))
    return place


def _link(place: Path, target: Path) -> None:
    """Make `place` lead to the folder beside it. Raises DataError for what is no link there."""
    if place.exists() and not place.is_symlink():
        raise DataError(
            "is where a link goes", where=place, found="no link", fix="move it elsewhere"
        )
    aside = place.with_name(f".{place.name}.link-{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target.name)
    aside.replace(place)
