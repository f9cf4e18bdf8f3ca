"""The one coordinate codec: boxes in pixels of the original picture <-> text relative to its padded square.

Every tower sees the whole picture centred in a square, so the text names places in that square: [0, 1] from left to
right and from top to bottom. Units: pixels of the upright original, xyxy, x2 and y2 exclusive.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from tsugiki.errors import BoxError
from tsugiki.types import Box

_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([_NUMBER] * 4) + r"\s*\]")
_SLACK = 1e-3  # pixels; what float arithmetic of other tools may add


@dataclass(frozen=True, slots=True)
class PaddedSquare:
    """A picture of `width` x `height` pixels centred in a square; whoever draws the square uses these numbers.

    An odd rest goes to the right or to the bottom.
    """

    width: int
    height: int

    @property
    def side(self) -> int:
        return max(self.width, self.height)

    @property
    def left(self) -> int:
        """Pixels of padding on the left."""
        return (self.side - self.width) // 2

    @property
    def top(self) -> int:
        """Pixels of padding at the top."""
        return (self.side - self.height) // 2

    def to_square(self, box: Box) -> Box:
        """Pixels of the picture -> [0, 1] of the square."""
        x, y, s = self.left, self.top, self.side
        return Box((box.x1 + x) / s, (box.y1 + y) / s, (box.x2 + x) / s, (box.y2 + y) / s)

    def to_pixels(self, box: Box) -> Box:
        """[0, 1] of the square -> pixels of the picture (outside it where the box lies in the padding)."""
        x, y, s = self.left, self.top, self.side
        return Box(box.x1 * s - x, box.y1 * s - y, box.x2 * s - x, box.y2 * s - y)

    def clip(self, box: Box) -> Box | None:
        """The part of a box in pixels that lies in the picture, None where there is no such part."""
        x1, y1 = max(box.x1, 0.0), max(box.y1, 0.0)
        x2, y2 = min(box.x2, float(self.width)), min(box.y2, float(self.height))
        return Box(x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


@dataclass(frozen=True, slots=True)
class BoxCodec:
    """Writes and reads boxes as `[x1,y1,x2,y2]`.

    A round trip moves an edge by at most half a step, `0.5 * 10**-decimals / scale * side` pixels. A box
    that is shorter than a step would vanish: it is written one step long, and then an edge moves by at most a step.
    """

    decimals: int = 3
    """Digits after the point."""
    scale: int = 1
    """The square's right and bottom edge: 1 writes 0.120, 1000 with decimals=0 writes 120."""
    whole: int = 1
    """Fewest digits before the point: with scale=99 and decimals=0, 2 writes 07, so that all numbers are as long."""

    def __post_init__(self) -> None:
        if not 0 <= self.decimals <= 6 or self.scale < 1 or self.steps < 10 or not 1 <= self.whole <= 6:
            raise BoxError(
                f"codec with decimals={self.decimals}, scale={self.scale} and whole={self.whole}",
                expected="decimals 0 to 6, scale at least 1, at least 10 steps a side, and whole 1 to 6",
                fix="Use BoxCodec(decimals=3) or BoxCodec(decimals=0, scale=1000).",
            )

    @property
    def steps(self) -> int:
        """Number of steps along a side of the square."""
        return int(self.scale * 10**self.decimals)

    def encode(self, box: Box, square: PaddedSquare) -> str:
        """The text of a box in pixels, for example "[0.120,0.034,0.500,0.750]".

        Raises:
            BoxError: as `validate`.
        """
        self.validate(box, (square.width, square.height))
        relative = square.to_square(box)
        x1, x2 = self._edges(relative.x1, relative.x2)
        y1, y2 = self._edges(relative.y1, relative.y2)
        return self.write((x1, y1, x2, y2))

    def write(self, steps: Sequence[int]) -> str:
        """The text of edges given in whole steps, x1, y1, x2, y2."""
        width = self.whole + (self.decimals + 1 if self.decimals else 0)
        return "[" + ",".join(f"{n / 10**self.decimals:0{width}.{self.decimals}f}" for n in steps) + "]"

    def parse(self, text: str, square: PaddedSquare) -> list[Box]:
        """All well-formed boxes in a text, in pixels, cut to the picture.

        Spaces and full-width characters are read too. What has a negative, unordered or too large number, or lies
        wholly in the padding, is left out.
        """
        return [box for _, box in self.locate(text, square)]

    def locate(self, text: str, square: PaddedSquare) -> list[tuple[tuple[int, int], Box]]:
        """As `parse`, each box with where it stands: from and to in the NFKC form of the text."""
        found = []
        for match in _BOX.finditer(unicodedata.normalize("NFKC", text)):
            x1, y1, x2, y2 = (float(g) / self.scale for g in match.groups())
            if x1 < x2 <= 1 and y1 < y2 <= 1 and (box := square.clip(square.to_pixels(Box(x1, y1, x2, y2)))):
                found.append((match.span(), box))
        return found

    @staticmethod
    def validate(box: Box, size: tuple[int, int] | None, *, where: str = "") -> None:
        """Check a box in pixels against its picture's (width, height); with None, what holds in any picture.

        Raises:
            BoxError: a number that is not finite, no or negative size, or a part outside the picture.
        """
        text = f"box [{box.x1:g}, {box.y1:g}, {box.x2:g}, {box.y2:g}]"
        order = "x1 < x2 and y1 < y2, in pixels, xyxy"
        if not all(math.isfinite(v) for v in (box.x1, box.y1, box.x2, box.y2)):
            raise BoxError(f"{text} has a number that is not finite", expected=order, fix="Correct it.", where=where)
        if box.x2 <= box.x1 or box.y2 <= box.y1:
            raise BoxError(
                f"{text} has width {box.width:g} and height {box.height:g}",
                expected=order,
                fix="Swap edges that are swapped; if it is x, y, width, height, write x + width and y + height.",
                where=where,
            )
        width, height = size or (math.inf, math.inf)
        if box.x1 < -_SLACK or box.y1 < -_SLACK or box.x2 > width + _SLACK or box.y2 > height + _SLACK:
            of, limits = (
                (f" of {width}x{height} pixels", f", at most {width} across and {height} down") if size else ("", "")
            )
            raise BoxError(
                f"{text} is outside its picture{of}",
                expected=f"edges from 0{limits} (pixels after EXIF rotation)",
                fix="Clip it, or check that it is in pixels of this picture.",
                where=where,
            )

    def _edges(self, low: float, high: float) -> tuple[int, int]:
        """Two edges in [0, 1] as whole steps, at least one apart."""
        a, b = (min(max(round(v * self.steps), 0), self.steps) for v in (low, high))
        if a == b:
            a, b = math.floor(low * self.steps), math.ceil(high * self.steps)
            if a == b:
                b += 1
        return (a, b) if b <= self.steps else (self.steps - 1, self.steps)
