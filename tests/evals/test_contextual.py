"""Contextual calibration: the formula as a loop, what is asked about empty pictures, what it takes away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tsugiki.errors import InputError
from tsugiki.evals.contextual import GREYS, Calibrated, corrected, mean_log
from tsugiki.evals.options import OptionScorer, OptionScores
from tsugiki.testing import tiny_images, tiny_model
from tsugiki.types import ImagePart, Message, Sample, TextPart

LIKELY = st.lists(st.floats(-30, 0), min_size=3, max_size=3)


def scores(logprobs: Sequence[float], tokens: Sequence[int] = (1, 2, 5)) -> OptionScores:
    return OptionScores(("a", "b", "c"), tuple(logprobs), tuple(tokens), (True,) * 3)


def softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    total = sum(math.exp(v - top) for v in values)
    return [math.exp(v - top) / total for v in values]


@given(LIKELY, st.lists(LIKELY, min_size=1, max_size=4))
def test_the_formula_as_a_loop(own: list[float], free: list[list[float]]) -> None:
    prior = [0.0] * 3
    for row in free:
        for k, p in enumerate(softmax(row)):
            prior[k] += p / len(free)
    weighed = [p / f for p, f in zip(softmax(own), prior, strict=True)]
    expected = [w / sum(weighed) for w in weighed]
    rows = [torch.log_softmax(torch.tensor(row, dtype=torch.float64), 0) for row in free]
    found = corrected(scores(own), mean_log(rows))
    assert list(found.probabilities().values()) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert list(found.probabilities("mean").values()) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_prior_that_says_nothing_changes_nothing_and_no_probability_is_lost() -> None:
    own = scores([-2.0, -800.0, -3.0])
    flat = torch.full((3,), -math.log(3), dtype=torch.float64)
    assert corrected(own, flat).probabilities() == pytest.approx(own.probabilities())
    prior = torch.log_softmax(torch.tensor([0.0, -900.0, 0.0], dtype=torch.float64), 0)
    assert corrected(own, prior).best() == "b"  # in log space: as probabilities both would be 0


def test_the_mean_of_tokens_is_corrected_as_such() -> None:
    own, free = scores([-2.0, -2.0, -2.0]), torch.zeros(3, dtype=torch.float64)
    by_token = softmax([-2.0, -1.0, -0.4])
    assert list(corrected(own, free, "mean").probabilities().values()) == pytest.approx(by_token)


@dataclass
class Demos:
    """Two pictures with labels, the same for every question; counts what is placed."""

    placements: list[Sample] = field(default_factory=list)
    near: tuple[Any, ...] = tuple(
        SimpleNamespace(entry=SimpleNamespace(id=i, label=label)) for i, label in enumerate(("b", "b"))
    )

    def neighbours(self, sample: Sample) -> tuple[Any, ...]:
        return self.near

    def placed(self, sample: Sample, near: Sequence[Any]) -> Sample:
        front = [p for n in near for p in (ImagePart(tiny_images(3)[n.entry.id]), TextPart(f"{n.entry.label}\n"))]
        self.placements.append(sample)
        return replace(sample, messages=(replace(sample.messages[0], parts=(*front, *sample.messages[0].parts)),))


def asked(picture: Image.Image, question: str = "?") -> Sample:
    return Sample(id="1", messages=(Message.of("user", question, (picture,)),), options=("a", "b", "cc"))


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(llm={"max_position_embeddings": 2048})


def test_the_question_is_asked_about_pictures_that_show_nothing(model: Any) -> None:
    demos, scorer = Demos(), OptionScorer(model)
    samples = [asked(picture) for picture in tiny_images(3)]
    found = Calibrated(scorer, demos)(samples)
    blank = [Image.new("RGB", (64, 64), (grey,) * 3) for grey in GREYS]
    prior = [0.0] * 3
    for picture in blank:
        (own,) = scorer([demos.placed(asked(picture), demos.near)])
        for k, p in enumerate(softmax(own.logprobs)):
            prior[k] += p / len(blank)
    for sample, calibrated in zip(samples, found, strict=True):
        (own,) = scorer([demos.placed(sample, demos.near)])
        weighed = [p / f for p, f in zip(softmax(own.logprobs), prior, strict=True)]
        expected = [w / sum(weighed) for w in weighed]
        assert list(calibrated.probabilities().values()) == pytest.approx(expected, rel=1e-4)


def test_the_same_question_and_demonstrations_are_asked_once(model: Any) -> None:
    prompts: list[int] = []

    class Counting(OptionScorer):
        def __call__(self, samples: Sequence[Sample]) -> list[OptionScores]:
            prompts.append(len(samples))
            return super().__call__(samples)

    calibrated = Calibrated(Counting(model), Demos())
    pictures = tiny_images(4)
    calibrated([asked(p) for p in pictures])
    calibrated([asked(pictures[0]), asked(pictures[1], "other?")])
    assert prompts == [4, 3, 2, 3]


def test_what_it_needs(model: Any) -> None:
    with pytest.raises(InputError, match="without demonstrations; expected a bank"):
        Calibrated(OptionScorer(model), None)
    with pytest.raises(InputError, match="a scorer with a tolerance"):
        Calibrated(OptionScorer(model, tolerance=7.0), Demos())
