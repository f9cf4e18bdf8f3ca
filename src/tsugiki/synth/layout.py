"""Where drawings go on a background: no two boxes touch, every box is exact.

Lengths are pixels unless they are called fractions (of the picture's side).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tsugiki.errors import DataError
from tsugiki.synth.backgrounds import Backgrounds, Split
from tsugiki.synth.phrases.base import CELLS
from tsugiki.synth.pictograms import COLOURS, INKS, RGB, Drawings, Pictogram
from tsugiki.types import Box

HELD_OUT = "rotated"
"""The rendering that training never shows. Turned drawings keep shape and colours: they stay recognisable, every task
can be learned without them, and a probe that has never seen one is well above chance and well below what it reaches
when it has (docs/LOG.md), so the measure is not saturated."""

_COLOURED = ("recoloured", "outline")  # these always have a chosen colour; turned and scaled ones where it is asked for

_GAP = 2  # between boxes
_EDGE = 0.02  # fraction: no centre is nearer to the border of a cell, so that the cell is plain to see
_TRIES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What all scenes of a run have in common."""

    size: int
    pictograms: tuple[Pictogram, ...]
    objects: tuple[int, int]
    renderings: Mapping[str, float]
    backgrounds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One drawing on a scene."""

    pictogram: Pictogram
    rendering: str
    colour: str | None
    """Hue or ink, where the rendering has one."""
    angle: float
    """Degrees, counter-clockwise."""
    box: Box
    """Tight: every edge touches a visible pixel. Whole pixels."""
    fraction: float
    """Area of the box / area of the picture."""
    cell: str
    """Of `CELLS`: the one in which the box's centre lies."""

    @property
    def hue(self) -> str | None:
        """The colour, if it is one of those that questions ask about."""
        return self.colour if self.colour in COLOURS else None

    def name(self, language: str) -> str:
        """Its name in words."""
        return self.pictogram.name(language)


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and what is on it; objects are sorted by the left edge of their boxes."""

    image: Image.Image
    objects: tuple[SceneObject, ...]
    background: str


class Studio:
    """What scenes are made from: drawings and the backgrounds of one split, kept in memory between scenes."""

    def __init__(
        self, split: Split, size: int, svg_folder: Path | None = None, photographs: Sequence[Path] | None = None
    ) -> None:
        self.drawings = Drawings(svg_folder)
        self.backgrounds = Backgrounds(split, size, photographs)


@dataclass(frozen=True, slots=True)
class _Look:
    """How one object is drawn, before it has a place."""

    pictogram: Pictogram
    rendering: str
    colour: str | None
    angle: float
    longest: float
    """Fraction of the picture's side."""


def compose(
    layout: Layout,
    studio: Studio,
    rng: np.random.Generator,
    *,
    colour: bool = False,
    single: bool = False,
    repeats: bool = False,
) -> Scene:
    """A scene. Boxes are whole pixels: outside of all boxes the picture is the background, and every edge of a box
    touches a visible pixel of its drawing.

    Args:
        layout: what is common to the run.
        studio: drawings and backgrounds.
        rng: of this picture alone.
        colour: an object has a known colour; with `single`, it is one that is alone of its name.
        single: an object is alone of its name.
        repeats: several objects may show the same pictogram.
    """
    kind = pick(layout.backgrounds, rng)
    image = studio.backgrounds.make(kind, rng)
    count = int(rng.integers(layout.objects[0], layout.objects[1] + 1))
    for attempt in range(_TRIES):
        looks = [
            _look(pictogram, index == 0 and colour, count, layout, _mean(image), rng)
            for index, pictogram in enumerate(_names(layout.pictograms, count, single, repeats, rng))
        ]
        placed = _arrange(looks, layout.size, studio.drawings, 0.95**attempt, rng)
        if placed is not None:
            break
    else:
        raise DataError(
            f"{count} objects don't fit on {layout.size} px", fix="Ask for fewer objects or a larger picture."
        )
    for _, drawing, corner in placed:
        image.paste(drawing, corner, drawing)
    objects = sorted((_object(*item, layout.size) for item in placed), key=lambda o: (o.box.x1, o.box.y1))
    return Scene(image, tuple(objects), kind)


def _names(
    known: Sequence[Pictogram], count: int, single: bool, repeats: bool, rng: np.random.Generator
) -> list[Pictogram]:
    """`count` pictograms; with `repeats`, several of them are the same in part of the scenes, with `single` never the
    first."""
    names = [known[i] for i in rng.permutation(len(known))[:count]]
    first = int(single)
    if repeats and count - first >= 2 and rng.random() < 0.6:
        same = int(rng.integers(2, count - first + 1))
        names[first : first + same] = [names[first]] * same
    return names


def _look(
    pictogram: Pictogram, colour: bool, count: int, layout: Layout, behind: RGB, rng: np.random.Generator
) -> _Look:
    known = {name: weight for name, weight in layout.renderings.items() if name != "colour"}
    rendering = pick(known or {"recoloured": 1.0}, rng) if colour else pick(layout.renderings, rng)
    low, high = (0.32, 0.5) if count == 1 else (0.22, 0.36)
    if rendering == "scaled":
        low, high = (0.13, 0.19) if rng.random() < 0.5 else ((0.55, 0.7) if count == 1 else (0.4, 0.48))
    longest = float(rng.uniform(low, high))
    angle = float(rng.integers(30, 151) * (1 if rng.random() < 0.5 else -1)) if rendering == "rotated" else 0.0
    return _Look(pictogram, rendering, _ink(rendering, behind, rng, hue=colour), angle, longest)


def _ink(rendering: str, behind: RGB, rng: np.random.Generator, *, hue: bool) -> str | None:
    """A colour that shows on the background; outlines are black half the time where no hue is asked for."""
    if not hue and rendering not in _COLOURED:
        return None
    if rendering == "outline":
        if not hue and rng.random() < 0.5:
            return "black" if _grey(behind) > 110 else "white"
        seen = [name for name, rgb in COLOURS.items() if abs(_grey(rgb) - _grey(behind)) > 55]
    else:
        seen = [
            name for name, rgb in COLOURS.items() if sum((a - b) ** 2 for a, b in zip(rgb, behind, strict=True)) > 70**2
        ]
    return one(seen or list(COLOURS), rng)


def _grey(rgb: RGB) -> float:
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def _mean(image: Image.Image) -> RGB:
    red, green, blue = image.resize((1, 1), Image.Resampling.BOX).tobytes()
    return red, green, blue


_Placed = tuple[_Look, Image.Image, tuple[int, int]]


def _arrange(
    looks: Sequence[_Look], size: int, drawings: Drawings, shrink: float, rng: np.random.Generator
) -> list[_Placed] | None:
    """A place for every drawing, the largest first; None if one finds none."""
    placed: list[_Placed] = []
    for look in sorted(looks, key=lambda look: -look.longest):
        drawing = drawings.draw(
            look.pictogram.code,
            look.rendering,
            max(8, round(look.longest * shrink * size)),
            ink=INKS[look.colour] if look.colour else None,
            angle=look.angle,
        )
        corner = _corner(drawing.size, [(p[2], p[1].size) for p in placed], size, rng)
        if corner is None:
            return None
        placed.append((look, drawing, corner))
    return placed


def _corner(
    extent: tuple[int, int],
    taken: Sequence[tuple[tuple[int, int], tuple[int, int]]],
    size: int,
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """Upper left corner for a drawing of `extent`, first a random cell, then a random place with the centre in it."""
    for _ in range(_TRIES):
        corner = []
        for length in extent:
            cell = int(rng.integers(3))
            low = max((cell / 3 + _EDGE) * size - length / 2, 0)
            high = min(((cell + 1) / 3 - _EDGE) * size - length / 2, size - length)
            if np.ceil(low) > np.floor(high):
                break
            corner.append(int(rng.integers(int(np.ceil(low)), int(np.floor(high)) + 1)))
        if len(corner) == 2 and all(_apart((corner[0], corner[1]), extent, *other) for other in taken):
            return corner[0], corner[1]
    return None


def _apart(a: tuple[int, int], a_size: tuple[int, int], b: tuple[int, int], b_size: tuple[int, int]) -> bool:
    return any(a[i] + a_size[i] + _GAP <= b[i] or b[i] + b_size[i] + _GAP <= a[i] for i in (0, 1))


def _object(look: _Look, drawing: Image.Image, corner: tuple[int, int], size: int) -> SceneObject:
    (left, top), (width, height) = corner, drawing.size
    box = Box(float(left), float(top), float(left + width), float(top + height))
    x, y = box.center
    return SceneObject(
        pictogram=look.pictogram,
        rendering=look.rendering,
        colour=look.colour,
        angle=look.angle,
        box=box,
        fraction=width * height / size**2,
        cell=CELLS[min(2, int(3 * y / size)) * 3 + min(2, int(3 * x / size))],
    )


def pick(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    """One key, with probability in proportion to its weight."""
    keys, values = list(weights), np.array(list(weights.values()), dtype=np.float64)
    return keys[
        int(np.searchsorted(np.cumsum(values / values.sum()), rng.random(), side="right").clip(0, len(keys) - 1))
    ]


def one(items: Sequence[str], rng: np.random.Generator) -> str:
    """One of `items`, all equally likely."""
    return items[int(rng.integers(len(items)))]
