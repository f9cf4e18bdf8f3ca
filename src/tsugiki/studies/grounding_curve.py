"""Grounding by amount of data: k-fold runs of 20, 50, 100, 200 pictures of one method, ridge regression beside it.

    <out>/  study.json  cells/20-0.json (size-fold)  runs/20-0/ (its training)  curve.json, .html, .md, .png

Of each size the pictures are split into folds, like pictures together; each fold is asked by a fresh graft that learned
from the others, so every picture is asked about once. A finished cell is skipped by the next call with the same
settings; a stopped training is continued. The larger sizes hold the smaller ones' pictures.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.data import splits
from tsugiki.data.branch import is_absent
from tsugiki.data.images import source_key
from tsugiki.errors import DataError, RecipeError
from tsugiki.evals._charts import Point
from tsugiki.evals.tasks import grounding
from tsugiki.studies import _amounts
from tsugiki.studies._cells import Cell, Cells, points_of, rows_of, scores_of
from tsugiki.studies._training import encode, startable
from tsugiki.training import recipe as recipes
from tsugiki.training import sources
from tsugiki.training.recipe import Recipe
from tsugiki.training.trainer import train
from tsugiki.types import Sample, Score

VERSION = 2
SIZES = (20, 50, 100, 200)


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
    content = {"version": VERSION, "recipe": plan.to_yaml(), "folds": folds, "near": near, "seed": seed,
               "data": sources.digest(asked), "settings": {k: str(v) for k, v in settings.items()}}  # fmt: skip
    cells = Cells(folder, content, folds * len(set(sizes)), say)
    for size in sorted(set(sizes)):
        parts = splits.split(chosen[size], {str(k): 1 / folds for k in range(folds)}, seed, near=near)
        for fold in range(folds):

            def make(run: Path, size: int = size, fold: int = fold, parts: splits.Splits = parts) -> Cell:
                learn = [s for k, part in parts.items() if k != str(fold) for s in part]
                model = build()
                _refuse_another(model, cells.done, folder)
                say(f"{size} pictures, fold {fold + 1} of {folds}: learning from {len(learn)} samples")
                return _cell(model, plan, learn, parts[str(fold)], run, seed, say, settings)

            cells(f"{size}-{fold}", make, size=size, fold=fold)
    return _written(folder, cells.done, {"folds": folds, "seed": seed, "recipe": plan.name or "own", "near": near})


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
    rows = rows_of(model, test, ("grounding",), **given)
    facts = {"learned": len(learn), "steps": done.steps, "seconds": round(time.monotonic() - started, 1)}
    return {"model": _about(model), **facts, "rows": rows}


def _by_size(cells: Sequence[Cell]) -> dict[int, list[Cell]]:
    found: dict[int, list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: (c["size"], c["fold"])):
        found.setdefault(cell["size"], []).append(cell)
    return found


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
    """The curve as JSON, HTML, Markdown and PNG."""
    sizes = _by_size(cells)
    scores = [s for n, group in sizes.items() for s in scores_of(group, f"grounding/{n} pictures".format)]
    points = points_of(sizes)
    steps = sorted({cell["steps"] for cell in cells})
    about = {**cells[0]["model"], **facts, "steps": steps[0] if len(steps) == 1 else steps}
    _amounts.write(folder, "Grounding by number of pictures", scores, points, about)
    return CurveResult(scores=scores, points=points, cells=cells, out=folder)
