"""`tsugiki fewshot`: what 5, 10, 20, 50 or 100 labelled pictures are good for, by training, by a demo bank, by a probe.

    <out>/  study.json  cells/fine-tuning-10-0.json (arm, size, fold)  runs/fine-tuning-10-0/ (its training, its bank)
            fewshot.json  fewshot.html  fewshot.md

Each fold draws its labelled pictures, with the classes as balanced as can be; its larger sizes hold the smaller ones.
All arms of a size and fold get the same labelled pictures, and everyone is asked about the same test pictures. A
finished cell is written at once and skipped by the next call with the same settings; a stopped training is continued.

Two errors, apart: the interval is over test pictures, with what was learned as it is; the variance of the folds'
figures is what another draw of labelled pictures changes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from tsugiki import extras, store
from tsugiki.data.files import atomic_write
from tsugiki.data.images import content_key
from tsugiki.errors import UnknownNameError
from tsugiki.evals import report as reports
from tsugiki.evals import task as tasks
from tsugiki.evals._charts import Point
from tsugiki.evals.options import OptionScorer, without_pictures
from tsugiki.evals.tables import records, table
from tsugiki.studies import _draws
from tsugiki.studies._accuracies import accuracy, by_arm, points_of, scores_of
from tsugiki.studies._arms import ARMS, Draw
from tsugiki.studies._cells import Cell, begin, keep, known
from tsugiki.studies._draws import Few
from tsugiki.studies._training import encode, startable
from tsugiki.studies.fit import NEEDED
from tsugiki.training import recipe as recipes
from tsugiki.training import sources
from tsugiki.training.recipe import Recipe
from tsugiki.training.report import clock
from tsugiki.types import Sample, Score

VERSION = 1
SIZES = (5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class FewshotResult:
    """What came out."""

    scores: list[Score]
    """By size and arm; the note gives the folds and their variance."""
    points: Mapping[str, list[Point]]
    """Accuracy of each arm by size."""
    cells: list[Cell]
    out: Path
    report: Path

    @property
    def table(self) -> Table:
        """The scores for a rich console."""
        return table(self.scores)


def fewshot(
    few: Few,
    start: Callable[[], Any],
    *,
    out: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    sizes: Sequence[int] = SIZES,
    folds: int = 3,
    arms: Sequence[str] = tuple(ARMS),
    shown: int = 4,
    seed: int = 0,
    batch_size: int = 8,
    say: Callable[[str], None] = print,
) -> FewshotResult:
    """Run every arm on every size and fold, then write the table and the curve.

    Args:
        few: pool and test pictures, see `studies._draws`.
        start: a model with the weights that all arms begin with, a new one each time.
        out: the study's folder.
        recipe: of every training; one data source.
        overrides: `steps=60`, `batch_size=8`.
        sizes: numbers of labelled pictures, 5 or more each.
        folds: draws of each size.
        arms: of `ARMS`.
        shown: labelled pictures in front of a question, for the arms with a bank.
        seed: of draws, order of samples and yardsticks.
        batch_size: questions at once.

    Raises:
        DataError: a size that the pool does not have.
        UnknownNameError: an unknown arm.
        RecipeError: the recipe can't be run, or the folder holds a study with other settings.
    """
    check(few, sizes, folds, arms)
    plan = recipes.load(recipe, [f"seed={seed}", *overrides])
    drawn, apart = _draws.draws(few, max(sizes), folds, seed)
    run = _Run(few, start, plan, Path(out), drawn, shown, seed, batch_size, say)
    begin(run.out, run.content | {"folds": folds, "folds apart": apart})
    jobs = [(arm, size, fold) for size in sorted(set(sizes)) for fold in range(folds) for arm in dict.fromkeys(arms)]
    cells = {job: cell for job in jobs if (cell := known(run.file(*job))) is not None}
    for job in jobs:
        if job not in cells:
            cells[job] = run.cell(*job)
            keep(run.file(*job), cells[job])
            say(_told(cells[job], len(cells), [j for j in jobs if j not in cells], list(cells.values())))
    about = {"folds": folds, "folds apart": apart, "demonstrations": shown, "seed": seed, "recipe": plan.name or "own"}
    return _written(run, [cells[job] for job in jobs], about)


def check(few: Few, sizes: Sequence[int], folds: int, arms: Sequence[str]) -> None:
    """What `fewshot` refuses, before anything is trained.

    Raises:
        DataError: a size that the pool does not have.
        UnknownNameError: an unknown arm.
        MissingExtraError: the extra `train` or `eval` is not installed.
    """
    for package, extra in NEEDED:
        extras.require(package, extra=extra)
    for arm in arms:
        if arm not in ARMS:
            raise UnknownNameError("arm", arm, ARMS)
    _draws.check(sizes, folds, few)


class _Run:
    """One call. The model, its features and the bare LLM's answers are made where something needs them."""

    def __init__(
        self,
        few: Few,
        start: Callable[[], Any],
        plan: Recipe,
        out: Path,
        drawn: Sequence[Sequence[Sample]],
        shown: int,
        seed: int,
        batch_size: int,
        say: Callable[[str], None],
    ) -> None:
        self.few, self.start, self.plan, self.out, self.drawn = few, start, plan, out, drawn
        self.shown, self.seed, self.batch_size, self.say = shown, seed, batch_size, say

    @cached_property
    def model(self) -> Any:
        return self.start()

    @cached_property
    def features(self) -> Any:
        labelled = {s.id: s for fold in self.drawn for s in fold}
        return encode(self.model, [*labelled.values(), *self.few.test], self.say)

    @cached_property
    def base(self) -> list[str] | None:
        """What the bare LLM says without the pictures; None where it is not here."""
        llm = tasks.bare_llm(self.model, tasks.Settings())
        if llm is None:
            return None
        once = tasks.Once(OptionScorer(self.model, llm=llm, tolerance=0.0))
        return [found.best() for found in once([without_pictures(s) for s in self.few.test])]

    @property
    def content(self) -> dict[str, Any]:
        """What tells the study from another one in the same folder."""
        return {
            "version": VERSION,
            "start": store.graft_sha256(self.model),
            "recipe": self.plan.to_yaml(),
            "seed": self.seed,
            "demonstrations": self.shown,
            "pool": sources.digest(self.few.pool),
            "test": sources.digest(self.few.test),
        }

    def file(self, arm: str, size: int, fold: int) -> Path:
        return self.out / "cells" / f"{_place(arm, size, fold)}.json"

    def cell(self, arm: str, size: int, fold: int) -> Cell:
        """One arm, size and fold."""
        started, labelled = time.monotonic(), self.drawn[fold][:size]
        draw = Draw(
            labelled=labelled,
            test=self.few.test,
            start=self.start,
            model=self.model,
            features=self.features,
            plan=startable(self.plan, labelled, self.say),
            folder=self.out / "runs" / _place(arm, size, fold),
            shown=self.shown,
            classes=self.few.classes,
            seed=self.seed + fold,
            batch_size=self.batch_size,
        )
        said = ARMS[arm](draw)
        base: list[str | None] = [None] * len(said) if self.base is None else list(self.base)
        rows = [
            {
                "id": s.id,
                "picture": content_key(s.images[0]),
                "right": text == tasks.short_answer(s),
                "base": None if other is None else other == tasks.short_answer(s),
            }
            for s, text, other in zip(self.few.test, said, base, strict=True)
        ]
        facts = {"classes": len({tasks.short_answer(s) for s in labelled})}
        return {"arm": arm, "size": size, "fold": fold, **facts, "seconds": time.monotonic() - started, "rows": rows}


def _place(arm: str, size: int, fold: int) -> str:
    return f"{arm.replace(' ', '-')}-{size}-{fold}"


def _told(cell: Cell, done: int, todo: Sequence[tuple[str, int, int]], cells: Sequence[Cell]) -> str:
    """A line about a finished cell, and how long the others will take if they are like those of their arm."""
    seconds = {arm: float(np.mean([c["seconds"] for c in own])) for arm, own in by_arm(cells).items()}
    usual = float(np.mean(list(seconds.values())))
    left = clock(sum(seconds.get(arm, usual) for arm, _, _ in todo))
    what = f"{cell['arm']}, {cell['size']} pictures, fold {cell['fold'] + 1}"
    return f"{done} of {done + len(todo)}: {what}: {accuracy(cell):.3f} in {clock(cell['seconds'])}; {left} left"


def _written(run: _Run, cells: list[Cell], about: Mapping[str, object]) -> FewshotResult:
    """The table and the curve as JSON, HTML and Markdown."""
    few, scores, points = run.few, scores_of(cells), points_of(cells)
    facts = {
        "data": f"{few.name}, {len(few.test)} test pictures, {len(few.pool)} to draw from",
        "classes": ", ".join(few.classes),
        "chance": few.chance,
        "base": str(run.model.base_identity.get("name")),
        "grafts": ", ".join(str(graft.name) for graft in run.model.grafts),
        "steps": run.plan.stages[0].steps,
        **about,
    }
    content = {
        "facts": facts,
        "scores": records(scores),
        "points": {arm: [asdict(p) for p in line] for arm, line in points.items()},
        "seconds": {_place(c["arm"], c["size"], c["fold"]): round(c["seconds"], 1) for c in cells},
    }
    atomic_write(run.out / "fewshot.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    title = f"Few labels: {few.name}"
    page = reports.Report(title=title, findings=few.notes, scores=scores, amounts=points, facts=facts)
    reports.write(page, run.out / "fewshot.md")
    report = reports.write(page, run.out / "fewshot.html")
    return FewshotResult(scores=scores, points=points, cells=cells, out=run.out, report=report)
