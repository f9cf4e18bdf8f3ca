"""A sheet of pictures to look at: what the tower sees, with every box drawn where its text says it is.

A box goes the whole way: pixels -> text -> parsed -> pixels -> place in the view. A wrong rotation, a swapped axis or a
forgotten padding shows at a glance.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tsugiki import assets
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.data.files import atomic_write
from tsugiki.data.images import open_image
from tsugiki.errors import DataError
from tsugiki.types import Box, BoxPart, ImagePart, Message, Sample, TextPart

View = Callable[[Image.Image], Image.Image]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

CELL = 288  # pixels of a picture's side on the sheet
_LINES = 5
_LINE = 17
_GAP = 10
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#e6beff", "#9a6324")


def draw_sheet(
    samples: Sequence[Sample],
    path: str | Path,
    *,
    codec: BoxCodec | None = None,
    view: View | None = None,
    limit: int = 24,
    columns: int = 4,
) -> int:
    """Write a PNG of up to `limit` pictures with questions, answers and boxes.

    Args:
        samples: those with boxes come first; of more than `limit`, some are taken at even distances.
        codec: writes and reads the boxes.
        view: the tower's own geometry, an RGB picture -> a square of any side; a plain padded square by default.
        columns: pictures in a row.

    Returns:
        How many pictures are on the sheet.

    Raises:
        DataError: no sample has a picture.
        ImageError: a picture can't be read.
        BoxError: a box does not fit its picture.
        StoreError: the sheet can't be written.
    """
    codec, view = codec or BoxCodec(), view or padded
    shown = [s for s in samples if s.boxes and s.images] or [s for s in samples if s.images]
    if not shown:
        raise DataError("no sample with a picture", expected="one to draw", fix="Check the file.", where=str(path))
    if len(shown) > limit:
        shown = [shown[i * len(shown) // limit] for i in range(limit)]
    cells = [cell for sample in shown for cell in _cells(sample, codec, view)][:limit]
    columns = min(columns, len(cells))
    width, height = CELL + _GAP, CELL + _LINES * _LINE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(cells) // columns) * height + _GAP), "white")
    for i, cell in enumerate(cells):
        sheet.paste(cell, (_GAP + i % columns * width, _GAP + i // columns * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    atomic_write(path, buffer.getvalue())
    return len(cells)


def round_trip(box: Box, size: tuple[int, int], codec: BoxCodec) -> tuple[str, Box]:
    """A box's text, and the box that is read back from it, in pixels of a picture of `size`.

    Raises:
        BoxError: the box does not fit its picture.
    """
    square = PaddedSquare(*size)
    text = codec.encode(box, square)
    return text, codec.parse(text, square)[0]


def padded(image: Image.Image) -> Image.Image:
    """The whole picture centred in a grey square of its longer side, then scaled to a cell."""
    square = PaddedSquare(image.width, image.height)
    factor = CELL / square.side
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    view = Image.new("RGB", (CELL, CELL), (127, 127, 127))
    view.paste(image.resize(size, Image.Resampling.BICUBIC), (round(square.left * factor), round(square.top * factor)))
    return view


def _cells(sample: Sample, codec: BoxCodec, view: View) -> Iterator[Image.Image]:
    pictures = [open_image(source, where=sample.where) for source in sample.images]
    words = " | ".join(_words(m, [p.size for p in pictures], codec) for m in sample.messages)
    for number, picture in enumerate(pictures):
        seen = view(picture).convert("RGB").resize((CELL, CELL), Image.Resampling.BICUBIC)
        cell = Image.new("RGB", (CELL, CELL + _LINES * _LINE), "white")
        cell.paste(seen)
        draw = ImageDraw.Draw(cell)
        for k, part in enumerate(p for p in sample.boxes if p.image == number):
            _draw_box(draw, part, picture.size, codec, _COLOURS[k % len(_COLOURS)])
        _write(draw, f"{sample.id}: {words}")
        yield cell


def _draw_box(draw: ImageDraw.ImageDraw, part: BoxPart, size: tuple[int, int], codec: BoxCodec, colour: str) -> None:
    _, read = round_trip(part.box, size, codec)
    place = PaddedSquare(*size).to_square(read)
    x1, y1, x2, y2 = (CELL * v for v in (place.x1, place.y1, place.x2, place.y2))
    draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=2)
    if part.label:
        draw.text(
            (x1 + 3, y1 + 1), part.label, fill=colour, font=_font(part.label), stroke_width=1, stroke_fill="white"
        )


def _words(message: Message, sizes: Sequence[tuple[int, int]], codec: BoxCodec) -> str:
    text = ""
    for part in message.parts:
        if isinstance(part, TextPart):
            text += part.text
        elif isinstance(part, BoxPart):
            text += round_trip(part.box, sizes[part.image], codec)[0]
        elif isinstance(part, ImagePart):
            text += "[image] "
    return " ".join(text.split())


def _write(draw: ImageDraw.ImageDraw, text: str) -> None:
    """The words below a picture, broken where a line is full; what does not fit is cut."""
    font = _font(text)
    lines = [""]
    for character in text:
        if draw.textlength(lines[-1] + character, font=font) > CELL:
            lines.append("")
        lines[-1] += character
    if len(lines) > _LINES:
        lines[_LINES - 1] = lines[_LINES - 1][:-2] + "..."
    for i, line in enumerate(lines[:_LINES]):
        draw.text((0, CELL + 1 + i * _LINE), line.strip(), fill="black", font=font)


def _font(text: str) -> Font:
    return _load_font(not text.isascii())


@lru_cache(maxsize=2)
def _load_font(wide: bool) -> Font:
    """The Japanese font of the assets where it is needed and has been fetched, else Pillow's own."""
    if wide and assets.is_fetched("font-ja"):
        for file in sorted(assets.path("font-ja").rglob("*.ttf")):
            return ImageFont.truetype(str(file), 13)
    return ImageFont.load_default(13)
