"""Commands that train: demo, fit, train; and methods, the list of what can be attached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from tsugiki.cli._app import Base, Model, Overrides, app, counting, example, out, say, show, sources
from tsugiki.errors import DataError, InputError

CacheLimit = Annotated[
    float | None, typer.Option(help="GB for tower outputs on disk; the least recently used go first.", min=0)
]
OwnData = Annotated[
    Path, typer.Argument(help="One folder per class, VOC, YOLO, CSV, COCO, Label Studio, JSONL.", show_default=False)
]
Llm = Annotated[str, typer.Option(help="The LLM: an asset, a folder or a hub id.")]
Question = Annotated[str | None, typer.Option(help="Asked about pictures that have a label only.")]
Patience = Annotated[int, typer.Option(help="Evaluations without a better one that end a training; 0 = never.", min=0)]
Demos = Annotated[
    int, typer.Option(help="Nearest labelled pictures in front of each question, in training too.", min=0)
]
Vision = Annotated[str | None, typer.Option(help="The vision tower: an asset, a folder or a hub id.")]


@app.command(epilog=example("tsugiki demo --out runs/demo"))
def demo(
    folder: Annotated[Path, typer.Option("--out", "-o", help="The report and the grafts go there.")] = Path(
        "runs/demo"
    ),
    minutes: Annotated[
        float, typer.Option(help="Training time of each graft on fabric; without a starter, of scenes too.", min=0.05)
    ] = 3.0,
) -> None:
    """Give SmolLM2-135M eyes, adapt them to photographs, prove that its text is untouched, and report."""
    from tsugiki.studies.demo import run

    result = run(out=folder, minutes=minutes, say=say)
    out.print(result.table)
    show(f"report: {result.report}")
    if not result.holds:
        raise typer.Exit(1)


@app.command(epilog=example("tsugiki fit photos --base smollm2-135m-instruct --method projector --out runs/fit"))
def fit(
    data: OwnData,
    overrides: Overrides = None,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Graft, proof, scores, report.")] = Path("runs/fit"),
    base: Llm = "smollm2-135m-instruct",
    method: Annotated[
        list[str] | None,
        typer.Option(help="Of `tsugiki methods`; several options are stacked. To choose: projector,wings or auto."),
    ] = None,
    vision: Vision = "efficientnet-lite0",
    recipe: Annotated[str | None, typer.Option(help="A recipe. Default: the method's own, 150 steps.")] = None,
    question: Question = None,
    folds: Annotated[int, typer.Option(help="Ask every picture once, by k-fold runs; 0 = one split.", min=0)] = 0,
    inner: Annotated[int, typer.Option(help="Folds of the training pictures that choose between methods.")] = 3,
    patience: Patience = 3,
    demos: Demos = 0,
    budget: Annotated[
        float, typer.Option(help="Of methods that train the LLM: largest rise of its text loss, nats a token.")
    ] = 0.05,
    cache_limit: CacheLimit = None,
    seed: Annotated[int, typer.Option(help="Of split and training.", min=0)] = 0,
) -> None:
    """From 20 to 200 own pictures to a graft: split, train, verify, score, report. The same command continues a run.

    Exit code 1 where the guarantee does not hold.
    """
    from tsugiki.studies.fit import fit

    result = fit(
        data, base=base, method=stacked(method), vision=vision, out=folder, recipe=recipe,
        overrides=overrides or [], question=question, folds=folds, inner=inner, patience=patience or None,
        demos=demos, budget=budget, seed=seed, cache_limit=in_bytes(cache_limit),
    )  # fmt: skip
    out.print(result.table)
    show(f"graft: {result.graft}")
    show(f"report: {result.report}")
    if not result.holds:
        raise typer.Exit(1)


@app.command(epilog=example("tsugiki fewshot photos --size 10 --size 50 --steps 60 --test 150 --out runs/few"))
def fewshot(
    data: Annotated[
        Path | None, typer.Argument(help="Labelled pictures, as `fit` takes them; or --on.", show_default=False)
    ] = None,
    on: Annotated[
        Literal["fabric", "pictograms"] | None,
        typer.Option(help="Photographs of fabric, or classes of pictograms that the start has not seen."),
    ] = None,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Cells, table, curve.")] = Path("runs/fewshot"),
    size: Annotated[list[int] | None, typer.Option(help="Labelled pictures; several times. Default: 5 to 100.")] = None,
    folds: Annotated[int, typer.Option(help="Draws of each size.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Of every training, in batches of 8.", min=1)] = 60,
    test: Annotated[int, typer.Option(help="Pictures that are asked about.", min=2)] = 150,
    arm: Annotated[list[str] | None, typer.Option(help="Of the arms compared; several times. Default: all.")] = None,
    neighbours: Annotated[int, typer.Option(help="Labelled pictures in front of a question.", min=1)] = 4,
    model: Annotated[str | None, typer.Option(help="A saved graft, with which all arms begin.")] = None,
    start: Annotated[
        int, typer.Option(help="Without --model: steps of a new graft on other pictures before; 0 = none.", min=0)
    ] = 100,
    base: Base = None,
    method: Annotated[str, typer.Option(help="Of `tsugiki methods`.")] = "projector",
    vision: Vision = "efficientnet-lite0",
    change: Annotated[list[str] | None, typer.Option("--set", help="key=value changes of the recipe.")] = None,
    question: Annotated[str | None, typer.Option(help="Asked about pictures that have a label only.")] = None,
    seed: Annotated[int, typer.Option(help="Of draws and training.", min=0)] = 0,
) -> None:
    """What few labelled pictures are good for: training, also with others in front, a bank without training, a linear
    probe, a vote.

    Finished cells are kept; the same command continues.
    """
    from tsugiki.studies import _draws, _start
    from tsugiki.studies import fewshot as study
    from tsugiki.studies._arms import ARMS, MMICT

    if (data is None) == (on is None):
        found = "neither DATA nor --on" if data is None else "both DATA and --on"
        fix = "Name your pictures' folder, or the prepared ones: --on fabric."
        raise InputError(found, expected="one of the two", fix=fix, where="fewshot")
    sizes, arms = size or list(study.SIZES), arm or list(ARMS)
    if data is not None:
        few = _draws.own(data, test=test, question=question, seed=seed)
    else:
        few = _draws.MADE[str(on)](folder / "pictures", pool=folds * max(100, *sizes), test=test, seed=seed)
    study.check(few, sizes, folds, arms)  # before a start is trained
    hub = None
    if model is not None:
        begin = _start.saved(model, base)
        method = _start.method_of(model)
    else:
        options: dict[str, Any] = {"base": base or "smollm2-135m-instruct", "vision": vision, "input_size": 224}
        options |= {"steps": start, "seed": seed, "say": say}
        begin = _start.made(folder / "start", method=method, **options)
        if MMICT in arms and not _start.has_hub(method):
            hub = _start.made(folder / "start-mmict", method=_start.HUB, **options)
    warm = [] if model is None and not start else ["warm_start=false"]
    plan = _start.plan_of(method, steps, seed, *warm, *(change or []))
    result = study.fewshot(
        few, begin, hub=hub, out=folder, recipe=plan, sizes=sizes, folds=folds, arms=arms, shown=neighbours,
        seed=seed, say=say,
    )  # fmt: skip
    out.print(result.table)
    show(f"report: {result.report}")


@app.command(epilog=example("tsugiki curve photos --size 20 --size 50 --folds 3 --out runs/curve"))
def curve(
    data: OwnData,
    overrides: Overrides = None,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Table, plot, report.")] = Path("runs/curve"),
    base: Llm = "smollm2-135m-instruct",
    method: Annotated[list[str] | None, typer.Option(help="Of `tsugiki methods`; several are stacked.")] = None,
    vision: Vision = "efficientnet-lite0",
    recipe: Annotated[str | None, typer.Option(help="A recipe. Default: the method's own, 150 steps.")] = None,
    question: Question = None,
    size: Annotated[
        list[int] | None, typer.Option(help="Labelled pictures; several times. Default: 20, 50, 100, 200.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Of each size.")] = 3,
    patience: Patience = 3,
    demos: Demos = 0,
    cache_limit: CacheLimit = None,
    seed: Annotated[int, typer.Option(help="Of drawing, folds and training.", min=0)] = 0,
) -> None:
    """How right answers grow with the number of labelled pictures, beside the yardsticks, with intervals."""
    from tsugiki.evals.tables import table
    from tsugiki.studies.curve import SIZES, curve

    result = curve(
        data, base=base, method=stacked(method), vision=vision, out=folder, recipe=recipe,
        overrides=overrides or [], question=question, sizes=size or SIZES, folds=folds, patience=patience or None,
        demos=demos, seed=seed, cache_limit=in_bytes(cache_limit),
    )  # fmt: skip
    out.print(table(result.scores))
    for line in result.findings:
        show(line)
    show(f"plot: {folder / 'curve.png'}")


@app.command("label-next", epilog=example("tsugiki label-next runs/fit/graft new --train runs/fit/data/train.jsonl"))
def label_next(
    model: Model,
    photos: Annotated[Path, typer.Argument(help="Pictures without a label.", show_default=False)],
    train: Annotated[Path, typer.Option(help="The labelled ones: a JSONL, or what `fit` takes.", show_default=False)],
    n: Annotated[int, typer.Option(help="How many to choose.", min=1)] = 20,
    folder: Annotated[Path, typer.Option("--out", "-o", help="List, table, sheet.")] = Path("runs/label-next"),
    severe: Annotated[list[str] | None, typer.Option(help="A class that must not be missed; several times.")] = None,
    fixed_camera: Annotated[
        bool, typer.Option("--fixed-camera", help="All pictures look alike: leave out only equal ones.")
    ] = False,
    base: Base = None,
    seed: Annotated[int, typer.Option(help="Of the probe and the clusters.", min=0)] = 0,
) -> None:
    """Which pictures to label next, and why: close between two classes, perhaps of a class with few labels or a severe
    one, or named otherwise by a linear probe.

    Pictures that look nearly the same as a labelled one are left out; with a fixed camera, where all look alike, add
    --fixed-camera.
    """
    from tsugiki.cli._models import load_model
    from tsugiki.data.splits import THRESHOLD
    from tsugiki.studies.label_next import READ, label_next

    loaded = load_model(model, base)
    with counting() as tell:
        result = label_next(
            loaded, photos, train=train, n=n, out=folder, severe=severe or (), near=None if fixed_camera else THRESHOLD,
            seed=seed, progress=tell,
        )  # fmt: skip
    out.print(result.table)
    for note in (READ, *result.notes):
        show(note)
    show(f"{len(result.chosen)} of {result.ranked} pictures: {folder / 'next.jsonl'}, {folder / 'sheet.png'}")


@app.command(
    epilog=example("tsugiki train projector steps=500 --base smollm2-135m-instruct --data train.jsonl -o runs/a")
)
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe, or a YAML file.", show_default=False)],
    overrides: Overrides = None,
    folder: Annotated[Path, typer.Option("--out", "-o", help="The run; the graft goes to its folder graft.")] = Path(
        "runs/train"
    ),
    data: Annotated[
        list[str] | None, typer.Option(help="name=file.jsonl for each source; file.jsonl where there is one.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A saved graft to train on. Default: a new one.")] = None,
    base: Base = None,
    vision: Vision = None,
    cache_limit: CacheLimit = None,
    resume: Annotated[bool, typer.Option(help="Continue a run that stopped in that folder.")] = True,
) -> None:
    """Train by a recipe. A run that was stopped or killed is continued by the same command.

    On several GPUs: torchrun --nproc-per-node 2 -m tsugiki.cli train ...; parallel=fsdp for an LLM too large for one.
    """
    from tsugiki.cli._models import load_model, new_model
    from tsugiki.training import recipe as recipes
    from tsugiki.training.trainer import train

    plan = recipes.load(recipe, overrides or [])
    given = sources(data)
    for path in given.values() if isinstance(given, dict) else [given] if given else []:
        if not Path(path).is_file():  # not after the LLM was loaded
            raise DataError("no such file", expected="a JSONL of samples", fix="Correct the path.", where=str(path))
    # Of several processes each puts what it needs on its own GPU, under FSDP a piece.
    device = "cpu" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    if model is None:
        grafted = new_model(plan.model, base, vision, device=device)
    else:
        grafted = load_model(model, base, device=device)
    first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    if first:
        say(grafted)
    result = train(grafted, plan, folder, data=given, resume=resume, cache_limit=in_bytes(cache_limit))
    if not first:
        return
    again = ", continued" if result.resumed else ""
    last = f", last loss {result.losses[-1]:.3f} nats per token" if result.losses else ""
    show(f"{result.steps} steps in {result.seconds:.0f} s{again}{last}")
    show(f"graft: {result.graft}")


@app.command(epilog=example("tsugiki methods"))
def methods() -> None:
    """What can be attached: grafts and presets, where they are from, and what they promise about text."""
    import tsugiki
    from tsugiki import grafts

    table = Table()
    for heading in ("method", "kind", "source", "licence"):
        table.add_column(heading)
    for name in tsugiki.methods():
        graft = grafts.load(name) if name in tsugiki.available() else None
        facts = (graft.PAPER, graft.LICENSE) if graft else ("", "")
        table.add_row(name, "graft" if graft else "preset", *(fact or "" for fact in facts))
    out.print(table)


def stacked(method: list[str] | None) -> str | list[str]:
    """What `fit` takes: one option may name several methods to choose from, several options are one stack."""
    return "projector" if not method else method[0] if len(method) == 1 else method


def in_bytes(gigabytes: float | None) -> int | None:
    """10^9 bytes to the gigabyte."""
    return None if gigabytes is None else int(gigabytes * 1e9)
