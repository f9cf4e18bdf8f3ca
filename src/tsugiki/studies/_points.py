"""A point of a search for weights, and what was measured there: one JSON file a point."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsugiki.data.files import atomic_write
from tsugiki.errors import StoreError, UnknownNameError
from tsugiki.evals import results
from tsugiki.evals.budget import LOWER_IS_BETTER, Budget, apply_budget, share_used
from tsugiki.evals.tables import records
from tsugiki.types import Score

REST = "beta"
"""The parameter for all tensors that no part names."""


@dataclass(frozen=True)
class Point:
    """Weights of the first parent; the second one has the rest."""

    beta: float
    parts: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, float]) -> Point:
        """From parameters: `REST` and the parts."""
        rounded = {name: round(value, 6) for name, value in values.items()}
        return cls(rounded.pop(REST), rounded)

    def moved(self, part: str, beta: float) -> Point:
        """With one part elsewhere; it counts last, so that no other pattern takes its tensors."""
        others = {name: value for name, value in self.parts.items() if name != part}
        return Point(self.beta, {**others, part: beta})

    def __str__(self) -> str:
        different = {name: value for name, value in self.parts.items() if value != self.beta}
        return ", ".join([f"β {self.beta:g}", *(f"{name} {value:g}" for name, value in different.items())])

    @property
    def file(self) -> str:
        """A name that tells it from every other point of one search."""
        values = [self.beta, *(value for _, value in sorted(self.parts.items()))]
        if len(set(values)) == 1:  # a part at the weight of all others changes nothing
            return f"{self.beta:g}.json"
        from tsugiki.identity import hash_json

        return f"{self.beta:g}-{hash_json(list(self.parts.items()))[:12]}.json"


@dataclass(frozen=True)
class Measured:
    """Scores at a point."""

    point: Point
    scores: tuple[Score, ...]
    objective: Score
    used: float
    """The largest share of the budget that a drop uses up; above 1 the budget is broken."""
    feasible: bool

    @classmethod
    def of(cls, point: Point, scores: Sequence[Score], objective: str, budget: Budget) -> Measured:
        """Judge scores.

        Args:
            objective: task.metric, the score to be raised (a loss: lowered).

        Raises:
            UnknownNameError: no such score.
            DataError: a line of the budget for which nothing was measured.
        """
        named = {f"{score.task}.{score.metric}": score for score in scores}
        if objective not in named:
            raise UnknownNameError("score", objective, named, where="search(objective)")
        feasible = not apply_budget(scores, budget)
        return cls(point, tuple(scores), named[objective], share_used(scores, budget), feasible)

    @property
    def gain(self) -> float:
        """The objective, larger is better."""
        return -self.objective.value if self.objective.metric in LOWER_IS_BETTER else self.objective.value

    def write(self, file: Path) -> None:
        content = {
            "beta": self.point.beta,
            "parts": dict(self.point.parts),
            "feasible": self.feasible,
            "used": self.used if math.isfinite(self.used) else None,
            "scores": records(self.scores),
        }
        atomic_write(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read(file: Path, objective: str, budget: Budget) -> Measured | None:
    """What was measured before; None where it was not.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        scores = [results.score(record) for record in content["scores"]]
        point = Point(float(content["beta"]), dict(content["parts"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"can't be read ({error})", expected="a point of a search", fix="Delete it.", where=str(file)
        ) from error
    return Measured.of(point, scores, objective, budget)
