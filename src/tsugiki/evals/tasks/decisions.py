"""Closed-set decisions: which of the sample's options is the likeliest answer.

Scores per kind of question (`Sample.task`): accuracy, macro-F1 over the classes that occur, recall of each class, the
paired difference to each yardstick, and how far the probabilities can be trusted (ECE, Brier score; the yardstick
"prior" gives every option its share of the training answers). The bare LLM is asked the same question with the same
options, without the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tsugiki.errors import DataError
from tsugiki.evals import calibration, stats, yardsticks
from tsugiki.evals.asking import chosen, closed
from tsugiki.evals.task import (
    Answer,
    Result,
    Settings,
    by_kind,
    difference,
    message_text,
    picture_groups,
    short_answer,
)
from tsugiki.types import Sample, Score

VERSION = 1
DESCRIPTION = "samples with options and a gold answer that is one of them"

MAX_CLASSES, FEWEST = 20, 5
"""With more classes, or fewer items of a class, no recall is listed: it would say nothing."""


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Samples with options and a gold answer.

    Raises:
        DataError: a gold answer is none of the options.
    """
    chosen = [s for s in samples if s.options and s.answer is not None]
    for s in chosen:
        if message_text(s.answer) not in s.options:
            raise DataError(
                f"the gold answer {message_text(s.answer)!r} is none of the {len(s.options)} options",
                expected="one of them, in the same spelling",
                where=s.where or f"sample {s.id}",
            )
    return chosen


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Score the samples, until the time is up."""
    found = chosen("decisions", model, samples, settings, _tolerance(settings))
    answers = [closed("decisions", s, own, base, settings) for s, own, base in found]
    scores = []
    for kind, group in by_kind(answers).items():
        rivals = yardsticks.choices(kind, [a.sample for a in group], settings, model)
        scores += score(f"decisions/{kind}", group, rivals)
        scores += trust(f"decisions/{kind}", group, [short_answer(s) for s in settings.train if s.task == kind])
    return Result(task="decisions", scores=scores, answers=answers)


def score(task: str, answers: Sequence[Answer], rivals: Mapping[str, Sequence[str]] | None = None) -> list[Score]:
    """Scores of answers to one kind of question.

    Args:
        rivals: yardstick -> its choice for each of the answers' samples.
    """
    rivals = rivals or {}
    gold = [a.gold for a in answers]
    groups = picture_groups([a.sample for a in answers])
    right = [a.correct for a in answers]
    base = None if any(a.base_text is None for a in answers) else [a.base_text == a.gold for a in answers]
    rival_right = {name: [c == g for c, g in zip(choice, gold, strict=True)] for name, choice in rivals.items()}
    note = f"chance {np.mean([1 / len(a.sample.options) for a in answers]):.3f}"
    shares = {name: float(np.mean(r)) for name, r in rival_right.items()}
    common: dict[str, Any] = {"groups": groups, "version": VERSION}
    scores = [stats.score(task, "accuracy", right, base, yardsticks=shares, note=note, **common)]
    scores += [difference(task, f"accuracy minus {name}", right, r, **common) for name, r in rival_right.items()]
    scores.append(_macro_f1(task, answers, rivals))
    counts = Counter(gold)
    if 1 < len(counts) <= MAX_CLASSES:
        scores += [_recall(task, name, answers, rivals) for name in sorted(counts) if counts[name] >= FEWEST]
    return scores


def trust(task: str, answers: Sequence[Answer], train: Sequence[str] = ()) -> list[Score]:
    """ECE and Brier score; `train` are the training answers of that kind, whose shares are the prior."""
    right = np.array([a.correct for a in answers], dtype=np.float64)
    own = calibration.confidences([a.probabilities for a in answers])
    value = stats.bootstrap(calibration.ece, own, right)
    fields: dict[str, Any] = {}
    brier = [calibration.brier(a.probabilities, a.gold) for a in answers]
    base = None
    if all(a.base_probabilities for a in answers):
        base = [calibration.brier(a.base_probabilities, a.gold) for a in answers]
        other = calibration.confidences([a.base_probabilities for a in answers])
        other_right = np.array([a.base_text == a.gold for a in answers], dtype=np.float64)
        change = stats.bootstrap(_ece_change, own, right, other, other_right)
        fields = {"base": calibration.ece(other, other_right), "difference": change.value}
        fields |= {"difference_low": change.low, "difference_high": change.high}
    shares = {}
    if priors := [_prior(a.sample.options, train) for a in answers if train]:
        rival = [calibration.brier(p, a.gold) for p, a in zip(priors, answers, strict=True)]
        shares = {"prior": float(np.mean(rival))}
    ece = Score(
        task=task, metric="ECE", value=value.value, stderr=value.stderr, n=value.n, low=value.low, high=value.high,
        note="lower is better", version=VERSION, **fields,
    )  # fmt: skip
    groups = picture_groups([a.sample for a in answers])
    note, common = "lower is better", {"groups": groups, "version": VERSION}
    return [ece, stats.score(task, "Brier score", brier, base, yardsticks=shares, note=note, **common)]  # type: ignore[arg-type]


def _ece_change(own: Any, right: Any, other: Any, other_right: Any) -> float:
    return calibration.ece(own, right) - calibration.ece(other, other_right)


def _prior(options: Sequence[str], train: Sequence[str]) -> dict[str, float]:
    """Each option's share of the training answers that are options; all equal where none is."""
    counts = Counter(t for t in train if t in options)
    total = sum(counts.values())
    return {o: counts[o] / total if total else 1 / len(options) for o in options}


def macro_f1(gold: npt.NDArray[np.intp], chosen: npt.NDArray[np.intp]) -> float:
    """Mean F1 over the classes that occur in `gold`; class numbers from 0, both [n].

    As `sklearn.metrics.f1_score(average="macro", labels=np.unique(gold))` (a test compares), but fast enough for
    thousands of bootstrap draws.
    """
    k = int(max(gold.max(), chosen.max())) + 1
    hits = np.bincount(gold[gold == chosen], minlength=k)
    actual, claimed = np.bincount(gold, minlength=k), np.bincount(chosen, minlength=k)
    f1 = 2 * hits / np.maximum(actual + claimed, 1)
    return float(f1[actual > 0].mean())


def _tolerance(settings: Settings) -> float | None:
    return settings.tolerance if settings.normalise == "sum" else None  # a mean needs finished options


def _macro_f1(task: str, answers: Sequence[Answer], rivals: Mapping[str, Sequence[str]]) -> Score:
    names = sorted({a.gold for a in answers} | {o for a in answers for o in a.sample.options})
    number = {name: i for i, name in enumerate(names)}

    def coded(texts: Sequence[str]) -> npt.NDArray[np.intp]:
        return np.array([number[t] for t in texts])

    gold, own = coded([a.gold for a in answers]), coded([a.text for a in answers])
    value = stats.bootstrap(macro_f1, gold, own)
    fields: dict[str, Any] = {}
    base_texts = [a.base_text for a in answers if a.base_text is not None]
    if len(base_texts) == len(answers):
        base = coded(base_texts)
        change = stats.bootstrap(lambda g, a, b: macro_f1(g, a) - macro_f1(g, b), gold, own, base)
        fields = {"base": macro_f1(gold, base), "difference": change.value}
        fields |= {"difference_low": change.low, "difference_high": change.high}
    return Score(
        task=task,
        metric="macro-F1",
        value=value.value,
        stderr=value.stderr,
        n=value.n,
        low=value.low,
        high=value.high,
        version=VERSION,
        yardsticks={name: macro_f1(gold, coded(choice)) for name, choice in rivals.items()},
        **fields,
    )


def _recall(task: str, name: str, answers: Sequence[Answer], rivals: Mapping[str, Sequence[str]]) -> Score:
    mine = [i for i, a in enumerate(answers) if a.gold == name]
    own = [answers[i] for i in mine]
    base = None if any(a.base_text is None for a in own) else [a.base_text == name for a in own]
    return stats.score(
        task,
        f"recall of {name}",
        [a.correct for a in own],
        base,
        groups=picture_groups([a.sample for a in own]),
        yardsticks={r: float(np.mean([choice[i] == name for i in mine])) for r, choice in rivals.items()},
        version=VERSION,
    )
