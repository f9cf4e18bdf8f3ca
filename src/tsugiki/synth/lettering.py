"""Text on a picture, with the exact box of each piece: a sheet of paper that is drawn on, turned and laid down.

Shapes: S side of the picture in pixels. A sheet is as large as the picture; what is not drawn on stays clear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tsugiki.synth import fonts
from tsugiki.synth._shapes import bounds
from tsugiki.types import Box

RGB = tuple[int, int, int]

SMALLEST = 11
"""Pixels of an em: smaller letters can't be told apart."""
_FAINT = 64
"""Coverage (of 255) from which a pixel counts as part of a letter."""


@dataclass(frozen=True, slots=True)
class Written:
    """One piece of text on a picture."""

    text: str
    role: str
    """What it is on its page: word, line, key, value, head, cell, scale or unit."""
    key: str
    """The name of a field, or of the column of a cell; "" elsewhere."""
    row: str
    """The name of the row of a cell; "" elsewhere."""
    box: Box
    """Tight: every edge touches a pixel of a letter. Whole pixels."""

    @property
    def hue(self) -> None:
        """Lists do not name the colour of letters."""

    def name(self, language: str) -> str:
        """Itself, in every language."""
        return self.text


class Sheet:
    """A clear square to draw on."""

    def __init__(self, size: int, face: str) -> None:
        self.size, self.face = size, face
        self.paper = Image.new("RGBA", (size, size))
        self.pen = ImageDraw.Draw(self.paper)
        self._written: list[tuple[str, str, str, str, Image.Image, RGB]] = []

    def font(self, size: float) -> ImageFont.FreeTypeFont:
        """The sheet's face, at least `SMALLEST`."""
        return fonts.load(self.face, max(SMALLEST, round(size)))

    def width(self, text: str, size: float) -> float:
        """How long a text is, in pixels."""
        return float(self.font(size).getlength(text)) + 2 * self._stroke(size)

    def fitting(self, text: str, width: float, height: float) -> float | None:
        """The largest size at which a text fits; None where even the smallest letters do not."""
        size = 0.8 * height
        size *= min(1.0, width / self.width(text, size))
        while size > SMALLEST and self.width(text, size) > width:
            size -= 1
        return size if size >= SMALLEST and self.width(text, size) <= width else None

    def write(
        self,
        text: str,
        at: tuple[float, float],
        size: float,
        ink: RGB,
        *,
        anchor: str = "mm",
        role: str = "line",
        key: str = "",
        row: str = "",
    ) -> None:
        """Write a text; `anchor` says which of its points is `at`, as in Pillow."""
        mask = Image.new("L", self.paper.size)
        stroke = self._stroke(size)
        ImageDraw.Draw(mask).text(at, text, fill=255, font=self.font(size), anchor=anchor, stroke_width=stroke)
        self._written.append((text, role, key, row, mask, ink))

    def lay(self, ground: Image.Image, angle: float = 0.0) -> tuple[Image.Image, tuple[Written, ...]]:
        """The sheet on a picture [S, S], turned by `angle` degrees counter-clockwise about the middle; its texts in
        the order in which they were written, those that lie outside left out."""
        picture = ground.convert("RGB")
        paper = self._turned(self.paper, angle)
        picture.paste(paper.convert("RGB"), mask=paper.getchannel("A"))
        found = []
        for text, role, key, row, mask, ink in self._written:
            turned = self._turned(mask, angle)
            picture.paste(ink, (0, 0, self.size, self.size), turned)
            box = bounds(np.asarray(turned) >= _FAINT)
            if box.width and box.height:
                found.append(Written(text, role, key, row, box))
        return picture, tuple(found)

    def _stroke(self, size: float) -> int:
        return round(fonts.face(self.face).stroke * max(SMALLEST, round(size)))

    @staticmethod
    def _turned(image: Image.Image, angle: float) -> Image.Image:
        return image.rotate(angle, Image.Resampling.BICUBIC) if angle else image


def mixed(first: RGB, second: RGB, share: float) -> RGB:
    """A colour between two: 0 is the first, 1 the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue
