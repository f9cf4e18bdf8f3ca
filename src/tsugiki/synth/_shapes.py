"""Shapes of defects: how strong one is at each pixel, float32 [h, w] from 0 to 1, cut tight.

`length` is about the longer side in pixels; `side` is the longer side of the photograph.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tsugiki.types import Box

Grid = NDArray[np.float32]
Mask = NDArray[np.bool_]

NARROWEST = 1 / 16
"""Shorter side of any box as a fraction of `side`: a patch of a tower that cuts its picture into 16 x 16."""

_FINE = 4  # shapes are drawn so many times larger
_FAINTEST = 0.15  # less of a defect is not drawn, so that every edge of a box can be seen


def scratch(length: float, side: int, rng: np.random.Generator) -> Grid:
    """A bent line that thins out to its ends, sometimes interrupted, sometimes with a finer one beside it."""
    short = float(rng.uniform(max(1.15 * NARROWEST * side, 0.3 * length), max(1.3 * NARROWEST * side, 0.85 * length)))
    wide, high = (length, short) if rng.random() < 0.5 else (short, length)
    radius = max(0.008 * side, float(rng.uniform(0.014, 0.024)) * length)
    t = np.linspace(0, 1, int(3 * length))
    bend = rng.uniform(-0.22, 0.22, 2)
    line = np.stack([t + 2 * t * (1 - t) * bend[0], t + 2 * t * (1 - t) * bend[1]], axis=1)  # a parabola, 0 to 1
    line = (line - line.min(0)) / np.ptp(line, axis=0)
    if rng.random() < 0.5:
        line[:, 1] = 1 - line[:, 1]
    points = radius + line * (np.array([wide, high]) - 2 * radius)
    radii = radius * (0.45 + 0.55 * np.sin(np.pi * t)) * rng.uniform(0.8, 1.2, len(t))
    drawn = np.ones(len(t), dtype=bool)
    if rng.random() < 0.4:
        gap = float(rng.uniform(0.2, 0.75))
        drawn = np.abs(t - gap) > rng.uniform(0.02, 0.05)
    canvas = _Canvas(wide, high)
    canvas.dots(points[drawn], radii[drawn])
    if rng.random() < 0.5:
        start = float(rng.uniform(0, 0.5))
        beside = (t > start) & (t < start + 0.45)
        canvas.dots(points[beside] + rng.uniform(2, 3.5) * radius * rng.choice([-1, 1], 2), radii[beside] * 0.5)
    return canvas.strength(hardness=1.6)


def hole(length: float, side: int, rng: np.random.Generator) -> Grid:
    """A torn outline with ends of threads that stand into it."""
    outline = _outline(length, 0.45, rng)
    canvas = _Canvas(*(np.ptp(outline, axis=0)))
    canvas.area(outline)
    middle = np.ptp(outline, axis=0) / 2
    for angle in rng.choice(4, int(rng.integers(3, 7))) * np.pi / 2 + rng.uniform(-0.3, 0.3):
        rim = outline[int(rng.integers(len(outline)))]
        inwards = (middle - rim) * float(rng.uniform(0.3, 0.7))
        turned = np.array([np.cos(angle), np.sin(angle)]) * np.linalg.norm(inwards) * 0.3
        canvas.line(rim - inwards * 0.2, rim + inwards + turned, max(1.0, 0.006 * side), 0)
    return canvas.strength(hardness=1.3)


def stain(length: float, side: int, rng: np.random.Generator) -> Grid:
    """A soft, uneven spot with a darker rim, as a liquid leaves it."""
    soft = max(1.0, 0.04 * length)
    outline = _outline(length - 2 * soft, 0.5, rng) + soft
    canvas = _Canvas(*(np.ptp(outline, axis=0) + 2 * soft))
    canvas.area(outline)
    spot = canvas.grid(soft)
    rim = 4 * spot * (1 - spot)
    cells = Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8))
    uneven = np.asarray(cells.resize(spot.shape[::-1], Image.Resampling.BICUBIC), dtype=np.float32) / np.float32(255)
    return _cut((spot * (np.float32(0.8) + np.float32(0.2) * uneven) + np.float32(0.25) * rim).clip(0, 1))


def missing_thread(length: float, side: int, rng: np.random.Generator) -> Grid:
    """Parallel gaps between threads, crossed by the threads of the other direction."""
    band = max(1.2 * NARROWEST * side, float(rng.uniform(0.16, 0.35)) * length)
    pitch = max(3.5, side / 48)
    count = max(2, round(band / pitch))
    canvas = _Canvas(length, band)
    thick = 0.5 * band / count
    for i in range(count):
        y = (i + 0.5) * band / count
        start, end = (0.0, 0.0) if i in (0, count - 1) else rng.uniform(0, 0.15, 2)
        canvas.line(np.array([start * length, y]), np.array([(1 - end) * length, y]), thick, 255)
    for x in np.arange(float(rng.uniform(0, pitch)), length, pitch):
        canvas.line(np.array([x, 0.0]), np.array([x, band]), 0.35 * pitch, 70, only_drawn=True)
    tilt = float(rng.uniform(-7, 7)) + (90 if rng.random() < 0.5 else 0)
    canvas.image = canvas.image.rotate(tilt, Image.Resampling.BILINEAR, expand=True)
    return canvas.strength(hardness=1.4)


def _outline(length: float, rough: float, rng: np.random.Generator) -> Grid:
    """A closed uneven curve, points [n, 2] from 0; the longer side is `length`."""
    turn = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    radius = np.ones_like(turn)
    for wave in range(2, 8):
        radius += rough * rng.uniform(-1, 1) / wave * np.cos(wave * turn + rng.uniform(0, 2 * np.pi))
    x, y = radius * np.cos(turn), radius * np.sin(turn) * rng.uniform(0.65, 1)
    angle = rng.uniform(0, np.pi)
    points = np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=1)
    points -= points.min(0)
    return np.asarray(points * length / points.max(), dtype=np.float32)


class _Canvas:
    """A grey drawing board, `_FINE` times larger than what it gives."""

    def __init__(self, width: float, height: float) -> None:
        self.image = Image.new("L", (_FINE * int(np.ceil(width) + 1), _FINE * int(np.ceil(height) + 1)))

    def dots(self, points: NDArray[np.floating], radii: NDArray[np.floating]) -> None:
        """Discs along a line."""
        pen = ImageDraw.Draw(self.image)
        for (x, y), r in zip(points * _FINE, radii * _FINE, strict=True):
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)

    def area(self, outline: NDArray[np.floating]) -> None:
        """What a closed curve [n, 2] surrounds."""
        ImageDraw.Draw(self.image).polygon([(float(x), float(y)) for x, y in outline * _FINE], fill=255)

    def line(
        self,
        start: NDArray[np.floating],
        end: NDArray[np.floating],
        width: float,
        grey: int,
        *,
        only_drawn: bool = False,
    ) -> None:
        """A line; with `only_drawn`, only where something is."""
        board = self.image.copy() if only_drawn else self.image
        ends = [(float(x) * _FINE, float(y) * _FINE) for x, y in (start, end)]
        ImageDraw.Draw(board).line(ends, fill=grey, width=max(1, round(width * _FINE)))
        if only_drawn:
            self.image.paste(board, mask=self.image.point(lambda v: 255 if v else 0))

    def grid(self, blur: float = 0.0) -> Grid:
        """The drawing in its own size, 0 to 1."""
        board = self.image.filter(ImageFilter.GaussianBlur(blur * _FINE)) if blur else self.image
        small = board.resize((board.width // _FINE, board.height // _FINE), Image.Resampling.BOX)
        return np.asarray(small, dtype=np.float32) / np.float32(255)

    def strength(self, hardness: float) -> Grid:
        """The drawing with harder edges, cut tight."""
        return _cut((self.grid() * np.float32(hardness)).clip(0, 1))


def _cut(strength: Grid) -> Grid:
    """Without what is too faint, and without empty edges."""
    strength = np.where(strength < _FAINTEST, np.float32(0), strength)
    box = bounds(strength > 0)
    return strength[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)]


def bounds(mask: Mask, left: int = 0, top: int = 0) -> Box:
    """The tight box of a mask [h, w] whose corner is at (left, top); of no size where the mask is empty."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(xs):
        return Box(left, top, left, top)
    return Box(float(left + xs[0]), float(top + ys[0]), float(left + xs[-1] + 1), float(top + ys[-1] + 1))
