"""Average precision of labelled boxes as COCO counts it, computed by faster-coco-eval; its interval is over pictures.

Average precision has no exact interval: where no drawing of pictures changes it (nothing is found at all, or
everything) the bootstrap's interval is a point, which says less than it seems to.
Units: pixels, xyxy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tsugiki.evals import stats
from tsugiki.extras import require
from tsugiki.types import Box, Score

RESAMPLES = 300
"""Of the pictures. Each one computes the average precision again: about 10 ms for 100 pictures, as often once more for
each picture (the jackknife of BCa), and both for the bare LLM too."""
METRICS = ("AP50", "AP50:95")
LARGEST = 1e5**2  # COCO's upper end of areas


@dataclass(frozen=True, slots=True)
class Seen:
    """One question: the objects that there are, and those that an answer finds."""

    gold: tuple[tuple[str, Box], ...] = ()
    found: tuple[tuple[str, Box, float], ...] = ()
    """Category, box, confidence in [0, 1]; of equal confidence the first one counts first."""


def average_precision(questions: Sequence[Seen]) -> tuple[float, float]:
    """AP at IoU 0.5, and the mean of those at 0.5, 0.55, ... 0.95; each the mean over the categories of the gold boxes.

    At most 100 boxes a question and category count. A box of a category that no gold box has is not looked at.
    0 without gold boxes.
    """
    coco: Any = require("faster_coco_eval", extra="eval")
    number = {name: i for i, name in enumerate(dict.fromkeys(name for q in questions for name, _ in q.gold))}
    gold = [(i, number[name], b) for i, q in enumerate(questions) for name, b in q.gold]
    found = [(i, number[name], b, p) for i, q in enumerate(questions) for name, b, p in q.found if name in number]
    if not gold or not found:
        return 0.0, 0.0
    truth = coco.COCO(
        {
            "images": [{"id": i} for i in range(len(questions))],
            "categories": [{"id": i, "name": name} for name, i in number.items()],
            "annotations": [
                {"id": k, "image_id": i, "category_id": c, "bbox": _xywh(b), "area": b.width * b.height, "iscrowd": 0}
                for k, (i, c, b) in enumerate(gold, 1)
            ],
        }
    )
    given = [{"image_id": i, "category_id": c, "bbox": _xywh(b), "score": p} for i, c, b, p in found]
    run = coco.COCOeval_faster(truth, truth.loadRes(given), "bbox", print_function=_silent)
    run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = [[0.0, LARGEST]], ["all"], [100]
    run.evaluate()
    run.accumulate()
    precision = run.eval["precision"][..., 0, 0]  # [10 thresholds, 101 recalls, categories]
    return float(precision[0].mean()), float(precision.mean())


def scores(
    task: str,
    own: Sequence[Seen],
    base: Sequence[Seen] | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    rivals: Mapping[str, Sequence[Seen]] | None = None,
    version: int = 1,
    note: str = "",
) -> list[Score]:
    """AP50 and AP50:95 of the same questions by the model, the bare LLM and yardsticks.

    Args:
        groups: of questions on one picture, which are drawn together; `n` counts pictures.
        rivals: yardstick -> what it finds.
    """
    sides = _Pictures(own, groups), None if base is None else _Pictures(base, groups)
    yardsticks = {name: average_precision(found) for name, found in (rivals or {}).items()}
    return [
        _score(task, metric, sides, {n: v[i] for n, v in yardsticks.items()}, i, version=version, note=note)
        for i, metric in enumerate(METRICS)
    ]


class _Pictures:
    """Questions by picture; remembers what a drawing of pictures gave, which both figures and the difference need."""

    def __init__(self, questions: Sequence[Seen], groups: Sequence[Hashable] | None) -> None:
        members: dict[Hashable, list[Seen]] = {}
        for key, question in zip(groups or range(len(questions)), questions, strict=True):
            members.setdefault(key, []).append(question)
        self.members = list(members.values())
        self.known: dict[bytes, tuple[float, float]] = {}

    def __call__(self, drawn: npt.NDArray[np.intp]) -> tuple[float, float]:
        key = drawn.tobytes()
        if key not in self.known:
            self.known[key] = average_precision([q for i in drawn for q in self.members[int(i)]])
        return self.known[key]


def _score(
    task: str,
    metric: str,
    sides: tuple[_Pictures, _Pictures | None],
    yardsticks: Mapping[str, float],
    i: int,
    **rest: Any,
) -> Score:
    own, base = sides
    pictures = np.arange(len(own.members))

    def interval(statistic: Callable[[Any], float]) -> stats.Interval:
        return stats.bootstrap(statistic, pictures, resamples=RESAMPLES)

    found = interval(lambda drawn: own(drawn)[i])
    if base is not None:
        change = interval(lambda drawn: own(drawn)[i] - base(drawn)[i])
        rest |= {"base": base(pictures)[i], "difference": change.value}
        rest |= {"difference_low": change.low, "difference_high": change.high}
    return Score(
        task=task,
        metric=metric,
        value=found.value,
        stderr=found.stderr,
        n=len(pictures),
        low=found.low,
        high=found.high,
        yardsticks=yardsticks,
        **rest,
    )


def _xywh(box: Box) -> list[float]:
    return [box.x1, box.y1, box.width, box.height]


def _silent(*_: object) -> None:
    pass
