"""True captions against swapped ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tsugiki import testing
from tsugiki.errors import DataError, UnknownNameError
from tsugiki.evals import task
from tsugiki.evals.options import OptionScores
from tsugiki.evals.tasks import matching
from tsugiki.types import Message, Sample


def samples(n: int) -> list[Sample]:
    return [
        Sample(
            id=str(i),
            messages=(Message.of("user", "Describe it.", (p,)), Message.of("assistant", "A red cup.")),
            task="matching",
            options=("A red cup.", "A blue cup.") if i % 2 else ("A blue cup.", "A red cup."),
            meta={"swapped": "colour" if i < n // 2 else "name"},
        )
        for i, p in enumerate(testing.tiny_images(n))
    ]


def test_the_whole_path() -> None:
    result = task.measure(testing.tiny_model(), "matching", samples(8))["matching"]
    names = [(s.task, s.metric) for s in result.scores]
    assert names == [(t, m) for t in ("matching", "matching/colour", "matching/name")
                     for m in ("accuracy", "accuracy without the prior")]  # fmt: skip
    whole = result.scores[0]
    assert whole.n == 8 and whole.base is not None and whole.low is not None and whole.note == "chance 0.5"
    assert whole.value == sum(a.correct for a in result.answers) / 8


def test_the_prior_is_taken_off() -> None:
    def of(*values: float) -> OptionScores:
        return OptionScores(("a", "b"), values, (2, 2), (True, True))

    assert of(-5, -4).best() == "b" and matching._without_prior(of(-5, -4), of(-9, -6)) == "a"


def test_mistakes() -> None:
    good = samples(1)[0]
    assert matching.select([good, replace(good, options=("x", "y")), replace(good, task="vqa")]) == [good]
    with pytest.raises(DataError, match="1 samples for matching; expected at least 5"):
        task.evaluate(testing.tiny_model(), "matching", [good])
    with pytest.raises(UnknownNameError, match="Did you mean 'matching'"):
        task.load("matchin")
