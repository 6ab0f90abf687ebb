"""The pages say what is so: verbs, file map, links, and the commands that CI runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ontogeny.cli.app import app
from ontogeny.cli.main import VERBS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_names_every_verb_and_no_other() -> None:
    assert VERBS, "importing the files of the verbs registers them"
    verbs = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    lines = re.findall(r"^(?:ontogeny|.*&& ontogeny) ([\w-]+)", README, flags=re.MULTILINE)
    assert set(lines) == verbs


def test_the_file_map_is_the_tree() -> None:
    packages = {path.parent.name for path in (ROOT / "src/ontogeny").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `src/ontogeny/(\w+)/`", README, flags=re.MULTILINE)) == packages
    for folder in re.findall(r"^\| `(suites|benchmarks|docs)/`", README, flags=re.MULTILINE):
        assert (ROOT / folder).is_dir()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    install, test = "pip install -c constraints.txt '.[dev]'", "pytest"
    assert f"\n{install} && {test}\n" in README
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert install.replace("install", "install --quiet", 1) in lines
    assert test in lines


def test_the_demo_is_described_as_it_is() -> None:
    from ontogeny.suite import load_suite

    suite = load_suite(ROOT / "suites" / "demo.toml")
    members = [suite.run_settings(member, 4096) for member in suite.table()]
    words = {7: "seven"}
    assert f"to {words[len(members)]} trained models" in README
    assert f"scores at {max(len(member.steps) for member in members)} checkpoints" in README
