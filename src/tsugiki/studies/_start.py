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
from tsugiki.errors import InputError, UnsupportedError
from tsugiki.studies import _draws
from tsugiki.studies._arms import as_pictures, grouped
from tsugiki.studies._build import VISION, build_model, load_graft
from tsugiki.studies._training import encode
from tsugiki.studies.neighbours import Recent
from tsugiki.training import recipe as recipes
from tsugiki.training.recipe import Recipe
from tsugiki.training.trainer import train

PICTURES = 900
"""Scenes that the start learns from."""

Say = Callable[[str], None]


def plan_of(method: str, steps: int, seed: int, *overrides: str) -> Recipe:
    """The method's own recipe, with batches of 8 that a CPU can pay for.

    Raises:
        UnsupportedError: the method has a hub.
    """
    if build.preset(method).options.get("projector") == "hub":
        refuse_hub(method)
    return recipes.load(build.preset(method).recipe, [f"seed={seed}", f"steps={steps}", "batch_size=8", *overrides])


def saved(graft: str | Path, base: Any = None) -> Callable[[], Any]:
    """A saved graft, loaded anew each time."""
    return lambda: load_graft(graft, base)


def method_of(graft: str | Path) -> str:
    """The graft that a saved one ends with: its recipe is the one to go on with.

    Raises:
        UnsupportedError: its front-end has a hub.
    """
    settings = store.settings_of(graft)
    if (settings.get("frontend") or {}).get("projector") == "hub":
        refuse_hub(str(graft))
    return str(settings["grafts"][-1]["name"])


def refuse_hub(name: str) -> None:
    """Raises UnsupportedError: here demonstrations are pictures and labels, and a hub is asked with its own form."""
    raise UnsupportedError(
        f"few labels with a hub ({name})",
        expected="a method or a graft without one",
        fix="Train with `demos:` in a recipe's source, and compare by `tsugiki eval --bank`.",
        where="fewshot",
    )


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
        samples = grouped(samples, look, plan, as_pictures, most=shown, seed=seed)
    train(model, plan, folder / "run", data=samples, features=features)
    return saved(graft, base)
