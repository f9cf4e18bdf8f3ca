"""Pictures of any kind as plain RGB, upright; sizes without decoding; keys by content.

Pillow's own guard against decompression bombs is a global warning. Here the header is read first and the number of
pixels is compared with a limit of the call, so that no global is set and no warning leaks.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image, ImageOps

from tsugiki.data._headers import MAX_PIXELS, cause, missing, opened, read_size, shown_name, without_warnings
from tsugiki.data.files import sha256_file
from tsugiki.errors import ImageError
from tsugiki.types import ImageSource

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "content_key",
    "image_files",
    "image_size",
    "open_image",
    "pixel_key",
    "rgb_key",
    "source_key",
]

_SUFFIXES = (
    "jpg jpeg jpe jfif mpo png apng webp gif bmp dib tif tiff ppm pgm pbm pnm jp2 j2k jpx avif heic heif ico tga"
)
SUFFIXES = frozenset("." + suffix for suffix in _SUFFIXES.split())


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, where: str = "") -> Image.Image:
    """Read a picture as RGB, turned upright by its EXIF tag, the first frame where there are several.

    Transparency becomes white. Grey of 16 bits is divided by 256; 32-bit and float grey is scaled as `_grey` says.

    Args:
        source: a path, the bytes of a file, or an open picture (never changed or closed).
        max_pixels: larger pictures are refused before anything is decoded.
        where: what an error names (file:line, field) beside the picture itself.

    Raises:
        ImageError: missing, empty, truncated, not a picture, or too large.
    """
    return without_warnings(lambda: _decode(source, max_pixels, where))


def _decode(source: ImageSource, max_pixels: int, where: str) -> Image.Image:
    name = shown_name(source)
    with opened(source, where) as image:
        _check_size(image.size, max_pixels, name, where)
        try:
            image.load()
            upright = _upright(image)  # of an undamaged picture a copy
            return _rgb(upright, own=upright is not image)
        except Warning:
            raise
        except MemoryError as error:
            raise ImageError(
                f"{name} does not fit into memory", fix="Make the picture smaller.", where=where
            ) from error
        except Exception as error:  # decoders raise many kinds of errors on damaged bytes
            raise ImageError(
                f"{name} is damaged or cut short ({cause(error)})",
                expected="a whole picture",
                fix="Copy it again from its source, or leave it out.",
                where=where,
            ) from error


def image_size(source: ImageSource, *, where: str = "") -> tuple[int, int]:
    """Width and height in pixels as `open_image` gives them (after EXIF rotation), from the header alone.

    Raises:
        ImageError: missing, empty, or not a picture.
    """
    return without_warnings(lambda: read_size(source, where))


def source_key(source: ImageSource) -> str | bytes | int:
    """What tells two sources apart without opening them: a path, the bytes, or which open picture it is."""
    return str(source) if isinstance(source, (str, Path)) else source if isinstance(source, bytes) else id(source)


def content_key(source: ImageSource) -> str:
    """SHA-256 of the file's bytes; of an open picture, of its size and RGB pixels.

    Raises:
        ImageError: the file does not exist or can't be read.
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, Image.Image):
        return pixel_key(source)
    try:
        return sha256_file(source)
    except OSError as error:
        raise missing(Path(source), error, "") from error


def pixel_key(source: ImageSource) -> str:
    """SHA-256 of size and decoded RGB pixels: equal for two files that show the same, however they are stored.

    Raises:
        ImageError: as `open_image`.
    """
    return rgb_key(open_image(source))


def rgb_key(image: Image.Image) -> str:
    """`pixel_key` of a picture as `open_image` gives it."""
    digest = hashlib.sha256(f"rgb {image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def image_files(folder: str | Path) -> list[Path]:
    """Every picture file below a folder by its suffix, sorted; hidden files and folders are left out."""
    folder = Path(folder)
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def _check_size(size: tuple[int, int], limit: int, name: str, where: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(
            f"{name} is {width}x{height} pixels", expected="at least 1x1", fix="Leave it out.", where=where
        )
    if width * height > limit:
        raise ImageError(
            f"{name} has {width}x{height} = {width * height / 1e6:.1f} megapixels",
            expected=f"at most {limit / 1e6:g} megapixels",
            fix="Make it smaller, or raise max_pixels if you trust it. It was not decoded.",
            where=where,
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Warning:
        raise
    except Exception:  # a damaged tag says nothing about the pixels
        return image


def _rgb(image: Image.Image, *, own: bool) -> Image.Image:
    """A picture that nobody else holds; `own`: nobody holds this one."""
    if image.mode.startswith("I") or image.mode == "F":
        return _grey(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode != "RGB":
        return image.convert("RGB")
    return image if own else image.copy()


def _grey(image: Image.Image) -> Image.Image:
    """Deep grey to 8 bits: 16 bits / 256; 32 bits as they are up to 255, / 256 up to 65535, else stretched; float in
    [0, 1] times 255, in [0, 255] as it is, else stretched from its least to its greatest value."""
    deep = image.convert("F") if image.mode == "I" else image
    if image.mode.startswith("I;16"):
        deep = image.convert("I").convert("F")
        return deep.point(lambda v: v * (1 / 256) + 0.0).convert("L")
    extrema = deep.getextrema()
    low, high = float(extrema[0]), float(extrema[1])  # type: ignore[arg-type]
    if image.mode == "F" and low >= 0 and high <= 1:
        scale, shift = 255.0, 0.0
    elif low >= 0 and high <= 255:
        scale, shift = 1.0, 0.0
    elif image.mode == "I" and low >= 0 and high <= 65535:
        scale, shift = 1 / 256, 0.0
    else:
        scale = 255.0 / (high - low) if high > low else 0.0
        shift = -low * scale
    return deep.point(lambda v: v * scale + shift).convert("L")
