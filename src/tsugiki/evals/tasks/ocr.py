"""Reading: how near is the answer to the text on the picture, letter by letter?

Scores per kind of question (`Sample.task`), and over all kinds per condition (`meta["condition"]`, as `synth.ocr` sets
it): ANLS (average normalised Levenshtein similarity: 1 - edits / length of the longer text, 0 below 0.5, without regard
to case), CER (edits / letters of the gold text, over all of them; lower is better, may exceed 1) and exact match. Texts
are compared in NFKC with single spaces. Of the kind "spotting", which lists texts with boxes, F1: a box counts with its
words where a gold box of the same text overlaps by at least 0.5. The bare LLM answers without the picture; the constant
answer is the commonest training answer. Where a text is ("text box") is scored by `grounding`.

ANLS: 1905.13648 (ST-VQA).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from tsugiki.data.boxes import BoxCodec, PaddedSquare
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
    message_text,
    picture_groups,
    shown_text,
)
from tsugiki.extras import require
from tsugiki.types import Box, BoxPart, Sample, Score

VERSION = 1
DESCRIPTION = "samples of the tasks ocr, read, field, gauge, cell and table with a text as gold answer, or spotting"

KINDS = ("ocr", "read", "field", "gauge", "cell", "table")
SPOTTING = "spotting"
LEAST = 0.5
"""Similarity below which ANLS counts nothing, and overlap below which a box does not."""
TOKENS = 40
"""Of a box and its text, in a tokenizer that splits digits."""
MOST = 512
"""Tokens of an answer."""

Labelled = tuple[tuple[str, Box], ...]


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Samples of `KINDS` with a text as answer, and of "spotting" whose gold boxes all have their text."""
    return [s for s in samples if s.images and ((s.task in KINDS and _is_text(s)) or (s.task == SPOTTING and _gold(s)))]


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Ask for the texts, until the time is up."""
    options: dict[str, Any] = {"batch_size": settings.batch_size, "max_new_tokens": _tokens(model, samples, settings)}
    own = FreeAnswerer(model, features=settings.features, demos=settings.demos, **options)
    llm = bare_llm(model, settings)
    base = None if llm is None else Once(FreeAnswerer(model, llm=llm, **options))
    codec: BoxCodec = model.processor.collator().codec
    answers: list[Answer] = []
    for window in Clock("ocr", len(samples), settings).windows(samples, settings.batch_size):
        blind = [None] * len(window) if base is None else base([without_pictures(s) for s in window])
        answers += [_answer(s, text, other, codec) for s, text, other in zip(window, own(window), blind, strict=True)]
    return Result(task="ocr", scores=score(answers, settings, codec), answers=answers)


def score(answers: Sequence[Answer], settings: Settings, codec: BoxCodec) -> list[Score]:
    """Scores by kind, then of all texts by condition, where there are several."""
    scores: list[Score] = []
    kinds = by_kind(answers)
    if listed := kinds.pop(SPOTTING, None):
        scores.append(_spotting(listed, codec))
    for kind, group in kinds.items():
        golds = (message_text(s.answer) for s in settings.train if s.task == kind)
        scores += texts(f"ocr/{kind}", group, yardsticks.commonest(filter(None, golds)))
    conditions: dict[str, list[Answer]] = {}
    for answer in (a for group in kinds.values() for a in group):
        conditions.setdefault(str(answer.sample.meta.get("condition") or ""), []).append(answer)
    if len(conditions) > 1:
        for condition, group in sorted(conditions.items()):
            scores += texts(f"ocr/on {condition or 'other'} pictures", group)
    return scores


def texts(task: str, answers: Sequence[Answer], constant: str | None = None) -> list[Score]:
    """ANLS, CER and exact match of answers; `constant` is the answer that the yardstick always gives."""
    measures: dict[str, Callable[[str, Sample], float]] = {"ANLS": anls, "CER": cer, "exact match": exact}
    groups = picture_groups([a.sample for a in answers])
    return [_score(task, name, measure, answers, constant, groups) for name, measure in measures.items()]


def anls(text: str, sample: Sample) -> float:
    """1 - normalised edit distance to the gold text that is nearest, 0 where it is below `LEAST`."""
    distance = require("rapidfuzz.distance", extra="eval").Levenshtein.normalized_similarity
    found = max(float(distance(plain(text).casefold(), gold.casefold())) for gold in golds(sample))
    return found if found >= LEAST else 0.0


def cer(text: str, sample: Sample) -> float:
    """Edits / letters of the gold text."""
    distance = require("rapidfuzz.distance", extra="eval").Levenshtein.distance
    gold = golds(sample)[0]
    return float(distance(plain(text), gold)) / len(gold)


def exact(text: str, sample: Sample) -> float:
    """1 where it is a gold text, letter for letter."""
    return float(plain(text) in golds(sample))


def plain(text: str) -> str:
    """Full-width forms as plain ones, every run of blanks as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def golds(sample: Sample) -> list[str]:
    """The gold text, then the others of `meta["answers"]`."""
    return [plain(message_text(sample.answer)), *(plain(str(a)) for a in sample.meta.get("answers") or ())]


def f1(found: Labelled, gold: Labelled) -> float:
    """2 * pairs / (texts found + gold texts); every gold text is paired once, in the order of what was found."""
    left = list(gold)
    for text, box in found:
        mate = next((g for g in left if g[0] == text and iou(box, g[1]) >= LEAST), None)
        if mate is not None:
            left.remove(mate)
    return 2 * (len(gold) - len(left)) / (len(found) + len(gold))


def listed(reply: Reply) -> Labelled:
    """Texts with boxes of an answer: the words before each box, without what separates it from the box before."""
    return tuple((plain(words.strip(" \n;、,")), box) for words, box in zip(reply.words, reply.boxes, strict=True))


def _score(
    task: str,
    metric: str,
    measure: Callable[[str, Sample], float],
    answers: Sequence[Answer],
    constant: str | None,
    groups: Sequence[Hashable] | None,
) -> Score:
    weights = [len(golds(a.sample)[0]) for a in answers] if metric == "CER" else None
    blind = [measure(a.base_text, a.sample) for a in answers if a.base_text is not None]
    shares = {}
    if constant is not None:
        shares["constant"] = stats.mean([measure(constant, a.sample) for a in answers], weights).value
    return stats.score(
        task,
        metric,
        [measure(a.text, a.sample) for a in answers],
        blind if len(blind) == len(answers) else None,
        weights=weights,
        groups=groups,
        yardsticks=shares,
        note="lower is better" if metric == "CER" else "",
        version=VERSION,
    )


def _spotting(answers: Sequence[Answer], codec: BoxCodec) -> Score:
    def measured(text: str, answer: Answer) -> float:
        square = PaddedSquare(*image_size(answer.sample.images[0]))
        return f1(listed(Reply.read(text, codec, square)), _gold(answer.sample))

    blind = [measured(a.base_text, a) for a in answers if a.base_text is not None]
    return stats.score(
        f"ocr/{SPOTTING}",
        "F1@0.5",
        [measured(a.text, a) for a in answers],
        blind if len(blind) == len(answers) else None,
        groups=picture_groups([a.sample for a in answers]),
        version=VERSION,
    )


def _tokens(model: Any, samples: Sequence[Sample], settings: Settings) -> int:
    """Room for the longest gold answer; a box takes up to 25 tokens."""
    count = partial(model.tokenizer, add_special_tokens=False)
    texts = max((len(count(message_text(s.answer))["input_ids"]) for s in samples if s.task != SPOTTING), default=0)
    boxes = max((TOKENS * len(_gold(s)) for s in samples if s.task == SPOTTING), default=0)
    return min(MOST, max(settings.max_new_tokens, texts + 4, boxes))


def _is_text(sample: Sample) -> bool:
    parts = sample.answer.parts if sample.answer else ()
    return bool(plain(message_text(sample.answer))) and not any(isinstance(p, BoxPart) for p in parts)


def _gold(sample: Sample) -> Labelled:
    """() where a box has no text."""
    parts = [p for p in (sample.answer.parts if sample.answer else ()) if isinstance(p, BoxPart)]
    return tuple((plain(str(p.label)), p.box) for p in parts) if all(p.label for p in parts) else ()


def _answer(sample: Sample, text: str, base: str | None, codec: BoxCodec) -> Answer:
    reply = Reply("")
    if sample.task == SPOTTING:
        reply = Reply.read(text, codec, PaddedSquare(*image_size(sample.images[0])))
        right = f1(listed(reply), _gold(sample)) == 1
    else:
        right = bool(exact(text, sample))
    return Answer(
        task="ocr",
        sample=sample,
        text=text,
        gold=shown_text(sample.answer),
        correct=right,
        base_text=base,
        boxes=reply.boxes,
        gold_boxes=tuple(box for _, box in _gold(sample)),
        numbers=reply.numbers,
    )
