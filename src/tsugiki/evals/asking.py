"""The model and the bare LLM asked the same questions in the same run, window by window; the LLM sees no picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tsugiki.errors import DataError
from tsugiki.evals.contextual import Calibrated
from tsugiki.evals.free import FreeAnswerer
from tsugiki.evals.options import OptionScorer, OptionScores, without_pictures
from tsugiki.evals.task import Answer, Clock, Once, Settings, bare_llm, message_text
from tsugiki.types import Sample

FEWEST = 5
"""Items without which an interval says nothing."""


def refuse_few(task: str, samples: Sequence[Sample], fewest: int = FEWEST) -> None:
    """Raises DataError where there are too few samples for an interval."""
    if len(samples) < fewest:
        raise DataError(
            f"{len(samples)} samples for {task}",
            expected=f"at least {fewest}, for an interval",
            fix="Give more data, or a higher limit.",
        )


def said(
    task: str, model: Any, samples: Sequence[Sample], settings: Settings
) -> Iterator[tuple[Sample, str, str | None]]:
    """(sample, answer, bare LLM's answer) until the time is up."""
    options: dict[str, Any] = {"batch_size": settings.batch_size, "max_new_tokens": settings.max_new_tokens}
    own = FreeAnswerer(model, features=settings.features, demos=settings.demos, **options)
    llm = bare_llm(model, settings)
    base = None if llm is None else Once(FreeAnswerer(model, llm=llm, **options))
    for window in Clock(task, len(samples), settings).windows(samples, settings.batch_size):
        blind = [None] * len(window) if base is None else base([without_pictures(s) for s in window])
        yield from zip(window, own(window), blind, strict=True)


def chosen(
    task: str, model: Any, samples: Sequence[Sample], settings: Settings, tolerance: float | None = None
) -> Iterator[tuple[Sample, OptionScores, OptionScores | None]]:
    """(sample, likelihoods of its options, the bare LLM's) until the time is up."""
    options: dict[str, Any] = {"batch_size": settings.batch_size, "tolerance": tolerance}
    own: OptionScorer | Calibrated
    if settings.calibrate:
        exact = OptionScorer(model, features=settings.features, batch_size=settings.batch_size)
        own = Calibrated(exact, settings.demos, settings.normalise)
    else:
        own = OptionScorer(model, features=settings.features, demos=settings.demos, **options)
    llm = bare_llm(model, settings)
    base = None if llm is None else Once(OptionScorer(model, llm=llm, **options))
    for window in Clock(task, len(samples), settings).windows(samples, 2 * settings.batch_size):
        blind = [None] * len(window) if base is None else base([without_pictures(s) for s in window])
        yield from zip(window, own(window), blind, strict=True)


def of_two(task: str, samples: Sequence[Sample]) -> list[Sample]:
    """Samples of a task about a picture with two options, one of which is the gold answer."""
    return [
        s
        for s in samples
        if s.task == task and s.images and len(s.options) == 2 and message_text(s.answer) in s.options
    ]


def closed(task: str, sample: Sample, own: OptionScores, base: OptionScores | None, settings: Settings) -> Answer:
    """The likeliest option as an answer, with all probabilities."""
    gold, text = message_text(sample.answer), own.best(settings.normalise)
    return Answer(
        task=task,
        sample=sample,
        text=text,
        gold=gold,
        correct=text == gold,
        base_text=None if base is None else base.best(settings.normalise),
        probabilities=own.probabilities(settings.normalise),
        base_probabilities={} if base is None else base.probabilities(settings.normalise),
    )
