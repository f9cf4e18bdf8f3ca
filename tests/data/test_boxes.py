from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.errors import BoxError
from tsugiki.types import Box

CODEC = BoxCodec()


@st.composite
def boxes(draw: st.DrawFn, whole: bool = False) -> tuple[Box, PaddedSquare]:
    width, height = draw(st.integers(1, 6000)), draw(st.integers(1, 6000))

    def edges(length: int) -> tuple[float, float]:
        number = st.integers(0, length) if whole else st.floats(0, length)
        low, high = sorted((draw(number), draw(number)))
        if high - low < 1e-6:
            low, high = max(0.0, high - 1), min(float(length), max(0.0, high - 1) + 1)
        return low, high

    (x1, x2), (y1, y2) = edges(width), edges(height)
    return Box(x1, y1, x2, y2), PaddedSquare(width, height)


def test_the_text() -> None:
    assert CODEC.encode(Box(10, 20, 50, 75), PaddedSquare(100, 100)) == "[0.100,0.200,0.500,0.750]"
    assert CODEC.encode(Box(0, 0, 100, 50), PaddedSquare(100, 50)) == "[0.000,0.250,1.000,0.750]"
    assert CODEC.encode(Box(0, 0, 50, 100), PaddedSquare(50, 100)) == "[0.250,0.000,0.750,1.000]"
    assert BoxCodec(decimals=0, scale=1000).encode(Box(10, 20, 50, 75), PaddedSquare(100, 100)) == "[100,200,500,750]"


def test_numbers_of_one_length() -> None:
    short, square = BoxCodec(decimals=0, scale=99, whole=2), PaddedSquare(99, 99)
    assert short.encode(Box(0, 7, 50, 99), square) == "[00,07,50,99]"
    assert short.parse("[00,07,50,99]", square) == [Box(0, 7, 50, 99)] == short.parse("[0,7,50,99]", square)
    assert BoxCodec(decimals=1, scale=50, whole=2).write((5, 10, 333, 500)) == "[00.5,01.0,33.3,50.0]"
    with pytest.raises(BoxError, match="whole=0"):
        BoxCodec(whole=0)


def test_padding_is_as_a_loop_over_pixels_has_it() -> None:
    for width, height in ((5, 2), (2, 5), (7, 4), (3, 3)):
        square = PaddedSquare(width, height)
        side = max(width, height)
        canvas = [[False] * side for _ in range(side)]
        for y in range(height):
            for x in range(width):
                canvas[y + square.top][x + square.left] = True
        rows = [y for y in range(side) if any(canvas[y])]
        columns = [x for x in range(side) if any(row[x] for row in canvas)]
        whole = square.to_square(Box(0, 0, width, height))
        expected = (columns[0] / side, rows[0] / side, (columns[-1] + 1) / side, (rows[-1] + 1) / side)
        assert (whole.x1, whole.y1, whole.x2, whole.y2) == pytest.approx(expected)


@given(boxes())
def test_geometry_there_and_back(case: tuple[Box, PaddedSquare]) -> None:
    box, square = case
    back = square.to_pixels(square.to_square(box))
    for a, b in zip((box.x1, box.y1, box.x2, box.y2), (back.x1, back.y1, back.x2, back.y2), strict=True):
        assert math.isclose(a, b, abs_tol=1e-9 * square.side)


@given(
    boxes(),
    st.sampled_from(
        [
            BoxCodec(),
            BoxCodec(decimals=2),
            BoxCodec(decimals=4),
            BoxCodec(decimals=0, scale=1000),
            BoxCodec(decimals=0, scale=99, whole=2),
        ]
    ),
)
@example((Box(0, 0, 1, 1), PaddedSquare(1, 6000)), BoxCodec(decimals=2))
@example((Box(5999, 5999, 6000, 6000), PaddedSquare(6000, 6000)), BoxCodec(decimals=2))
def test_round_trip_moves_an_edge_by_half_a_step(case: tuple[Box, PaddedSquare], codec: BoxCodec) -> None:
    box, square = case
    (back,) = codec.parse(f"Here: {codec.encode(box, square)}.", square)
    step = square.side / codec.steps
    for low, high, a, b in ((box.x1, box.x2, back.x1, back.x2), (box.y1, box.y2, back.y1, back.y2)):
        bound = (0.5 if high - low >= step else 1.0) * step + 1e-6
        assert abs(a - low) <= bound and abs(b - high) <= bound
        assert 0 <= a < b
    assert back.x2 <= square.width and back.y2 <= square.height


@given(st.lists(boxes(whole=True), min_size=1, max_size=4))
def test_several_boxes_keep_their_order(cases: list[tuple[Box, PaddedSquare]]) -> None:
    square = PaddedSquare(6000, 6000)
    text = " と ".join(CODEC.encode(box, square) for box, _ in cases)
    assert [CODEC.encode(b, square) for b in CODEC.parse(text, square)] == text.split(" と ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[0.1,0.2,0.3]",
        "[0.5,0.2,0.3,0.4]",
        "[0.1,0.2,0.1,0.4]",
        "[-0.1,0.2,0.3,0.4]",
        "[1e9,0,1,1]",
        "[0.1,0.2,0.3,1.4]",
        "__import__('os')",
        "[0.1.2,0,1,1]",
        "[nan,0,1,1]",
        "0.1,0.2,0.3,0.4",
        "[" * 5000,
        "[0.1," * 3000,
    ],
)
def test_malformed_text_is_left_out(text: str) -> None:
    assert CODEC.parse(text, PaddedSquare(100, 100)) == []


def test_parsing_is_tolerant() -> None:
    square = PaddedSquare(100, 100)
    for text in ("[ .1 , 0.2,0.30 ,\n1 ]", "［０．１，０．２，０．３，１．０］", "a [0.1,0.2,0.3,1.] b [0.1,0.2]"):
        (box,) = CODEC.parse(text, square)
        assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((10, 20, 30, 100))


def test_boxes_are_cut_to_the_picture() -> None:
    wide = PaddedSquare(100, 50)
    assert CODEC.parse("[0,0,1,1]", wide) == [Box(0, 0, 100, 50)]
    assert CODEC.parse("[0,0,1,0.2]", wide) == []  # in the padding


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (Box(10, 10, 5, 20), "has width -5"),
        (Box(10, 10, 20, 10), "height 0"),
        (Box(-1, 0, 5, 5), "outside its picture of 100x50 pixels"),
        (Box(0, 0, 5, 51), "outside its picture"),
        (Box(0, 0, float("nan"), 5), "not finite"),
        (Box(0, 0, float("inf"), 5), "not finite"),
    ],
)
def test_wrong_boxes(box: Box, words: str) -> None:
    for check in (CODEC.validate, lambda box, size, where: CODEC.encode(box, PaddedSquare(*size))):
        with pytest.raises(BoxError, match=words) as error:
            check(box, (100, 50), where="f.jsonl:2")
        assert "\n" not in str(error.value)


def test_validation_without_a_size() -> None:
    BoxCodec.validate(Box(0, 0, 1e6, 1e6), None)
    with pytest.raises(BoxError, match="outside its picture; expected edges from 0"):
        BoxCodec.validate(Box(-5, 0, 5, 5), None)


@pytest.mark.parametrize("options", [{"decimals": -1}, {"decimals": 7}, {"scale": 0}, {"decimals": 0}])
def test_codecs_that_hold_nothing(options: dict[str, int]) -> None:
    with pytest.raises(BoxError, match="codec with"):
        BoxCodec(**options)
