"""Cells of a comparison with few labels to figures: accuracy of each arm, its interval, its variance over the folds.

A row of a cell says whether the arm was `right` about a picture, and the bare LLM without the picture (`base`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tsugiki.evals import stats
from tsugiki.evals import task as tasks
from tsugiki.evals._charts import Point
from tsugiki.studies._cells import Cell, pictures_of
from tsugiki.types import Score

VERSION = 1
RIVALS = ("fine-tuning", "probe")
"""Every other arm is compared with these, picture by picture."""
OWN_RIVALS: Mapping[str, Sequence[str]] = {"mmict": ("plain in context",)}
"""Arms that are compared with further ones."""


def scores_of(cells: Sequence[Cell]) -> list[Score]:
    """Accuracy of each arm at each size over all its folds, beside the bare LLM, and the paired difference to `RIVALS`.

    The note gives the folds' figures and their unbiased variance.
    """
    scores = []
    for size, group in _by_size(cells).items():
        arms, task = _by_arm(group), f"fewshot/{size} pictures"
        for arm, own in arms.items():
            rows = [row for cell in own for row in cell["rows"]]
            right, base = _right(own), [row["base"] for row in rows]
            given = None if None in base else base
            found = stats.score(task, f"accuracy of {arm}", right, given, groups=pictures_of(rows), version=VERSION)
            scores.append(replace(found, note=_note(own)))
            scores += [
                tasks.difference(task, f"{arm} minus {rival}", right, _right(arms[rival]), groups=pictures_of(rows))
                for rival in (*RIVALS, *OWN_RIVALS.get(arm, ()))
                if rival in arms and rival != arm
            ]
    return scores


def points_of(cells: Sequence[Cell]) -> dict[str, list[Point]]:
    """Arm -> its accuracy by size, with the interval over pictures and each fold's figure."""
    points: dict[str, list[Point]] = {}
    for size, group in _by_size(cells).items():
        for arm, own in _by_arm(group).items():
            rows = [row for cell in own for row in cell["rows"]]
            found = stats.score("", "", _right(own), groups=pictures_of(rows))
            assert found.low is not None and found.high is not None
            points.setdefault(arm, []).append(
                Point(size, found.value, found.low, found.high, tuple(map(accuracy, own)))
            )
    return points


def _by_arm(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells of each arm, in their order."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell["arm"], []).append(cell)
    return found


def _right(cells: Sequence[Cell]) -> list[bool]:
    return [row["right"] for cell in cells for row in cell["rows"]]


def accuracy(cell: Cell) -> float:
    """Share of right answers of one cell."""
    return float(np.mean(_right([cell])))


def _note(cells: Sequence[Cell]) -> str:
    by_fold = [accuracy(cell) for cell in cells]
    listed = f"folds {', '.join(f'{value:.3f}' for value in by_fold)}"
    if len(by_fold) < 2:
        return listed
    variance = float(np.var(by_fold, ddof=1))
    return f"{listed}; their variance {variance:.5f}, standard deviation {variance**0.5:.3f}"


def _by_size(cells: Sequence[Cell]) -> dict[int, list[Cell]]:
    found: dict[int, list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: (c["size"], c["fold"])):
        found.setdefault(cell["size"], []).append(cell)
    return found
