"""The verb that looks at anybody's checkpoints and scores: `lint`."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track

from ontogeny.cli.app import app, err, out, print_json
from ontogeny.errors import ConfigError

if TYPE_CHECKING:
    from ontogeny.checkpoints.lint_folders import Finding
    from ontogeny.checkpoints.lint_measure import Linted
    from ontogeny.evaluation.lint import LintedScores

MAX_STEPS = 8  # named one by one; --json has them all
WIDTH, MARGIN = 99, " " * 9  # columns of a line, and in front of it

Together = Annotated[
    list[str] | None,
    typer.Option("--same-seed", metavar="RUN,RUN", help="Runs that must share step0"),
]
Apart = Annotated[
    list[str] | None,
    typer.Option("--other-seed", metavar="RUN,RUN", help="Runs that must not"),
]


@app.command()
def lint(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of checkpoints: step0, step1, ...; or of scores")
    ],
    same_seed: Together = None,
    other_seed: Apart = None,
    scores: Annotated[bool, typer.Option("--scores", help="Go by the scores alone")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON")] = False,
) -> None:
    """Find checkpoints that are missing, copied, relabelled, damaged or of another run."""
    if scores:
        from ontogeny.evaluation.lint import lint_scores

        if same_seed or other_seed:
            raise ConfigError("--same-seed and --other-seed say nothing about scores")
        stores = [lint_scores(path) for path in runs]
        _tell(stores, [finding for store in stores for finding in store.findings], as_json)
        return
    from ontogeny.checkpoints.lint import lint_run
    from ontogeny.checkpoints.lint_runs import lint_together

    same, apart = ([words.split(",") for words in one or []] for one in (same_seed, other_seed))
    bar = functools.partial(track, description="tensors", console=err, transient=True)
    looked_at = [lint_run(path, bar) for path in runs]
    findings = [finding for run in looked_at for finding in run.findings]
    findings += lint_together(looked_at, same, apart)
    _tell(looked_at, findings, as_json)


def _tell(
    looked_at: Sequence[Linted | LintedScores], findings: list[Finding], as_json: bool
) -> None:
    if as_json:
        runs = [{"run": one.name, "checked": one.checked, "not_checked": one.unchecked}
                for one in looked_at]  # fmt: skip
        print_json({"findings": findings, "runs": runs}, indent=1)
    else:
        _print_words(looked_at, findings)
    if any(finding.severity == "alarm" for finding in findings):
        raise typer.Exit(1)


def _print_words(runs: Sequence[Linted | LintedScores], findings: list[Finding]) -> None:
    for one in findings:
        _say(f"{one.severity:<9}", f"{one.run}: {_steps(one.steps)}{one.problem}{_tensors(one)}")
        _say(MARGIN, f"likely: {one.cause}" + (f"; try: {one.fix}" if one.fix else ""))
    for run in runs:
        _say("looked at", f"{run.name}: {run.checked}")
        for words in run.unchecked:
            _say(MARGIN, f"not checked: {words}")
    alarms = sum(one.severity == "alarm" for one in findings)
    out.print(f"{alarms} alarm{'s' * (alarms > 1)}" if alarms else "no alarm")


def _say(margin: str, words: str) -> None:
    lines = textwrap.wrap(words, WIDTH - len(MARGIN), break_long_words=False)
    for number, line in enumerate(lines):
        out.print(margin if number == 0 else MARGIN, line)


def _steps(steps: tuple[int, ...]) -> str:
    if not steps:
        return ""
    named = ", ".join(map(str, steps[:MAX_STEPS]))
    more = f", ... {steps[-1]} ({len(steps)} in all)" if len(steps) > MAX_STEPS else ""
    return f"step{'s' * (len(steps) > 1)} {named}{more}: "


def _tensors(finding: Finding) -> str:
    names = [name for name in finding.tensors if name not in finding.problem]
    return f" ({names[0]}{', ...' if names[1:] else ''})" if names else ""
