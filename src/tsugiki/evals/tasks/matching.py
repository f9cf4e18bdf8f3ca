"""Picture-text matching: is the true caption likelier than one with a single attribute swapped?

Scores per swapped attribute (`meta["swapped"]`: name, colour, count, place; `synth.matching` makes them) and over all.
Chance is 0.5. The bare LLM, which sees no picture, shows what the wording alone gives away; "accuracy without the
prior" takes its likelihood of each caption off the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tsugiki.evals import stats
from tsugiki.evals.asking import FEWEST, chosen, closed, of_two, refuse_few
from tsugiki.evals.options import OptionScores
from tsugiki.evals.task import Answer, Result, Settings, picture_groups
from tsugiki.types import Sample, Score

VERSION = 1
DESCRIPTION = "samples of the task matching with two captions as options, the true one as gold answer"
NEEDED = FEWEST

CHANCE = 0.5


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Samples of the task "matching" with two options, one of which is the gold answer."""
    return of_two("matching", samples)


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Score the captions, until the time is up.

    Raises:
        DataError: too few samples.
    """
    refuse_few("matching", samples)
    answers, freed = [], []
    for sample, own, base in chosen("matching", model, samples, settings):
        answers.append(closed("matching", sample, own, base, settings))
        freed.append(None if base is None else _without_prior(own, base) == answers[-1].gold)
    groups: dict[str, list[int]] = {}
    for i, answer in enumerate(answers):
        groups.setdefault(str(answer.sample.meta.get("swapped") or "other"), []).append(i)
    named = {"matching": list(range(len(answers))), **{f"matching/{k}": v for k, v in sorted(groups.items())}}
    scores = []
    for name, rows in named.items():
        scores += score(name, [answers[i] for i in rows], [freed[i] for i in rows])
    return Result(task="matching", scores=scores, answers=answers)


def score(task: str, answers: Sequence[Answer], freed: Sequence[bool | None]) -> list[Score]:
    """Accuracy, and without the prior; `freed` says which answers are then right."""
    common: dict[str, Any] = {"groups": picture_groups([a.sample for a in answers]), "version": VERSION}
    common |= {"note": f"chance {CHANCE}"}
    blind = [a.base_text == a.gold for a in answers if a.base_text is not None]
    base = blind if len(blind) == len(answers) else None
    found = [stats.score(task, "accuracy", [a.correct for a in answers], base, **common)]
    known = [f for f in freed if f is not None]
    if len(known) == len(answers):
        found.append(stats.score(task, "accuracy without the prior", known, **common))
    return found


def _without_prior(own: OptionScores, base: OptionScores) -> str:
    gains = [a - b for a, b in zip(own.logprobs, base.logprobs, strict=True)]
    return own.options[gains.index(max(gains))]
