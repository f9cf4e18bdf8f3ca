"""Losses by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training._tiny import cache, marked, model, recipe

from tsugiki.errors import UnknownNameError
from tsugiki.testing import tiny_images, tiny_model
from tsugiki.training import losses
from tsugiki.training.trainer import train
from tsugiki.types import ImagePart, Message, Sample, TextPart


def test_an_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'per_token'"):
        losses.get("per_tokens")


def test_a_name_belongs_to_one_function() -> None:
    def per_token(model: Any, inputs: Any, items: Any) -> Any:
        return None

    with pytest.raises(ValueError, match="two losses"):
        losses.loss(per_token)
    assert losses.available() == ["per_query", "per_step", "per_token"]


def test_per_token_against_a_loop_in_float64() -> None:
    model = tiny_model().double()
    pictures = tiny_images(2)
    samples = [
        Sample(id="a", messages=(Message.of("user", "What?", (pictures[0],)), Message.of("assistant", "A cat."))),
        Sample(id="b", messages=(Message.of("user", "Where is it?", (pictures[1],)), Message.of("assistant", "右"))),
    ]
    inputs = model.encode_samples(samples, labels=True).inputs()
    labels = inputs.pop("labels")
    with torch.no_grad():
        found = losses.get("per_token")(model, {**inputs, "labels": labels}, None)
        logits = model(**inputs).logits
    total, count = 0.0, 0
    for row in range(2):
        for t in range(labels.shape[1] - 1):
            target = int(labels[row, t + 1])
            if target >= 0:
                scores = logits[row, t].double()
                total += float(scores.exp().sum().log() - scores[target])
                count += 1
    assert float(found) == pytest.approx(total / count, rel=1e-5)
    with torch.no_grad():
        halved = losses.get("per_token")(model, {**inputs, "labels": labels}, torch.tensor(2 * count))
    assert float(halved) == pytest.approx(total / count / 2, rel=1e-5)


# --- per step ---


def stepped(*lines: str, id: str = "s", picture: int = 0, **meta: Any) -> Sample:
    """An answer in steps of one part each."""
    question = Message("user", (ImagePart(tiny_images(3)[picture]), TextPart("Where is it?" * (1 + picture))))
    answer = Message("assistant", tuple(TextPart(line) for line in lines))
    return Sample(id=id, messages=(question, answer), meta={"steps": [1] * len(lines), **meta})


def encoded(built: Any, samples: list[Sample]) -> dict[str, Any]:
    batch = built.encode_samples(samples, labels=True)
    return {**batch.inputs(), **batch.for_losses()}


@torch.no_grad()
def by_loop(built: Any, inputs: dict[str, Any], items: int | None = None) -> float:
    """The formula of the docstring, row by row, step by step."""
    labels, steps, weights = inputs["labels"], inputs.get("steps"), inputs.get("step_weights")
    kept = {k: v for k, v in inputs.items() if k not in ("labels", "steps", "step_weights")}
    logits = built(**kept).logits.double()
    total = 0.0
    for row in range(len(labels)):
        nats: dict[int, list[float]] = {}
        turn, inside = -1, False
        for t in range(labels.shape[1] - 1):
            target = int(labels[row, t + 1])
            turn, inside = turn + int(target >= 0 and not inside), target >= 0
            if target >= 0:
                step = turn if steps is None else int(steps[row, t + 1])
                scores = logits[row, t]
                nats.setdefault(step, []).append(float(torch.logsumexp(scores, 0) - scores[target]))
        for step, each in nats.items():
            weight = 1.0 if weights is None else float(weights[row, step])
            total += weight * sum(each) / len(each)
    return total / (items or len(labels))


TALK = (Message.of("user", "q"), Message.of("assistant", "x"), Message.of("user", "q"), Message.of("assistant", "yyyy"))
SETS = {
    "alone": [stepped("One is here.\n", "二つ目\n", "end")],
    "weighted": [stepped("One is here.\n", "b", step_weights=[0.5, 2]), stepped("a\n", "b", "c\n", "ddd", picture=1)],
    "mixed": [stepped("a\n", "bbbbb", picture=2), Sample(id="t", messages=TALK)],
    "unmarked": [Sample(id="t", messages=TALK), Sample(id="u", messages=TALK[:2])],
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("items", [None, 5])
def test_per_step_against_a_loop_in_float64(name: str, items: int | None) -> None:
    built = tiny_model().double()
    inputs = encoded(built, SETS[name])
    assert ("steps" in inputs) is (name != "unmarked")
    given = None if items is None else torch.tensor(items)
    found = losses.get("per_step")(built, inputs, given).detach()
    assert float(found) == pytest.approx(by_loop(built, inputs, items), rel=1e-5)


@pytest.mark.parametrize("items", [None, 5])
def test_per_query_against_a_loop_in_float64(items: int | None) -> None:
    built = tiny_model().double()
    inputs = encoded(built, SETS["mixed"] + SETS["weighted"])
    with torch.no_grad():
        logits = built(**{k: v for k, v in inputs.items() if k not in ("labels", "steps", "step_weights")}).logits
        found = losses.get("per_query")(built, inputs, None if items is None else torch.tensor(items))
    total, labels = 0.0, inputs["labels"]
    for row in range(len(labels)):
        nats = [
            float(torch.logsumexp(logits[row, t], 0) - logits[row, t, labels[row, t + 1]])
            for t in range(labels.shape[1] - 1)
            if labels[row, t + 1] >= 0
        ]
        total += sum(nats) / len(nats)
    assert float(found) == pytest.approx(total / (items or len(labels)), rel=1e-5)


def test_equal_lengths_give_the_loss_per_token_for_each_step() -> None:
    built = tiny_model()
    inputs = encoded(built, [stepped("abc\n", "def\n", "ghi"), stepped("jkl\n", "mno\n", "pqr", picture=1)])
    with torch.no_grad():  # three steps of four tokens, the end of the turn included
        own, other = (float(losses.get(name)(built, inputs, None)) for name in ("per_step", "per_token"))
    assert own == pytest.approx(3 * other, rel=1e-5)
    uneven = encoded(built, [stepped("a\n", "a much longer step", picture=1)])
    with torch.no_grad():
        own, other = (float(losses.get(name)(built, uneven, None)) for name in ("per_step", "per_token"))
    assert own != pytest.approx(2 * other, rel=1e-3)


def test_a_sample_alone_is_the_sample_in_a_batch() -> None:
    built, rows = tiny_model(), SETS["weighted"] + SETS["mixed"]
    with torch.no_grad():
        one = [float(losses.get("per_step")(built, encoded(built, [row]), None)) for row in rows]
        together = float(losses.get("per_step")(built, encoded(built, rows), None))
        halves = [
            float(losses.get("per_step")(built, encoded(built, part), len(rows))) for part in (rows[:3], rows[3:])
        ]
    assert together == pytest.approx(sum(one) / len(one), rel=1e-4)
    assert together == pytest.approx(sum(halves), rel=1e-4)


def test_items_are_what_a_loss_is_a_mean_over() -> None:
    inputs = encoded(tiny_model(), SETS["mixed"])
    assert losses.count("per_token", inputs) == int((inputs["labels"] >= 0).sum())
    assert losses.count("per_step", inputs) == 2
    inputs["labels"][1] = -100
    assert losses.count("per_step", inputs) == 1


def test_the_mean_over_samples_is_that_of_the_whole_optimiser_step(tmp_path: Path) -> None:
    found = []
    for size, batches in ((4, 1), (2, 2), (1, 4)):
        built = model()
        fields = recipe(loss="per_step", batch_size=size, gradient_accumulation=batches, steps=4, length_grouping=False)
        done = train(
            built, fields, tmp_path / str(size), data=marked(), progress=False, features=cache(built, tmp_path)
        )
        found.append(done.losses)
    assert found[1] == pytest.approx(found[0], rel=1e-4) and found[2] == pytest.approx(found[0], rel=1e-4)
