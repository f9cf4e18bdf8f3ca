"""Free answers: normalisation, and the figures around exact match."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugiki import testing
from tsugiki.evals import task
from tsugiki.evals.free import FreeAnswerer
from tsugiki.evals.task import Answer
from tsugiki.evals.tasks import vqa
from tsugiki.types import Box, BoxPart, Message, Sample


def questions(n: int) -> list[Sample]:
    return [
        Sample(
            id=f"q{i}",
            messages=(Message.of("user", "What?", (p,)), Message.of("assistant", "two" if i % 2 else "a cat")),
            task="naming",
        )
        for i, p in enumerate(testing.tiny_images(n))
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Cat.", "cat"),
        ("the  red apple!", "red apple"),
        ("Two", "2"),
        ("1,234.5 kg", "1234.5 kg"),
        ("It's 3, 4", "its 3 4"),
        ("ＡＢＣ１２", "abc12"),
        ("猫です。", "猫です"),
        ("「赤い リンゴ」", "赤い リンゴ"),
        ("t-shirt", "t shirt"),
        ("", ""),
        ("...", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert vqa.normalise(text) == expected


@given(st.text())
def test_normalise_settles(text: str) -> None:
    once = vqa.normalise(text)
    assert vqa.normalise(once + "!") in {once, vqa.normalise(once)}


def test_matches_any_of_the_accepted_answers() -> None:
    sample = replace(questions(1)[0], meta={"answers": ["kitty", 7]})
    assert all(vqa.matches(text, sample) for text in ("Cat", "a cat!", "KITTY", "seven"))
    assert not vqa.matches("cats", sample)


def test_the_whole_path() -> None:
    model = testing.tiny_model()
    result = task.measure(model, "vqa", questions(5), train=questions(9), max_new_tokens=3, batch_size=2)["vqa"]
    (score,) = result.scores
    assert (score.task, score.metric, score.n) == ("vqa/naming", "exact match", 5)
    assert score.base is not None and score.low is not None
    assert score.yardsticks["constant"] == pytest.approx(sum(a.gold == "a cat" for a in result.answers) / 5)
    assert len({a.base_text for a in result.answers}) == 1 and len({a.text for a in result.answers}) > 1
    # What is scored is what chat would say to the same question.
    sample = result.answers[0].sample
    alone = FreeAnswerer(model, max_new_tokens=3)([sample])
    assert alone == [result.answers[0].text]


def test_score_pairs_with_the_base() -> None:
    sample = questions(1)[0]
    answers = [
        Answer(task="vqa", sample=replace(sample, id=str(i)), text="cat", gold="a cat", correct=True, base_text=base)
        for i, base in enumerate(["dog"] * 12 + ["A cat"] * 8)
    ]
    score = vqa.score("vqa/naming", answers, "cat")
    assert (score.value, score.base, score.difference) == (1.0, pytest.approx(0.4), pytest.approx(0.6))
    assert score.yardsticks == {"constant": 1.0}


def test_what_is_selected() -> None:
    good = questions(1)[0]
    boxed = replace(good, messages=(*good.prompt, Message("assistant", (BoxPart(Box(0, 0, 1, 1)),))))
    sentence = replace(good, meta={"form": "full"})
    others = [boxed, sentence, replace(good, task="caption"), replace(good, messages=good.prompt)]
    assert vqa.select([good, *others]) == [good]
