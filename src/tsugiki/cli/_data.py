"""`tsugiki data` and `tsugiki synth`: files in, samples out."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Annotated, Literal

import typer

from tsugiki.cli._app import Base, app, complain, counting, example, keywords, show
from tsugiki.data import convert as formats
from tsugiki.errors import DataError, UnknownNameError

data = typer.Typer(no_args_is_help=True, help="Check and convert training data.")
synth = typer.Typer(no_args_is_help=True, help="Make training data.")
app.add_typer(data, name="data", epilog=example("tsugiki data check train.jsonl"))
app.add_typer(synth, name="synth", epilog=example("tsugiki synth scenes 100 --out scenes"))


FORMATS = sorted(m.name for m in pkgutil.iter_modules(formats.__path__) if not m.name.startswith("_"))
"""Foreign formats: the files of `tsugiki.data.convert`."""

SHOWN = 20
"""Wrong lines that `check` tells; then only their number."""


@data.command(epilog=example("tsugiki data check train.jsonl --sheet sheet.png"))
def check(
    file: Annotated[Path, typer.Argument(help="JSONL of messages.", show_default=False)],
    sheet: Annotated[
        Path | None, typer.Option(help="Draw pictures and boxes here. Default: beside the file.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A saved graft: its context length and its view of the pictures are checked too.")
    ] = None,
    base: Base = None,
) -> None:
    """Tell every wrong line, and draw pictures with their boxes after the way through the codec. Exit code 1 if any."""
    from tsugiki.data.check import check_file

    if not file.is_file():
        raise DataError("no such file", expected="a JSONL of messages", fix="Correct the path.", where=str(file))
    settings = {}
    if model is not None:
        from tsugiki.cli._models import load_model

        loaded = load_model(model, base)
        settings = {
            "tokenizer": loaded.tokenizer,
            "tokens_per_image": loaded.tokens_per_image,
            "tokens_of": loaded.processor.tokens_of,
            "view": loaded.frontend.tower.view,
            "codec": loaded.processor.codec,
            "max_length": loaded.decoder.config.max_position_embeddings,
        }
    report = check_file(file, sheet=sheet or file.with_suffix(".sheet.png"), **settings)
    for error in report.errors[:SHOWN]:
        complain(error)
    if len(report.errors) > SHOWN:
        complain(f"and {len(report.errors) - SHOWN} more")
    show(str(report).splitlines()[0])
    if report.sheet:
        show(f"sheet: {report.sheet}")
    if not report.ok:
        raise typer.Exit(1)


@data.command(epilog=example("tsugiki data convert coco boxes.json --out train.jsonl images=photos absent=1"))
def convert(
    form: Annotated[str, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.", show_default=False)],
    path: Annotated[Path, typer.Argument(help="The file or folder.", show_default=False)],
    options: Annotated[list[str] | None, typer.Argument(help="key=value of that format.", show_default=False)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL to write.")] = Path("train.jsonl"),
) -> None:
    """Turn a foreign format into JSONL; wrong entries are told and left out. Exit code 1 if there are any."""
    import importlib
    import inspect

    from tsugiki.data import schema

    if form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)
    function = importlib.import_module(f"tsugiki.data.convert.{form}").convert
    named = inspect.signature(function).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in named.values())  # checked by the function
    chosen = keywords(options, None if anything else set(named) - {"path", "problems"})
    problems: list[Exception] = []
    samples = function(path, problems=problems, **chosen)
    schema.write(out, samples)
    for problem in problems:
        complain(problem)
    show(f"{out}: {len(samples)} samples; {len(problems)} entries left out")
    if problems:
        raise typer.Exit(1)


@synth.command(epilog=example("tsugiki synth scenes 1000 --out scenes/train --seed 1"))
def scenes(
    n: Annotated[int, typer.Argument(help="Pictures.", show_default=False, min=1)],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new or empty folder.")] = Path("scenes"),
    split: Annotated[Literal["train", "test"], typer.Option(help="Other renderings and backgrounds.")] = "train",
    seed: Annotated[int, typer.Option(help="The same seed makes the same pictures.")] = 0,
    size: Annotated[int, typer.Option(help="Side of a picture in pixels.")] = 224,
    language: Annotated[list[str] | None, typer.Option(help="en, ja; several times for both.")] = None,
) -> None:
    """Draw pictograms on backgrounds, with questions, answers and exact boxes."""
    from tsugiki.synth.scenes import generate

    languages = tuple(language or ("en", "ja"))
    with counting() as tell:
        samples = generate(
            n, out=out, split=split, seed=seed, size=size, languages=languages,
            progress=lambda done, total: tell("scenes", done, total),
        )  # fmt: skip
    show(f"{out / 'samples.jsonl'}: {len(samples)} samples")


@synth.command(epilog=example("tsugiki synth defects 500 --out defects --photos nominal"))
def defects(
    n: Annotated[int, typer.Argument(help="Pictures.", show_default=False, min=1)],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new or empty folder.")] = Path("defects"),
    photos: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs without a defect. Default: the asset fabric.", show_default=False),
    ] = None,
    split: Annotated[Literal["train", "test"], typer.Option(help="Other photographs.")] = "train",
    seed: Annotated[int, typer.Option(help="The same seed makes the same pictures.")] = 0,
    size: Annotated[int, typer.Option(help="Longer side of a picture in pixels; none is made larger.")] = 224,
    negatives: Annotated[float, typer.Option(help="Share of pictures without a defect.")] = 0.25,
    kind: Annotated[list[str] | None, typer.Option(help="scratch, hole, stain, missing thread; default all.")] = None,
    extent: Annotated[
        list[str] | None, typer.Option(help="small, medium, large: the classes by longer side; default all.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="en, ja; several times for both.")] = None,
) -> None:
    """Draw defects on photographs, with questions, answers, exact boxes and masks."""
    from tsugiki.synth import flaws
    from tsugiki.synth.defects import generate

    with counting() as tell:
        samples = generate(
            n, out=out, photos=photos, split=split, seed=seed, size=size, negatives=negatives,
            types=tuple(kind or flaws.TYPES), sizes=extent or None, languages=tuple(language or ("en", "ja")),
            progress=lambda done, total: tell("defects", done, total),
        )  # fmt: skip
    show(f"{out / 'samples.jsonl'}: {len(samples)} samples")
