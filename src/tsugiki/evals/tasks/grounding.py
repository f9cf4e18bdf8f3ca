"""Grounding: where is it? The first box of the answer against the gold box.

Scores per kind of question (`Sample.task`) whose gold answer holds a box: Acc@0.5 (first box, intersection over union
at least 0.5 with a gold box), the same by size of the object, centre hit, mean IoU and the share of answers without a
readable box. Samples of the kind "absent" ask for what is not in the picture: right is an answer without a box. The
bare LLM answers without the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.data.images import image_size
from tsugiki.evals import stats, yardsticks
from tsugiki.evals._boxes import iou
from tsugiki.evals.free import FreeAnswerer
from tsugiki.evals.options import without_pictures
from tsugiki.evals.task import (
    Answer,
    Clock,
    Once,
    Result,
    Settings,
    bare_llm,
    by_kind,
    difference,
    picture_groups,
    shown_text,
)
from tsugiki.types import Box, BoxPart, Sample, Score

VERSION = 1
DESCRIPTION = "samples whose gold answer holds a box, or of the kind 'absent'"

THRESHOLD = 0.5
SIZES = {
    "small": (0.0, 1 / 8),
    "medium": (1 / 8, 1 / 4),
    "large": (1 / 4, float("inf")),
}
"""Longer side of the object / side of the padded square: [from, to)."""

Measure = Callable[[tuple[Box, ...], tuple[Box, ...]], float]


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Samples with a picture and gold boxes (of captions many orders are right: left out), or about nothing there."""
    return [s for s in samples if s.images and s.task != "caption" and (_gold(s) or is_absent(s))]


def is_absent(sample: Sample) -> bool:
    """Does the sample ask for the box of a thing that is not there?"""
    return sample.task == "absent" and sample.meta.get("form", "boxes") == "boxes" and sample.answer is not None


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Ask for the boxes, until the time is up."""
    codec: BoxCodec = model.processor.collator().codec
    # A box takes up to 25 tokens in a tokenizer that splits digits.
    options = {"batch_size": settings.batch_size, "max_new_tokens": max(settings.max_new_tokens, 40)}
    own = FreeAnswerer(model, features=settings.features, **options)
    llm = bare_llm(model, settings)
    base = None if llm is None else Once(FreeAnswerer(model, llm=llm, **options))
    answers: list[Answer] = []
    blind_boxes: dict[int, tuple[Box, ...]] = {}
    for window in Clock("grounding", len(samples), settings).windows(samples, settings.batch_size):
        blind = [None] * len(window) if base is None else base([without_pictures(s) for s in window])
        for sample, text, other in zip(window, own(window), blind, strict=True):
            square = PaddedSquare(*image_size(sample.images[0]))
            answers.append(_answer(sample, text, other, tuple(codec.parse(text, square))))
            if other is not None:
                blind_boxes[id(answers[-1])] = tuple(codec.parse(other, square))
    scores: list[Score] = []
    for kind, group in by_kind(answers).items():
        rivals = yardsticks.places(kind, [a.sample for a in group if a.gold_boxes], settings, model)
        scores += score(f"grounding/{kind}", group, [blind_boxes.get(id(a)) for a in group], rivals)
    return Result(task="grounding", scores=scores, answers=answers)


def score(
    task: str,
    answers: Sequence[Answer],
    base_boxes: Sequence[tuple[Box, ...] | None],
    rivals: Mapping[str, Sequence[Box]] | None = None,
) -> list[Score]:
    """Scores of answers to one kind of question.

    Args:
        base_boxes: the bare LLM's for the same samples, None where it was not asked.
        rivals: yardstick -> its box for each sample with a gold box, in their order.
    """
    present = [i for i, a in enumerate(answers) if a.gold_boxes]
    absent = [i for i, a in enumerate(answers) if not a.gold_boxes]
    scores: list[Score] = []
    if present:
        scores += _present(task, [answers[i] for i in present], [base_boxes[i] for i in present], rivals or {})
    if absent:
        group, blind = [answers[i] for i in absent], [base_boxes[i] for i in absent]
        scores.append(_score(task, group, blind, {}, "absent: answered without a box", no_box, range(len(group))))
    return scores


def overlap(found: tuple[Box, ...], gold: tuple[Box, ...]) -> float:
    """IoU of the first box found with the gold box that fits it best; 0 without a box."""
    return max((iou(found[0], g) for g in gold), default=0.0) if found else 0.0


def hit(found: tuple[Box, ...], gold: tuple[Box, ...]) -> float:
    """1 where `overlap` reaches 0.5."""
    return float(overlap(found, gold) >= THRESHOLD)


def centre_hit(found: tuple[Box, ...], gold: tuple[Box, ...]) -> float:
    """1 where the centre of the first box found lies in a gold box."""
    if not found:
        return 0.0
    x, y = found[0].center
    return float(any(g.x1 <= x < g.x2 and g.y1 <= y < g.y2 for g in gold))


def no_box(found: tuple[Box, ...], gold: tuple[Box, ...]) -> float:
    """1 where the answer has no readable box."""
    return float(not found)


def size_class(sample: Sample, box: Box) -> str:
    """Small, medium or large: longer side of the object against the side of the padded square."""
    share = max(box.width, box.height) / PaddedSquare(*image_size(sample.images[0])).side
    return next(name for name, (low, high) in SIZES.items() if low <= share < high)


def _present(
    task: str, answers: Sequence[Answer], base: Sequence[tuple[Box, ...] | None], rivals: Mapping[str, Sequence[Box]]
) -> list[Score]:
    rows = range(len(answers))
    sizes = [size_class(a.sample, a.gold_boxes[0]) for a in answers]
    of = partial(_score, task, answers, base, rivals)
    scores = [of("Acc@0.5", hit, rows)]
    own = [hit(a.boxes, a.gold_boxes) for a in answers]
    for name, boxes in rivals.items():
        other = [hit((b,), a.gold_boxes) for a, b in zip(answers, boxes, strict=True)]
        groups = picture_groups([a.sample for a in answers])
        scores.append(difference(task, f"Acc@0.5 minus {name}", own, other, groups=groups, version=VERSION))
    for name in SIZES:
        mine = [i for i in rows if sizes[i] == name]
        if mine:
            scores.append(of(f"Acc@0.5 {name}", hit, mine))
    scores += [of("centre hit", centre_hit, rows), of("mean IoU", overlap, rows)]
    # Without yardsticks: a regression always gives a box.
    return [*scores, _score(task, answers, base, {}, "answers without a box", no_box, rows)]


def _score(
    task: str,
    answers: Sequence[Answer],
    base: Sequence[tuple[Box, ...] | None],
    rivals: Mapping[str, Sequence[Box]],
    metric: str,
    measure: Measure,
    rows: Sequence[int],
) -> Score:
    gold = {i: answers[i].gold_boxes for i in rows}
    blind = [measure(boxes, gold[i]) for i in rows if (boxes := base[i]) is not None]
    shares = {n: float(np.mean([measure((boxes[i],), gold[i]) for i in rows])) for n, boxes in rivals.items()}
    return stats.score(
        task,
        metric,
        [measure(answers[i].boxes, gold[i]) for i in rows],
        blind if len(blind) == len(rows) else None,
        groups=picture_groups([answers[i].sample for i in rows]),
        yardsticks=shares,
        version=VERSION,
    )


def _gold(sample: Sample) -> tuple[Box, ...]:
    parts = sample.answer.parts if sample.answer else ()
    return tuple(p.box for p in parts if isinstance(p, BoxPart))


def _answer(sample: Sample, text: str, base: str | None, boxes: tuple[Box, ...]) -> Answer:
    gold = _gold(sample)
    return Answer(
        task="grounding",
        sample=sample,
        text=text,
        gold=shown_text(sample.answer),
        correct=bool(hit(boxes, gold)) if gold else not boxes,
        base_text=base,
        boxes=boxes,
        gold_boxes=gold,
    )
