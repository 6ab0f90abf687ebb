"""Work in tasks: each makes one artifact by a pure function, in whatever process, and only once.

So the same artifacts come out of this process, of several, or of a Ray cluster whose machines see
one file system. A task whose worker is killed is done again, three times at most. What is finished
stays in a work folder until all of it is done, so that a killed job goes on where it was.
Not here: what the tasks make (`text/corpus.py`, `tokens/encode.py`, `evaluation/sweep.py`).
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ontogeny.artifact import Artifact, Input, environment, faults, keyed, open_artifact
from ontogeny.errors import ConfigError, DataError, OntogenyError

ATTEMPTS = 3  # at a task whose workers are killed
MOST_UNDER_WAY = 1024  # tasks handed to a cluster at a time
ANSWER_SECONDS = 10.0

Outcome = Artifact | OntogenyError | OSError


class KilledError(DataError):
    """A task whose workers were killed again and again; what is finished stays."""


@dataclass(frozen=True, slots=True)
class Task:
    """An artifact to be made at `place` by `make`, which other processes must be able to import."""

    place: Path
    make: Callable[[Path], Artifact]


@dataclass(frozen=True, slots=True)
class Workers:
    """Who does tasks: so many processes of this machine, or the Ray cluster at an address.

    One process is this one, and so is who does a single task. The address `local` starts a cluster.
    """

    num_processes: int = 1
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.num_processes < 1:
            raise ConfigError(
                "work needs a process",
                where="--workers",
                expected="1 or more",
                found=self.num_processes,
            )

    def do(self, tasks: Sequence[Task]) -> list[Artifact]:
        """The artifacts of tasks, in their order, as `each` makes them."""
        return [artifact for _, artifact in sorted(self.each(tasks), key=lambda pair: pair[0])]

    def each(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Artifact]]:
        """Every artifact with its task's number, as soon as it is made.

        What is there and whole is not made again. Raises the error of the first task that fails;
        KilledError for one that kills its workers.
        """
        if len(tasks) > 1 and self.cluster is not None:
            return _on_cluster(tasks, self.cluster, self.num_processes)
        if len(tasks) > 1 and self.num_processes > 1:
            return _by_processes(tasks, self.num_processes)
        return ((number, _made(task)) for number, task in enumerate(tasks))


def signal_name(number: int) -> str:
    """A signal in words; those for real time have no names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def num_cores() -> int:
    """The cores this process may use."""
    may_choose = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if may_choose else os.cpu_count() or 1


@contextmanager
def held(lock: Path, busy: OntogenyError | None = None, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock file inside the block; that of a dead process does not count.

    While another process holds it, raises `busy`, or waits where that is None. `how` may be
    LOCK_SH, for several holders at a time.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, how | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            assert busy is not None
            raise busy from error
        yield


@contextmanager
def work_folder(
    path: Path, kind: str, config: Mapping[str, Any], inputs: Mapping[str, Input]
) -> Iterator[Path]:
    """A folder beside an artifact to be, for what is finished on the way to it.

    It outlives a kill, an interrupt and a full disk, and goes when the artifact is there or can
    never be because its inputs are at fault. Raises DataError while another process uses it.
    """
    folder = keyed(path.with_name(f".{path.name}.work"), kind, config, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    fix = "wait for it, or stop it"
    with held(folder / "lock", DataError("another process is making this", where=path, fix=fix)):
        try:
            yield folder
        except KilledError:
            raise
        except OntogenyError:
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _made(task: Task) -> Artifact:
    """The artifact of a task: the one that is there, if it is whole and of this very code."""
    if task.place.exists():
        with suppress(DataError):
            artifact = open_artifact(task.place)
            source = artifact.provenance["package_source"]
            if source == environment()["package_source"] and not faults(artifact):
                return artifact
        shutil.rmtree(task.place)
    return task.make(task.place)


def _outcome(task: Task) -> Outcome:
    """What a worker sends back."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers share the cores already
    try:
        return _made(task)
    except (OntogenyError, OSError) as failure:
        return failure


def _by_processes(tasks: Sequence[Task], num_processes: int) -> Iterator[tuple[int, Artifact]]:
    """Every artifact with its number, as they are made."""
    context = multiprocessing.get_context("forkserver")  # what tasks need is imported only once
    needed = {getattr(task.make, "func", task.make).__module__ for task in tasks}
    context.set_forkserver_preload(sorted(needed))
    waiting, killed = deque(range(len(tasks))), Counter[int]()
    busy: dict[Connection, tuple[_Worker, int]] = {}

    def give(worker: _Worker) -> None:
        if waiting:
            number = waiting.popleft()
            busy[worker.link] = worker, number
            worker.take(tasks[number])
        else:
            worker.link.close()  # it leaves

    try:
        for _ in range(min(num_processes, len(tasks))):
            give(_Worker(context))
        while busy:
            for link in wait(list(busy)):
                assert isinstance(link, Connection)
                worker, number = busy.pop(link)
                outcome = worker.outcome()
                if outcome is None:
                    killed[number] += 1
                    if killed[number] == ATTEMPTS:
                        _give_up(tasks[number], worker.how())
                    waiting.appendleft(number)
                    give(_Worker(context))
                else:
                    artifact = _artifact(outcome)
                    give(worker)  # which works on while the caller takes this
                    yield number, artifact
    finally:
        for worker, _ in busy.values():
            worker.process.kill()
            worker.process.join()


class _Worker:
    """A process that does one task after another."""

    def __init__(self, context: ForkServerContext) -> None:
        self.link, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def take(self, task: Task) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it was killed: `outcome` will tell
            self.link.send(task)

    def outcome(self) -> Outcome | None:
        """What came of its task; None where it was killed over it."""
        try:
            outcome: Outcome = self.link.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            if code is None or code >= 0:
                raise RuntimeError("a worker failed: its traceback is above") from None
            return None
        return outcome

    def how(self) -> str:
        return signal_name(-(self.process.exitcode or 0))


def _serve(link: Connection) -> None:
    """What a worker does until there are no more tasks, or no more parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to pass on
    leave_with_parent(signal.SIGKILL)
    with suppress(EOFError):
        while True:
            link.send(_outcome(link.recv()))


def leave_with_parent(how: signal.Signals) -> None:
    """Have this process sent a signal as soon as the one that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), how)

    threading.Thread(target=watch, daemon=True).start()


def _on_cluster(
    tasks: Sequence[Task], address: str, num_processes: int
) -> Iterator[tuple[int, Artifact]]:
    """Every artifact with its number, as a Ray cluster makes them."""
    ray = _connected(address, num_processes)
    do = ray.remote(max_retries=ATTEMPTS - 1)(_outcome)
    waiting = deque(enumerate(tasks))
    under_way: dict[Any, int] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < MOST_UNDER_WAY:
                number, task = waiting.popleft()
                under_way[do.remote(task)] = number
            (done, *_), _ = ray.wait(list(under_way))
            number = under_way.pop(done)
            try:
                outcome: Outcome = ray.get(done)
            except ray.exceptions.WorkerCrashedError as error:
                _give_up(tasks[number], type(error).__name__)
            yield number, _artifact(outcome)
    finally:
        for future in under_way:
            ray.cancel(future, force=True)


def _connected(address: str, num_processes: int) -> ModuleType:
    """Ray, connected to a cluster, which it stays."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed", where="--ray", fix='pip install "ontogeny[ray]"'
        ) from error
    own = {"num_cpus": num_processes, "include_dashboard": False} if address == "local" else {}
    if not ray.is_initialized():
        try:
            host, _, port = address.rpartition("://")[2].rpartition(":")
            if host:  # Ray itself would wait for minutes
                socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
            ray.init(address, log_to_driver=False, logging_level="error", **own)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster answers ({error})",
                where=f"--ray {address}",
                expected="local, or the address of a cluster",
                fix="ray start --head, then --ray auto",
            ) from error
    connected: ModuleType = ray
    return connected


def _artifact(outcome: Outcome) -> Artifact:
    if not isinstance(outcome, Artifact):
        raise outcome
    return outcome


def _give_up(task: Task, how: str) -> NoReturn:
    raise KilledError(
        f"{ATTEMPTS} workers were killed over one task, perhaps for lack of memory",
        where=task.place.name,
        found=how,
        fix="the same command with fewer --workers: it goes on from what is finished",
    )
