"""`tsugiki synth`: questions about annotated pictures (scout, formats), pictures of text (ocr), conversations (iit)."""

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


@synth.command(epilog=example("tsugiki synth ocr 200 --out ocr --page nameplate --language ja"))
def ocr(
    n: Annotated[int, typer.Argument(help="Pictures to draw.", show_default=False, min=1)],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new or empty folder, or that of an earlier run.")] = Path(
        "ocr"
    ),
    questions: Annotated[int, typer.Option(help="About each picture.", min=1)] = 1,
    page: Annotated[
        list[str] | None, typer.Option(help="words, label, nameplate, gauge, table; several times. Default: all.")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="clean, blur, rotation, low contrast; several times. Default: all, mostly clean."),
    ] = None,
    font: Annotated[
        list[str] | None, typer.Option(help="Several times, one for each language. Default: those of the split.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="read, field, gauge, cell, text box, spotting, table; several times. Default: all."),
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="en, ja; several times. Default: both.")] = None,
    background: Annotated[
        list[str] | None, typer.Option(help="plain, texture, photo; several times. Default: all.")
    ] = None,
    split: Annotated[
        Literal["train", "test"], typer.Option(help="Words, fonts and backgrounds of the two differ.")
    ] = "train",
    size: Annotated[int, typer.Option(help="Side of a picture in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="The same seed draws the same pictures.")] = 0,
) -> None:
    """Draw text (words, labels, nameplates, gauges, tables) and ask about it, with true boxes."""
    from tsugiki.synth.ocr import generate

    chosen: dict[str, Any] = {
        "pages": page, "conditions": condition, "fonts": font, "tasks": task, "languages": language,
        "backgrounds": background,
    }  # fmt: skip
    with counting() as tell:
        samples = generate(
            n, out=out, questions_per_picture=questions, split=split, size=size, seed=seed,
            progress=lambda done, total: tell("pictures", done, total),
            **{name: value for name, value in chosen.items() if value},
        )  # fmt: skip
    show(f"{out / 'samples.jsonl'}: {len(samples)} samples about {n} pictures")


@synth.command(epilog=example("tsugiki synth formats coco.json --images photos --out mix.jsonl"))
def formats(
    source: Annotated[
        Path, typer.Argument(help="COCO (.json), or samples whose boxes have labels (.jsonl).", show_default=False)
    ],
    images: Annotated[Path | None, typer.Option(help="Folder of COCO's pictures.", show_default=False)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL to write.")] = Path("formats.jsonl"),
    questions: Annotated[int, typer.Option(help="About each picture, of different formats.", min=1)] = 3,
    form: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="caption, grounded caption, vqa, choice, rec, reg, detection; several times. Default: all.",
        ),
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="en, ja; several times. Default: en.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed asks the same questions.")] = 0,
) -> None:
    """Ask about named boxes in the formats of a task mix: captions, counts, choices, boxes of names, names of boxes.

    Wrong annotations are told and left out. Exit code 1 if there are any.
    """
    from tsugiki.data import schema
    from tsugiki.synth.formats import convert

    problems: list[InputError] = []
    left_out: Counter[str] = Counter()
    samples = convert(
        source, images=images, formats=form, languages=language or ("en",), questions=questions, seed=seed,
        problems=problems, left_out=left_out,
    )  # fmt: skip
    if samples:
        schema.write(out, samples)
    _tell(out, samples, problems, left_out)


@synth.command(epilog=example("tsugiki synth iit 200 --out iit"))
def iit(
    n: Annotated[int, typer.Argument(help="Last questions in words, and as many about pictures.", min=1)] = 100,
    data: Annotated[
        Path | None, typer.Option(help="Questions with options about one picture each (.jsonl). Default: drawn scenes.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the conversations and their card.")] = Path(
        "iit"
    ),
    licence: Annotated[str, typer.Option(help="Of the data, for the card.")] = "not stated",
    seed: Annotated[int, typer.Option(help="The same seed makes the same conversations.", min=0)] = 0,
) -> None:
    """Make interleaved conversations in words and pictures: what `tsugiki eval --suite iit` scores.

    Seven kinds: T, TT, TTT, VT and V, TV, TTV, with gold answers in the earlier turns.
    """
    from tsugiki.data import schema
    from tsugiki.evals.tasks import iit as suite
    from tsugiki.synth.iit import FILE, write

    pictures = suite.scenes(n, seed=seed) if data is None else suite.select(schema.load(data))
    samples = suite.conversations(pictures, n, seed)
    write(out, samples, seed=seed, sources=suite.sources(data, licence))
    show(f"{out / FILE}: {len(samples)} conversations")


Scenes = Annotated[Path, typer.Argument(help="samples.jsonl of scenes.", show_default=False)]
Seed = Annotated[int, typer.Option(help="The same seed asks the same.", min=0)]


@synth.command(epilog=example("tsugiki synth matching scenes/samples.jsonl --out matching.jsonl"))
def matching(
    scenes: Scenes,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL to write.")] = Path("matching.jsonl"),
    seed: Seed = 0,
) -> None:
    """Make pairs of captions, a true one and one with a swapped name, colour, number or place."""
    from tsugiki.data import schema
    from tsugiki.synth.matching import pairs

    samples = pairs(schema.load(scenes), seed=seed)
    schema.write(out, samples)
    show(f"{out}: {len(samples)} samples")


@synth.command(epilog=example("tsugiki synth absent scenes/samples.jsonl --out absent.jsonl"))
def absent(
    scenes: Scenes,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL to write.")] = Path("absent.jsonl"),
    seed: Seed = 0,
) -> None:
    """Ask what is there and what is not, with absent names that are random, frequent, or usual beside what is there."""
    from tsugiki.data import schema
    from tsugiki.synth.absent import questions

    samples = questions(schema.load(scenes), seed=seed)
    schema.write(out, samples)
    show(f"{out}: {len(samples)} samples")


def _tell(file: Path, samples: Sized, problems: list[InputError], left_out: Counter[str]) -> None:
    for problem in problems:
        complain(problem)
    for reason, count in left_out.most_common():
        show(f"left out: {count} x {reason}")
    show(f"{file if samples else 'nothing written'}: {len(samples)} samples; {len(problems)} wrong entries")
    if problems:
        raise typer.Exit(1)
