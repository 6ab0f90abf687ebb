"""The rooms of the package: who may import whom, what needs no torch, what every file must be.

The checker reads a source tree without running it, so lazy and type-only imports count. It is
itself tested on small made-up trees, each with one violation.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ontogeny

PACKAGE = Path(ontogeny.__file__).parent
MAX_LINES = 400

ROOT_FILES = (
    "errors",
    "ranges",
    "digest",
    "packages",
    "artifact",
    "workers",
    "config",
    "shape",
    "steps",
    "suite",
    "record",
    "results",
    "scores",
    "intervals",
)
ROOMS = {
    "text": {"text"},
    "tokens": {"text", "tokens"},
    "order": {"tokens", "order"},
    "model": {"model"},
    "checkpoints": {"model", "checkpoints"},
    "training": {"order", "model", "checkpoints", "training"},
    "evaluation": {"tokens", "model", "checkpoints", "evaluation"},
    "report": {"report"},
    "questions": {"tokens", "order", "model", "checkpoints", "training", "questions"},
}
EVERYTHING = {*ROOT_FILES, *ROOMS, "stages"}
MAY_IMPORT = {
    **{name: set(ROOT_FILES[:place]) for place, name in enumerate(ROOT_FILES)},
    **{name: rooms | set(ROOT_FILES) for name, rooms in ROOMS.items()},
    "stages": EVERYTHING,
    "cli": EVERYTHING | {"cli"},
    "__main__": {"cli"},
    "__init__": EVERYTHING,
}
WITHOUT_TORCH = {*ROOT_FILES, "text", "tokens", "order", "report", "__init__"}


def violations(package: Path) -> list[str]:
    """Everything in a source tree that breaks a rule, as `file:line: what`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        for line, what in (*imports_of(tree, place), *form_of(tree, source, place)):
            found.append(f"{place.as_posix()}:{line}: {what}")
    return found


def room_of(place: Path) -> str:
    return place.parts[0].removesuffix(".py")


def imports_of(tree: ast.Module, place: Path) -> Iterator[tuple[int, str]]:
    room = room_of(place)
    allowed = MAY_IMPORT.get(room, set())
    for node in ast.walk(tree):
        for name in imported(node):
            top, _, rest = name.partition(".")
            if name.startswith("."):
                yield line_of(node), "relative import"
            elif top == "torch" and room in WITHOUT_TORCH:
                yield line_of(node), f"{room} imports torch"
            elif top == "ontogeny" and rest.partition(".")[0] not in allowed:
                yield line_of(node), f"{room} imports {rest or 'the whole package'}"


def imported(node: ast.AST) -> list[str]:
    """The dotted names a node imports, whether by statement or by `import_module`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return ["." * node.level + (node.module or "")]
        if node.module == "ontogeny":
            return [f"ontogeny.{alias.name}" for alias in node.names]
        return [node.module or ""]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        return [str(part.value) for part in node.args if isinstance(part, ast.Constant)]
    return []


def form_of(tree: ast.Module, source: str, place: Path) -> Iterator[tuple[int, str]]:
    lines = source.count("\n")
    if lines > MAX_LINES:
        yield lines, f"longer than {MAX_LINES} lines"
    if not ast.get_docstring(tree):
        yield 1, "no module docstring"
    if place.name == "__init__.py":
        yield from beyond_docstring(tree, lazy_names=place == Path("__init__.py"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield node.lineno, "global"
        if isinstance(node, ast.ExceptHandler) and is_broad(node):
            yield node.lineno, "broad except"
        if is_print(node) and room_of(place) != "cli":
            yield line_of(node), "print"


def beyond_docstring(tree: ast.Module, *, lazy_names: bool) -> Iterator[tuple[int, str]]:
    """What an `__init__` file holds besides its docstring; the top one may hand out names."""
    for node in tree.body[1:]:
        lazily = isinstance(node, ast.FunctionDef | ast.Assign | ast.AnnAssign)
        outside = not any(name.startswith("ontogeny") for name in imported(node))
        type_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        imports = isinstance(node, ast.Import | ast.ImportFrom)
        if not (lazy_names and (lazily or type_only or (imports and outside))):
            yield line_of(node), "more than a docstring"


def is_broad(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException")


def is_print(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "print"


def line_of(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def test_the_package_keeps_its_rules() -> None:
    assert violations(PACKAGE) == []


def test_every_room_is_in_the_table() -> None:
    there = {
        room_of(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert there <= MAY_IMPORT.keys()


PLANTED = {
    "eager": ("model/neox.py", "from ontogeny.training.loop import train", "imports training"),
    "plain": ("order/plan.py", "import ontogeny.model.neox", "imports model.neox"),
    "from the top": ("tokens/store.py", "from ontogeny import order", "tokens imports order"),
    "lazy": (
        "training/loop.py",
        "def f() -> object:\n    from ontogeny.evaluation.score import answer\n    return answer",
        "training imports evaluation.score",
    ),
    "by name": (
        "report/site.py",
        "import importlib\nm = importlib.import_module('ontogeny.evaluation.score')",
        "report imports evaluation.score",
    ),
    "type-only": (
        "checkpoints/store.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ontogeny.training.run",
        "checkpoints imports training.run",
    ),
    "relative": ("model/loss.py", "from .neox import NeoX", "relative import"),
    "relative to the parent": ("model/loss.py", "from .. import suite", "relative import"),
    "whole package": ("report/site.py", "import ontogeny", "the whole package"),
    "root backwards": ("digest.py", "from ontogeny.artifact import key_of", "digest imports"),
    "root to a room": ("suite.py", "from ontogeny.text.corpus import x", "suite imports text"),
    "cli imported": ("stages/plan.py", "from ontogeny.cli import main", "stages imports cli"),
    "unknown room": ("extras/new.py", "from ontogeny.errors import DataError", "extras imports"),
    "torch": ("report/figures.py", "import torch.nn as nn", "report imports torch"),
    "lazy torch": (
        "digest.py",
        "def f() -> None:\n    from torch import nn",
        "digest imports torch",
    ),
    "init": ("text/__init__.py", "from ontogeny.text.corpus import read", "more than a docstring"),
    "eager top": ("__init__.py", "from ontogeny.suite import Suite", "more than a docstring"),
    "print": ("text/corpus.py", "def f() -> None:\n    print('done')", "print"),
    "global": ("text/corpus.py", "x = 1\ndef f() -> None:\n    global x\n    x = 2", "global"),
    "broad": ("text/corpus.py", "try:\n    pass\nexcept Exception:\n    pass", "broad except"),
    "bare": ("text/corpus.py", "try:\n    pass\nexcept:\n    pass", "broad except"),
    "long": ("text/corpus.py", "x = 1\n" * 400, "longer than"),
}


def plant(package: Path, place: str, source: str) -> None:
    path = package / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'"""A module."""\n{source}\n', encoding="utf-8")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(tmp_path: Path, name: str) -> None:
    place, source, expected = PLANTED[name]
    plant(tmp_path, place, source)
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(place)
    assert expected in found[0]


def test_a_module_without_docstring_is_found(tmp_path: Path) -> None:
    (tmp_path / "shape.py").write_text("# A comment is not one.\nx = 1\n")
    assert violations(tmp_path) == ["shape.py:1: no module docstring"]


def test_what_is_allowed_is_not_found(tmp_path: Path) -> None:
    plant(
        tmp_path, "tokens/encode.py", "from ontogeny.text.documents import Document\nimport numpy"
    )
    plant(tmp_path, "model/hf.py", "import torch\nfrom ontogeny import digest")
    plant(tmp_path, "cli.py", "from ontogeny.stages.graph import grow\nprint('said')")
    plant(tmp_path, "text/__init__.py", "")
    plant(
        tmp_path,
        "__init__.py",
        "from importlib import import_module\nNAMES = {'Suite': 'ontogeny.suite'}\n"
        "def __getattr__(name: str) -> object:\n    return import_module(NAMES[name])",
    )
    assert violations(tmp_path) == []


# Imports every module of the tree at argv[1] that argv[2:] name, and says which brought in torch.
IMPORTER = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(f"{name} brings in torch")
"""


def import_without_torch(source: Path, modules: list[str]) -> str:
    """What the importer says of the modules; empty when none of them brings in torch."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", IMPORTER, str(source), *modules]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (done.stderr == ""), done.stderr
    return done.stderr.strip()


def test_torch_free_rooms_import_without_torch() -> None:
    places = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    modules = [
        ".".join(["ontogeny", *place.with_suffix("").parts]).removesuffix(".__init__")
        for place in places
        if room_of(place) in WITHOUT_TORCH
    ]
    assert len(modules) > 25
    assert import_without_torch(PACKAGE.parent, modules) == ""


def test_torch_brought_in_by_a_third_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "third.py").write_text("import torch\n")
    (tmp_path / "ours.py").write_text("import third\n")
    assert import_without_torch(tmp_path, ["json", "ours"]) == "ours brings in torch"
