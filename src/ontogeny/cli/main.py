"""The console command: the verbs, and how their errors are told.

A user's mistake is one line on standard error and exit code 2; anything else that escapes is a bug
and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import NoReturn

from ontogeny.cli import (
    batch,
    branch,
    evaluate,
    grow,
    imports,
    lint,
    look,
    plan,
    replay,
    scores,
    seen,
    train,
    trust,
)
from ontogeny.cli.app import app, leave
from ontogeny.errors import OntogenyError, Stopped

# Importing a file adds its verbs to the app.
VERBS = (
    batch, branch, evaluate, grow, imports, lint, look, plan, replay, scores, seen, train, trust,
)  # fmt: skip

FIRST_SPEAKS = 10.0  # seconds before another rank does

MENDABLE = {
    errno.ENOSPC: "no space is left; try: free some, or another folder with --out",
    errno.EDQUOT: "the quota is used up; try: free some, or another folder with --out",
    errno.EFBIG: "a file may not grow so large here; try: ulimit -f unlimited, or another disk",
    errno.EACCES: "not allowed; try: another folder with --out, or change its permissions",
    errno.EPERM: "not allowed; try: another folder with --out, or change its permissions",
    errno.ENOTDIR: "a file is where a folder should be; try: another folder with --out",
    errno.EEXIST: "a file is where a folder should be; try: another folder with --out",
    errno.ENAMETOOLONG: "the name is too long; try: a shorter one",
    errno.EROFS: "cannot be written; try: another folder with --out",
}


def main() -> None:
    """The console command: a user's mistake is one line on standard error and exit code 2."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except OntogenyError as error:
        if not _is_first_rank():
            _wait_to_be_ended(2)
        leave(f"error: {error}", 2)
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        leave(f"error: {error.filename or 'disk'}: {error.strerror}; {MENDABLE[error.errno]}", 2)
    except Stopped as stopped:
        code = 128 + stopped.signal_number
        if not _is_first_rank():
            raise SystemExit(code) from None
        leave(str(stopped), code)


def _is_first_rank() -> bool:
    """Whether this process is the one of a job's ranks that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _wait_to_be_ended(code: int) -> None:
    """Let the first rank speak: where all fail alike, the others are ended meanwhile."""
    try:
        time.sleep(FIRST_SPEAKS)
    except KeyboardInterrupt:
        raise SystemExit(code) from None


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
