"""The middle of `fit`: encode once, choose the step count on the inner hold-out, train, save the graft."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.studies import _asked, _in_context
from tsugiki.studies._divide import Parts
from tsugiki.studies._steps import HoldOut, Mark, marks_of
from tsugiki.training import parts as trained
from tsugiki.training import recipe as recipes
from tsugiki.training import warming
from tsugiki.training.recipe import Recipe
from tsugiki.training.trainer import train
from tsugiki.types import ImageSource, Sample
from tsugiki.vision.cache import FeatureCache

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the training gave; the model has its weights."""

    graft: Path
    steps: int
    """Steps behind the weights."""
    marks: tuple[Mark, ...]
    """What the inner hold-out said; empty where it chose nothing."""
    losses: Mapping[str, tuple[float, ...]]
    """Nats per label token at each step of the one or two trainings."""
    seconds: float
    """In the training loops."""
    tried: int = 0
    """Steps of the training that chose; 0 where none did."""
    limit: int = 0
    """Steps that it could have had."""


def encode(model: Any, samples: Sequence[Sample], tell: Tell, *, cache_limit: int | None = None) -> FeatureCache | None:
    """Tower outputs of all pictures, once for everything that follows; None where the tower trains."""
    if not trained.frozen_tower(model):
        return None
    cache = FeatureCache(model.frontend, limit_bytes=cache_limit)
    pictures: list[ImageSource] = [image for s in samples for image in s.images]
    started = time.monotonic()
    encoded = cache.fill(pictures)
    if encoded:
        what = "1 picture" if encoded == 1 else f"{encoded} pictures"
        tell(f"{what} encoded in {time.monotonic() - started:.0f} s, kept in {cache.folder}")
    return cache


def startable(plan: Recipe, samples: Sequence[Sample], tell: Tell) -> Recipe:
    """The recipe without a warm start where no answer has words to start from."""
    named = {"train": samples}
    starts = [stage.warm_start for stage in plan.stages if stage.warm_start is not None]
    if all(warming.captions(named, start) for start in starts):
        return plan
    tell("No answer says in words what a picture shows: the projector begins at random, which takes many more steps.")
    return recipes.load(plan, ["warm_start=false"])


def train_chosen(
    model: Any,
    plan: Recipe,
    parts: Parts,
    folder: Path,
    *,
    features: FeatureCache | None,
    refit: bool = True,
    patience: int | None = None,
    demos: int = 0,
    tell: Tell,
    progress: bool = False,
) -> Trained:
    """Train by a recipe whose step count the inner hold-out chooses, where there is a hold-out and one stage of steps.

    The training that chooses ends early where the hold-out sees no gain any more; the recipe's steps are the most.

    The graft and the question that it was asked are saved in `folder/graft`; the choosing run is in `folder/choose`.
    The same call continues both.

    Args:
        refit: train again from the start, on all training samples, for the chosen steps; False keeps the weights of
            the best mark.
        patience: marks without a better one, after which it ends; None = never before the last step.
        demos: pictures of those that are learned from, in front of each question to the hold-out.

    Raises:
        RecipeError, DataError, StoreError: as `training.trainer.train`.
    """
    graft = folder / "graft"
    given: dict[str, Any] = {"features": features, "progress": progress}
    stage = plan.stages[0]
    marks: tuple[Mark, ...] = ()
    losses: dict[str, tuple[float, ...]] = {}
    steps, tried, seconds = 0, 0, 0.0
    if parts.hold and len(plan.stages) == 1 and stage.steps:
        keeps = {"projector": 0.0, **stage.parts}
        trained.check(model, stage.parts, where="stages.0")
        fresh = {name: v.detach().clone() for name, v in trained.trained_tensors(model, keeps).items()}
        tell(f"Training on {len(parts.inner)} samples; {len(parts.held)} others choose the step count")
        with _in_context.asked_with(model, parts, folder, demos, features, inner=True) as shown:
            hold = HoldOut(
                model, parts.held, features, marks_of(stage.steps), folder / "choose", keep=not refit,
                patience=patience, demos=shown,
            )  # fmt: skip
            first = train(model, plan, folder / "choose", data=parts.inner, on_step=hold, **given)
        marks, best = tuple(hold.found()), hold.best()
        assert best is not None, "the last step is a mark"
        losses["choosing"], seconds, steps, tried = first.losses, first.seconds, best.step, first.steps
        if not refit:
            hold.restore()
            model.save(graft)
        else:
            _put(model, fresh, keeps)
            plan = recipes.load(plan, [f"steps={steps}"])
    if refit or not marks:
        tell(f"Training on {len(parts.train)} samples")
        last = train(model, plan, folder, data=parts.train, **given)
        losses["training"], seconds, steps = last.losses, seconds + last.seconds, last.steps
    if (asked := _asked.asked_of(parts.train)) is not None:
        _asked.write(graft, asked)
    model.config.name_or_path = str(graft)
    limit = stage.steps or 0 if marks else 0
    return Trained(graft=graft, steps=steps, marks=marks, losses=losses, seconds=seconds, tried=tried, limit=limit)


def _put(model: Any, tensors: Mapping[str, Tensor], keeps: Mapping[str, float]) -> None:
    """The weights as they were before a training."""
    with torch.no_grad():
        for name, tensor in trained.trained_tensors(model, keeps).items():
            tensor.copy_(tensors[name])
