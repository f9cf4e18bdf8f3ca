"""What a picture file says before it is decoded: format, size, orientation. Nothing global is touched."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from PIL import Image, UnidentifiedImageError

from tsugiki.errors import ImageError
from tsugiki.types import ImageSource

T = TypeVar("T")
_LOCK = threading.Lock()

MAX_PIXELS = 100_000_000
# Formats that hold pictures. EPS, WMF and PDF are left out: reading them starts other programs. HEIF needs a plugin.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "ICO", "TGA")


def without_warnings(work: Callable[[], T]) -> T:
    """Where warnings are errors, a picture with damaged metadata would be refused: it is read once more without them.

    Filters of warnings belong to the whole process, so they are touched only then, and by one thread at a time.
    """
    try:
        return work()
    except Warning:
        with _LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()


@contextmanager
def opened(source: ImageSource, where: str) -> Iterator[Image.Image]:
    """The picture with only its header read."""
    if isinstance(source, Image.Image):
        yield source
        return
    name = shown_name(source)
    if isinstance(source, bytes):
        file: IO[bytes] = io.BytesIO(source)
        empty = not source
    else:
        path = Path(source)
        try:
            file = path.open("rb")
            empty = path.stat().st_size == 0
        except (OSError, ValueError) as error:
            raise missing(path, error, where) from error
    with file:
        if empty:
            raise ImageError(
                f"{name} has 0 bytes", expected="a picture", fix="Copy it again, or leave it out.", where=where
            )
        image = _read_header(file, name, where)
        try:
            yield image
        finally:
            image.close()


def read_size(source: ImageSource, where: str) -> tuple[int, int]:
    """Width and height after EXIF rotation."""
    with opened(source, where) as image:
        width, height = image.size
        if isinstance(image, _tiff_class()):
            return width, height  # Pillow has turned the size already
        return (height, width) if orientation(image) in (5, 6, 7, 8) else (width, height)


def _read_header(file: IO[bytes], name: str, where: str) -> Image.Image:
    """`Image.open` without its global pixel limit."""
    Image.init()
    prefix = file.read(16)
    reason = ""
    for identifier in [i for i in FORMATS if i in Image.OPEN]:
        factory, accept = Image.OPEN[identifier]
        try:
            accepted = accept(prefix) if accept else identifier == "TGA" and name.lower().endswith(".tga")
        except Exception:  # fewer bytes than it looks at
            continue
        if not accepted or isinstance(accepted, str):
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except Warning:
            raise
        except Exception as error:  # a damaged header, or another format with the same first bytes
            reason = reason or cause(error)
    damaged = f", its header is damaged ({reason})" if reason else ""
    raise ImageError(
        f"{name} is not a picture that can be read{damaged}",
        expected="JPEG, PNG, WebP, GIF, BMP, TIFF or the like",
        fix="Convert it to PNG or JPEG, or leave it out.",
        where=where,
    )


def orientation(image: Image.Image) -> int:
    """The EXIF orientation 1..8 as `exif_transpose` reads it, decoding only where the tag comes after the pixels."""
    try:
        if isinstance(image, _png_class()) and (image.width * image.height > MAX_PIXELS or not _png_tag_is_late(image)):
            return int(Image.Image.getexif(image).get(0x0112, 1))  # PNG's own getexif would decode
        return int(image.getexif().get(0x0112, 1))
    except Warning:
        raise
    except Exception:  # a damaged tag
        return 1


def _png_tag_is_late(image: Image.Image) -> bool:
    """Whether a PNG may carry its EXIF tag after the pixels, where only a full read finds it."""
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None or file.closed:
        return False
    back = file.tell()
    try:
        file.seek(8)
        pixels_seen = False
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            pixels_seen |= kind == b"IDAT"
            if pixels_seen and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(length + 4, io.SEEK_CUR)
        return False
    finally:
        file.seek(back)


def _png_class() -> type[Image.Image]:
    from PIL.PngImagePlugin import PngImageFile

    return PngImageFile


def _tiff_class() -> type[Image.Image]:
    from PIL.TiffImagePlugin import TiffImageFile

    return TiffImageFile


def shown_name(source: ImageSource) -> str:
    """The picture in words, for errors."""
    if isinstance(source, bytes):
        return "the picture"
    return "the open picture" if isinstance(source, Image.Image) else f"the picture {source}"


def missing(path: Path, error: Exception, where: str) -> ImageError:
    """The error for a file that can't be opened."""
    if os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises on a name that is too long)
        found = f"the picture {path} is a folder"
    elif isinstance(error, FileNotFoundError):
        found = f"the picture {path} does not exist"
    else:
        found = f"the picture {path} can't be read ({cause(error)})"
    return ImageError(found, expected="a picture file", fix="Correct the path.", where=where)


def cause(error: Exception) -> str:
    """A short text for an error of a library."""
    if isinstance(error, UnidentifiedImageError):
        return "unknown format"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__
