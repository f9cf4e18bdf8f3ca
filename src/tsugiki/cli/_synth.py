"""`tsugiki synth scout`: annotated pictures in, questions with answers in steps out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tsugiki.cli._app import complain, counting, example, show
from tsugiki.cli._data import synth
from tsugiki.errors import InputError


@synth.command(epilog=example("tsugiki synth scout --from coco.json --images photos --out scout.jsonl"))
def scout(
    n: Annotated[int | None, typer.Argument(help="Scenes to draw, without --from.", show_default=False, min=1)] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="COCO (.json), or samples whose boxes have labels (.jsonl).", show_default=False),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of COCO's pictures.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: scout.jsonl; of scenes the folder scout.")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(help="About each picture. Default: 3; about a scene 1.", show_default=False, min=1)
    ] = None,
    level: Annotated[
        list[int] | None, typer.Option(help="1 one object, 2 a relation, 3 a chain; several times. Default: all.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="en, ja; several times for both. Default: that of the names.")
    ] = None,
    absent: Annotated[float, typer.Option(help="Share of questions about what is not there.")] = 0.1,
    split: Annotated[Literal["train", "test"], typer.Option(help="Of scenes.")] = "train",
    size: Annotated[int, typer.Option(help="Side of a scene in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="The same seed asks the same questions.")] = 0,
) -> None:
    """Ask about objects and how they relate, answered step by step with true boxes.

    Wrong annotations are told and left out. Exit code 1 if there are any.
    """
    from tsugiki.data import schema
    from tsugiki.synth.scout import FILE, convert, generate
    from tsugiki.synth.stepwise import LEVELS

    if (n is None) == (source is None):
        found = "neither a number of scenes nor --from" if n is None else "both a number of scenes and --from"
        raise InputError(found, expected="one of the two", fix="See tsugiki synth scout --help.")
    problems: list[InputError] = []
    left_out: Counter[str] = Counter()
    chosen: dict[str, Any] = {"levels": tuple(level or LEVELS), "absent": absent, "seed": seed, "left_out": left_out}
    if source is not None:
        file = out or Path("scout.jsonl")
        chosen |= {"languages": language, "questions": questions or 3}
        samples = convert(source, images=images, problems=problems, **chosen)
        if samples:
            schema.write(file, samples)
    else:
        file = (out or Path("scout")) / FILE
        chosen |= {"languages": language or ("en", "ja"), "questions": questions or 1, "split": split, "size": size}
        with counting() as tell:
            samples = generate(
                n or 0, out=file.parent, progress=lambda done, total: tell("scenes", done, total), **chosen
            )
    _tell(file, samples, problems, left_out)


def _tell(file: Path, samples: Sized, problems: list[InputError], left_out: Counter[str]) -> None:
    for problem in problems:
        complain(problem)
    for reason, count in left_out.most_common():
        show(f"left out: {count} x {reason}")
    show(f"{file if samples else 'nothing written'}: {len(samples)} samples; {len(problems)} wrong entries")
    if problems:
        raise typer.Exit(1)
