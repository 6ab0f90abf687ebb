"""The verbs that read what others wrote: `import`, `import-scores`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ontogeny.cli.app import app, err, out, print_table
from ontogeny.digest import SHORT
from ontogeny.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ontogeny.stages.neox_yaml import NeoxFile

# The options that each kind of source has, besides --out.
OPTIONS = {
    "YAML": {"store", "vocabulary", "gpus", "repair"},
    "layer files": {"config", "heads", "context", "average_norms", "repair"},
    "a folder in the Hugging Face layout": set[str](),
}


@app.command("import")
def import_(
    given: typer.Context,
    source: Annotated[Path, typer.Argument(help="GPT-NeoX's YAML, or a folder of weights")],
    place: Annotated[Path, typer.Option("--out", help="The run file, or the folder of the model")],
    store: Annotated[Path, typer.Option(help="YAML: the store to train on")] = Path("store"),
    vocabulary: Annotated[Path, typer.Option(help="YAML: its vocabulary")] = Path("vocabulary"),
    gpus: Annotated[int | None, typer.Option(min=1, help="YAML: GPUs it was trained on")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="YAML: mend known faults")] = False,
    config: Annotated[Path | None, typer.Option(help="Layer files: their YAML")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Layer files without YAML")] = None,
    context: Annotated[int, typer.Option(min=1, help="Layer files without YAML")] = 2048,
    average_norms: Annotated[
        bool, typer.Option("--average-norms", help="Layer files whose ranks disagree")
    ] = False,
) -> None:
    """Read settings and weights of GPT-NeoX and Pythia into run files and models."""
    from ontogeny.checkpoints.neox_layers import has_layers
    from ontogeny.stages.imported import import_hf, import_layers
    from ontogeny.stages.neox_yaml import read_neox_yaml

    if place.exists():
        raise DataError("already exists", where=place, fix="choose another place with --out")
    if source.suffix in (".yml", ".yaml"):
        _check_options(given, "YAML")
        _write_run_file(read_neox_yaml(source, repair=repair), place, gpus, store, vocabulary)
        return
    if has_layers(source):
        _check_options(given, "layer files")
        file = read_neox_yaml(config, repair=repair) if config else None
        model = import_layers(source, place, file=file, num_heads=heads, context_length=context,
                              average_norms=average_norms)  # fmt: skip
    elif source.is_dir():
        _check_options(given, "a folder in the Hugging Face layout")
        model = import_hf(source, place)
    else:
        raise ConfigError("nothing that can be imported", where=source,
                          expected="a .yml file, or a folder of weights")  # fmt: skip
    tensors = model.facts["tensors"].values()
    dtypes = ", ".join(sorted({tensor["dtype"] for tensor in tensors}))
    out.print(f"read {len(model.inputs)} files: {len(tensors)} tensors, {dtypes}")
    out.print(f"{place}: model {model.digest[:SHORT]}")


@app.command("import-scores")
def import_scores(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Result files of lm-eval, in folders")
    ],
    place: Annotated[Path, typer.Option("--out", help="The score store to write")],
) -> None:
    """Read published scores of the Pythia suite into the tables that our own are in."""
    from ontogeny.evaluation import published
    from ontogeny.scores import ScoreStore

    faults = published.import_scores(folder, place)
    for fault in faults:
        err.print(str(fault))
    store = ScoreStore(place)
    num_scores = sum(store.artifact(*one).facts["num_scores"] for one in store.places())
    told = (
        f"{num_scores:,} scores of {len(store.places()):,} checkpoints, "
        f"{len(store.members())} members; {len(faults)} faults"
    )
    out.print(told)
    out.print(f"{place}: next, ontogeny lint {place} --scores")
    if faults:
        raise typer.Exit(1)


def _check_options(given: typer.Context, kind: str) -> None:
    for name in given.params.keys() - OPTIONS[kind] - {"source", "place"}:
        origin = given.get_parameter_source(name)
        if origin is not None and origin.name == "COMMANDLINE":
            raise ConfigError(f"--{name.replace('_', '-')} says nothing about {kind}")


def _write_run_file(
    file: NeoxFile, place: Path, gpus: int | None, store: Path, vocabulary: Path
) -> None:
    """Write settings as a run file and tell what became of every key."""
    from ontogeny.stages.imported import compared, run_file_of, same_shape, toml_of

    base = place.parent.resolve()
    run_file = run_file_of(file, num_gpus=gpus, store=os.path.relpath(store, base),
                           vocabulary=os.path.relpath(vocabulary, base))  # fmt: skip
    settings, training = file.settings, run_file.training
    rows = compared(settings, training.rows_per_update)
    size = same_shape(settings)
    print_table(["setting", file.path.name, size.name if size else "-"], [[*row] for row in rows])
    out.print()
    for line in (*(f"mended: {repair}" for repair in file.repairs), *_notes(file, gpus, rows)):
        out.print(line)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"# Read from {file.path.name}.\n{toml_of(run_file)}", encoding="utf-8")
    out.print(f"{place}: next, ontogeny train {place} --out RUN")


def _notes(file: NeoxFile, gpus: int | None, rows: list[tuple[str, str, str]]) -> list[str]:
    """What a reader must know of the settings besides the table."""
    settings = file.settings
    differing = [name for name, theirs, ours in rows if theirs != ours]
    used = gpus or file.num_gpus
    notes = [
        f"differences: {', '.join(differing) or 'none'}",
        f"GPUs: {used or 'not needed'}"
        + (", as a comment in the file says" * (gpus is None and used is not None)),
        f"checkpoints: {len(settings.steps)} steps to {settings.train_iters}",
        "initial weights: drawn here from init_seed; the original's draws need its GPUs",
        f"text: {', '.join(settings.train_data_paths) or 'not said'}; "
        f"tokenizer: {settings.vocab_file or 'not said'}",
        f"no effect here: {', '.join(file.ignored) or 'none'}",
    ]
    if settings.precision == "fp16":
        notes.insert(1, "precision: fp16, which CPUs are slow in; training.precision=auto takes "
                        "bf16 where the machine multiplies in it, else fp32")  # fmt: skip
    return notes
