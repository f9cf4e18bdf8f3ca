"""Closed-set decisions: the figures, their errors, the bare LLM and the yardsticks beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, recall_score
from transformers import AutoModelForCausalLM

import tsugiki
from tsugiki import testing
from tsugiki.errors import DataError
from tsugiki.evals import task
from tsugiki.evals.task import Answer
from tsugiki.evals.tasks import decisions
from tsugiki.types import Message, Sample, Score

COLOURS = ("red", "green", "blue")


def pictures(n: int, *, kind: str = "colour", seed: int = 0) -> list[Sample]:
    """Plain pictures; what is asked for is their colour."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        name = COLOURS[i % 3]
        pixel = [int(v) for v in rng.integers(0, 60, 3)]
        pixel[i % 3] = int(rng.integers(180, 255))
        image = Image.new("RGB", (32, 32), tuple(pixel))
        found.append(
            Sample(
                id=f"{kind}{i}",
                messages=(Message.of("user", "Which colour?", (image,)), Message.of("assistant", name)),
                task=kind,
                options=COLOURS,
            )
        )
    return found


def by_metric(scores: list[Score]) -> dict[str, Score]:
    return {s.metric: s for s in scores}


def answer(gold: str, text: str, base: str | None = None, options: tuple[str, ...] = COLOURS) -> Answer:
    sample = Sample(id="x", messages=(Message.of("user", "?"), Message.of("assistant", gold)), options=options)
    return Answer(task="decisions", sample=sample, text=text, gold=gold, correct=text == gold, base_text=base)


def test_the_whole_path() -> None:
    result = task.measure(testing.tiny_model(), "decisions", pictures(24), train=pictures(30, seed=1))["decisions"]
    scores = by_metric(result.scores)
    assert {s.task for s in result.scores} == {"decisions/colour"}
    assert set(scores) == {
        "accuracy",
        "macro-F1",
        "ECE",
        "Brier score",
        *(f"accuracy minus {name}" for name in ("constant", "probe", "k-NN")),
        *(f"recall of {name}" for name in COLOURS),
    }
    accuracy = scores["accuracy"]
    assert accuracy.n == 24 and accuracy.stderr > 0 and accuracy.base is not None and accuracy.difference is not None
    assert accuracy.low is not None and accuracy.high is not None and accuracy.low <= accuracy.value <= accuracy.high
    assert accuracy.value == pytest.approx(np.mean([a.correct for a in result.answers]))
    assert accuracy.yardsticks["probe"] == 1.0 and accuracy.yardsticks["constant"] == pytest.approx(1 / 3)
    minus = scores["accuracy minus probe"]
    assert minus.value == pytest.approx(accuracy.value - 1.0) and minus.low is not None and minus.high is not None
    assert scores["recall of red"].n == 8 and "chance 0.333" in accuracy.note
    assert scores["ECE"].base is not None and scores["ECE"].difference is not None
    assert scores["Brier score"].yardsticks["prior"] == pytest.approx(2 / 3)
    # The bare LLM sees no picture: one answer to all.
    assert len({a.base_text for a in result.answers}) == 1
    assert all(sum(a.probabilities.values()) == pytest.approx(1.0) for a in result.answers)


def test_kinds_are_scored_apart() -> None:
    mixed = [*pictures(6), *pictures(6, kind="shade")]
    found = task.evaluate(testing.tiny_model(), "decisions", mixed)
    assert {s.task for s in found} == {"decisions/colour", "decisions/shade"}


def test_a_changed_llm_is_no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    model = testing.tiny_model()
    monkeypatch.setattr(type(model), "guarantee", "bounded")
    assert all(s.base is None for s in task.evaluate(model, "decisions", pictures(6)))
    beside = task.evaluate(model, "decisions", pictures(6), base=testing.tiny_llm(seed=5))
    assert all(s.base is not None for s in beside)


def test_a_trained_llm_is_compared_with_its_source(tmp_path: Path) -> None:
    testing.tiny_llm().save_pretrained(tmp_path)
    llm = AutoModelForCausalLM.from_pretrained(tmp_path)
    model = tsugiki.attach(llm, "projector", vision=testing.TinyTower(), tokenizer=testing.tiny_tokenizer())
    before = task.measure(model, "decisions", pictures(6))["decisions"]
    model.freeze_llm(False)
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert model.guarantee == "bounded"
    after = task.measure(model, "decisions", pictures(6))["decisions"]
    assert [a.base_text for a in before.answers] == [a.base_text for a in after.answers]
    assert [a.probabilities for a in before.answers] != [a.probabilities for a in after.answers]


def test_mean_normalisation_finishes_every_option() -> None:
    found = task.measure(testing.tiny_model(), "decisions", pictures(6), normalise="mean", tolerance=0.0)
    assert found["decisions"].scores[0].n == 6


def test_macro_f1_and_recall_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 3, 7):
        gold, chosen = rng.integers(0, classes, 60), rng.integers(0, classes + 1, 60)
        expected = f1_score(gold, chosen, average="macro", labels=np.unique(gold), zero_division=0)
        assert decisions.macro_f1(gold, chosen) == pytest.approx(expected)
    names = [COLOURS[i] for i in rng.integers(0, 3, 60)]
    said = [COLOURS[i] for i in rng.integers(0, 3, 60)]
    scores = by_metric(decisions.score("t", [answer(g, t) for g, t in zip(names, said, strict=True)]))
    for name, value in zip(COLOURS, recall_score(names, said, labels=COLOURS, average=None), strict=True):
        assert scores[f"recall of {name}"].value == pytest.approx(value)
    expected = f1_score(names, said, average="macro", labels=np.unique(names))
    assert scores["macro-F1"].value == pytest.approx(expected)


def test_base_is_paired_item_by_item() -> None:
    answers = [answer("red", "red", "blue")] * 10 + [answer("blue", "blue", "blue")] * 30
    scores = by_metric(decisions.score("t", answers, {"constant": ["blue"] * 40}))
    accuracy = scores["accuracy"]
    assert (accuracy.value, accuracy.base, accuracy.difference) == (1.0, 0.75, pytest.approx(0.25))
    assert accuracy.difference_low is not None and accuracy.difference_low > 0
    assert scores["accuracy minus constant"].value == pytest.approx(0.25)
    assert scores["macro-F1"].difference is not None and scores["macro-F1"].difference > 0


def test_many_classes_list_no_recall() -> None:
    names = tuple(f"class {i}" for i in range(30))
    scores = decisions.score("t", [answer(n, n, options=names) for n in names])
    assert not [s for s in scores if s.metric.startswith("recall")]


def test_what_is_selected() -> None:
    good = pictures(1)[0]
    assert decisions.select([good, replace(good, options=()), replace(good, messages=good.prompt)]) == [good]
    with pytest.raises(DataError, match="sample colour0: the gold answer 'red' is none of the 2 options"):
        decisions.select([replace(good, options=("yes", "no"))])
