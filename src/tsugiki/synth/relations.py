"""How boxes lie to each other, said only where it is plain: every relation holds by a margin, or is not said.

Boxes are pixels, xyxy; `span` is the longer side of their picture. "above" is nearer to the top. Sizes are areas of
boxes, distances are between centres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tsugiki.types import Box

SIDES = ("left", "right", "above", "below")
MORE = (*SIDES, "larger", "nearer")
"""In what one box can exceed another; "nearer" is to a third one."""

MARGIN = 0.1
"""Of the picture's longer side: centres that are less apart along an axis, or in distance, are not told apart."""
RATIO = 1.5
"""Of areas and distances: less is not said to be larger or nearer."""
STEEP = 2.0
"""Of the two distances along the axes: what lies more slantwise is on no side."""


def side(a: Box, b: Box, span: float) -> str | None:
    """Where `a` is, seen from `b`: beside it without overlap along that axis, and mostly along it; None = not plain."""
    for name in SIDES:
        along, across = _offset(name, a, b), _offset("below" if name in ("left", "right") else "right", a, b)
        if along >= MARGIN * span and along >= STEEP * abs(across) and _apart(name, a, b):
            return name
    return None


def exceeds(relation: str, a: Box, b: Box, span: float, to: Box | None = None) -> bool:
    """Whether `a` is plainly further left, right, up or down than `b`, or larger, or nearer to the box `to`.

    Args:
        relation: of `MORE`.
        to: with "nearer".
    """
    if relation == "larger":
        return a.width * a.height >= RATIO * b.width * b.height
    if relation == "nearer":
        assert to is not None
        one, other = math.dist(a.center, to.center), math.dist(b.center, to.center)
        return other >= RATIO * one and other - one >= MARGIN * span
    return _offset(relation, a, b) >= MARGIN * span


def foremost(relation: str, boxes: Sequence[Box], span: float, to: Box | None = None) -> int | None:
    """The number of the box that plainly exceeds every other one; None = there is none."""
    for i, box in enumerate(boxes):
        if all(exceeds(relation, box, other, span, to) for j, other in enumerate(boxes) if j != i):
            return i
    return None


def _offset(name: str, a: Box, b: Box) -> float:
    """How far the centre of `a` is in a direction from that of `b`."""
    axis = 0 if name in ("left", "right") else 1
    return (a.center[axis] - b.center[axis]) * (1 if name in ("right", "below") else -1)


def _apart(name: str, a: Box, b: Box) -> bool:
    return {"left": a.x2 <= b.x1, "right": b.x2 <= a.x1, "above": a.y2 <= b.y1, "below": b.y2 <= a.y1}[name]
