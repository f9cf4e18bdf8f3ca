"""`tsugiki diagnose`: what goes on inside a model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Literal

import typer

from tsugiki.cli._app import Base, Model, app, counting, example, show

diagnose = typer.Typer(no_args_is_help=True, help="What goes on inside a model.")
app.add_typer(diagnose, name="diagnose", epilog=example("tsugiki diagnose attention runs/a/graft --data test.jsonl"))


@diagnose.command(epilog=example("tsugiki diagnose attention runs/a/graft --data test.jsonl --layers 10"))
def attention(
    model: Model,
    data: Annotated[Path, typer.Option(help="JSONL of conversations with pictures.")],
    folder: Annotated[Path, typer.Option("--out", "-o", help="JSON, PNG and HTML go there.")] = Path("attention"),
    queries: Annotated[
        Literal["all", "answer"], typer.Option(help="Whose attention: of all positions, or of those of the answer.")
    ] = "all",
    layers: Annotated[
        int | None, typer.Option(help="How many layers to suggest. Default: a third.", min=1, show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="At most so many conversations, drawn by the seed.", min=2)] = 64,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    base: Base = None,
) -> None:
    """How much attention each layer pays to the text before a picture, to the picture, and to the text after it, and
    how far that is from the bare LLM; suggests layers for the learners of WINGS."""
    from tsugiki.cli._models import load_model
    from tsugiki.data import schema
    from tsugiki.evals import laws, laws_report

    samples = laws.select(schema.load(data))
    random.Random(seed).shuffle(samples)
    loaded = load_model(model, base)
    with counting() as tell:
        found = laws.measure(
            loaded, samples[:limit], queries=queries, progress=lambda done, n: tell("conversations", done, n)
        )
    suggestion = laws.suggest(found, layers, seed=seed)
    facts = {"model": model, "data": data, "seed": seed, "LLM": loaded.decoder.name}
    page = laws_report.write(found, suggestion, folder, facts)
    for score, line in laws_report.told(found):
        show(f"{line} (n={score.n})")
        show(f"    {laws_report.MEANINGS[score.metric]}")
    show(f"for the graft wings: layers: {list(suggestion.layers)}")
    show(f"report: {page}")
