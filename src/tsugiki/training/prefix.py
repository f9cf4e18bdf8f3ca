"""What all rows of a batch begin with, run once: its keys and values are constants of a frozen LLM.

The system prompt and the header of the question stand before the first picture in every sample of a task. Where the
graft leaves what stands there as the base has it, those positions need neither a forward in each step nor a backward.
Loss and gradients are those of the whole rows, to numeric noise. Shapes: B rows, T positions, P of them in the prefix.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from tsugiki.types import FOR_LOSSES, TEXT

LEAST = 4
"""Shorter prefixes are not worth a cache."""
REMEMBER = 4
"""Prefixes whose keys and values are kept."""
_BY_POSITION = ("input_ids", "token_kind", "image_index", "labels")
_PICTURES = ("pixel_values", "vision_features", "image_text", "image_form")
_KNOWN = {*_BY_POSITION, *_PICTURES, "attention_mask", *FOR_LOSSES}


class SharedPrefix:
    """Cuts a training batch down to what follows the common prefix, and gives it the prefix as its past.

    It belongs to whoever trains, and lives as long as the LLM's weights stay the same. The cache that it hands out is
    for one forward, which appends to it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._known: OrderedDict[tuple[int, ...], DynamicCache] = OrderedDict()

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The forward's keywords, with `cache` where a prefix is shared, else as they came."""
        length = common(inputs) if _KNOWN.issuperset(inputs) and constant(self.model) else 0
        past = self._past(inputs["input_ids"], length) if length >= LEAST else None
        if past is None:
            return dict(inputs)
        rest = {name: inputs[name][:, length:] for name in (*_BY_POSITION, "steps") if name in inputs}
        return {**inputs, **rest, "cache": past, "use_cache": True}

    def _past(self, input_ids: Tensor, length: int) -> DynamicCache | None:
        """A cache of B rows, or None where the LLM keeps more than keys and values."""
        ids = tuple(input_ids[0, :length].tolist())
        if ids not in self._known:
            cache = DynamicCache(config=self.model.language_model.config)
            with torch.no_grad():  # a request without an image: the LLM alone, under the forward's own autocast
                self.model(input_ids=input_ids[:1, :length], cache=cache, use_cache=True)
            self._known[ids] = cache
            if len(self._known) > REMEMBER:
                self._known.popitem(last=False)
        self._known.move_to_end(ids)
        if not all(isinstance(layer, DynamicLayer) for layer in self._known[ids].layers):
            return None
        past = copy.deepcopy(self._known[ids])
        past.batch_repeat_interleave(input_ids.shape[0])
        return past


def constant(model: Any) -> bool:
    """Whether keys and values before the first picture are the same in every step: a frozen LLM that no graft changes
    there."""
    return bool(model.prefix_exact) and not any(p.requires_grad for p in model.language_model.parameters())


def common(inputs: Mapping[str, Tensor]) -> int:
    """P: tokens that all rows begin with, before any picture and any position that has to be scored.

    Args:
        inputs: input_ids, attention_mask, labels [B, T]; token_kind and image_index, without which P is 0.
    """
    if not {*_BY_POSITION, "attention_mask"}.issubset(inputs):
        return 0
    ids, scored = inputs["input_ids"], inputs["labels"][:, 1:] != -100  # [B, T - 1], the position before a label
    plain = (inputs["token_kind"] == TEXT) & (inputs["image_index"] < 0) & (inputs["attention_mask"] == 1)
    shared = ((ids == ids[:1]) & plain).all(0)[:-1] & ~scored.any(0)  # the last position stays, whatever it is
    return int(shared.long().cumprod(0).sum())
