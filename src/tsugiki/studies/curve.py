"""A learning curve: k-fold runs of 20, 50, 100, 200 own pictures of one method, the yardsticks beside it.

    <out>/  study.json  cells/20-0.json (size-fold)  runs/20-0/ (its training)  curve.json, .html, .md, .png

Of each size the pictures are split into folds, like pictures together; each fold is asked by a fresh graft that learned
from the others and chose its step count among them, so every picture is asked about once. A finished cell is skipped by
the next call with the same settings; a stopped training is continued. The larger sizes hold the smaller ones' pictures.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.data.images import source_key
from tsugiki.errors import DataError, InputError
from tsugiki.evals._charts import Point
from tsugiki.studies import _amounts, _choice, _divide, _in_context, _own
from tsugiki.studies._cells import Cell, Cells, points_of, scores_of
from tsugiki.studies._divide import Parts
from tsugiki.studies._making import Maker, need, tell_all, teller
from tsugiki.studies._steps import PATIENCE
from tsugiki.studies._words import sentences
from tsugiki.training import sources
from tsugiki.training.recipe import Recipe
from tsugiki.types import Sample, Score

SIZES = (20, 50, 100, 200)


@dataclass(frozen=True, kw_only=True)
class CurveResult:
    """What came out."""

    out: Path
    scores: list[Score]
    """By size; the note gives the folds."""
    points: Mapping[str, list[Point]]
    """The share of right answers of the model and the yardsticks by size."""
    findings: tuple[str, ...]
    """In sentences; where a simpler learner is better, or not told apart, they say so."""
    cells: list[Cell]


def curve(
    data: str | Path | Sequence[Sample],
    *,
    base: Any = "smollm2-135m-instruct",
    method: str | Sequence[str] = "projector",
    vision: Any = None,
    out: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    overrides: Sequence[str] = (),
    question: str | None = None,
    sizes: Sequence[int] = SIZES,
    folds: int = 3,
    refit: bool = False,
    patience: int | None = PATIENCE,
    demos: int = 0,
    tokenizer: Any = None,
    cache_limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> CurveResult:
    """Train and ask for every size and fold, then write the curve. The same call continues it, also with more sizes.

    Args:
        data, base, vision, out, recipe, overrides, question, tokenizer, cache_limit, seed, progress, say, options: as
            for `fit`.
        method: one, or several that are stacked.
        sizes: numbers of labelled pictures; of k folds, (k - 1) / k of them are learned from.
        folds: 2 or more.
        refit, patience, demos: as for `fit`; without `refit` a cell is one training.

    Raises:
        DataError: a size larger than the data, or too small for the folds; otherwise as `fit`.
        InputError: several methods to choose from.
        RecipeError: the recipe can't be run, or the folder holds a study with other settings.
    """
    tell = say or teller(progress)
    need()
    maker = Maker(
        base=base, vision=vision, tokenizer=tokenizer, recipe=recipe, overrides=overrides, options=options, refit=refit,
        patience=patience, demos=demos, cache_limit=cache_limit, seed=seed, progress=progress, tell=tell,
    )  # fmt: skip
    found = _choice.candidates(method)
    if len(found) > 1:
        raise InputError(
            f"{len(found)} methods", expected="one", fix="Choose it with `tsugiki fit --method auto`.", where="method"
        )
    own = _own.read(data, question=question)
    tell(own.found)
    _in_context.check(own.samples, demos, str(data) if isinstance(data, str | Path) else "data")
    chosen = drawn(own.samples, sizes, folds, seed)
    notes: list[str] = []
    kin = _divide.alike(own.samples, notes)  # whatever the sizes are
    divided = {size: _divide.fold(samples, folds, kin, seed=seed) for size, samples in chosen.items()}
    if demos:
        _in_context.enough([part for parts in divided.values() for part in parts], demos)
    tell_all(tell, [*own.notes, *notes])
    content = {**maker.content(found), "data": sources.digest(own.samples), "folds": folds, "seed": seed}
    cells = Cells(Path(out), content, folds * len(chosen), tell)
    for size, parts in divided.items():
        for i, part in enumerate(parts):

            def make(run: Path, size: int = size, i: int = i, part: Parts = part) -> Cell:
                tell(f"{size} pictures, fold {i + 1} of {folds}: learning from {len(part.train)} samples")
                return maker.cell(found[0], part, run)

            cells(f"{size}-{i}", make, size=size, fold=i)
    facts = {"data": f"{data if isinstance(data, str | Path) else 'samples'} ({own.kind})", **content}
    return _written(Path(out), cells.done, {**facts, "recipe": maker.plan(found[0]).name or "own"}, notes)


def drawn(samples: Sequence[Sample], sizes: Sequence[int], folds: int, seed: int) -> dict[int, list[Sample]]:
    """Size -> the samples of so many pictures: the first ones of one random order in which, as far as it goes, every
    class has its share.

    Raises:
        DataError: no size, one larger than the data, or one too small for the folds.
    """
    pictures: dict[object, list[Sample]] = {}
    for sample in samples:
        pictures.setdefault(source_key(sample.images[0]) if sample.images else sample.id, []).append(sample)
    least = max(_divide.LEAST, 2 * folds)
    if not sizes or folds < 2 or min(sizes) < least or max(sizes) > len(pictures):
        raise DataError(
            f"sizes {', '.join(map(str, sizes)) or 'none'} in {folds} folds of {len(pictures)} pictures",
            expected=f"2 folds or more, and sizes from {least} to {len(pictures)}",
            fix="Choose other sizes, or add pictures.",
            where="sizes",
        )
    by_class: dict[str, list[list[Sample]]] = {}
    for group in pictures.values():
        by_class.setdefault(_divide.class_of(group[0]), []).append(group)
    places: list[tuple[float, list[Sample]]] = []
    rng = random.Random(seed)
    for _, groups in sorted(by_class.items()):
        rng.shuffle(groups)
        places += [((i + rng.random()) / len(groups), group) for i, group in enumerate(groups)]
    order = [group for _, group in sorted(places, key=lambda pair: pair[0])]
    return {size: [s for group in order[:size] for s in group] for size in sorted(set(sizes))}


def _written(folder: Path, cells: list[Cell], facts: Mapping[str, object], notes: Sequence[str]) -> CurveResult:
    sizes: dict[int, list[Cell]] = {}
    for cell in cells:
        sizes.setdefault(cell["size"], []).append(cell)
    scores = [s for n, group in sizes.items() for s in scores_of(group, f"{{}}, {n} pictures".format)]
    points = points_of(sizes)
    findings = [*sentences(scores, None), *notes]
    _amounts.write(folder, "Right answers by number of labelled pictures", scores, points, facts, findings)
    return CurveResult(out=folder, scores=scores, points=points, findings=tuple(findings), cells=cells)
