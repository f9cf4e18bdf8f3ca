from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tsugiki.errors import DataError, UnknownNameError
from tsugiki.synth.pictograms import COLOURS, RENDERINGS, Drawings, choose, short_name, table


def test_table_has_many_single_code_points_with_different_ordinary_names() -> None:
    rows = table()
    assert len(rows) >= 120
    for values in ([p.code for p in rows], [p.en for p in rows], [p.ja for p in rows]):
        assert len(set(values)) == len(rows)
    for p in rows:
        assert unicodedata.name(chr(int(p.code, 16)))
        assert p.en == short_name(p.code)
        assert 1 <= len(p.en.split()) <= 2
        assert p.en.isascii()
        assert not p.ja.isascii()


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("1F355", "pizza"),
        ("26C4", "snowman"),
        ("1F981", "lion"),
        ("1F697", "car"),
        ("1F4D5", "book"),
        ("1F34E", "apple"),
    ],
)
def test_short_name(code: str, name: str) -> None:
    assert short_name(code) == name


@pytest.mark.parametrize("code", ["", "xyz", "FFFFFFFF", "0000"])
def test_short_name_of_no_code_point(code: str) -> None:
    with pytest.raises(DataError, match="code point"):
        short_name(code)


def test_choose() -> None:
    assert choose(None) == table()
    assert choose(3) == table()[:3]
    assert [p.en for p in choose(["cat", "dog"])] == ["cat", "dog"]
    assert [p.en for p in choose("cat")] == ["cat"]
    with pytest.raises(UnknownNameError, match="'elephant'"):
        choose(["elefant"])
    for wrong in (0, 10_000, [], ["cat", "cat"]):
        with pytest.raises(DataError):
            choose(wrong)


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_drawing_is_tight_and_has_the_size(svg_folder: Path, rendering: str) -> None:
    drawings = Drawings(svg_folder)
    for size in (12, 40, 150):
        alpha = np.asarray(drawings.draw(table()[3].code, rendering, size, ink=COLOURS["red"]))[..., 3]
        assert all(edge.any() for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))
        assert abs(max(alpha.shape) - size) <= 1
        assert not ((alpha > 0) & (alpha < 16)).any()


def test_outline_has_no_fill_and_one_ink(svg_folder: Path) -> None:
    drawing = np.asarray(Drawings(svg_folder).draw(table()[0].code, "outline", 100, ink=(9, 8, 7)))
    middle = drawing[drawing.shape[0] // 2, drawing.shape[1] // 2]
    assert middle[3] == 0
    assert (drawing[drawing[..., 3] > 0][:, :3] == (9, 8, 7)).all()


def test_recoloured_is_near_one_colour_and_keeps_the_lines(svg_folder: Path) -> None:
    colour = np.array(COLOURS["blue"])
    drawing = np.asarray(Drawings(svg_folder).draw(table()[5].code, "recoloured", 120, ink=COLOURS["blue"])).astype(
        float
    )
    solid = drawing[drawing[..., 3] == 255][:, :3]
    dark = solid.max(axis=1) < 10
    near = (
        np.abs(solid - colour * (solid.sum(1, keepdims=True) / colour.sum())).max(axis=1) < 12
    )  # same hue, any lightness
    assert dark.mean() > 0.05
    assert (near | dark).mean() > 0.98
    lightness = solid[~dark].sum(1) / colour.sum()
    assert np.quantile(lightness, 0.2) > 0.8
    as_drawn = Drawings(svg_folder).draw(table()[5].code, "colour", 120)
    assert (
        as_drawn.getchannel("A").tobytes()
        == Drawings(svg_folder).draw(table()[5].code, "recoloured", 120, ink=(1, 2, 3)).getchannel("A").tobytes()
    )


def test_turning_turns(svg_folder: Path) -> None:
    drawings = Drawings(svg_folder)
    upright = drawings.draw(table()[0].code, "colour", 80)
    turned = drawings.draw(table()[0].code, "rotated", 80, angle=90)
    assert turned.size == upright.size[::-1]
    again = np.asarray(turned.rotate(-90, expand=True)).astype(int)
    assert np.abs(again - np.asarray(upright).astype(int)).mean() < 4


def test_each_layer_is_rasterised_once(svg_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tsugiki.synth.pictograms as module

    calls = []
    original = module._rasterise
    monkeypatch.setattr(module, "_rasterise", lambda *a: (calls.append(a), original(*a))[1])
    drawings = Drawings(svg_folder)
    for size in (30, 60):
        for rendering in RENDERINGS:
            drawings.draw(table()[1].code, rendering, size, ink=COLOURS["red"])
    assert len(calls) == len(set(calls)) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<svg", "not an SVG"),
        ('<svg xmlns="http://www.w3.org/2000/svg"><g id="color"/></svg>', "lines"),
        ('<svg xmlns="http://www.w3.org/2000/svg"><path id="other"/><g id="line"/></svg>', "fills"),
        (
            '<svg viewBox="0 0 9 9" xmlns="http://www.w3.org/2000/svg"><g id="line"/><g id="color"/></svg>',
            "shows nothing",
        ),
        (
            '<svg viewBox="0 0 0 9" xmlns="http://www.w3.org/2000/svg"><g id="line"/><g id="color"/></svg>',
            "SVG can't be|shows",
        ),
    ],
)
def test_bad_drawings_are_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "1F415.svg").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words) as error:
        Drawings(tmp_path).draw("1F415", "colour", 40)
    assert "1F415.svg" in str(error.value)
    with pytest.raises(DataError, match="no such pictogram"):
        Drawings(tmp_path).draw("1F408", "colour", 40)


def test_unknown_rendering(svg_folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="outline"):
        Drawings(svg_folder).draw("1F415", "outlined", 40)


@pytest.mark.assets("openmoji")
def test_every_pictogram_has_a_drawing_with_fills_and_lines() -> None:
    drawings = Drawings()
    for p in table():
        whole = np.asarray(drawings.layer(p.code, "whole"))[..., 3] > 127
        fills = np.asarray(drawings.layer(p.code, "fills"))[..., 3] > 127
        lines = np.asarray(drawings.layer(p.code, "lines"))[..., 3] > 127
        assert fills.sum() / whole.sum() > 0.45, p.en  # enough to take a colour
        assert lines.sum() / whole.sum() > 0.08, p.en  # enough to be known by its lines


@pytest.mark.assets("openmoji")
def test_no_two_pictograms_look_the_same() -> None:
    drawings = Drawings()
    small = {}
    for p in table():
        for rendering in ("colour", "outline"):
            picture = Image.new("RGBA", (48, 48), "white")
            drawing = drawings.draw(p.code, rendering, 48)
            picture.paste(drawing, ((48 - drawing.width) // 2, (48 - drawing.height) // 2), drawing)
            small[p.en, rendering] = np.asarray(picture.convert("RGB").resize((16, 16))).astype(float).ravel()
    for rendering in ("colour", "outline"):
        rows = np.stack([v for (_, r), v in small.items() if r == rendering])
        distance = np.abs(rows[:, None] - rows[None]).mean(-1) + 255 * np.eye(len(rows))
        assert distance.min() > 6
