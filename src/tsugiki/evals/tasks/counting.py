"""Counting: is the number right, and how far off is it on average?

The first number in the answer counts, as digits or in English or Japanese words; an answer without one is wrong and
stands for 0 (the share of these is noted). The constants learn from training samples: the commonest number for the
accuracy, the median for the mean absolute error. `vqa` and `decisions` score the same samples by their words.
"""

from __future__ import annotations

import re
import statistics
import unicodedata
from collections.abc import Sequence
from typing import Any

from tsugiki.evals import stats, yardsticks
from tsugiki.evals.asking import FEWEST, refuse_few, said
from tsugiki.evals.task import Answer, Result, Settings, picture_groups, short_answer
from tsugiki.synth.phrases import LANGUAGES
from tsugiki.types import Sample, Score

VERSION = 1
DESCRIPTION = "samples of the task count with a number as gold answer, in words or digits"
NEEDED = FEWEST
BY_NAME = True

_MORE = {"no": 0, "zero": 0, "nothing": 0, "ten": 10, "eleven": 11, "twelve": 12, "とお": 10, "十": 10, "ゼロ": 0}
_WORDS = {word: i for phrases in LANGUAGES.values() for i, word in enumerate(phrases.numbers)} | _MORE
_WORDS |= {word: i for i, word in enumerate("一二三四五六七八九", 1)}
_LATIN = "|".join(sorted((w for w in _WORDS if w.isascii()), key=len, reverse=True))
_OTHER = "|".join(sorted((w for w in _WORDS if not w.isascii()), key=len, reverse=True))
_NUMBER = re.compile(rf"(?<![\d.,])\d+(?![\d.,]*\d)|\b(?:{_LATIN})\b|{_OTHER}", re.ASCII)


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Samples of the task "count" whose gold answer has a number."""
    return [s for s in samples if s.task == "count" and s.answer is not None and number(short_answer(s)) is not None]


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Ask for the numbers, until the time is up.

    Raises:
        DataError: too few samples.
    """
    refuse_few("counting", samples)
    answers = [_answer(*found) for found in said("counting", model, samples, settings)]
    known = [number(short_answer(s)) or 0 for s in select(settings.train)]
    return Result(task="counting", scores=score(answers, known), answers=answers)


def score(answers: Sequence[Answer], train: Sequence[int] = ()) -> list[Score]:
    """Accuracy and mean absolute error; `train` are the numbers of the training samples."""
    gold = [number(short_answer(a.sample)) or 0 for a in answers]
    own = [number(a.text) for a in answers]
    blind = [number(a.base_text) for a in answers if a.base_text is not None]
    with_base = len(blind) == len(answers)
    common: dict[str, Any] = {"groups": picture_groups([a.sample for a in answers]), "version": VERSION}
    none = sum(n is None for n in own)
    note = f"{none} of {len(own)} answers have no number" if none else ""
    modal, middle = yardsticks.commonest(map(str, train)), statistics.median(train) if train else None
    accuracy = stats.score(
        "counting",
        "accuracy",
        [n == g for n, g in zip(own, gold, strict=True)],
        [n == g for n, g in zip(blind, gold, strict=True)] if with_base else None,
        yardsticks={} if modal is None else {"constant": sum(str(g) == modal for g in gold) / len(gold)},
        note=note,
        **common,
    )
    error = stats.score(
        "counting",
        "mean absolute error",
        [float(abs((n or 0) - g)) for n, g in zip(own, gold, strict=True)],
        [float(abs((n or 0) - g)) for n, g in zip(blind, gold, strict=True)] if with_base else None,
        yardsticks={} if middle is None else {"constant": sum(abs(middle - g) for g in gold) / len(gold)},
        note="lower is better",
        **common,
    )
    return [accuracy, error]


def number(text: str | None) -> int | None:
    """The first whole number in a text; None without one."""
    found = _NUMBER.search(unicodedata.normalize("NFKC", text or "").casefold())
    if found is None:
        return None
    return int(found[0]) if found[0].isdigit() else _WORDS[found[0]]


def _answer(sample: Sample, text: str, base: str | None) -> Answer:
    gold = short_answer(sample)
    right = number(text) == number(gold)
    return Answer(task="counting", sample=sample, text=text, gold=gold, correct=right, base_text=base)
