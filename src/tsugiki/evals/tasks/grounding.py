"""Grounding: where is it? The boxes of the answer against the gold box.

Scores per kind of question (`Sample.task`) whose gold answer holds a box: Acc@0.5 (the first box has an intersection
over union of at least 0.5 with a gold box, as SPHINX counts), the same by size of the object, and for any box of the
answer (as IAA counts: more boxes are more chances); of answers by steps also the last box against the last gold box,
which is what they come to; centre hit and mean IoU of the first box; answers that try to give a box which can't be read
(parse failures) apart from those that do not try (no box). Samples of the kind "absent" ask for what is not in the
picture: their pictures are clean of it, and any readable box is a false positive. The bare LLM answers without the
picture. The ridge and the constant box always give one box: what counts broken or missing boxes is printed without
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.data.branch import is_absent
from tsugiki.data.images import image_size
from tsugiki.evals import stats, yardsticks
from tsugiki.evals._boxes import Reply, iou
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

VERSION = 2
DESCRIPTION = "samples whose gold answer holds a box, or of the kind 'absent'"

LISTS = ("caption", "detect", "spotting")
THRESHOLD = 0.5
SIZES = {
    "small": (0.0, 1 / 8),
    "medium": (1 / 8, 1 / 4),
    "large": (1 / 4, float("inf")),
}
"""Longer side of the object / side of the padded square: [from, to)."""

FALSE_POSITIVES = "false positives: clean pictures answered with a box"

Boxes = tuple[Box, ...]
Measure = Callable[[Reply, Boxes], float]


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Samples with a picture and gold boxes, or about nothing there; captions (many orders are right) and what
    `detection` and `ocr` score are left out."""
    return [s for s in samples if s.images and s.answer and s.task not in LISTS and (gold(s) or is_absent(s))]


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Ask for the boxes, until the time is up."""
    codec: BoxCodec = model.processor.collator().codec
    # A box takes up to 25 tokens in a tokenizer that splits digits.
    options: dict[str, Any] = {"batch_size": settings.batch_size, "max_new_tokens": max(settings.max_new_tokens, 40)}
    own = FreeAnswerer(model, features=settings.features, demos=settings.demos, **options)
    llm = bare_llm(model, settings)
    base = None if llm is None else Once(FreeAnswerer(model, llm=llm, **options))
    answers: list[Answer] = []
    blind_replies: list[Reply | None] = []
    for window in Clock("grounding", len(samples), settings).windows(samples, settings.batch_size):
        blind = [None] * len(window) if base is None else base([without_pictures(s) for s in window])
        for sample, text, other in zip(window, own(window), blind, strict=True):
            square = PaddedSquare(*image_size(sample.images[0]))
            answers.append(_answer(sample, Reply.read(text, codec, square), text, other))
            blind_replies.append(None if other is None else Reply.read(other, codec, square))
    said = {id(a): reply for a, reply in zip(answers, blind_replies, strict=True)}
    scores: list[Score] = []
    for kind, group in by_kind(answers).items():
        rivals = yardsticks.places(kind, [a.sample for a in group if a.gold_boxes], settings, model)
        scores += score(f"grounding/{kind}", group, [said[id(a)] for a in group], rivals)
    return Result(task="grounding", scores=scores, answers=answers)


def score(
    task: str,
    answers: Sequence[Answer],
    base: Sequence[Reply | None],
    rivals: Mapping[str, Sequence[Box]] | None = None,
) -> list[Score]:
    """Scores of answers to one kind of question.

    Args:
        base: the bare LLM's for the same samples, None where it was not asked.
        rivals: yardstick -> its box for each sample with a gold box, in their order.
    """
    present = [i for i, a in enumerate(answers) if a.gold_boxes]
    absent = [i for i, a in enumerate(answers) if not a.gold_boxes]
    scores: list[Score] = []
    if present:
        scores += _present(task, [answers[i] for i in present], [base[i] for i in present], rivals or {})
    if absent:
        scores.append(_clean(task, [answers[i] for i in absent], [base[i] for i in absent]))
    return scores


def overlap(found: Boxes, gold: Boxes) -> float:
    """IoU of the first box found with the gold box that fits it best; 0 without a box."""
    return max((iou(found[0], g) for g in gold), default=0.0) if found else 0.0


def hit(found: Boxes, gold: Boxes) -> float:
    """1 where `overlap` reaches 0.5."""
    return float(overlap(found, gold) >= THRESHOLD)


def any_hit(found: Boxes, gold: Boxes) -> float:
    """1 where any of the boxes found reaches 0.5."""
    return float(any(hit((box,), gold) for box in found))


def answer_hit(found: Boxes, gold: Boxes) -> float:
    """1 where the last box found reaches 0.5 with the last gold box: what an answer by steps comes to."""
    return hit(found[-1:], gold[-1:])


def centre_hit(found: Boxes, gold: Boxes) -> float:
    """1 where the centre of the first box found lies in a gold box."""
    if not found:
        return 0.0
    x, y = found[0].center
    return float(any(g.x1 <= x < g.x2 and g.y1 <= y < g.y2 for g in gold))


def size_class(sample: Sample, box: Box) -> str:
    """Small, medium or large: longer side of the object against the side of the padded square."""
    share = max(box.width, box.height) / PaddedSquare(*image_size(sample.images[0])).side
    return next(name for name, (low, high) in SIZES.items() if low <= share < high)


def _present(
    task: str, answers: Sequence[Answer], base: Sequence[Reply | None], rivals: Mapping[str, Sequence[Box]]
) -> list[Score]:
    rows = range(len(answers))
    sizes = [size_class(a.sample, a.gold_boxes[0]) for a in answers]
    of = partial(_score, task, answers, base, rivals)
    scores = [of("Acc@0.5", _by_boxes(hit), rows)]
    own = [hit(a.boxes, a.gold_boxes) for a in answers]
    for name, boxes in rivals.items():
        other = [hit((b,), a.gold_boxes) for a, b in zip(answers, boxes, strict=True)]
        groups = picture_groups([a.sample for a in answers])
        scores.append(difference(task, f"Acc@0.5 minus {name}", own, other, groups=groups, version=VERSION))
    scores.append(of("Acc@0.5 any box", _by_boxes(any_hit), rows))
    if stepwise := [i for i in rows if answers[i].sample.meta.get("steps")]:
        scores.append(of("Acc@0.5 of the last step", _by_boxes(answer_hit), stepwise))
    for name in SIZES:
        mine = [i for i in rows if sizes[i] == name]
        if mine:
            scores.append(of(f"Acc@0.5 {name}", _by_boxes(hit), mine))
    scores += [of("centre hit", _by_boxes(centre_hit), rows), of("mean IoU", _by_boxes(overlap), rows)]
    broken = partial(_score, task, answers, base, {}, rows=rows)
    scores.append(broken("parse failures", lambda reply, _: float(reply.failed)))
    scores.append(broken("no box", lambda reply, _: float(not reply.boxes and not reply.failed)))
    return scores


def _by_boxes(measure: Callable[[Boxes, Boxes], float]) -> Measure:
    return lambda reply, gold: measure(reply.boxes, gold)


def _score(
    task: str,
    answers: Sequence[Answer],
    base: Sequence[Reply | None],
    rivals: Mapping[str, Sequence[Box]],
    metric: str,
    measure: Measure,
    rows: Sequence[int],
) -> Score:
    gold = {i: answers[i].gold_boxes for i in rows}
    blind = [measure(reply, gold[i]) for i in rows if (reply := base[i]) is not None]
    shares = {
        n: float(np.mean([measure(Reply("", (boxes[i],)), gold[i]) for i in rows])) for n, boxes in rivals.items()
    }
    return stats.score(
        task,
        metric,
        [measure(Reply(answers[i].text, answers[i].boxes), gold[i]) for i in rows],
        blind if len(blind) == len(rows) else None,
        groups=picture_groups([answers[i].sample for i in rows]),
        yardsticks=shares,
        version=VERSION,
    )


def _clean(task: str, answers: Sequence[Answer], base: Sequence[Reply | None]) -> Score:
    """Share of pictures, clean of what was asked for, for which any question got a box; n counts pictures."""
    groups = picture_groups([a.sample for a in answers]) or list(range(len(answers)))
    own, blind = dict.fromkeys(groups, False), dict.fromkeys(groups, False)
    for key, answer, reply in zip(groups, answers, base, strict=True):
        own[key] |= bool(answer.boxes)
        blind[key] |= reply is not None and bool(reply.boxes)
    asked = all(reply is not None for reply in base)
    return stats.score(
        task,
        FALSE_POSITIVES,
        list(own.values()),
        list(blind.values()) if asked else None,
        version=VERSION,
    )


def gold(sample: Sample) -> tuple[Box, ...]:
    """The boxes of the gold answer."""
    parts = sample.answer.parts if sample.answer else ()
    return tuple(p.box for p in parts if isinstance(p, BoxPart))


def _answer(sample: Sample, reply: Reply, text: str, base: str | None) -> Answer:
    boxes = gold(sample)
    return Answer(
        task="grounding",
        sample=sample,
        text=text,
        gold=shown_text(sample.answer),
        correct=bool(hit(reply.boxes, boxes)) if boxes else not reply.boxes,
        base_text=base,
        boxes=reply.boxes,
        gold_boxes=boxes,
        numbers=reply.numbers,
    )
