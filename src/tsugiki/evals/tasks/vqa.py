"""Free answers compared word for word: exact match after normalisation.

Scores per kind of question (`Sample.task`). The bare LLM is asked the same question without the picture; the constant
answer is the commonest training answer to that kind.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from tsugiki.evals import stats, yardsticks
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
    short_answer,
)
from tsugiki.types import BoxPart, Sample, Score

VERSION = 1
DESCRIPTION = "samples with a short gold answer in words (captions, whole sentences and boxes are left out)"

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {word: str(i) for i, word in enumerate(_WORDS)}
_ARTICLES = frozenset({"a", "an", "the"})


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Samples whose answer is a word or a few: of a caption or a sentence many wordings are right."""
    return [s for s in samples if s.task != "caption" and s.meta.get("form", "short") == "short" and _is_words(s)]


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Ask the questions, until the time is up."""
    options: dict[str, Any] = {"batch_size": settings.batch_size, "max_new_tokens": settings.max_new_tokens}
    own = FreeAnswerer(model, features=settings.features, demos=settings.demos, **options)
    llm = bare_llm(model, settings)
    base = None if llm is None else Once(FreeAnswerer(model, llm=llm, **options))
    answers: list[Answer] = []
    for window in Clock("vqa", len(samples), settings).windows(samples, settings.batch_size):
        blind = [None] * len(window) if base is None else base([without_pictures(s) for s in window])
        answers += [_answer(s, text, other) for s, text, other in zip(window, own(window), blind, strict=True)]
    scores = []
    for kind, group in by_kind(answers).items():
        constant = yardsticks.commonest(filter(None, (short_answer(s) for s in settings.train if s.task == kind)))
        scores.append(score(f"vqa/{kind}", group, constant))
    return Result(task="vqa", scores=scores, answers=answers)


def score(task: str, answers: Sequence[Answer], constant: str | None = None) -> Score:
    """Exact match of answers to one kind of question; `constant` is the answer that the yardstick always gives."""
    blind = [matches(a.base_text, a.sample) for a in answers if a.base_text is not None]
    shares = {}
    if constant is not None:
        shares["constant"] = sum(matches(constant, a.sample) for a in answers) / len(answers)
    return stats.score(
        task,
        "exact match",
        [a.correct for a in answers],
        blind if len(blind) == len(answers) else None,
        groups=picture_groups([a.sample for a in answers]),
        yardsticks=shares,
        version=VERSION,
    )


def matches(text: str, sample: Sample) -> bool:
    """Is a text the gold answer, or one of `meta["answers"]`, after normalisation?"""
    golds = [message_text(sample.answer), *map(str, sample.meta.get("answers") or ())]
    return normalise(text) in {normalise(gold) for gold in golds}


def normalise(text: str) -> str:
    """Full-width forms made plain, lower case, no punctuation, no English article, numbers up to twelve as digits."""
    text = unicodedata.normalize("NFKC", text).casefold()
    # Inside a number a point or comma is part of it; in a word an apostrophe or hyphen parts nothing that people hear.
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"(?<=\w)['’](?=\w)", "", text)
    kept = "".join(c if _counts(c, text, i) else " " for i, c in enumerate(text))
    return " ".join(_NUMBERS.get(word, word) for word in kept.split() if word not in _ARTICLES)


def _counts(character: str, text: str, i: int) -> bool:
    if character == "." and 0 < i < len(text) - 1 and text[i - 1].isdigit() and text[i + 1].isdigit():
        return True
    return unicodedata.category(character)[0] not in "PZC"


def _is_words(sample: Sample) -> bool:
    answer = sample.answer
    return bool(message_text(answer)) and not any(isinstance(p, BoxPart) for p in (answer.parts if answer else ()))


def _answer(sample: Sample, text: str, base: str | None) -> Answer:
    return Answer(
        task="vqa",
        sample=sample,
        text=text,
        gold=message_text(sample.answer),
        correct=matches(text, sample),
        base_text=base,
    )
