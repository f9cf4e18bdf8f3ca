"""From an open picture to the pixels of a view. One view today: the whole picture in a padded square.

The geometry is that of `data.boxes.PaddedSquare`: the picture sits in the centre of a square whose side is its
longer edge, nothing is cut off. So a box relative to the square means the same place for every tower, whatever its
input size. Shapes: S = input size of a tower in pixels. Colours are RGB.
"""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from tsugiki.data.boxes import PaddedSquare

Colour = tuple[int, int, int]

# Part of every fingerprint: raise it when a change here or in tower.py alters pixels or features.
TRANSFORM_VERSION = 1

# A picture this many times larger than the view is first averaged down by a whole factor: a 100,000 x 1,000 picture
# would otherwise need a square of 10 gigapixels. The error of the geometry stays below a quarter of a view's pixel.
_REDUCE_ABOVE = 4


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


def augmented(view: Image.Image, variant: int) -> Image.Image:
    """One of the fixed augmentations of a view; variant 0 is the view itself.

    Only light and sharpness change: boxes, words for places (left, right) and text in the picture stay true, and
    colours keep their names. The amounts follow from the variant and the view's pixels, so that the same picture
    gets the same variants in every run.
    """
    if variant == 0:
        return view
    rng = random.Random(f"{variant}-{zlib.crc32(view.tobytes())}")
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
