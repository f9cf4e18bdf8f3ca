"""From an open picture to the pixels of its views: the whole picture in a padded square, and crops of that square.

The geometry is that of `data.boxes.PaddedSquare`: the picture sits in the centre of a square whose side is its
longer edge, nothing is cut off. So a box relative to the square means the same place for every tower, whatever its
input size. Views are those of SPHINX (2311.07575, 2402.05935): the whole square first, then n x n crops, row by row,
each at the full input size; a crop that holds nothing but padding is not encoded.
Shapes: S = input size of a tower in pixels, W = views. Colours are RGB.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from tsugiki.data.boxes import PaddedSquare
from tsugiki.errors import UnknownNameError

Colour = tuple[int, int, int]

# Part of every fingerprint: raise it when a change here or in tower.py alters pixels or features.
TRANSFORM_VERSION = 1

# A picture this many times larger than the view is first averaged down by a whole factor: a 100,000 x 1,000 picture
# would otherwise need a square of 10 gigapixels. The error of the geometry stays below a quarter of a view's pixel.
_REDUCE_ABOVE = 4


VIEWS = {"global": 1, "global+2x2": 2, "global+3x3": 3}
"""Name -> into how many rows and columns of crops the square is cut; 1 = no crops."""


@dataclass(frozen=True)
class Views:
    """Which parts of the padded square are seen, by name."""

    name: str = "global"

    def __post_init__(self) -> None:
        if self.name not in VIEWS:
            raise UnknownNameError("set of views", self.name, VIEWS)

    @property
    def side(self) -> int:
        """Crops per row and per column."""
        return VIEWS[self.name]

    @property
    def count(self) -> int:
        """W."""
        return 1 if self.side == 1 else 1 + self.side**2

    def place(self, view: int) -> tuple[int, int]:
        """(row, column) of crop number `view`, from 1 on; number 0 is the whole square."""
        return divmod(view - 1, self.side)

    def seen(self, size: tuple[int, int]) -> tuple[bool, ...]:
        """Which views of a picture of (width, height) hold any of it; the rest is padding alone."""
        square, n = PaddedSquare(*size), self.side

        def meets(start: int, length: int, part: int) -> bool:
            return start * n < (part + 1) * square.side and (start + length) * n > part * square.side

        crops = (self.place(view) for view in range(1, self.count))
        x, y = (square.left, square.width), (square.top, square.height)
        return (True, *(meets(*y, row) and meets(*x, column) for row, column in crops))


@dataclass(frozen=True)
class TokenCount:
    """(width, height) of a picture -> its visual tokens: a crop of padding alone has one."""

    most: int
    """Of a picture without padding."""
    crop: int = 1
    """Of a crop that is seen."""
    views: Views = Views()

    def __call__(self, size: tuple[int, int]) -> int:
        return self.most - (self.crop - 1) * self.views.seen(size).count(False)


@dataclass(frozen=True)
class Transform:
    """How one tower sees a picture: sizes in pixels, mean and std of the three channels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int
    """S."""
    view_size: int
    """Edge of the picture within S, which differs where the tower's patches do not divide S."""

    def __call__(self, image: Image.Image, variant: int = 0) -> Tensor:
        """An RGB picture -> pixels of the whole square, float32 [3, S, S]; `variant` is that of `augmented`."""
        return self.views(image, Views(), (0,), variant)[0]

    def views(self, image: Image.Image, views: Views, wanted: Sequence[int], variant: int = 0) -> Tensor:
        """The wanted views of an RGB picture, float32 [len(wanted), 3, S, S]."""
        colour, size = mean_colour(self.mean), self.view_size
        whole = padded_square(image, size, colour)
        large = whole
        if any(wanted) and views.side > 1:
            large = augmented(padded_square(image, views.side * size, colour), variant, like=whole)
        found = []
        for view in wanted:
            row, column = views.place(view) if view else (0, 0)
            x, y = column * size, row * size
            seen = large.crop((x, y, x + size, y + size)) if view else augmented(whole, variant)
            found.append(to_pixels(extended(seen, self.input_size, colour), self.mean, self.std))
        return torch.stack(found) if found else torch.zeros(0, 3, self.input_size, self.input_size)


def padded_square(image: Image.Image, side: int, colour: Colour = (127, 127, 127)) -> Image.Image:
    """Put the whole picture into the centre of a square of `colour` and scale that to `side` pixels (bicubic).

    Args:
        image: RGB, any size.
        side: edge of the result in pixels.
        colour: of the padding; a tower's mean, so that padding is 0 after normalisation.
    """
    factor = max(image.size) // (_REDUCE_ABOVE * side)
    if factor > 1:
        image = image.reduce((min(factor, image.width), min(factor, image.height)))
    if image.width != image.height:
        place = PaddedSquare(*image.size)
        square = Image.new("RGB", (place.side, place.side), colour)
        square.paste(image, (place.left, place.top))
        image = square
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)


def augmented(view: Image.Image, variant: int, like: Image.Image | None = None) -> Image.Image:
    """One of the fixed augmentations of a view; variant 0 is the view itself.

    Only light and sharpness change: boxes, words for places (left, right) and text in the picture stay true, and
    colours keep their names. The amounts follow from the variant and the view's pixels, so that the same picture
    gets the same variants in every run.

    Args:
        like: the view whose pixels decide; None = this one.
    """
    if variant == 0:
        return view
    rng = random.Random(f"{variant}-{zlib.crc32((view if like is None else like).tobytes())}")
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = enhance(view).enhance(rng.uniform(0.8, 1.2))
    return view.filter(ImageFilter.GaussianBlur(rng.uniform(0, view.width / 224)))


def extended(view: Image.Image, side: int, colour: Colour) -> Image.Image:
    """The view in the upper left corner of a canvas of `side` pixels."""
    if view.width == side:
        return view
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(view, (0, 0))
    return canvas


def to_pixels(view: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalise: (x / 255 - mean) / std.

    Args:
        view: RGB.
        mean: of the three channels, in [0, 1].
        std: of the three channels, in [0, 1].

    Returns:
        float32 [3, S, S].
    """
    array = torch.from_numpy(np.array(view, dtype=np.float32))  # [S, S, 3]
    scaled = array.div_(255).sub_(torch.tensor(mean)).div_(torch.tensor(std))
    return scaled.permute(2, 0, 1).contiguous()


def mean_colour(mean: tuple[float, ...]) -> Colour:
    """The mean of a tower as a colour, 0 to 255."""
    red, green, blue = (max(0, min(255, round(255 * channel))) for channel in mean)
    return red, green, blue
