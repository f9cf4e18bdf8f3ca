"""Relations are said only where they are plain, and mirror each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugiki.synth.relations import MORE, SIDES, exceeds, foremost, side
from tsugiki.types import Box

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
NUMBERS = st.integers(0, 90)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x, y = draw(NUMBERS), draw(NUMBERS)
    return Box(x, y, draw(st.integers(x + 1, 100)), draw(st.integers(y + 1, 100)))


def test_a_side_is_plain() -> None:
    middle = Box(40, 40, 60, 60)
    assert side(Box(0, 45, 20, 55), middle, 100) == "left"
    assert side(Box(70, 45, 90, 55), middle, 100) == "right"
    assert side(Box(45, 0, 55, 20), middle, 100) == "above"  # nearer to the top
    assert side(Box(45, 70, 55, 90), middle, 100) == "below"
    assert side(Box(0, 0, 20, 20), middle, 100) is None  # slantwise
    assert side(Box(10, 45, 50, 55), middle, 100) is None  # they overlap
    assert side(Box(31, 45, 40, 55), middle, 1000) is None  # too near for a picture of that size


@pytest.mark.parametrize(
    ("relation", "winner", "loser"),
    [
        ("left", Box(0, 0, 10, 10), Box(20, 0, 30, 10)),
        ("right", Box(20, 0, 30, 10), Box(0, 0, 10, 10)),
        ("above", Box(0, 0, 10, 10), Box(0, 10, 10, 20)),
        ("below", Box(0, 10, 10, 20), Box(0, 0, 10, 10)),
        ("larger", Box(0, 0, 15, 10), Box(0, 0, 10, 10)),
        ("nearer", Box(30, 0, 40, 10), Box(80, 0, 90, 10)),
    ],
)
def test_one_exceeds_the_other(relation: str, winner: Box, loser: Box) -> None:
    to = Box(0, 0, 10, 10)
    assert exceeds(relation, winner, loser, 100, to) and not exceeds(relation, loser, winner, 100, to)
    assert foremost(relation, [loser, winner], 100, to) == 1
    assert foremost(relation, [loser, winner, winner], 100, to) is None


@given(boxes(), boxes(), boxes(), st.sampled_from(MORE))
def test_never_both(a: Box, b: Box, to: Box, relation: str) -> None:
    assert not (exceeds(relation, a, b, 100, to) and exceeds(relation, b, a, 100, to))
    seen = side(a, b, 100)
    assert seen in {None, *SIDES} and side(b, a, 100) == (None if seen is None else OPPOSITE[seen])
    if seen is not None:
        assert exceeds(seen, a, b, 100)
