"""Conditions that pictures may come in, at three strengths each: what `tasks/conditions.py` and the benchmarks show.

Each function takes an RGB picture, a strength (1, 2 or 3) and random numbers, and gives a picture of the same size. The
random numbers choose a direction (darker or brighter, which colour, which way it is turned), never a strength, so that
the three strengths of one picture differ in nothing else. Lengths are fractions of the picture's longer side.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from tsugiki.data.boxes import PaddedSquare
from tsugiki.data.images import image_size, open_image
from tsugiki.errors import InputError, UnknownNameError, UnsupportedError
from tsugiki.types import Box, BoxPart, ImagePart, ImageSource, Message, Part, Sample

Floats = npt.NDArray[np.float64]
Alteration = Callable[[Image.Image, int, np.random.Generator], Image.Image]

STRENGTHS = (1, 2, 3)
_DARKER, _BRIGHTER = (0.7, 0.5, 0.3), (1.3, 1.7, 2.3)  # factors of all values
_CAST = (0.1, 0.2, 0.35)  # largest change of a channel, as a fraction of its values
_BLUR = (1 / 224, 2 / 224, 4 / 224)  # standard deviation
_NOISE = (8.0, 20.0, 40.0)  # standard deviation, of 255
_QUALITY = (40, 20, 8)
_TURN = (4.0, 10.0, 25.0)  # degrees
_SCALE = (0.8, 0.6, 0.4)


def altered(sample: Sample, condition: str, strength: int, seed: int = 0) -> Sample:
    """A sample with all its pictures altered, as open pictures; its boxes go with them.

    The same sample, condition and seed always give the same picture.

    Raises:
        UnknownNameError: no such condition.
        InputError: another strength than 1, 2 or 3.
        UnsupportedError: a sample with boxes and a condition that would leave them loose ("rotation").
        ImageError: a picture can't be read.
    """
    alter = alteration(condition)
    if strength not in STRENGTHS:
        raise InputError(f"strength {strength}", expected="1, 2 or 3", where="strengths")
    if condition in LOOSE and sample.boxes:
        raise UnsupportedError(
            f"{condition} of a picture with boxes",
            expected="questions without boxes: the box of a turned box is larger than what it held",
            fix="Leave the condition out.",
            where=sample.where or f"sample {sample.id}",
        )
    sources = sample.images
    pictures: list[Image.Image] = []

    def part_of(part: Part) -> Part:
        if isinstance(part, ImagePart):
            rng = np.random.default_rng((seed, zlib.crc32(f"{condition} {sample.id} {len(pictures)}".encode())))
            pictures.append(alter(open_image(part.source), strength, rng))
            return replace(part, source=pictures[-1])
        if isinstance(part, BoxPart) and condition == "scale":
            return replace(part, box=scaled_box(part.box, image_size(sources[part.image]), strength))
        return part

    messages = tuple(Message(m.role, tuple(part_of(p) for p in m.parts)) for m in sample.messages)
    return replace(sample, messages=messages)


def altered_picture(source: ImageSource, condition: str, strength: int, name: str = "", seed: int = 0) -> Image.Image:
    """One picture, as that of a sample whose id is `name`. Raises as `altered`."""
    sample = Sample(id=name, messages=(Message("user", (ImagePart(source),)),))
    picture = altered(sample, condition, strength, seed).images[0]
    assert isinstance(picture, Image.Image)
    return picture


def alteration(condition: str) -> Alteration:
    """The function of a condition.

    Raises:
        UnknownNameError: there is none; names the nearest.
    """
    if condition not in CONDITIONS:
        raise UnknownNameError("condition", condition, CONDITIONS, where="conditions")
    return CONDITIONS[condition]


def brightness(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Darker or brighter by a factor; what is too bright is cut off."""
    factors = _DARKER if rng.random() < 0.5 else _BRIGHTER
    return _picture(_values(image) * factors[strength - 1])


def colour_cast(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """The light of another lamp: channels gain and lose, their mean stays."""
    hue = rng.uniform(0, 2 * np.pi) + np.array([0, 2, 4]) * np.pi / 3
    return _picture(_values(image) * (1 + _CAST[strength - 1] * np.cos(hue)))


def blur(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Out of focus."""
    return image.filter(ImageFilter.GaussianBlur(_BLUR[strength - 1] * max(image.size)))


def noise(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Independent normal noise on every value."""
    values = _values(image)
    return _picture(values + _NOISE[strength - 1] * rng.standard_normal(values.shape))


def jpeg(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Written as JPEG of low quality, and read again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY[strength - 1])
    return open_image(buffer.getvalue())


def rotation(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Turned about the middle, to the left or to the right; the corners get the mean colour."""
    angle = _TURN[strength - 1] * (1 if rng.random() < 0.5 else -1)
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=_mean(image))


def scale(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Seen from farther away: smaller, in the middle, the mean colour around it."""
    left, top, width, height = _inner(image.size, strength)
    canvas = Image.new("RGB", image.size, _mean(image))
    canvas.paste(image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0), (left, top))
    return canvas


CONDITIONS: Mapping[str, Alteration] = MappingProxyType(
    {
        "brightness": brightness,
        "colour cast": colour_cast,
        "blur": blur,
        "noise": noise,
        "jpeg": jpeg,
        "rotation": rotation,
        "scale": scale,
    }
)
LOOSE = ("rotation",)
"""Conditions under which a tight box has no tight box."""


def scaled_box(box: Box, size: tuple[int, int], strength: int) -> Box:
    """Where a box of a picture of (width, height) is after `scale`."""
    left, top, width, height = _inner(size, strength)
    x, y = width / size[0], height / size[1]
    moved = Box(left + box.x1 * x, top + box.y1 * y, left + box.x2 * x, top + box.y2 * y)
    return PaddedSquare(*size).clip(moved) or moved


def _inner(size: tuple[int, int], strength: int) -> tuple[int, int, int, int]:
    """Left, top, width, height of the smaller picture."""
    width, height = (max(1, round(length * _SCALE[strength - 1])) for length in size)
    return (size[0] - width) // 2, (size[1] - height) // 2, width, height


def _mean(image: Image.Image) -> tuple[int, int, int]:
    red, green, blue = _values(image).mean((0, 1)).round().astype(int).tolist()
    return red, green, blue


def _values(image: Image.Image) -> Floats:
    return np.asarray(image, dtype=np.float64)


def _picture(values: Floats) -> Image.Image:
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
