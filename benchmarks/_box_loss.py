"""An arm of `boxes.py`: a regression of the box on the LLM's hidden state before it, beside the loss per token.

The head [D -> 4] reads the state that predicts a box's opening bracket; smooth L1 plus generalised intersection over
union (1902.09630) against the gold box. It trains at a rate of its own, and is gone after the training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.data.boxes import BoxCodec
from tsugiki.training import losses

_NUMBER = re.compile(r"[0-9.]+")


class BoxLoss:
    """Registered as the loss `per_token_and_box`.

    Args:
        model: the one that trains.
        weight: of the regression, beside nats per token.
        rate: AdamW's for the head.
    """

    def __init__(self, model: Any, *, weight: float, rate: float = 1e-3) -> None:
        self.weight, self.codec, self.tokenizer = weight, model.processor.codec, model.tokenizer
        self.head = nn.Linear(model.decoder.hidden_size, 4)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():  # a box in the middle
            self.head.bias.copy_(torch.tensor([0.25, 0.25, 0.75, 0.75]))
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=rate)
        self.seen: Tensor | None = None
        self.values: list[float] = []
        model.decoder.head.register_forward_pre_hook(self._see)

        def per_token_and_box(model: nn.Module, inputs: Mapping[str, Any], items: Any = None) -> Tensor:
            return self(model, inputs, items)

        losses.loss(per_token_and_box)

    def _see(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.seen = args[0]

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any], items: Any) -> Tensor:
        if self.head.weight.grad is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        output = model(**inputs, num_items_in_batch=items)
        assert self.seen is not None
        places, gold = openings(output.label_ids, self.tokenizer, self.codec)
        if not places:
            return output.loss  # type: ignore[no-any-return]
        states = self.seen.reshape(-1, self.seen.shape[-1])[places]
        loss = regression(self.head(states), gold)
        self.values.append(float(loss.detach()))
        return output.loss + self.weight * loss  # type: ignore[no-any-return]


def openings(label_ids: Tensor, tokenizer: Any, codec: BoxCodec) -> tuple[list[int], Tensor]:
    """Where boxes begin among the label tokens [L], and the boxes [n, 4] in [0, 1] that follow."""
    words = [tokenizer.decode([i]) for i in label_ids.tolist()]
    places, boxes = [], []
    for place, word in enumerate(words):
        if word.strip() == "[":
            numbers = _NUMBER.findall("".join(words[place : place + 40]).partition("]")[0])
            if len(numbers) == 4:
                places.append(place)
                boxes.append([float(n) / codec.scale for n in numbers])
    return places, torch.tensor(boxes).reshape(-1, 4)


def regression(boxes: Tensor, gold: Tensor) -> Tensor:
    """Mean of smooth L1 (bend at 0.1) and 1 - generalised IoU over boxes [n, 4], xyxy."""

    def area(b: Tensor) -> Tensor:
        return (b[:, 2:] - b[:, :2]).clamp(min=0).prod(dim=1)

    inner = torch.cat([torch.maximum(boxes[:, :2], gold[:, :2]), torch.minimum(boxes[:, 2:], gold[:, 2:])], dim=1)
    outer = torch.cat([torch.minimum(boxes[:, :2], gold[:, :2]), torch.maximum(boxes[:, 2:], gold[:, 2:])], dim=1)
    union = (area(boxes) + area(gold) - area(inner)).clamp(min=1e-6)
    giou = area(inner) / union - (area(outer) - union) / area(outer).clamp(min=1e-6)
    return F.smooth_l1_loss(boxes, gold, beta=0.1) + (1 - giou).mean()
