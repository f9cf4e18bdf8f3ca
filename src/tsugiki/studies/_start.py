"""The weights that all arms of a comparison begin with: a saved graft, or a new one that learned to name pictograms.

Without a training, the visual tokens of a new graft say nothing to the LLM; and one that has never seen demonstrations
does not use them for new classes (docs/results/bank_classes.md), so the start learns with and without them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tsugiki import build, store
from tsugiki.errors import InputError, RecipeError
from tsugiki.studies import _draws
from tsugiki.studies._arms import as_shown, grouped
from tsugiki.studies._build import VISION, build_model, load_graft
from tsugiki.studies._training import encode
from tsugiki.studies.neighbours import Recent
from tsugiki.training import recipe as recipes
from tsugiki.training.recipe import Recipe
from tsugiki.training.trainer import train

PICTURES = 900
"""Scenes that the start learns from."""
EQUAL = ("steps", "minutes", "batch_size", "gradient_accumulation")
"""What two trainings that are compared have in common."""

HUB = "mmict"
"""The method of the arm of that name."""

Say = Callable[[str], None]


def plan_of(method: str, steps: int, seed: int, *overrides: str) -> Recipe:
    """The method's own recipe, with batches of 8 that a CPU can pay for, and without demonstrations of its own: the
    samples come with theirs."""
    plan = recipes.load(build.preset(method).recipe, [f"seed={seed}", f"steps={steps}", "batch_size=8", *overrides])
    return undrawn(plan)


def undrawn(plan: Recipe) -> Recipe:
    """The recipe whose sources draw no demonstrations."""
    stages = []
    for stage in plan.stages:
        data = {name: source.model_copy(update={"demos": None}) for name, source in stage.data.items()}
        stages.append(stage.model_copy(update={"data": data}))
    return plan.model_copy(update={"stages": tuple(stages)})


def alike(plan: Recipe, other: Recipe) -> Recipe:
    """The recipe with as many steps, of as many samples, in the order of another one; a warm start only where that has
    one, too.

    Raises:
        RecipeError: the recipe has several stages, among which the other one's steps can't be divided.
    """
    if len(plan.stages) != 1:
        raise RecipeError(
            f"{len(plan.stages)} stages", expected="one, which gets the steps of the other start's recipe",
            fix="Give a recipe of one stage.", where=f"hub_recipe {plan.name}".strip() + ": stages",
        )  # fmt: skip
    stage, (like, *_) = plan.stages[0], other.stages
    shared: dict[str, Any] = {name: getattr(like, name) for name in EQUAL}
    if like.warm_start is None:
        shared["warm_start"] = None
    same = {"seed": other.seed, "precision": other.precision}
    return undrawn(plan.model_copy(update={**same, "stages": (stage.model_copy(update=shared),)}))


def saved(graft: str | Path, base: Any = None) -> Callable[[], Any]:
    """A saved graft, loaded anew each time."""
    return lambda: load_graft(graft, base)


def method_of(graft: str | Path) -> str:
    """The method whose recipe a saved graft goes on with: the last one on the LLM, or the front-end's hub where there
    is no other than the projector."""
    settings = store.settings_of(graft)
    last = str(settings["grafts"][-1]["name"])
    hub = (settings.get("frontend") or {}).get("projector") == "hub"
    return HUB if hub and last == "projector" else last


def has_hub(method: str) -> bool:
    """Whether a method's front-end has one."""
    return build.preset(method).options.get("projector") == "hub"


def made(
    folder: Path,
    *,
    base: str = "smollm2-135m-instruct",
    method: str = "projector",
    vision: Any = VISION,
    steps: int = 100,
    shown: int = 4,
    seed: int = 0,
    say: Say = print,
    **options: Any,
) -> Callable[[], Any]:
    """A new graft that learned to name the first pictograms of the table, none of the held-out classes; trained once,
    below `folder`.

    Args:
        steps: 0 = a new one each time, which begins to learn by the recipe's warm start.
        shown: in front of a question stand 0 to so many other pictures with their names.

    Raises:
        InputError: a negative number of steps.
        RecipeError: the folder holds a start with other settings.
        AssetError: an asset is not fetched.
    """
    if steps < 0:
        raise InputError(f"{steps} steps", expected="0 or more", where="start")

    def new() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build_model(base, method, vision, say=say, **options)

    if not steps:
        return new
    graft, plan = folder / "run" / "graft", plan_of(method, steps, seed)
    samples = _draws.named_scenes(folder / "pictures", PICTURES, _draws.LEARNED, "train", seed)
    model = new()
    say(f"The start: a {method} graft learns to name {_draws.LEARNED} pictograms, {steps} steps")
    features = encode(model, samples, say)
    if shown:
        look = features or Recent(model)
        samples = grouped(samples, look, plan, as_shown(model), most=shown, seed=seed)
    train(model, plan, folder / "run", data=samples, features=features)
    return saved(graft, base)
