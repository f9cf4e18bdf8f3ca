"""Losses by name: a function (model, inputs, items) -> scalar, where a recipe's stage says `loss: <its name>`.

`inputs` is what the collator gives the model's forward, labels included, and beside that what only a loss reads
(`types.FOR_LOSSES`), which has to be taken out before the forward. Where rows begin alike, their common beginning is
cut off and in `cache`, which one forward uses up: a second one needs a deep copy. `items` is the number of what the
loss is a mean over (`label_tokens` or `answered` samples) in the whole optimiser step, all of its batches and
processes together; so the sum over the batches is the mean over the step, however they are cut. None = this batch's.

Shapes: B rows, T positions, L label positions of the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.data.prompt import IGNORE
from tsugiki.data.steps import turns
from tsugiki.errors import UnknownNameError
from tsugiki.types import FOR_LOSSES

Loss = Callable[[nn.Module, Mapping[str, Any], Tensor | int | None], Tensor]
Count = Callable[[Mapping[str, Any]], int]
_LOSSES: dict[str, Loss] = {}
_COUNTS: dict[str, Count] = {}


def label_tokens(batch: Mapping[str, Any]) -> int:
    """Positions that are scored."""
    return int(batch["labels"][:, 1:].ne(IGNORE).sum())


def text_labels(batch: Mapping[str, Any]) -> int:
    """Those of them that stand in rows without a picture."""
    scored = batch["labels"][:, 1:].ne(IGNORE)
    pictures = batch.get("image_index")
    return int((scored if pictures is None else scored[(pictures < 0).all(1)]).sum())


def tokens(batch: Mapping[str, Any]) -> int:
    """Positions that are not padding; of packed rows all."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


def answered(batch: Mapping[str, Any]) -> int:
    """Samples with any label."""
    return int(batch["labels"][:, 1:].ne(IGNORE).any(1).sum())


def loss(function: Loss, over: Count = label_tokens) -> Loss:
    """Register a loss under the function's own name; `over` counts what it is a mean over."""
    name = function.__name__
    if name in _LOSSES:
        raise ValueError(f"two losses are called {name!r}: {_LOSSES[name].__module__} and {function.__module__}")
    _LOSSES[name], _COUNTS[name] = function, over
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


def count(name: str, batch: Mapping[str, Any]) -> int:
    """How many of a batch's `items` the loss of that name is a mean over."""
    return _COUNTS[name](batch)


@loss
def per_token(model: nn.Module, inputs: Mapping[str, Any], items: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of the next token, nats, mean over all label tokens of the step.

    The model computes logits at label positions only, so this is one number per token and not one per position.
    """
    total: Tensor = model(**_forward(inputs), num_items_in_batch=items).loss
    return total


@partial(loss, over=answered)
def per_query(model: nn.Module, inputs: Mapping[str, Any], items: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of the next token, nats, mean over a sample's label tokens; mean over samples.

    A long answer counts as much as a short one. MMICT's code (2312.06363) divides a batch's mean over tokens by the
    number of groups once more on one path, and not on another; this is the mean that both stand for.
    """
    scored = inputs["labels"][:, 1:] != IGNORE  # [B, T - 1]
    rows = scored.nonzero()[:, 0]  # [L], in the order of the logits
    return _weighted(model, inputs, rows, 1 / torch.bincount(rows)[rows], items)


@partial(loss, over=answered)
def per_step(model: nn.Module, inputs: Mapping[str, Any], items: Tensor | int | None = None) -> Tensor:
    """The sum over an answer's steps of w_k times the mean cross-entropy within step k, nats; mean over samples.

    A step counts the same however long it is, where `per_token` gives a step the weight of its length: a box of 25
    tokens as much as five words. w_k is 1 unless `step_weights` [B, K] says otherwise; without `steps` [B, T] every
    assistant message is one step. Reconstructed from LynX (2410.10491): the paper sums losses of the steps, and does
    not say how each of them is normalised.
    """
    labels = inputs["labels"]
    scored = labels[:, 1:] != IGNORE  # [B, T - 1]
    rows = scored.nonzero()[:, 0]  # [L], in the order of the logits
    steps = inputs.get("steps")
    steps = (turns(labels) if steps is None else steps)[:, 1:][scored]  # [L]
    _, which, sizes = torch.unique(rows * labels.shape[1] + steps, return_inverse=True, return_counts=True)
    shares = 1 / sizes[which]  # [L]
    if (weights := inputs.get("step_weights")) is not None:
        shares = shares * weights[rows, steps]
    return _weighted(model, inputs, rows, shares, items)


def _weighted(
    model: nn.Module, inputs: Mapping[str, Any], rows: Tensor, shares: Tensor, items: Tensor | int | None
) -> Tensor:
    """The sum of the label tokens' losses, each times its share, over the number of samples.

    Args:
        rows: int64 [L], whose token it is.
        shares: float [L].
    """
    labels = inputs["labels"]
    scored = labels[:, 1:] != IGNORE  # [B, T - 1]
    output = model(**_forward(inputs))
    logits = output.logits.flatten(0, -2).float()  # [L, V]
    nats = F.cross_entropy(logits, labels[:, 1:][scored].to(logits.device), reduction="none")
    total: Tensor = (nats * shares.to(nats)).sum()
    if output.get("penalty") is not None:  # of the grafts: the mean over a row's tokens, like the rest
        total = total + (output.penalty / torch.bincount(rows)[rows].to(output.penalty)).sum()
    return total / (items if items is not None else max(answered(inputs), 1))


def _forward(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in FOR_LOSSES}
