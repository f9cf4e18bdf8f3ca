"""What a model's text lost against its base, measured in one run, item by item, with paired intervals.

On text requests, and after an unrelated picture (`@picture`; the base reads the same words without it):

* `wiki`: loss and KL against the base on held-out text, nats a token;
* `title_choice`, `next_sentence`, `definition_choice`, `arithmetic`: accuracy of multiple-choice questions,
  through lm-eval;
* `instructions`: share of answers that keep the rule of their prompt, checked by `rules.py`, through lm-eval;
* `answers`: how far greedy answers agree with the base's;
* `own_options`, `own_answers`, `own_prompts`: the user's own prompts (`own.py`);
* `mmlu`, `race`, `arc`, `hellaswag`, `cmmlu`, `gsm8k`: published benchmarks, where a hub is reachable (`published.py`).

With `int8` all of it is asked again of the LLM with int8 weights, on both sides (`@int8`; `quantised.py`): what a graft
keeps of a base that is served quantised. A budget (`evals.budget`) says how large a drop may be.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tsugiki.errors import UnknownNameError
from tsugiki.evals import own as own_prompts
from tsugiki.evals import published, quantised
from tsugiki.evals._material import Material, unrelated_pictures
from tsugiki.evals._sides import Sides
from tsugiki.evals._suites import VERSION, Progress, Run
from tsugiki.evals.budget import AFTER, INT8, SUITES, Budget, Violation, apply_budget, check_lines, load_budget
from tsugiki.types import Score

__all__ = [
    "AFTER",
    "INT8",
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
    own: str | Path | Sequence[own_prompts.Own] = (),
    int8: bool = False,
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
        suites: some of `SUITES`, and of the benchmarks that are fetched from a hub (`published.available()`).
        budget: scores that break it say so in their note; `apply_budget` gives them as a list.
        n: items a suite.
        after_picture: also ask after an unrelated picture.
        measure_exact: False takes, for an `exact` model, the base's figures on text requests for the model's too, which
            `verify` proves equal: half the time, and the note says so.
        own: own prompts, or their JSONL file (see `evals.own`); they are asked beside the suites, all of them.
        int8: measure everything again with int8 weights on both sides, whether proven or not.
        material: own texts, questions, prompts and pictures.
        base: the bare LLM, where the model's LLM was trained and its source is not here.
        max_new_tokens: length of the greedy answers.

    Raises:
        UnknownNameError: no such suite.
        AssetError: the asset `wiki` is not fetched (and no own material is given), or a benchmark can't be.
        DataError: a line of the budget that would judge nothing, or a wrong line of `own`.
        InputError: the LLM was trained and no base is found.
        UnsupportedError: `int8` of an LLM that is quantised already or keeps no linear weights.
    """
    known = (*SUITES, *published.available())
    for name in suites:
        if name not in known:
            raise UnknownNameError("retention suite", name, known)
    if isinstance(own, str | Path):
        own = own_prompts.read(own)
    material = material or Material.wiki(n, suites, seed=seed)
    missing = [name for name in suites if name not in (*SUITES, *material.published)]
    fetched = {name: published.fetch(name, n, seed=seed) for name in missing}
    material = replace(material, own=own or material.own, published={**material.published, **fetched})
    if budget is not None:
        check_lines(budget, material.measured(suites), after_picture and bool(material.pictures), int8)
    training = model.training
    model.eval()
    try:
        sides = Sides(model, base=base, proven=model.guarantee == "exact" and not measure_exact)
        run = Run(sides, material, max_new_tokens, batch_size, progress or (lambda _: None))
        scores = list(run.scores(suites, after_picture))
        if int8:
            with quantised.int8(*sides.llms) as how:
                again = replace(run, sides=sides.unproven(), form=INT8, how=how)
                scores.extend(again.scores(suites, after_picture))
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
        budget: as for `retention`; lines for requests after a picture, where the copy has no eyes, and for int8 weights
            are left out.
    """
    budget = {key: limit for key, limit in budget.items() if "@" not in key}
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
