"""Losses by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tsugiki.errors import UnknownNameError
from tsugiki.testing import tiny_images, tiny_model
from tsugiki.training import losses
from tsugiki.types import Message, Sample


def test_an_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'per_token'"):
        losses.get("per_tokens")


def test_a_name_belongs_to_one_function() -> None:
    def per_token(model: Any, inputs: Any, items: Any) -> Any:
        return None

    with pytest.raises(ValueError, match="two losses"):
        losses.loss(per_token)
    assert losses.available() == ["per_step", "per_token"]


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
