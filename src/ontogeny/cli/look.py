"""Verbs that look at models: `models`, `generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from ontogeny.cli.app import RunFolder, app, out, print_table
from ontogeny.shape import PYTHIA_VOCABULARY, SIZES, Shape, padded


@app.command()
def models(
    vocab_size: Annotated[int, typer.Option(min=1, help="Ids before padding")] = PYTHIA_VOCABULARY,
) -> None:
    """Print every size of Pythia and what follows from it."""
    header = ["size", "non-embedding", "total", "layers", "width", "heads", "head size",
              "learning rate", "rows/update", "same shape"]  # fmt: skip
    rows = []
    for size in SIZES.values():
        shape = Shape(
            num_layers=size.num_layers,
            hidden_size=size.hidden_size,
            num_heads=size.num_heads,
            vocab_size=padded(vocab_size, size.vocab_multiple),
            context_length=2048,
        )
        rows.append(
            [
                size.name,
                f"{shape.num_non_embedding:,}",
                f"{shape.num_parameters:,}",
                str(size.num_layers),
                str(size.hidden_size),
                str(size.num_heads),
                str(shape.head_size),
                f"{size.learning_rate:g}",
                str(size.rows_per_update),
                ", ".join(size.equivalents) or "-",
            ]
        )
    print_table(header, rows)


@app.command()
def generate(
    run: RunFolder,
    prompt: Annotated[str, typer.Argument(help="The text to go on from")],
    step: Annotated[int, typer.Option(help="Which checkpoint")],
    tokens: Annotated[int, typer.Option(min=1, help="At most so many")] = 50,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
) -> None:
    """Continue a text with any checkpoint."""
    from ontogeny.checkpoints.store import load_checkpoint
    from ontogeny.evaluation.score import continue_text
    from ontogeny.model.neox import SCORING_DTYPES
    from ontogeny.tokens.forms import require_unicode
    from ontogeny.tokens.vocabulary import TOKENIZER, load_vocabulary
    from ontogeny.training.run import open_run

    require_unicode(prompt)
    settings = open_run(run).settings
    vocabulary = load_vocabulary(run / TOKENIZER)
    ids = continue_text(
        load_checkpoint(run, step),
        vocabulary.encode(prompt) or [vocabulary.eod],
        tokens,
        SCORING_DTYPES[settings.training.precision],
        temperature=temperature,
        seed=seed,
        end=vocabulary.eod,
    )
    out.print(prompt + vocabulary.decode(list(ids)))
