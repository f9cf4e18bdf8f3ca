"""Sentences about scores: nothing is better than it is."""

from __future__ import annotations

from typing import Any

import pytest

from tsugiki.evals.task import Answer
from tsugiki.studies._words import beside, sentences
from tsugiki.testing import tiny_images
from tsugiki.types import Check, Message, Proof, Sample, Score


def scores(value: float, minus: tuple[float, float], **yardsticks: float) -> list[Score]:
    common: dict[str, Any] = {"task": "decisions/decision", "stderr": 0.05, "n": 40}
    accuracy = Score(
        metric="accuracy", value=value, low=value - 0.1, high=value + 0.1, base=0.3, yardsticks=yardsticks, **common
    )
    others = [
        Score(metric=f"accuracy minus {n}", value=value - v, low=minus[0], high=minus[1], **common)
        for n, v in yardsticks.items()
    ]
    return [accuracy, *others, Score(metric="macro-F1", value=value, **common)]


def test_a_probe_that_is_clearly_better() -> None:
    headline, better = sentences(
        scores(0.7, (-0.22, -0.08), constant=0.5, probe=0.85)[:1] + scores(0.7, (-0.22, -0.08), probe=0.85)[1:], None
    )
    assert headline == (
        "decisions/decision: 70 % right [60 to 80] on 40 held-out items; the bare LLM without the picture 30 %, "
        "constant 50 %, probe 85 %."
    )
    assert "linear probe on the same picture features is better than the graft by 15.0 points" in better
    assert "paired 95 % interval 8.0 to 22.0" in better and "enough" in better


def test_a_probe_that_may_be_better() -> None:
    _, better = sentences(scores(0.7, (-0.2, 0.05), probe=0.75), None)
    assert "better than the graft by 5.0 points, though these 40 items do not tell the two apart" in better


def test_the_best_simpler_learner_is_named() -> None:
    _, better = sentences(scores(0.7, (-0.4, -0.1), **{"probe": 0.75, "k-NN": 0.9}), None)
    assert better.startswith("decisions/decision: the vote of the nearest training pictures")


def test_a_graft_that_beats_them() -> None:
    assert len(sentences(scores(0.9, (0.05, 0.3), constant=0.5, probe=0.7), None)) == 1


def test_not_better_than_a_constant() -> None:
    *_, last = sentences(scores(0.6, (-0.05, 0.2), constant=0.5), None)
    assert "not shown to be better than always giving the commonest answer" in last


def test_boxes_and_free_answers() -> None:
    box = Score(task="grounding/box", metric="Acc@0.5", value=0.1, stderr=0.1, n=9, yardsticks={"ridge": 0.5})
    free = Score(task="vqa/decision", metric="exact match", value=0.4, stderr=0.1, n=9)
    first, better, last = sentences([box, free], None)
    assert "(boxes): 10 % right on 9" in first and "ridge regression" in better
    assert "word for word" in last


@pytest.mark.parametrize(("guarantee", "holds"), [("exact", True), ("bounded", True), ("exact", False)])
def test_the_proof(guarantee: Any, holds: bool) -> None:
    proof = Proof(
        holds=holds, guarantee=guarantee, how="untouched", prefix_exact=True, base={}, graft_sha256="", environment={},
        checks=(Check(name="logits", holds=holds, detail=""),), prompts=64, answers=20,
    )  # fmt: skip
    (said,) = sentences([], proof)
    wanted = "64 prompts and 20" if guarantee == "exact" else "retention"
    assert (wanted if holds else "does NOT hold (logits)") in said


def answers(right: str) -> list[Answer]:
    """One answer a letter, y for a right one; "-" was not asked."""
    asked = [(i, r) for i, r in enumerate(right) if r != "-"]
    picture = [tiny_images(1)[0] for _ in right]
    messages = {i: (Message.of("user", "?", (picture[i],)), Message.of("assistant", "a")) for i, _ in asked}
    samples = {i: Sample(id=str(i), messages=messages[i], task="naming") for i, _ in asked}
    return [Answer(task="decisions", sample=samples[i], text="", gold="a", correct=r == "y") for i, r in asked]


def test_two_models_on_what_both_were_asked() -> None:
    said = beside("naming", ("new", answers("yyyn--")), ("old", answers("ynnnyy")))
    assert said is not None
    assert said.startswith("naming, the same 4 items: new 75 %, old 25 %; difference +50 points [")
    assert beside("naming", ("new", answers("y")), ("old", answers("y"))) is None
    assert beside("naming", ("new", []), ("old", answers("yy"))) is None
