"""Saying yes to what is not there."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from tsugiki import testing
from tsugiki.errors import DataError
from tsugiki.evals import task
from tsugiki.evals.task import Answer
from tsugiki.evals.tasks import absent
from tsugiki.types import Message, Sample


def samples(n: int) -> list[Sample]:
    return [
        Sample(
            id=str(i),
            messages=(Message.of("user", f"Is there a cup {i}?", (p,)), Message.of("assistant", ("yes", "no")[i % 2])),
            task="presence",
            options=("yes", "no"),
            meta={"negatives": "random" if i < n // 2 else "popular"},
        )
        for i, p in enumerate(testing.tiny_images(n))
    ]


def test_rates_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    said, gold = rng.integers(0, 2, 50).astype(bool), rng.integers(0, 2, 50).astype(bool)
    for name, theirs in (("precision", precision_score), ("recall", recall_score), ("F1", f1_score)):
        assert absent.rate(name, said, gold) == pytest.approx(theirs(gold, said))
        assert absent.rate(name, np.zeros(3, bool), np.zeros(3, bool)) == 0


def test_score() -> None:
    given = samples(8)
    texts = ["yes", "yes", "yes", "no", "no", "no", "yes", "yes"]
    answers = [
        Answer(task="absent", sample=s, text=t, gold=("yes", "no")[i % 2], correct=False, base_text="yes")
        for i, (s, t) in enumerate(zip(given, texts, strict=True))
    ]
    found = {s.metric: s for s in absent.score_group("absent/any", answers)}
    assert found["precision"].value == pytest.approx(3 / 5) and found["recall"].value == pytest.approx(3 / 4)
    assert found["accuracy"].value == pytest.approx(5 / 8) and found["share of yes"].value == pytest.approx(5 / 8)
    assert found["recall"].base == 1 and found["accuracy"].yardsticks == {"constant": 0.5}
    assert all(s.low is not None and s.difference is not None for s in found.values())


def test_the_whole_path() -> None:
    found = task.evaluate(testing.tiny_model(), "absent", samples(12))
    assert {s.task for s in found} == {"absent/random", "absent/popular"}
    assert [s.metric for s in found[:5]] == ["accuracy", "precision", "recall", "F1", "share of yes"]
    with pytest.raises(DataError, match="3 samples for absent"):
        task.evaluate(testing.tiny_model(), "absent", samples(3))
