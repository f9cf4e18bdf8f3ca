"""Absent objects: does the model say yes to what is not there?

Yes or no by likelihood, on POPE's questions: accuracy, precision, recall, F1 of "yes" and the share of "yes", per
choice of the absent names (`meta["negatives"]`: random, popular, adversarial; `synth.absent` makes them). The constant
says the commoner gold answer of these samples; the bare LLM sees no picture.

Source: POPE (2305.10355).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tsugiki.evals import stats
from tsugiki.evals.asking import FEWEST, chosen, closed, of_two, refuse_few
from tsugiki.evals.task import Answer, Result, Settings, picture_groups
from tsugiki.types import Sample, Score

VERSION = 1
DESCRIPTION = "samples of the task presence about a picture, with the options yes and no (in any language, yes first)"
NEEDED = FEWEST


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Samples of the task "presence" with two options, the first of them "yes"."""
    return of_two("presence", samples)


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Ask for presence, until the time is up.

    Raises:
        DataError: too few samples.
    """
    refuse_few("absent", samples)
    answers = [closed("absent", s, own, base, settings) for s, own, base in chosen("absent", model, samples, settings)]
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(str(answer.sample.meta.get("negatives") or "any"), []).append(answer)
    scores = [score for kind, group in sorted(groups.items()) for score in score_group(f"absent/{kind}", group)]
    return Result(task="absent", scores=scores, answers=answers)


def score_group(task: str, answers: Sequence[Answer]) -> list[Score]:
    """The five figures of one choice of names."""
    gold = _yes(answers, [a.gold for a in answers])
    own = _yes(answers, [a.text for a in answers])
    texts = [a.base_text for a in answers if a.base_text is not None]
    base = _yes(answers, texts) if len(texts) == len(answers) else None
    common: dict[str, Any] = {"groups": picture_groups([a.sample for a in answers]), "version": VERSION}
    constant = float(max(gold.mean(), 1 - gold.mean()))
    right = None if base is None else base == gold
    found = [stats.score(task, "accuracy", own == gold, right, yardsticks={"constant": constant}, **common)]
    found += [_rate(task, name, own, gold, base) for name in RATES]
    return [*found, stats.score(task, "share of yes", own, base, note=f"true share {gold.mean():.3f}", **common)]


def rate(name: str, said: npt.NDArray[np.bool_], gold: npt.NDArray[np.bool_]) -> float:
    """Precision, recall or F1 of "yes", bool [n] each; 0 where nothing is counted."""
    hits = int((said & gold).sum())
    below = {"precision": int(said.sum()), "recall": int(gold.sum()), "F1": (int(said.sum()) + int(gold.sum())) / 2}
    return hits / below[name] if below[name] else 0.0


RATES = ("precision", "recall", "F1")


def _rate(
    task: str, name: str, own: npt.NDArray[np.bool_], gold: npt.NDArray[np.bool_], base: npt.NDArray[np.bool_] | None
) -> Score:
    found = stats.bootstrap(lambda a, g: rate(name, a, g), own, gold)
    fields: dict[str, Any] = {}
    if base is not None:
        change = stats.bootstrap(lambda a, b, g: rate(name, a, g) - rate(name, b, g), own, base, gold)
        fields = {"base": rate(name, base, gold), "difference": change.value}
        fields |= {"difference_low": change.low, "difference_high": change.high}
    return Score(
        task=task,
        metric=name,
        value=found.value,
        stderr=found.stderr,
        n=found.n,
        low=found.low,
        high=found.high,
        version=VERSION,
        yardsticks={"always yes": rate(name, np.ones_like(gold), gold)},
        **fields,
    )


def _yes(answers: Sequence[Answer], texts: Sequence[str]) -> npt.NDArray[np.bool_]:
    return np.array([t == a.sample.options[0] for a, t in zip(answers, texts, strict=True)])
