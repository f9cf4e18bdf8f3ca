"""Boxes of answers: what can be read in a text, and how much two boxes have in common."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.types import Box

# A bracket at the start, a square bracket with a digit, or two numbers in any other bracket; closed or cut off.
_LIKE_A_BOX = re.compile(r"^\s*\[|\[[^\[\]]*\d|[({<]\s*[-+]?\.?\d[\d.]*\s*[,;]\s*[-+]?\.?\d")


@dataclass(frozen=True, slots=True)
class Reply:
    """What an answer says: its text (NFKC) and its readable boxes, in pixels of the picture."""

    text: str
    boxes: tuple[Box, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    """Where each box stands in the text."""

    @classmethod
    def read(cls, text: str, codec: BoxCodec, square: PaddedSquare) -> Reply:
        """The text as an answer about the picture in `square`."""
        found = codec.locate(text, square)
        spans, boxes = tuple(span for span, _ in found), tuple(box for _, box in found)
        return cls(unicodedata.normalize("NFKC", text), boxes, spans)

    @property
    def failed(self) -> bool:
        """Does it try to give a box, and none can be read?"""
        return not self.boxes and bool(_LIKE_A_BOX.search(self.text))

    @property
    def words(self) -> tuple[str, ...]:
        """What stands before each box, from the box before it on."""
        starts = (0, *(end for _, end in self.spans))
        return tuple(self.text[start:end] for start, (end, _) in zip(starts, self.spans, strict=False))

    @property
    def numbers(self) -> tuple[int, ...]:
        """For each box the number of its line (blank ones do not count), on one line that of the box; () for one box.

        In an answer by steps a line is a step.
        """
        if len(lines_of(self.text)) > 1:
            return tuple(max(1, len(lines_of(self.text[:end]))) for _, end in self.spans)
        return tuple(range(1, len(self.boxes) + 1)) if len(self.boxes) > 1 else ()


def lines_of(text: str) -> list[str]:
    """The lines that are not blank, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes in the same units, 0 where they do not touch."""
    width = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1))
    height = max(0.0, min(a.y2, b.y2) - max(a.y1, b.y1))
    common = width * height
    return common / (a.width * a.height + b.width * b.height - common) if common else 0.0
