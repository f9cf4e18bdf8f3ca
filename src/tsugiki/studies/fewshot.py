"""`tsugiki fewshot`: what 5, 10, 20, 50 or 100 labelled pictures are good for, by training, by a demo bank, by a probe.

    <out>/  study.json  cells/fine-tuning-10-0.json (arm, size, fold)  runs/fine-tuning-10-0/ (its training, its bank)
            curve.json, .html, .md, .png

Each fold draws its labelled pictures, with the classes as balanced as can be; its larger sizes hold the smaller ones.
All arms of a size and fold get the same labelled pictures, and everyone is asked about the same test pictures. A
finished cell is written at once and skipped by the next call with the same settings; a stopped training is continued.

All arms begin with the same weights, but for `mmict`: where these have no hub, it begins with a model that has one, and
gets the same pictures, as many steps and batches of the same size.

Two errors, apart: the interval is over test pictures, with what was learned as it is; the variance of the folds'
figures is what another draw of labelled pictures changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.table import Table

from tsugiki import store
from tsugiki.data.images import content_key
from tsugiki.errors import InputError, UnknownNameError
from tsugiki.evals import task as tasks
from tsugiki.evals._charts import Point
from tsugiki.evals.options import OptionScorer, without_pictures
from tsugiki.evals.tables import table
from tsugiki.studies import _amounts, _draws, _start
from tsugiki.studies._accuracies import points_of, scores_of
from tsugiki.studies._arms import ARMS, MMICT, Draw, able
from tsugiki.studies._cells import Cell, Cells
from tsugiki.studies._draws import Few
from tsugiki.studies._making import need
from tsugiki.studies._training import encode, startable
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
    hub: Callable[[], Any] | None = None,
    hub_recipe: str | Path | Mapping[str, Any] | Recipe = "mmict-demo",
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
        hub: as `start`, with a hub: what `mmict` begins with where `start` has none; only called where it is asked for.
            Without either the arm is left out. With a hub in `start`, plain tuning in context is.
        hub_recipe: of the training from `hub`, with the steps, batches and seed of `recipe`.
        sizes: numbers of labelled pictures, 5 or more each.
        folds: draws of each size.
        arms: of `ARMS`.
        shown: labelled pictures in front of a question, for the arms with a bank.
        seed: of draws, order of samples and yardsticks.
        batch_size: questions at once.

    Raises:
        DataError: a size that the pool does not have.
        UnknownNameError: an unknown arm.
        UnsupportedError: no arm that these weights allow.
        InputError: `hub` has none.
        RecipeError: the recipe can't be run, or the folder holds a study with other settings.
    """
    check(few, sizes, folds, arms)
    plan = _start.undrawn(recipes.load(recipe, [f"seed={seed}", *overrides]))
    drawn, apart = _draws.draws(few, max(sizes), folds, seed)
    samples = [*{s.id: s for fold in drawn for s in fold}.values(), *few.test]
    own = _Begin(start, plan, samples, say)
    arms = able(arms, hub=own.has_hub, other=hub is not None, say=say)
    other = None
    if MMICT in arms and not own.has_hub and hub is not None:
        other = _Begin(hub, _start.alike(recipes.load(hub_recipe), plan), samples, say)
        if not other.has_hub:
            raise InputError("a start of mmict without a hub", expected="a model with one", where="hub")
    run = _Run(few, own, other, drawn, shown, seed, batch_size, say)
    jobs = [(size, fold, arm) for size in sorted(set(sizes)) for fold in range(folds) for arm in arms]
    content = run.content | {"folds": folds, "folds apart": apart}
    cells = Cells(Path(out), content, len(jobs), say, run.later)
    for size, fold, arm in jobs:
        name = f"{arm.replace(' ', '-')}-{size}-{fold}"
        cells(name, partial(run.cell, arm, size, fold), arm=arm, size=size, fold=fold)
    about = {"folds": folds, "folds apart": apart, "demonstrations": shown, "seed": seed, "recipe": plan.name or "own"}
    if run.other is not None:
        about["recipe of mmict"] = run.other.plan.name or "own"
    return _written(run, cells, about)


def check(few: Few, sizes: Sequence[int], folds: int, arms: Sequence[str]) -> None:
    """What `fewshot` refuses, before anything is trained.

    Raises:
        DataError: a size that the pool does not have.
        UnknownNameError: an unknown arm.
        MissingExtraError: the extra `train` or `eval` is not installed.
    """
    need()
    for arm in arms:
        if arm not in ARMS:
            raise UnknownNameError("arm", arm, ARMS)
    _draws.check(sizes, folds, few)


class _Begin:
    """What an arm begins with, and by which recipe it trains. The model and its features of all samples are made where
    something needs them."""

    def __init__(
        self, start: Callable[[], Any], plan: Recipe, samples: Sequence[Sample], say: Callable[[str], None]
    ) -> None:
        self.start, self.plan, self.samples, self.say = start, plan, samples, say

    @cached_property
    def model(self) -> Any:
        return self.start()

    @property
    def has_hub(self) -> bool:
        return self.model.frontend.hub is not None

    @cached_property
    def features(self) -> Any:
        return encode(self.model, self.samples, self.say)


class _Run:
    """One call. The bare LLM's answers are made where something needs them."""

    def __init__(
        self,
        few: Few,
        own: _Begin,
        other: _Begin | None,
        drawn: Sequence[Sequence[Sample]],
        shown: int,
        seed: int,
        batch_size: int,
        say: Callable[[str], None],
    ) -> None:
        self.few, self.own, self.other, self.drawn = few, own, other, drawn
        self.shown, self.seed, self.batch_size, self.say = shown, seed, batch_size, say

    @cached_property
    def base(self) -> list[str] | None:
        """What the bare LLM says without the pictures; None where it is not here."""
        model = self.own.model
        llm = tasks.bare_llm(model, tasks.Settings())
        if llm is None:
            return None
        once = tasks.Once(OptionScorer(model, llm=llm, tolerance=0.0))
        return [found.best() for found in once([without_pictures(s) for s in self.few.test])]

    @property
    def content(self) -> dict[str, Any]:
        """What tells the study from another one in the same folder."""
        return {
            "version": VERSION,
            "start": store.graft_sha256(self.own.model),
            "recipe": self.own.plan.to_yaml(),
            "seed": self.seed,
            "demonstrations": self.shown,
            "pool": sources.digest(self.few.pool),
            "test": sources.digest(self.few.test),
        }

    @property
    def later(self) -> dict[str, Any]:
        """As `content`, of the arm that begins with something else; the other cells do not depend on it."""
        if self.other is None:
            return {}
        return {"start of mmict": store.graft_sha256(self.other.model), "recipe of mmict": self.other.plan.to_yaml()}

    def cell(self, arm: str, size: int, fold: int, folder: Path) -> Cell:
        """One arm, size and fold."""
        started, labelled = time.monotonic(), self.drawn[fold][:size]
        begin = self.other if arm == MMICT and self.other is not None else self.own
        draw = Draw(
            labelled=labelled,
            test=self.few.test,
            start=begin.start,
            model=begin.model,
            features=begin.features,
            plan=startable(begin.plan, labelled, self.say),
            folder=folder,
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
        seconds, right = time.monotonic() - started, sum(bool(row["right"]) for row in rows)
        self.say(f"{arm}, {size} pictures, fold {fold + 1}: {right} of {len(rows)} right, in {clock(seconds)}")
        return {"classes": len({tasks.short_answer(s) for s in labelled}), "seconds": seconds, "rows": rows}


def _written(run: _Run, cells: Cells, about: Mapping[str, object]) -> FewshotResult:
    """The table and the curve."""
    few, scores, points = run.few, scores_of(cells.done), points_of(cells.done)
    facts = {
        "data": f"{few.name}, {len(few.test)} test pictures, {len(few.pool)} to draw from",
        "classes": ", ".join(few.classes),
        "chance": few.chance,
        "base": str(run.own.model.base_identity.get("name")),
        "grafts": ", ".join(str(graft.name) for graft in run.own.model.grafts),
        "steps": run.own.plan.stages[0].steps,
        **about,
    }
    # The data's name may be in letters that the plot's font has not: it stands in the facts.
    _amounts.write(cells.folder, "Few labels", scores, points, facts, few.notes)
    report = cells.folder / "curve.html"
    return FewshotResult(scores=scores, points=points, cells=cells.done, out=cells.folder, report=report)
