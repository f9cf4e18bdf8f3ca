"""Backgrounds of scenes: plain, textured, photographic. Those of the test are unseen in training.

Unseen in three ways: the palettes have no colour in common, the textures no pattern, the photographs no file. The
photographs are 150 nominal fabrics, a fixed list that no fabric split contains (`fabric_backgrounds.json`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tsugiki import assets
from tsugiki.data.images import open_image
from tsugiki.errors import UnknownNameError

Split = Literal["train", "test"]
RGB = tuple[int, int, int]
Grid = NDArray[np.float32]

KINDS = ("plain", "texture", "photo")
FABRIC = Path("conformal_clip_data", "data", "textile_images", "simulated")
"""Folder of the fabric photographs inside the asset."""

PALETTES: Mapping[str, tuple[RGB, ...]] = MappingProxyType(
    {
        "train": (
            (246, 244, 238), (226, 214, 196), (205, 224, 242), (214, 236, 210), (250, 224, 224), (235, 222, 246),
            (168, 190, 176), (190, 176, 206), (160, 178, 200), (205, 170, 150), (200, 196, 140), (150, 150, 150),
        ),
        "test": (
            (228, 232, 236), (244, 236, 206), (208, 246, 238), (240, 208, 190), (198, 204, 232), (232, 204, 222),
            (182, 204, 150), (150, 196, 196), (196, 184, 182), (176, 160, 172), (222, 184, 120), (172, 168, 150),
        ),
    }
)  # fmt: skip
"""Light and middle tones: drawings have black lines, and have to be seen."""


def listed() -> dict[str, tuple[str, ...]]:
    """The photographs of the two splits, relative to the fabric folder: 100 "train", 50 "test"."""
    text = resources.files("tsugiki.synth").joinpath("fabric_backgrounds.json").read_text(encoding="utf-8")
    content = json.loads(text)
    return {split: tuple(content[split]) for split in ("train", "test")}


class Backgrounds:
    """Backgrounds of one split.

    Args:
        split: "train" or "test".
        size: side in pixels.
        photographs: the files for the kind "photo"; None = the list of the split, from the asset "fabric".
    """

    def __init__(self, split: Split, size: int, photographs: Sequence[Path] | None = None) -> None:
        self.split, self.size = split, size
        self._files = photographs
        self._grey: dict[int, Image.Image] = {}

    def make(self, kind: str, rng: np.random.Generator) -> Image.Image:
        """One background, RGB [size, size].

        Raises:
            UnknownNameError: an unknown kind.
            AssetError: kind "photo" without the asset "fabric".
            ImageError: a photograph can't be read.
        """
        if kind == "plain":
            return Image.new("RGB", (self.size, self.size), self._colour(rng))
        if kind == "texture":
            return self._texture(rng)
        if kind == "photo":
            return self._photo(rng)
        raise UnknownNameError("background", kind, KINDS)

    def _colour(self, rng: np.random.Generator) -> RGB:
        palette = PALETTES[self.split]
        return palette[int(rng.integers(len(palette)))]

    def _texture(self, rng: np.random.Generator) -> Image.Image:
        patterns = PATTERNS[self.split]
        mask = patterns[int(rng.integers(len(patterns)))](self.size, rng)[..., None]  # [S, S, 1], 0 to 1
        first, second = (np.asarray(self._colour(rng), dtype=np.float32) for _ in range(2))
        # The second colour comes half-way, or is a darker first: a strong pattern would hide the drawings.
        step = (second - first) / 2 if rng.random() < 0.6 else first * np.float32(-0.2)
        return Image.fromarray((first + step * mask).round().astype(np.uint8))

    def _photo(self, rng: np.random.Generator) -> Image.Image:
        grey = self._photograph(int(rng.integers(self._count)))
        side = min(self.size, *grey.size)
        left, top = (int(rng.integers(length - side + 1)) for length in grey.size)
        grey = grey.crop((left, top, left + side, top + side))
        if rng.random() < 0.5:
            grey = ImageOps.mirror(grey)
        if side != self.size:
            grey = grey.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if rng.random() < 0.4:
            return grey.convert("RGB")
        tint = self._colour(rng)
        dark = tuple(c // 3 for c in tint)
        return ImageOps.colorize(grey, dark, tint)

    @property
    def _paths(self) -> Sequence[Path]:
        if self._files is None:
            folder = assets.path("fabric") / FABRIC
            self._files = [folder / name for name in listed()[self.split]]
        return self._files

    @property
    def _count(self) -> int:
        return len(self._paths)

    def _photograph(self, index: int) -> Image.Image:
        if index not in self._grey:
            self._grey[index] = open_image(self._paths[index], where="backgrounds").convert("L")
        return self._grey[index]


@lru_cache(maxsize=4)
def _axes(size: int) -> tuple[Grid, Grid]:
    """x [1, S] and y [S, 1], 0 to 1."""
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return line[None, :], line[:, None]


def _turned(size: int, rng: np.random.Generator) -> tuple[Grid, Grid]:
    """The two axes turned by a random angle, [S, S] each."""
    x, y = _axes(size)
    angle = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return (x * cos + y * sin).astype(np.float32), (y * cos - x * sin).astype(np.float32)


def _rounds(rng: np.random.Generator, low: float, high: float) -> np.float32:
    return np.float32(2 * np.pi * rng.uniform(low, high))


def _stripes(size: int, rng: np.random.Generator) -> Grid:
    u, _ = _turned(size, rng)
    return np.asarray(np.sin(u * _rounds(rng, 4, 14)) > 0, dtype=np.float32)


def _dots(size: int, rng: np.random.Generator) -> Grid:
    u, v = _turned(size, rng)
    f = _rounds(rng, 4, 10)
    return np.asarray(np.sin(u * f) * np.sin(v * f) > 0.4, dtype=np.float32)


def _clouds(size: int, rng: np.random.Generator) -> Grid:
    cells = int(rng.integers(4, 12))
    small = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / np.float32(255)


def _checks(size: int, rng: np.random.Generator) -> Grid:
    u, v = _turned(size, rng)
    f = _rounds(rng, 3, 9)
    return np.asarray((np.sin(u * f) > 0) ^ (np.sin(v * f) > 0), dtype=np.float32)


def _waves(size: int, rng: np.random.Generator) -> Grid:
    u, v = _turned(size, rng)
    bent = v * _rounds(rng, 5, 12) + 2 * np.sin(u * _rounds(rng, 1, 3))
    return np.asarray(0.5 + 0.5 * np.sin(bent), dtype=np.float32)


def _grain(size: int, rng: np.random.Generator) -> Grid:
    side = size // int(rng.integers(2, 5)) + 1
    small = Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.NEAREST), dtype=np.float32) / np.float32(255)


PATTERNS: Mapping[str, tuple[Callable[[int, np.random.Generator], Grid], ...]] = MappingProxyType(
    {"train": (_stripes, _dots, _clouds), "test": (_checks, _waves, _grain)}
)
