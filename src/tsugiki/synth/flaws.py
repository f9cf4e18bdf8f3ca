"""Scratches, holes, stains and missing threads, drawn on a photograph: the mask of each is exactly what it changed.

Lengths are pixels unless they are called fractions (of the longer side of the photograph).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsugiki.errors import DataError
from tsugiki.synth import _shapes
from tsugiki.synth._shapes import NARROWEST, Grid, Mask, bounds
from tsugiki.synth.phrases import DEFECTS
from tsugiki.types import Box

SEVERITIES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"low": (0.1, 0.14), "medium": (0.18, 0.23), "high": (0.29, 0.36)}
)
"""Contrast, from and to: the mean change of brightness over the mask, 1 = from black to white. Size is another
property: what is small is not less severe. The grain of the fabric photographs is 0.13: low is hard to see on them."""
SIZES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"small": (0.0, 1 / 8), "medium": (1 / 8, 1 / 4), "large": (1 / 4, float("inf"))}
)
"""Longer side of the box as a fraction, [from, to): the classes in which grounding is scored."""

_LENGTHS = {"small": (0.085, 0.12), "medium": (0.14, 0.24), "large": (0.28, 0.5)}  # fractions that are drawn
_GAP = 0.02  # fraction between two defects, and to the border
_TRIES, _ARRANGEMENTS = 40, 12
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Defect:
    """One defect on a photograph."""

    type: str
    severity: str
    size: str
    contrast: float
    """As in SEVERITIES, measured."""
    box: Box
    """Tight bounds of the mask, whole pixels."""
    mask: Mask
    """bool [H, W]: the pixels that differ from the photograph."""

    hue = None  # lists name no colour of it

    def name(self, language: str) -> str:
        """Its type in words."""
        return DEFECTS[language].words[self.type]


@dataclass(frozen=True, slots=True)
class Damaged:
    """A photograph with its defects, sorted by the left edge of their boxes."""

    image: Image.Image
    objects: tuple[Defect, ...]


def damage(photo: Image.Image, wanted: Sequence[tuple[str, str, str]], rng: np.random.Generator) -> Damaged:
    """Draw defects on an RGB photograph; no two touch.

    Args:
        photo: is not changed.
        wanted: (type, severity, size) of each: keys of TYPES, SEVERITIES, SIZES.
        rng: of this picture alone.

    Raises:
        DataError: one finds no place, or can't have its contrast.
    """
    for attempt in range(_ARRANGEMENTS):
        damaged = _arranged(photo, wanted, 0.8**attempt, rng)
        if damaged is not None:
            return damaged
    names = ", ".join(f"a {size} {kind}" for kind, _, size in wanted)
    raise DataError(
        f"no place for {names} on {photo.width}x{photo.height} pixels",
        expected="a photograph with room for it",
        fix="Leave it out, or ask for fewer or smaller defects.",
    )


def _arranged(
    photo: Image.Image, wanted: Sequence[tuple[str, str, str]], reach: float, rng: np.random.Generator
) -> Damaged | None:
    """All defects, the largest first; None if one finds no place. `reach` is how much of the range of lengths of a
    class is used."""
    pixels = np.array(photo.convert("RGB"))
    free = np.ones(pixels.shape[:2], dtype=bool)
    done: list[Defect] = []
    for kind, severity, size in sorted(wanted, key=lambda w: -SIZES[w[2]][0]):
        shortest, longest = _LENGTHS[size]
        for _ in range(_TRIES):
            length = float(rng.uniform(shortest, shortest + reach * (longest - shortest)))
            defect = _drawn(kind, severity, size, length, pixels, free, rng)
            if defect is not None:
                done.append(defect)
                break
        else:
            return None
    return Damaged(Image.fromarray(pixels), tuple(sorted(done, key=lambda d: (d.box.x1, d.box.y1))))


def _drawn(
    kind: str,
    severity: str,
    size: str,
    length: float,
    pixels: NDArray[np.uint8],
    free: Mask,
    rng: np.random.Generator,
) -> Defect | None:
    """Draw one defect, `length` a fraction, into `pixels` and take its surroundings from `free`; None where this try
    fails."""
    side = max(free.shape)
    strength = TYPES[kind](length * side, side, rng)
    height, width = strength.shape
    edge = round(_GAP * side)
    rows, columns = free.shape[0] - height - 2 * edge, free.shape[1] - width - 2 * edge
    if rows < 0 or columns < 0:
        return None
    top, left = edge + int(rng.integers(rows + 1)), edge + int(rng.integers(columns + 1))
    if not free[top : top + height, left : left + width].all():
        return None
    there = pixels[top : top + height, left : left + width]
    target = float(rng.uniform(*SEVERITIES[severity]))
    changed, contrast = _blended(there, strength, _LOOKS[kind](there, rng), target)
    marked = (changed != there).any(-1)
    box = bounds(marked, left, top)
    low, high = SIZES[size]
    fits = low <= max(box.width, box.height) / side < high and min(box.width, box.height) >= NARROWEST * side
    if not fits or not SEVERITIES[severity][0] <= contrast <= SEVERITIES[severity][1]:
        return None
    mask = np.zeros(free.shape, dtype=bool)
    mask[top : top + height, left : left + width] = marked
    pixels[top : top + height, left : left + width] = changed
    free[max(0, top - edge) : top + height + edge, max(0, left - edge) : left + width + edge] = False
    return Defect(kind, severity, size, contrast, box, mask)


def _blended(there: NDArray[np.uint8], strength: Grid, look: Grid, target: float) -> tuple[NDArray[np.uint8], float]:
    """`there` [h, w, 3] mixed with `look`, as much of it as gives the contrast `target`, at most all; and the contrast
    that it has."""
    base = there.astype(np.float32)
    low, high = 0.0, 1.0
    for _ in range(10):  # to a thousandth
        share = (low + high) / 2
        changed = (base + np.float32(share) * strength[..., None] * (look - base)).round().clip(0, 255).astype(np.uint8)
        contrast = _contrast(there, changed)
        low, high = (low, share) if contrast > target else (share, high)
    return changed, contrast


def _contrast(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    """Mean change of brightness over the pixels that differ, 0 to 1."""
    differ = (before != after).any(-1)
    if not differ.any():
        return 0.0
    change = np.abs((after[differ].astype(np.float32) - before[differ].astype(np.float32)) @ _LUMA)
    return float(change.mean() / 255)


# --- looks: what is seen at full strength, [h, w, 3], from what is there ---


def _bare(there: NDArray[np.uint8], rng: np.random.Generator) -> Grid:
    """Bare ground, dark or light: whichever differs more from what is there, or by chance where both do."""
    mean = float(there.mean())
    dark = mean > 150 or (mean >= 105 and rng.random() < 0.5)
    level = rng.uniform(0, 20) if dark else rng.uniform(235, 255)
    grain = rng.normal(0, 4, (*there.shape[:2], 1))
    return np.broadcast_to(level + grain, there.shape).clip(0, 255).astype(np.float32)


def _shadow(there: NDArray[np.uint8], rng: np.random.Generator) -> Grid:
    """The dark behind the threads; light behind dark ones."""
    level = rng.uniform(0, 20) if there.mean() > 90 else rng.uniform(235, 255)
    return np.full(there.shape, level, dtype=np.float32)


def _soaked(there: NDArray[np.uint8], rng: np.random.Generator) -> Grid:
    """Darker, of a colour, the weave still to be seen; bleached where it is dark."""
    base = there.astype(np.float32)
    if base.mean() < 90:
        return np.float32(255) - (np.float32(255) - base) * np.float32(0.15)
    return base * np.array(_TINTS[int(rng.integers(len(_TINTS)))], dtype=np.float32)


# What is left of red, green and blue: grease, rust, ink, oil.
_TINTS = ((0.06, 0.06, 0.06), (0.22, 0.07, 0.02), (0.02, 0.06, 0.22), (0.16, 0.12, 0.02))

TYPES: Mapping[str, Callable[[float, int, np.random.Generator], Grid]] = MappingProxyType(
    {"scratch": _shapes.scratch, "hole": _shapes.hole, "stain": _shapes.stain, "missing thread": _shapes.missing_thread}
)
"""The types of defects and their shapes."""
_LOOKS = {"scratch": _bare, "hole": _bare, "stain": _soaked, "missing thread": _shadow}
