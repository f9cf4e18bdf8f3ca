"""Overlap of boxes (torchvision, which has it, is no dependency)."""

from __future__ import annotations

from tsugiki.types import Box


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes in the same units, 0 where they do not touch."""
    width = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1))
    height = max(0.0, min(a.y2, b.y2) - max(a.y1, b.y1))
    common = width * height
    return common / (a.width * a.height + b.width * b.height - common) if common else 0.0
