"""Fixtures shared by every kind of test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from grown import Ground, prepare
from ontogeny.cli.main import main
from spoiled import grow_site
from spoken import Said, Type

# Small tensors gain nothing from threads, and on a busy machine lose fiftyfold by them: here, and
# in the processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# On the CPU everywhere, unless somebody says which GPUs to take; tests/gpu then has some.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
settings.register_profile("ontogeny", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("ontogeny")

BESIDE_THE_CHECKOUT = Path(__file__).parents[2] / "shared" / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of vectors made by the original programs; tests that need it skip without it."""
    folder = Path(os.environ.get("ONTOGENY_REFERENCE", BESIDE_THE_CHECKOUT))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no reference vectors at {folder} (set ONTOGENY_REFERENCE to their folder)")
    return folder


@pytest.fixture(scope="session")
def golden(reference: Path) -> Path:
    return reference / "golden"


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A tiny corpus prepared for runs, shared and never written to."""
    return prepare(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="session")
def grown_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ground with a finished run on it, never written to."""
    return grow_site(tmp_path_factory.mktemp("verify") / "site")


@pytest.fixture
def site(grown_site: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(grown_site, tmp_path / "site"))


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Type]:
    """Type `ontogeny ...`."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["ontogeny", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    # Lazily: what a failed write holds open may be freed a moment later.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def transformers() -> Any:
    """The library, without its notices; tests that need it skip where it is not installed."""
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module
