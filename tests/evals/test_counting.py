"""Counting: numbers out of answers, accuracy and error beside constants."""

from __future__ import annotations

import pytest

from tsugiki import testing
from tsugiki.errors import DataError
from tsugiki.evals import task
from tsugiki.evals.task import Answer
from tsugiki.evals.tasks import counting
from tsugiki.types import Message, Sample


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("three", 3), ("There are Two dogs.", 2), ("12", 12), ("２つ", 2), ("三つ", 3), ("犬は七つ描かれています", 7),
        ("none", 0), ("なし", 0), ("There is no dog.", 0), ("someone", None), ("", None), ("3.5", None), ("2 or 3", 2),
    ],
)  # fmt: skip
def test_number(text: str, number: int | None) -> None:
    assert counting.number(text) == number


def samples(gold: list[str]) -> list[Sample]:
    return [
        Sample(
            id=str(i),
            messages=(Message.of("user", "How many?", (p,)), Message.of("assistant", word)),
            task="count",
        )
        for i, (p, word) in enumerate(zip(testing.tiny_images(len(gold)), gold, strict=True))
    ]


def test_score() -> None:
    gold, said, base = ["one", "two", "two", "five", "none"], ["1", "three", "two", "?", "none"], ["two"] * 5
    answers = [
        Answer(task="counting", sample=s, text=t, gold=g, correct=False, base_text=b)
        for s, t, g, b in zip(samples(gold), said, gold, base, strict=True)
    ]
    accuracy, error = counting.score(answers, [2, 2, 4])
    assert accuracy.value == pytest.approx(3 / 5) and accuracy.base == pytest.approx(2 / 5)
    assert error.value == pytest.approx((0 + 1 + 0 + 5 + 0) / 5) and error.base == pytest.approx((1 + 3 + 2) / 5)
    assert accuracy.yardsticks == {"constant": pytest.approx(2 / 5)} and error.yardsticks == {"constant": 6 / 5}
    assert accuracy.note == "1 of 5 answers have no number"


def test_the_whole_path() -> None:
    given = samples(["one", "two", "三つ", "4", "none", "many"])
    found = task.evaluate(testing.tiny_model(), "counting", given, train=given, max_new_tokens=2)
    assert [(s.metric, s.n) for s in found] == [("accuracy", 5), ("mean absolute error", 5)]
    assert all(s.low is not None and s.base is not None and s.yardsticks for s in found)
    with pytest.raises(DataError, match="2 samples for counting"):
        task.evaluate(testing.tiny_model(), "counting", given[:2])
    assert "counting" not in task.scorable(given)
