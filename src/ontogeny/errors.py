"""The errors a user can act on: one root and its children.

A user's mistake is one of these; the command line prints it on one line and exits with 2.
Anything else that escapes is a bug and keeps its traceback. A fault is what checking finds: a
finding among others, so no error. Not here: recovery of any kind.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not what was recorded: what, where, the likely cause, what to do."""

    place: str
    problem: str
    cause: str
    fix: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


class OntogenyError(Exception):
    """A fault the user can mend: what is wrong, where, what was expected and found, what to type.

    Every part given is shown, in that order, on one line.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ) -> None:
        parts = [problem]
        if expected is not None:
            parts.append(f"expected {expected}")
        if found is not None:
            parts.append(f"found {found}")
        self.where = "" if where is None else str(where)
        self.problem = "; ".join(" ".join(str(part).split()) for part in parts)
        self.fix = fix or ""
        told = f"{self.where}: {self.problem}" if self.where else self.problem
        super().__init__(" ".join((told + (f"; try: {fix}" if fix else "")).split()))

    def fault(self, cause: str, fix: str = "") -> Fault:
        """The error as one finding among others; `fix` where the error itself names none."""
        return Fault(self.where, self.problem, cause, self.fix or fix)


class ConfigError(OntogenyError):
    """A suite, run or option that cannot be what was meant."""


class DataError(OntogenyError):
    """Text, tokens or a downloaded part that is missing, broken or not what was pinned."""


class MissingInputError(DataError):
    """What an artifact was made from is not where it lay then."""


class OrderError(OntogenyError):
    """An order that cannot be built, ends too soon, or is asked for a place it does not have."""


class CheckpointError(OntogenyError):
    """A checkpoint or run folder that is missing, damaged or of another run."""


class EvaluationError(OntogenyError):
    """A task, item or score that cannot be measured as asked."""


class TrainingError(OntogenyError):
    """A run that cannot go on: the numbers are no longer finite."""


class Stopped(Exception):  # noqa: N818 (not an error: the run was asked to leave)
    """The run left cleanly at a signal; its state is saved."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped at step {step}; the same command goes on from there")
        self.signal_number = signal_number
