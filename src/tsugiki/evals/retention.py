"""What a model's text lost against its base, measured in one run, item by item, with paired intervals.

On text requests, and after an unrelated picture (`@picture`; the base reads the same words without it):

* `wiki`: loss and KL against the base on held-out text, nats a token;
* `title_choice`, `next_sentence`, `definition_choice`, `arithmetic`: accuracy of multiple-choice questions,
  through lm-eval;
* `instructions`: share of answers that keep the rule of their prompt, checked by `rules.py`, through lm-eval;
* `answers`: how far greedy answers agree with the base's.

A budget (`evals.budget`) says how large a drop may be.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tsugiki.errors import UnknownNameError
from tsugiki.evals._material import Material, unrelated_pictures
from tsugiki.evals._sides import Sides
from tsugiki.evals._suites import VERSION, Progress, Run
from tsugiki.evals.budget import AFTER, SUITES, Budget, Violation, apply_budget, check_lines, load_budget
from tsugiki.types import Score

__all__ = [
    "AFTER",
    "SUITES",
    "VERSION",
    "Budget",
    "Material",
    "PowerCheck",
    "Violation",
    "apply_budget",
    "damaged_copy",
    "load_budget",
    "power_check",
    "retention",
    "unrelated_pictures",
]


@dataclass(frozen=True)
class PowerCheck:
    """Does the gate see damage? `holds` = the damaged copy failed it by a drop, not only for want of items."""

    holds: bool
    noise: float
    scores: tuple[Score, ...]
    violations: tuple[Violation, ...]


def retention(
    model: Any,
    *,
    suites: Sequence[str] = SUITES,
    budget: Budget | None = None,
    n: int = 100,
    after_picture: bool = True,
    measure_exact: bool = True,
    material: Material | None = None,
    base: Any = None,
    max_new_tokens: int = 24,
    batch_size: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Score]:
    """Measure what the text of a model lost against its base.

    Args:
        model: the composite.
        suites: some of `SUITES`.
        budget: scores that break it say so in their note; `apply_budget` gives them as a list.
        n: items a suite.
        after_picture: also ask after an unrelated picture.
        measure_exact: False takes, for an `exact` model, the base's figures on text requests for the model's too, which
            `verify` proves equal: half the time, and the note says so.
        material: own texts, questions, prompts and pictures.
        base: the bare LLM, where the model's LLM was trained and its source is not here.
        max_new_tokens: length of the greedy answers.

    Raises:
        UnknownNameError: no such suite.
        AssetError: the asset `wiki` is not fetched (and no own material is given).
        DataError: a line of the budget that would judge nothing.
        InputError: the LLM was trained and no base is found.
    """
    for name in suites:
        if name not in SUITES:
            raise UnknownNameError("retention suite", name, SUITES)
    material = material or Material.wiki(n, suites, seed=seed)
    if budget is not None:
        check_lines(budget, material.measured(suites), after_picture and bool(material.pictures))
    training = model.training
    model.eval()
    try:
        sides = Sides(model, base=base, proven=model.guarantee == "exact" and not measure_exact)
        run = Run(sides, material, max_new_tokens, batch_size, progress or (lambda _: None))
        scores = list(run.scores(suites, after_picture))
    finally:
        model.train(training)
    return scores if budget is None else _noted(scores, apply_budget(scores, budget))


def power_check(
    model: Any,
    *,
    budget: Budget,
    noise: float = 0.1,
    suites: Sequence[str] = SUITES,
    n: int = 100,
    material: Material | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> PowerCheck:
    """Show that the gate sees damage: a copy of the LLM with noise on its weights has to break the budget.

    Args:
        noise: standard deviation of the noise, as a share of that of each matrix.
        budget: as for `retention`; lines for requests after a picture are left out, the copy has no eyes.
    """
    budget = {key: limit for key, limit in budget.items() if AFTER not in key}
    material = material or Material.wiki(n, suites, seed=seed)
    check_lines(budget, material.measured(suites), after_picture=False)
    with Sides(model).base() as llm:
        damaged = damaged_copy(llm, noise, seed=seed)
    run = Run(Sides(model, own=damaged), material, max_new_tokens, batch_size, progress or (lambda _: None))
    scores = list(run.scores(suites, after_picture=False))
    found = apply_budget(scores, budget)
    seen = any(v.score.informative and v.drop > v.limit for v in found)
    return PowerCheck(seen, noise, tuple(_noted(scores, found)), tuple(found))


def damaged_copy(llm: Any, noise: float, *, seed: int = 0) -> Any:
    """A copy of an LLM with Gaussian noise on every matrix, of `noise` times the matrix's own standard deviation."""
    damaged = copy.deepcopy(llm).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in damaged.parameters():
            if parameter.dim() >= 2 and parameter.is_floating_point():
                added = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(added * (noise * float(parameter.float().std())))
    return damaged


def _noted(scores: Sequence[Score], violations: Sequence[Violation]) -> list[Score]:
    broken = {(v.score.task, v.score.metric): v for v in violations}
    out = []
    for score in scores:
        found = broken.get((score.task, score.metric))
        out.append(score if found is None else replace(score, note=f"{score.note}; {found}".strip("; ")))
    return out
