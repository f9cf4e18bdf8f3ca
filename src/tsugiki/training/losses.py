"""Losses by name: a function (model, inputs, items) -> scalar, where a recipe's stage says `loss: <its name>`.

`inputs` is what the collator gives the model's forward, labels included. Where rows begin alike, their common beginning
is cut off and in `past_key_values`, which one forward uses up: a second one needs a deep copy. `items` is the number of
label tokens of the whole step (over gradient accumulation), so that the sum over its batches is the mean over all its
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tsugiki.errors import UnknownNameError

Loss = Callable[[nn.Module, Mapping[str, Any], Tensor | int | None], Tensor]
_LOSSES: dict[str, Loss] = {}


def loss(function: Loss) -> Loss:
    """Register a loss under the function's own name."""
    name = function.__name__
    if name in _LOSSES:
        raise ValueError(f"two losses are called {name!r}: {_LOSSES[name].__module__} and {function.__module__}")
    _LOSSES[name] = function
    return function


def available() -> list[str]:
    """Names of all losses, sorted."""
    return sorted(_LOSSES)


def get(name: str, *, where: str = "") -> Loss:
    """Return a loss by name.

    Raises:
        UnknownNameError: no loss of that name.
    """
    if name not in _LOSSES:
        raise UnknownNameError("loss", name, available(), where=where)
    return _LOSSES[name]


@loss
def per_token(model: nn.Module, inputs: Mapping[str, Any], items: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of the next token, nats, mean over all label tokens of the step.

    The model computes logits at label positions only, so this is one number per token and not one per position.
    """
    total: Tensor = model(**inputs, num_items_in_batch=items).loss
    return total
