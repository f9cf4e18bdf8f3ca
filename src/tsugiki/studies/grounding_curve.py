"""Grounding by amount of data: k-fold runs of 20, 50, 100, 200 pictures of one method, ridge regression beside it.

    <out>/  study.json  cells/20-0.json (size-fold)  runs/20-0/ (its training)  curve.json  curve.html  curve.md

Of each size the pictures are split into folds, like pictures together; each fold is asked by a fresh graft that learned
from the others, so every picture is asked about once. A finished cell is written at once and skipped by the next call
with the same settings; a stopped training is continued. The larger sizes hold the smaller ones' pictures.

Two errors, apart: the interval is over pictures, with the trained grafts as they are; the spread of the folds' figures
also has what training on other pictures changes, but of few folds it is a rough guess.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki.data import splits
from tsugiki.data.boxes import PaddedSquare
from tsugiki.data.branch import is_absent
from tsugiki.data.files import atomic_write
from tsugiki.data.images import content_key, image_size, source_key
from tsugiki.errors import DataError, RecipeError
from tsugiki.evals import report as reports
from tsugiki.evals import stats, yardsticks
from tsugiki.evals import task as tasks
from tsugiki.evals._boxes import Reply
from tsugiki.evals._charts import Point
from tsugiki.evals.tables import records
from tsugiki.evals.tasks import grounding
from tsugiki.studies._cells import Cell, begin, by_size, grouping, keep, known
from tsugiki.studies._training import encode, startable
from tsugiki.training import recipe as recipes
from tsugiki.training import sources
from tsugiki.training.recipe import Recipe
from tsugiki.training.trainer import train
from tsugiki.types import Box, Sample, Score

VERSION = 1
SIZES = (20, 50, 100, 200)
MEASURES: Mapping[str, Callable[[tuple[Box, ...], tuple[Box, ...]], float]] = {
    "Acc@0.5": grounding.hit,
    "Acc@0.5 any box": grounding.any_hit,
    "centre hit": grounding.centre_hit,
    "mean IoU": grounding.overlap,
}
HEADLINE = "Acc@0.5"
MODEL, BASE = "model", "bare LLM"


@dataclass(frozen=True, kw_only=True)
class CurveResult:
    """What came out."""

    scores: list[Score]
    """By size; the note gives the folds."""
    points: Mapping[str, list[Point]]
    """Acc@0.5 of the model and the yardsticks by size."""
    cells: list[Cell]
    out: Path


def grounding_curve(
    samples: Sequence[Sample],
    build: Callable[[], Any],
    *,
    out: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe = "projector",
    overrides: Sequence[str] = (),
    sizes: Sequence[int] = SIZES,
    folds: int = 5,
    near: int | None = splits.THRESHOLD,
    seed: int = 0,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> CurveResult:
    """Train and ask for every size and fold, then write the curve.

    Args:
        samples: with boxes, as the task "grounding" takes them; all questions about a picture go with it, those about
            what is not there to be learned from, not to be asked. Pictures without any box are left out.
        build: a model with a fresh graft on a frozen base, the same each time.
        out: the study's folder.
        recipe: with one data source; its steps are those of every cell.
        overrides: `steps=200`, `batch_size=8`.
        sizes: numbers of pictures; of k folds, (k - 1) / k of them are learned from.
        folds: 2 or more.
        near: which pictures are alike, see `data.splits.split`.
        seed: of the drawing, the folds, the training and the yardsticks.
        settings: further fields of `evals.task.Settings`.

    Raises:
        DataError: too few pictures for a size or for its folds.
        RecipeError: the recipe can't be run, or the folder holds a study with other settings.
    """
    folder = Path(out)
    plan = recipes.load(recipe, [f"seed={seed}", *overrides])
    asked = grounding.select(samples)
    chosen = _drawn(asked, sizes, folds, seed)
    begin(folder, {"version": VERSION, "recipe": plan.to_yaml(), "folds": folds, "near": near, "seed": seed,
                   "data": sources.digest(asked), "settings": {k: str(v) for k, v in settings.items()}})  # fmt: skip
    cells: list[Cell] = []
    for size in sorted(set(sizes)):
        parts = splits.split(chosen[size], {str(k): 1 / folds for k in range(folds)}, seed, near=near)
        for fold in range(folds):
            file = folder / "cells" / f"{size}-{fold}.json"
            if (cell := known(file)) is None:
                learn = [s for k, part in parts.items() if k != str(fold) for s in part]
                model = build()
                _refuse_another(model, cells, folder)
                say(f"{size} pictures, fold {fold + 1} of {folds}: learning from {len(learn)} samples")
                run = folder / "runs" / f"{size}-{fold}"
                cell = {"size": size, "fold": fold}
                cell |= _cell(model, plan, learn, parts[str(fold)], run, seed, say, settings)
                keep(file, cell)
                del model  # before the next one is built
            cells.append(cell)
    return _written(folder, cells, {"folds": folds, "seed": seed, "recipe": plan.name or "own", "near": near})


def _drawn(samples: Sequence[Sample], sizes: Sequence[int], folds: int, seed: int) -> dict[int, list[Sample]]:
    """Size -> the samples of so many pictures, the first ones of one random order."""
    pictures: dict[object, list[Sample]] = {}
    for sample in samples:
        pictures.setdefault(source_key(sample.images[0]), []).append(sample)
    pictures = {k: group for k, group in pictures.items() if not all(map(is_absent, group))}
    if not sizes or folds < 2 or min(sizes) < 2 * folds or max(sizes) > len(pictures):
        raise DataError(
            f"sizes {list(sizes)} in {folds} folds of {len(pictures)} pictures with boxes",
            expected="2 or more folds, two pictures or more a fold, and as many pictures as the largest size",
            fix="Add pictures, or choose other sizes.",
            where="grounding_curve",
        )
    order = list(pictures.values())
    random.Random(seed).shuffle(order)
    return {size: [s for group in order[:size] for s in group] for size in sizes}


def _cell(
    model: Any,
    plan: Recipe,
    learn: Sequence[Sample],
    held: Sequence[Sample],
    run: Path,
    seed: int,
    say: Callable[[str], None],
    settings: Mapping[str, Any],
) -> Cell:
    """Train one graft, and ask it and its rivals about the held-out pictures."""
    started = time.monotonic()
    test = [s for s in held if not is_absent(s)]
    features = encode(model, [*learn, *test], say)
    done = train(model, startable(plan, learn, say), run, data=list(learn), features=features, progress=False)
    given = {"features": features, "train": learn, "seed": seed, **settings}
    answers = tasks.measure(model, "grounding", test, **given)["grounding"].answers
    rivals: dict[str, dict[str, Box]] = {}  # id of a sample -> yardstick -> box
    for kind, group in tasks.by_kind(answers).items():
        for name, boxes in yardsticks.places(
            kind, [a.sample for a in group], tasks.Settings.of(**given), model
        ).items():
            for answer, box in zip(group, boxes, strict=True):
                rivals.setdefault(answer.sample.id, {})[name] = box
    codec = model.processor.collator().codec
    rows = []
    for answer in answers:
        sides = {MODEL: answer.boxes, **{name: (box,) for name, box in rivals.get(answer.sample.id, {}).items()}}
        if answer.base_text is not None:
            square = PaddedSquare(*image_size(answer.sample.images[0]))
            sides[BASE] = Reply.read(answer.base_text, codec, square).boxes
        figures = {s: {m: f(boxes, answer.gold_boxes) for m, f in MEASURES.items()} for s, boxes in sides.items()}
        rows.append({"id": answer.sample.id, "picture": content_key(answer.sample.images[0]), "sides": figures})
    facts = {"learned": len(learn), "steps": done.steps, "seconds": round(time.monotonic() - started, 1)}
    return {"model": _about(model), **facts, "rows": rows}


def scores_of(cells: Sequence[Cell]) -> list[Score]:
    """Figures of each size over all its folds, beside the bare LLM and the yardsticks, and the difference to them."""
    scores = []
    for size, group in by_size(cells).items():
        rows = [row for cell in group for row in cell["rows"]]
        groups, task = grouping(rows), f"grounding/{size} pictures"
        for metric in MEASURES:
            sides = _sides(rows, metric)
            rivals = {side: values for side, values in sides.items() if side not in (MODEL, BASE)}
            found = stats.score(
                task,
                metric,
                sides[MODEL],
                sides.get(BASE),
                groups=groups,
                yardsticks={side: float(np.mean(values)) for side, values in rivals.items()},
                version=grounding.VERSION,
            )
            by_fold = [float(np.mean(_sides(cell["rows"], metric)[MODEL])) for cell in group]
            listed = ", ".join(f"{value:.3f}" for value in by_fold)
            scores.append(
                replace(found, note=f"folds {listed}; their standard deviation {np.std(by_fold, ddof=1):.3f}")
            )
            if metric == HEADLINE:
                own = sides[MODEL]
                scores += [
                    tasks.difference(task, f"{metric} minus {side}", own, values, groups=groups)
                    for side, values in rivals.items()
                ]
    return scores


def points_of(cells: Sequence[Cell], metric: str = HEADLINE) -> dict[str, list[Point]]:
    """Side -> its figure by size, with the interval over pictures and each fold's figure; the bare LLM is left out."""
    points: dict[str, list[Point]] = {}
    for size, group in by_size(cells).items():
        rows = [row for cell in group for row in cell["rows"]]
        for side, values in _sides(rows, metric).items():
            if side != BASE:
                found = stats.score("", metric, values, groups=grouping(rows))
                assert found.low is not None and found.high is not None
                parts = tuple(float(np.mean(_sides(cell["rows"], metric)[side])) for cell in group)
                points.setdefault(side, []).append(Point(size, found.value, found.low, found.high, parts))
    return points


def _sides(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[float]]:
    """Side -> its figure in each row; only sides that all rows have (ridge needs a few training pictures)."""
    shared = [side for side in rows[0]["sides"] if all(side in row["sides"] for row in rows)]
    return {side: [row["sides"][side][metric] for row in rows] for side in shared}


def _about(model: Any) -> dict[str, Any]:
    return {
        "base": str(model.base_identity.get("name")),
        "grafts": ", ".join(str(graft.name) for graft in model.grafts),
    }


def _refuse_another(model: Any, cells: Sequence[Cell], folder: Path) -> None:
    if cells and cells[0]["model"] != _about(model):
        raise RecipeError(
            f"a model {_about(model)}, but this study began with {cells[0]['model']}",
            expected="the same base and grafts in every cell",
            fix="Build the same model, or choose another folder.",
            where=str(folder),
        )


def _written(folder: Path, cells: list[Cell], facts: Mapping[str, object]) -> CurveResult:
    """The curve as JSON, HTML and Markdown."""
    scores, points = scores_of(cells), points_of(cells)
    steps = sorted({cell["steps"] for cell in cells})
    about = {**cells[0]["model"], **facts, "steps": steps[0] if len(steps) == 1 else steps}
    content = {
        "facts": about,
        "scores": records(scores),
        "points": {k: [asdict(p) for p in v] for k, v in points.items()},
    }
    atomic_write(folder / "curve.json", json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    report = reports.Report(title="Grounding by number of pictures", scores=scores, amounts=points, facts=about)
    for name in ("curve.html", "curve.md"):
        reports.write(report, folder / name)
    return CurveResult(scores=scores, points=points, cells=cells, out=folder)
