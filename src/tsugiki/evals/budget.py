"""Budgets: how large a drop of text quality may be, and which scores don't keep to it.

A drop has to be shown to be within its budget: what counts is the bad end of the 95 % interval, so that too few items
fail rather than pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tsugiki.errors import DataError, UnknownNameError
from tsugiki.evals import power, published
from tsugiki.evals._known import SUITES as SUITES
from tsugiki.evals.stats import MARGIN
from tsugiki.evals.tables import FEWEST, finite, too_few
from tsugiki.types import Score

Budget = Mapping[str, float]
"""Largest drops: "wiki.loss", "title_choice@picture.accuracy", or a metric of all text requests ("loss"), or of all
requests after a picture ("loss@picture"); with int8 weights "wiki@int8.loss", "loss@picture@int8"."""

OWN = ("own_options", "own_answers", "own_prompts")
"""Of the user's own prompts (`evals.own`)."""
METRICS = {
    "wiki": ("loss", "kl"),
    "title_choice": ("accuracy",),
    "next_sentence": ("accuracy",),
    "definition_choice": ("accuracy",),
    "arithmetic": ("accuracy",),
    "instructions": ("accuracy",),
    "answers": ("agreement",),
    **dict.fromkeys(published.available(), ("accuracy",)),
    "own_options": ("accuracy",),
    "own_answers": ("loss", "kl"),
    "own_prompts": ("agreement", "loss", "kl"),
}
LOWER_IS_BETTER = frozenset({"loss", "kl"})
AFTER, INT8 = "@picture", "@int8"


@dataclass(frozen=True)
class Verdict:
    """A score and the line of the budget that judges it."""

    score: Score
    key: str
    limit: float
    drop: float
    worst: float
    """The bad end of the drop's 95 % interval."""

    @property
    def holds(self) -> bool:
        """Whether the drop is shown to be within its budget."""
        return self.score.informative and self.worst <= self.limit

    def record(self) -> dict[str, Any]:
        """As plain values; infinities are None."""
        figure = f"{self.score.task}.{self.score.metric}"
        needed = finite(items_needed(self.score, self.limit))
        return {
            "figure": figure, "line": self.key, "limit": self.limit, "drop": self.drop, "worst": finite(self.worst),
            "holds": self.holds, "items": self.score.n, "items_needed": needed,
        }  # fmt: skip


class Violation(Verdict):
    """A drop that is not shown to be within its budget."""

    def __str__(self) -> str:
        name = f"{self.score.task}.{self.score.metric}"
        if too_few(self.score):
            return (
                f"{name} can't be judged ({self.key}): too few items for an interval ({self.score.n}), which takes "
                f"{FEWEST} or more"
            )
        if not self.score.informative:
            return (
                f"{name} can't be judged ({self.key}): {self.score.n} items don't show that the base "
                f"({self.score.base:.4g}) is {MARGIN:g} above chance"
            )
        if self.drop > self.limit:
            return f"{name} dropped by {self.drop:.4g}, over the budget of {self.limit:g} ({self.key})"
        needed = items_needed(self.score, self.limit)
        return (
            f"{name} dropped by {self.drop:.4g}, in its interval by up to {self.worst:.4g}: {self.score.n} items "
            f"don't show that it is within the budget of {self.limit:g} ({self.key})"
            + (f"; it takes about {needed:.0f}" if needed is not None and needed > self.score.n else "")
        )


def load_budget(path: str | Path) -> dict[str, float]:
    """A YAML file of `key: largest drop`, see `Budget`.

    Raises:
        DataError: not a mapping of numbers >= 0.
        UnknownNameError: a key that names no suite or metric; says the nearest.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise DataError(f"can't be read ({message})", expected="YAML: metric: largest drop", where=str(path)) from error
    if not isinstance(content, dict) or not content:
        raise DataError("no budget", expected="lines such as wiki.loss: 0.02", where=str(path))
    known = _keys()
    for key, value in content.items():
        if key not in known:
            raise UnknownNameError("budget key", str(key), known, where=str(path))
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise DataError(f"{key}: {value!r}", expected="a number >= 0", where=str(path))
    return {str(k): float(v) for k, v in content.items()}


def apply_budget(scores: Sequence[Score], budget: Budget) -> list[Violation]:
    """Scores whose drop is not shown to be within the budget; uninformative ones can't show it.

    Raises:
        DataError: a line for which nothing was measured.
    """
    return [Violation(v.score, v.key, v.limit, v.drop, v.worst) for v in judge(scores, budget) if not v.holds]


def judge(scores: Sequence[Score], budget: Budget) -> list[Verdict]:
    """A verdict for each score that a line judges.

    Raises:
        DataError: a line for which nothing was measured.
    """
    named = [(s, _key(f"{s.task}.{s.metric}", budget)) for s in scores if s.difference is not None]
    found = [Verdict(score, key, budget[key], *_drop(score)) for score, key in named if key is not None]
    _refuse_idle_lines(set(budget) - {v.key for v in found}, [f"{s.task}.{s.metric}" for s in scores])
    return found


def line_of(score: Score, budget: Budget) -> float | None:
    """The largest drop that the budget allows a score; None where no line judges it."""
    key = _key(f"{score.task}.{score.metric}", budget)
    return None if key is None else budget[key]


def items_needed(score: Score, drop: float) -> float | None:
    """With how many items like those of a score a drop would be told from nothing (`power.items_needed`).

    `inf` for a drop of 0; None where the score has no base, or too few items to tell their spread.
    """
    if score.spread is None or too_few(score):
        return None
    # What yes/no items can show is never less than a floor (`power`), which binds here or not at any larger n.
    free = power.smallest_drop(score.spread, score.n, binary=False)
    binary = score.detectable is not None and score.detectable > free * (1 + 1e-9)
    return power.items_needed(drop, score.spread, binary=binary) if drop > 0 else math.inf


def share_used(scores: Sequence[Score], budget: Budget) -> float:
    """The largest share of its line that a drop uses up, by the bad end of its interval: above 1 the budget is broken.

    0 where nothing dropped; infinite where a line is 0 and something dropped, and where a score can't be judged.
    """
    used = 0.0
    for score in scores:
        key = _key(f"{score.task}.{score.metric}", budget)
        if key is None or score.difference is None:
            continue
        worst = _drop(score)[1]
        if not score.informative or not worst <= budget[key] and budget[key] == 0:
            return float("inf")
        used = max(used, worst / budget[key] if worst > 0 else 0.0)
    return used


def suites_of(budget: Budget) -> tuple[list[str], bool, bool]:
    """The suites that its lines judge, and whether some are judged after a picture, and with int8 weights."""
    lines = [key.rpartition(".") for key in budget]
    tasks = [(task.partition("@")[0], metric.partition("@")[0]) for task, _, metric in lines]
    named = [s for s in SUITES if any(s == task or not task and metric in METRICS[s] for task, metric in tasks)]
    return named, any(AFTER in key for key in budget), any(INT8 in key for key in budget)


def places(after_picture: bool, int8: bool) -> list[str]:
    """What is put behind a suite's name, in the order in which it is asked."""
    return [f"{after}{form}" for form in ("", INT8)[: 1 + int8] for after in ("", AFTER)[: 1 + after_picture]]


def _keys() -> list[str]:
    where = places(True, True)
    full = [f"{suite}{place}.{metric}" for suite, metrics in METRICS.items() for metric in metrics for place in where]
    return [*full, *(f"{metric}{place}" for metric in {m for ms in METRICS.values() for m in ms} for place in where)]


def _key(name: str, budget: Budget) -> str | None:
    """The line of the budget that judges the score `name` (task.metric): its own, else that of its metric."""
    task, _, metric = name.rpartition(".")
    _, at, place = task.partition("@")
    return next((key for key in (name, f"{metric}{at}{place}") if key in budget), None)


def check_lines(budget: Budget, suites: Sequence[str], after_picture: bool, int8: bool = False) -> None:
    """Refuse, before the long run, a budget with lines that it would not judge."""
    where = places(after_picture, int8)
    names = [f"{suite}{place}.{metric}" for place in where for suite in suites for metric in METRICS[suite]]
    _refuse_idle_lines(set(budget) - {_key(name, budget) for name in names}, names)


def _refuse_idle_lines(idle: set[str], measured: Sequence[str]) -> None:
    if idle:
        raise DataError(
            f"the line {min(idle)} judges nothing",
            expected=f"one for {', '.join(measured) or 'what is measured'}",
            fix="Measure that suite too, or take the line out.",
            where="budget",
        )


def _drop(score: Score) -> tuple[float, float]:
    """How much worse than the base, and the bad end of its interval."""
    change = score.difference if score.difference is not None else 0.0
    low = score.difference_low if score.difference_low is not None else change
    high = score.difference_high if score.difference_high is not None else change
    return (change, high) if score.metric in LOWER_IS_BETTER else (0.0 - change, 0.0 - low)
