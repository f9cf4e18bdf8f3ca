"""Conditions: what is lost where pictures are dark, blurred, noisy, turned, smaller, ...?

Another task (`Settings.inner`) is run on the pictures as they are and on altered ones (`evals.alterations`: seven
conditions at three strengths). A score is a drop: the share of right answers on the pictures as they are minus that on
the altered ones, paired by item, with its interval; 0 = nothing is lost. The shares themselves stand beside it. The
inner task's own scores come first, with the bare LLM's, to which a condition does nothing: it sees no picture.
Questions with boxes are asked under all conditions but rotation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from tsugiki.data.images import image_size
from tsugiki.errors import InputError, UnknownNameError
from tsugiki.evals.alterations import CONDITIONS, LOOSE, STRENGTHS, alteration, altered
from tsugiki.evals.task import Answer, Result, Settings, difference, picture_groups
from tsugiki.evals.tasks import decisions, grounding, ocr, vqa
from tsugiki.types import Sample, Score

VERSION = 1
DESCRIPTION = "samples with pictures that decisions, vqa, ocr or grounding can score"
BY_NAME = True
"""Runs only where it is asked for: it takes 22 times as long as the inner task."""

INNER: dict[str, ModuleType] = {"decisions": decisions, "ocr": ocr, "vqa": vqa, "grounding": grounding}
"""A sample goes to the first that can score it."""
PIXELS = 64_000_000
"""Of the altered pictures that are in memory at once."""


def select(samples: Sequence[Sample]) -> list[Sample]:
    """Samples with a picture that an inner task can score."""
    shown = [s for s in samples if s.images]
    scored = {id(s) for task in INNER.values() for s in task.select(shown)}
    return [s for s in shown if id(s) in scored]


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """Run the inner tasks under each condition and strength. `settings.seconds` is for each run.

    Raises:
        UnknownNameError: an inner task or a condition that does not exist.
        InputError: a strength that does not exist, or nothing left to ask.
    """
    wanted = _wanted(settings)
    scores: list[Score] = []
    answers: list[Answer] = []
    for name, mine in _divided(samples, settings).items():
        plain = INNER[name].measure(model, mine, settings)
        scores += plain.scores
        answers += plain.answers
        right = [a.correct for a in plain.answers]
        # Features and yardsticks are those of the pictures as they are.
        bare = replace(settings, features=None, train=())
        asked = mine[: len(right)]
        for number, (condition, strength) in enumerate(wanted, 1):
            fit = [i for i, s in enumerate(asked) if not (condition in LOOSE and s.boxes)]  # a turned box is none
            if fit:
                some, plainly = [asked[i] for i in fit], [right[i] for i in fit]
                found = _right(model, name, some, condition, strength, bare)
                scores.append(drop(f"conditions/{name}", f"drop: {condition} {strength}", plainly, found, some))
            if settings.progress is not None:
                settings.progress(f"conditions of {name}", number, len(wanted))
    return Result(task="conditions", scores=scores, answers=answers)


def drop(task: str, metric: str, plain: Sequence[bool], found: Sequence[bool], samples: Sequence[Sample]) -> Score:
    """Share right of the pictures as they are minus that of the altered ones, over the items that both runs asked."""
    n = min(len(plain), len(found))
    groups = picture_groups(samples[:n])
    score = difference(task, metric, plain[:n], found[:n], groups=groups, version=VERSION)
    shares = {"as they are": float(np.mean(plain[:n])), "altered": float(np.mean(found[:n]))}
    return replace(score, yardsticks=shares)


def _right(
    model: Any, name: str, samples: Sequence[Sample], condition: str, strength: int, bare: Settings
) -> list[bool]:
    """Which answers about the altered pictures are right, in the order of the samples, until the time is up."""
    found: list[bool] = []
    for chunk in _chunks(samples):
        shown = [altered(s, condition, strength, bare.seed) for s in chunk]
        answered = INNER[name].measure(model, shown, replace(bare, progress=None)).answers
        found += [a.correct for a in answered]
        if len(answered) < len(chunk):
            break
    return found


def _chunks(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Runs of samples whose pictures fit into memory together."""
    chunk: list[Sample] = []
    used = 0
    for sample in samples:
        pixels = sum(width * height for width, height in map(image_size, sample.images))
        if chunk and used + pixels > PIXELS:
            yield chunk
            chunk, used = [], 0
        chunk.append(sample)
        used += pixels
    if chunk:
        yield chunk


def _divided(samples: Sequence[Sample], settings: Settings) -> dict[str, list[Sample]]:
    """The samples by inner task."""
    names = list(settings.inner) or list(INNER)
    for name in names:
        if name not in INNER:
            raise UnknownNameError("inner task", name, INNER, where="inner")
    left = list(samples)
    found: dict[str, list[Sample]] = {}
    for name in names:
        if mine := INNER[name].select(left):
            found[name] = mine
            taken = {id(s) for s in mine}
            left = [s for s in left if id(s) not in taken]
    if not found:
        raise InputError(f"none of {len(samples)} samples", expected=f"some that {', '.join(names)} can score")
    return found


def _wanted(settings: Settings) -> list[tuple[str, int]]:
    names = list(settings.conditions) or list(CONDITIONS)
    for name in names:
        alteration(name)
    for strength in settings.strengths:
        if strength not in STRENGTHS:
            raise InputError(f"strength {strength}", expected="1, 2 or 3", where="strengths")
    return [(name, strength) for name in names for strength in settings.strengths]
