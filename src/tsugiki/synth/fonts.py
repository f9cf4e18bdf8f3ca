"""The faces that text is drawn in: files of the font assets, some of them in a weight or width of a variable font."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from PIL import ImageFont

from tsugiki import assets
from tsugiki.errors import AssetError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Face:
    """One way to draw letters."""

    asset: str
    file: str
    """A pattern that one file of the asset matches."""
    languages: tuple[str, ...]
    """Whose letters it has."""
    variation: str = ""
    """Named instance of a variable font."""
    stroke: float = 0.0
    """Width of a line around each letter, as a fraction of the size: makes a bold face of a plain one."""


_NOTO, _NOTO_ITALIC = "**/NotoSans[[]wdth,wght].ttf", "**/NotoSans-Italic[[]wdth,wght].ttf"

FACES: Mapping[str, Face] = MappingProxyType(
    {
        "noto-sans": Face("font-latin", _NOTO, ("en",), "Regular"),
        "noto-sans-bold": Face("font-latin", _NOTO, ("en",), "Bold"),
        "noto-sans-black": Face("font-latin", _NOTO, ("en",), "Black"),
        "noto-sans-italic": Face("font-latin", _NOTO_ITALIC, ("en",), "Italic"),
        "ipaex-gothic": Face("font-ja", "**/ipaexg.ttf", ("ja", "en")),
        "ipaex-gothic-bold": Face("font-ja", "**/ipaexg.ttf", ("ja",), stroke=1 / 28),
    }
)
SPLITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": ("noto-sans", "noto-sans-bold", "ipaex-gothic"),
        "test": ("noto-sans-black", "noto-sans-italic", "ipaex-gothic-bold"),
    }
)
"""Which faces a split shows. There is one Japanese font: the test shows it bolder, where letters are large
enough for it."""


def face(name: str) -> Face:
    """The face of that name.

    Raises:
        UnknownNameError: there is none; names those that there are.
    """
    if name not in FACES:
        raise UnknownNameError("font", name, FACES, where="fonts")
    return FACES[name]


@lru_cache(maxsize=256)
def load(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The face at a size in pixels (of an em).

    Raises:
        UnknownNameError: as `face`.
        AssetError: the font is not in the cache.
    """
    chosen = face(name)
    folder = assets.path(chosen.asset)
    files = sorted(folder.glob(chosen.file))
    if len(files) != 1:
        fix = f"Run: tsugiki assets verify {chosen.asset}"
        raise AssetError(f"{len(files)} files {chosen.file}", expected="one", fix=fix, where=str(folder))
    # Plain layout: what Raqm would do with these two scripts is the same, and it is not in every build of Pillow.
    font = ImageFont.truetype(str(files[0]), size, layout_engine=ImageFont.Layout.BASIC)
    if chosen.variation:
        font.set_variation_by_name(chosen.variation)
    return font
