from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tsugiki.data import sheet
from tsugiki.data.boxes import BoxCodec
from tsugiki.data.sheet import CELL, draw_sheet
from tsugiki.errors import BoxError, DataError
from tsugiki.types import Box, BoxPart, ImageSource, Message, Sample, TextPart

RED, GREEN = (255, 0, 0), (0, 128, 0)


def _picture(size: tuple[int, int], box: Box) -> Image.Image:
    """A green picture with a red rectangle where the box is."""
    image = Image.new("RGB", size, GREEN)
    ImageDraw.Draw(image).rectangle((box.x1, box.y1, box.x2 - 1, box.y2 - 1), fill=RED)
    return image


def _sample(image: ImageSource, box: Box, label: str | None = None) -> Sample:
    answer = Message("assistant", (TextPart("ここ "), BoxPart(box, 0, label)))
    return Sample(id="1", messages=(Message.of("user", "赤い四角はどこ?", (image,)), answer))


def _drawn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a sheet's only cell where the box's outline is, relative to the cell."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), int)[10 : 10 + CELL, 10 : 10 + CELL]
    colour = np.array(Image.new("RGB", (1, 1), sheet._COLOURS[0]))[0, 0]
    return np.nonzero((pixels == colour).all(-1))


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (150, 150), (301, 77)])
@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_the_outline_is_where_the_object_is(tmp_path: Path, size: tuple[int, int], orientation: int) -> None:
    box = Box(size[0] * 0.2, size[1] * 0.3, size[0] * 0.7, size[1] * 0.8)
    turn = {1: None, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    picture = _picture(size, box)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (picture if turn is None else picture.transpose(turn)).save(tmp_path / "a.png", exif=exif)
    assert draw_sheet([_sample(tmp_path / "a.png", box)], tmp_path / "sheet.png") == 1
    rows, columns = _drawn(tmp_path / "sheet.png")
    # By hand: centred in a square of the longer side, then scaled to the cell.
    side = max(size)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    expected = [(box.y1 + top), (box.y2 + top), (box.x1 + left), (box.x2 + left)]
    seen = [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]
    assert np.abs(np.array(seen) - np.array(expected) * CELL / side).max() <= 1.5
    # And by the picture: inside the outline all is red.
    with Image.open(tmp_path / "sheet.png") as image:
        middle = image.getpixel((10 + int(columns.mean()), 10 + int(rows.mean())))
    assert middle == RED


def test_the_towers_own_geometry_is_used(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def view(image: Image.Image) -> Image.Image:
        seen.append(image.size)
        return Image.new("RGB", (64, 64), "blue")

    draw_sheet([_sample(_picture((50, 40), Box(0, 0, 9, 9)), Box(0, 0, 9, 9))], tmp_path / "s.png", view=view)
    assert seen == [(50, 40)]
    with Image.open(tmp_path / "s.png") as image:
        assert image.getpixel((10 + CELL - 3, 10 + CELL - 3)) == (0, 0, 255)


def test_a_coarse_codec_shows(tmp_path: Path) -> None:
    box = Box(33, 33, 66, 66)
    draw_sheet([_sample(_picture((100, 100), box), box)], tmp_path / "s.png", codec=BoxCodec(decimals=1))
    rows, _ = _drawn(tmp_path / "s.png")
    assert abs(rows.min() - 0.3 * CELL) <= 1 and abs(rows.max() + 1 - 0.7 * CELL) <= 1


def test_many_samples(tmp_path: Path) -> None:
    box = Box(1, 1, 9, 9)
    samples = [_sample(_picture((20, 20), box), box, "傷" * (i % 2)) for i in range(30)]
    assert draw_sheet(samples, tmp_path / "s.png", limit=7, columns=3) == 7
    with Image.open(tmp_path / "s.png") as image:
        assert image.width == 3 * (CELL + 10) + 10
    long = Sample(id="2", messages=(Message.of("user", "長い" * 500, (_picture((20, 20), box),)),))
    assert draw_sheet([long], tmp_path / "s.png") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["s.png"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample with a picture"):
        draw_sheet([Sample(id="1", messages=(Message.of("user", "a"),))], tmp_path / "s.png")
    with pytest.raises(BoxError):
        draw_sheet([_sample(_picture((9, 9), Box(0, 0, 3, 3)), Box(0, 0, 50, 3))], tmp_path / "s.png")
    assert list(tmp_path.iterdir()) == []
