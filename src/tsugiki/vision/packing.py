"""Views of a picture for several towers as one flat row of numbers, so that batches, caches and models pass on one
tensor whatever the towers' sizes are.

A row holds W numbers first, 1 for a view that is seen and 0 for one of padding alone; then, tower by tower, what
belongs to each view, zeros where it is not seen. Shapes: N pictures, W views, E length of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tsugiki.errors import InputError
from tsugiki.vision.views import TokenCount, Transform, Views


@dataclass(frozen=True)
class Packing:
    """Where what is in a row."""

    views: int
    """W."""
    shapes: tuple[tuple[int, ...], ...]
    """Of one view, for each tower."""

    @property
    def size(self) -> int:
        """E."""
        return self.views * (1 + sum(prod(shape) for shape in self.shapes))

    def pack(self, seen: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """seen bool [N, W] and for each tower [N, W, *shape] -> [N, E] in the parts' dtype."""
        return torch.cat([seen.to(parts[0]), *(part.flatten(1) for part in parts)], dim=1)

    def unpack(self, rows: Tensor, what: str) -> tuple[Tensor, list[Tensor]]:
        """The reverse of `pack`; `what` is named in errors.

        Raises:
            InputError: rows of another form.
        """
        if rows.ndim != 2 or rows.shape[1] != self.size:
            raise InputError(
                f"{what} of shape {list(rows.shape)}",
                expected=f"[N, {self.size}], {self.views} views of {len(self.shapes)} towers in one row",
                fix="Make them with this front-end: its transform, its encode, or a cache of it.",
            )
        lengths = [self.views, *(self.views * prod(shape) for shape in self.shapes)]
        flags, *parts = rows.split(lengths, dim=1)
        seen = flags > 0.5
        seen[:, 0] = True  # the whole square is always seen
        found = zip(parts, self.shapes, strict=True)
        return seen, [part.reshape(len(rows), self.views, *shape) for part, shape in found]


@dataclass(frozen=True)
class ViewTransform:
    """A picture -> the pixels of all its views for all towers, float32 [E]."""

    transforms: tuple[Transform, ...]
    views: Views

    @property
    def packing(self) -> Packing:
        return Packing(self.views.count, tuple((3, t.input_size, t.input_size) for t in self.transforms))

    def __call__(self, image: Image.Image, variant: int = 0) -> Tensor:
        """Of an RGB picture; views of padding alone are not drawn."""
        seen = torch.tensor([self.views.seen(image.size)])  # [1, W]
        wanted, parts = seen[0].nonzero()[:, 0].tolist(), []
        for transform in self.transforms:
            pixels = torch.zeros(1, self.views.count, 3, transform.input_size, transform.input_size)
            pixels[0, wanted] = transform.views(image, self.views, wanted, variant)
            parts.append(pixels)
        return self.packing.pack(seen, parts)[0]


def facts_of(transforms: Sequence[Transform], views: Views, tokens: TokenCount | None) -> dict[str, Any]:
    """JSON values from which a processor is made without towers: of one tower and view, or (`tokens` given) a mix."""
    each = [
        {"normalise": [list(t.mean), list(t.std)], "input_size": t.input_size, "view_size": t.view_size}
        for t in transforms
    ]
    if tokens is None:
        return each[0]
    return {**each[0], "towers": each, "views": views.name, "tokens_of_crop": tokens.crop}


def transform_of(facts: Mapping[str, Any]) -> Transform | ViewTransform:
    """The reverse of `facts_of`."""

    def one(own: Mapping[str, Any]) -> Transform:
        mean, std = (tuple(v) for v in own["normalise"])
        return Transform(mean, std, own["input_size"], own.get("view_size", own["input_size"]))

    if "views" not in facts:
        return one(facts)
    return ViewTransform(tuple(one(own) for own in facts["towers"]), Views(facts["views"]))


def tokens_of(facts: Mapping[str, Any]) -> TokenCount | None:
    """How many visual tokens a picture has, None where all have `tokens_per_image`."""
    views = Views(facts.get("views", "global"))
    return TokenCount(facts["tokens_per_image"], facts["tokens_of_crop"], views) if views.count > 1 else None
