"""What all trainings of one call of `fit` or `curve` share: base, towers, recipe, seed. Each gets a fresh graft."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from tsugiki import build, extras
from tsugiki.errors import InputError, UnknownNameError
from tsugiki.studies import _in_context
from tsugiki.studies._build import VISION, build_model
from tsugiki.studies._cells import Cell, rows_of
from tsugiki.studies._divide import Parts
from tsugiki.studies._steps import PATIENCE
from tsugiki.studies._training import Trained, encode, startable, train_chosen
from tsugiki.studies.neighbours import single_tower
from tsugiki.training import parts as trained
from tsugiki.training import recipe as recipes
from tsugiki.training.limits import Retention
from tsugiki.training.recipe import Recipe
from tsugiki.training.retained import Watch, worst

NEEDED = (("accelerate", "train"), ("sklearn", "eval"), ("scipy", "eval"), ("statsmodels", "eval"))
STEPS = 150
"""At most so many, where no recipe is given: a few hundred pictures teach no more after that."""

Method = tuple[str, ...]
"""Grafts or presets, stacked in their order."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """One training: the model with its weights, and what it took."""

    model: Any
    done: Trained
    features: Any
    """The cache of tower outputs; None where the tower trains."""
    lost: Mapping[str, Any] | None = None
    """Where the LLM's weights trained and it was asked for: `worst`, the upper end of the rise of the text loss in nats
    a token, and `held`, whether that keeps to the budget."""


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes models and trains them. Fields as the arguments of `fit`."""

    base: Any
    vision: Any = None
    tokenizer: Any = None
    recipe: Any = None
    overrides: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    refit: bool = True
    patience: int | None = PATIENCE
    demos: int = 0
    cache_limit: int | None = None
    seed: int = 0
    progress: bool = True
    tell: Callable[[str], None] = print

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience {self.patience}", expected="1 or more evaluations", where="patience")
        if self.demos < 0:
            raise InputError(f"demos {self.demos}", expected="0 or more pictures in front of each", where="demos")

    def plan(self, method: Method) -> Recipe:
        """The recipe, without the demonstrations of `demos`, which depend on the pictures: where none is given, the
        method's own, cut to what own pictures need.

        Raises:
            UnknownNameError: no such method; names the nearest.
            RecipeError: the recipe can't be read.
        """
        for name in method:
            if name not in build.methods():
                raise UnknownNameError("method", name, build.methods(), where="method")
        if self.recipe is not None:
            return recipes.load(self.recipe, [f"seed={self.seed}", *self.overrides])
        own = build.preset(method[-1]).recipe
        return recipes.load(own, [f"seed={self.seed}", f"steps={STEPS}", *self.overrides])

    def model(self, method: Method, *, last: bool = False) -> Any:
        """A fresh graft on the base.

        Args:
            last: no other model follows, so that an LLM given as an object is used itself; else a copy of it is.
        """
        plan, options = self.plan(method), dict(self.options)
        if plan.model.grafts == method:
            options = {**plan.model.options, **options}
        base = self.base if last or not isinstance(self.base, PreTrainedModel) else copy.deepcopy(self.base)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build_model(base, method, self.vision or VISION, tokenizer=self.tokenizer, say=self.tell, **options)

    def train(
        self,
        method: Method,
        parts: Parts,
        folder: Path,
        *,
        refit: bool | None = None,
        last: bool = False,
        limits: Retention | None = None,
    ) -> Made:
        """Train a fresh graft in a folder; the same call continues it.

        Args:
            refit: in place of the maker's own.
            last: as for `model`.
            limits: what text may lose where the LLM's weights train; None = it is not measured.
        """
        plan, model = self.plan(method), self.model(method, last=last)
        if model.frontend.places is None:  # places need no words, and are nothing without a warm start
            plan = startable(plan, parts.inner, self.tell)
        if self.demos:
            single_tower(model)  # whose features a bank goes by
            plan = _in_context.drawn(plan, self.demos, parts.near)
        watch = Watch.begin(model, limits) if limits is not None and trains_llm(plan) else None
        features = encode(model, [*parts.train, *parts.test], self.tell, cache_limit=self.cache_limit)
        done = train_chosen(
            model, plan, parts, folder, features=features, refit=self.refit if refit is None else refit,
            patience=self.patience, demos=self.demos, tell=self.tell, progress=self.progress,
        )  # fmt: skip
        lost = None
        if watch is not None:
            score = watch.measure(model)
            lost = {"worst": worst(score), "held": watch.holds(score)}
        return Made(model=model, done=done, features=features, lost=lost)

    def cell(
        self,
        method: Method,
        parts: Parts,
        folder: Path,
        *,
        refit: bool | None = None,
        limits: Retention | None = None,
    ) -> Cell:
        """Train, and ask the model and its rivals about the parts' test samples."""
        started = time.monotonic()
        made = self.train(method, parts, folder, refit=refit, limits=limits)
        with _in_context.asked_with(made.model, parts, folder, self.demos, made.features) as shown:
            rows = rows_of(
                made.model, parts.test, features=made.features, train=parts.train, holdout=parts.hold or 0.2,
                demos=shown, seed=self.seed,
            )  # fmt: skip
        return {
            "method": list(method),
            "guarantee": made.model.guarantee,
            "learned": len(parts.train),
            "steps": made.done.steps,
            "tried": made.done.tried,
            "lost": made.lost,
            "rows": rows,
            "seconds": round(time.monotonic() - started, 1),
        }

    def content(self, method: Sequence[Method]) -> dict[str, Any]:
        """What figures depend on beside the data, as JSON values; to tell one study from another."""
        base = self.base if isinstance(self.base, str | Path) else getattr(self.base, "name_or_path", "")
        demos = {"demos": self.demos} if self.demos else {}
        return {
            **demos,
            "base": str(base),
            "vision": str(self.vision or VISION) if isinstance(self.vision, str | Path | None) else "an object",
            "recipe": [self.plan(one).to_yaml() for one in method],
            "methods": ["+".join(one) for one in method],
            "options": {key: str(value) for key, value in self.options.items()},
            "refit": self.refit,
            "patience": self.patience,
        }


def trains_llm(plan: Recipe) -> bool:
    """Whether a recipe trains weights of the LLM's own."""
    return any(trained.trains_llm(stage.parts) for stage in plan.stages)


def need() -> None:
    """What trainings and scores are made with, not after half an hour.

    Raises:
        MissingExtraError: it is not installed.
    """
    for package, extra in NEEDED:
        extras.require(package, extra=extra)


def teller(progress: bool) -> Callable[[str], None]:
    """Lines on standard error."""
    console = Console(stderr=True, quiet=not progress)
    return lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


def tell_all(tell: Callable[[str], None], lines: Sequence[str]) -> None:
    for line in lines:
        tell(line)
