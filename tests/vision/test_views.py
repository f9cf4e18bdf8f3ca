"""The transform's geometry against the box codec's, and that odd pictures are no trouble."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tsugiki.data.boxes import PaddedSquare
from tsugiki.types import Box
from tsugiki.vision.views import augmented, extended, mean_colour, padded_square, to_pixels


@pytest.mark.parametrize("size", [(320, 200), (200, 320), (101, 300), (300, 300), (2400, 900), (5000, 3001)])
def test_a_box_lies_where_the_codec_says(size: tuple[int, int]) -> None:
    width, height = size
    box = Box(width * 0.25, height * 0.4, width * 0.65, height * 0.9)
    picture = Image.new("RGB", size, (0, 0, 0))
    picture.paste((255, 255, 255), tuple(round(v) for v in (box.x1, box.y1, box.x2, box.y2)))  # type: ignore[arg-type]
    view = np.asarray(padded_square(picture, 224, (0, 0, 0)).convert("L"))
    rows, columns = np.nonzero(view > 127)
    square = PaddedSquare(width, height).to_square(box)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    for edge, expected in zip(found, (square.x1, square.y1, square.x2, square.y2), strict=True):
        assert abs(edge - 224 * expected) <= 1.0


def test_padding_has_the_mean_colour_and_becomes_zero() -> None:
    mean, std = (127 / 255, 102 / 255, 51 / 255), (0.2, 0.3, 0.4)
    view = padded_square(Image.new("RGB", (64, 16), (255, 0, 0)), 64, mean_colour(mean))
    assert view.getpixel((0, 0)) == (127, 102, 51)
    pixels = to_pixels(view, mean, std)
    assert pixels[:, 0].abs().max() < 1e-6  # the first row is padding
    expected = torch.tensor([(1 - mean[0]) / std[0], -mean[1] / std[1], -mean[2] / std[2]])
    torch.testing.assert_close(pixels[:, 32, 32], expected)


@given(st.integers(1, 700), st.integers(1, 700))
def test_any_shape_gives_a_square(width: int, height: int) -> None:
    assert padded_square(Image.new("RGB", (width, height)), 32).size == (32, 32)


def test_a_ribbon_needs_no_gigapixel_square() -> None:
    view = padded_square(Image.new("RGB", (60_000, 6), (255, 255, 255)), 32, (0, 0, 0))
    light = np.asarray(view.convert("L"))
    assert light[:12].max() == 0 and light[20:].max() == 0 and light[14:18].max() > 0


def test_variants_are_fixed_and_differ() -> None:
    rng = np.random.default_rng(0)
    view = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    assert augmented(view, 0) is view
    assert augmented(view, 1).tobytes() == augmented(view, 1).tobytes()
    assert len({augmented(view, k).tobytes() for k in range(4)}) == 4


def test_extended_keeps_the_upper_left() -> None:
    view = Image.new("RGB", (30, 30), (9, 9, 9))
    canvas = extended(view, 32, (1, 2, 3))
    assert canvas.getpixel((29, 29)) == (9, 9, 9) and canvas.getpixel((30, 0)) == (1, 2, 3)
