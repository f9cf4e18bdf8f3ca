from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.convert import voc
from tsugiki.errors import BoxError, DataError, ImageError, InputError
from tsugiki.types import Box, Sample

SIZE = (100, 60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for inner in ("Annotations", "JPEGImages"):
        (tmp_path / inner).mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE).save(tmp_path / "JPEGImages" / name)
    return tmp_path


def _object(name: str, *edges: Any, **more: Any) -> str:
    box = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=False))
    rest = "".join(f"<{tag}>{v}</{tag}>" for tag, v in more.items())
    return f"<object><name>{escape(name)}</name>{rest}<bndbox>{box}</bndbox></object>"


def _xml(*objects: str, name: str = "a.png", size: Any = SIZE) -> str:
    extent = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{extent}{''.join(objects)}</annotation>"


def _file(folder: Path, text: str, stem: str = "a") -> Path:
    (folder / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
    return folder


def _boxes(sample: Sample) -> list[Box]:
    return [p.box for p in sample.boxes]


def test_boxes_of_a_class(folder: Path) -> None:
    part = "<part><name>edge</name><bndbox><xmin>1</xmin></bndbox></part>"
    one = _object("傷", 50, 10, 70, 40).replace("</object>", f"{part}</object>")
    _file(folder, _xml(one, _object("dent", 0, 0, 100, 60), _object("傷", 5, 5.5, 15, 15)))
    marks, dent = voc.convert(folder)
    assert (marks.id, marks.task, marks.images) == ("a.png#傷", "box", (folder / "JPEGImages" / "a.png",))
    assert schema.message_text(marks.messages[0]) == "Where is the 傷?"
    assert _boxes(marks) == [Box(5, 5.5, 15, 15), Box(50, 10, 70, 40)]
    assert _boxes(dent) == [Box(0, 0, 100, 60)]
    schema.write(folder / "d.jsonl", [marks, dent])
    assert schema.check(folder / "d.jsonl") == []
    assert voc.convert(folder / "Annotations") == [marks, dent]


def test_pixels_that_count_from_one(folder: Path) -> None:
    _file(folder, _xml(_object("dent", 1, 1, 100, 60)))
    assert _boxes(voc.convert(folder, one_based=True)[0]) == [Box(0, 0, 100, 60)]
    assert _boxes(voc.convert(folder)[0]) == [Box(1, 1, 100, 60)]


def test_absent_and_difficult(folder: Path) -> None:
    _file(folder, _xml(_object("傷", 5, 5, 15, 15), _object("dent", 1, 1, 9, 9, difficult=1)))
    _file(folder, _xml(_object("rust", 5, 5, 15, 15), name="b.png", size=None), "b")
    asked = {s.id: s.task for s in voc.convert(folder, absent=5)}
    assert asked == {
        "a.png#傷": "box", "a.png#rust": "absent",
        "b.png#rust": "box", "b.png#dent": "absent", "b.png#傷": "absent",
    }  # fmt: skip
    assert "a.png#dent" in {s.id for s in voc.convert(folder, difficult=True)}


edges = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: abs(pair[0] - pair[1]) > 0.01)


@given(edges, edges)
def test_boxes_come_back(tmp_path_factory: pytest.TempPathFactory, xs: Any, ys: Any) -> None:
    """What tools write in whole pixels comes back within half a pixel."""
    folder = tmp_path_factory.mktemp("voc")
    Image.new("RGB", (200, 300)).save(folder / "a.png")
    true = Box(200 * min(xs), 300 * min(ys), 200 * max(xs), 300 * max(ys))
    written = [round(v) for v in (true.x1, true.y1, true.x2, true.y2)]
    (folder / "a.xml").write_text(_xml(_object("x", *written), size=(200, 300)))
    (box,) = _boxes(voc.convert(folder)[0])
    for found, gold in zip((box.x1, box.y1, box.x2, box.y2), (true.x1, true.y1, true.x2, true.y2), strict=True):
        assert abs(found - gold) <= 0.5


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        (_object("傷", 15, 5, 5, 15), BoxError, "has width -10"),
        (_object("傷", 5, 5, 5, 15), BoxError, "has width 0"),
        (_object("傷", 5, 5, 150, 15), BoxError, "outside its picture of 100x60"),
        (_object("傷", 5, 5, 15), DataError, "bndbox ymax: missing"),
        (_object("傷", 5, "x", 15, 15), DataError, "bndbox ymin: 'x'"),
        (_object("傷", 5, "nan", 15, 15), DataError, "bndbox ymin: 'nan'"),
        (_object("傷", 5, 5, "1e999", 15), DataError, "bndbox xmax"),
        ("<object><name>傷</name></object>", DataError, "bndbox: missing"),
    ],
)
def test_malformed_boxes_are_reported(folder: Path, wrong: str, kind: type[InputError], words: str) -> None:
    _file(folder, _xml(_object("dent", 0, 0, 5, 5), wrong, _object("傷", 5, 5, 10, 10)))
    with pytest.raises(kind) as error:
        voc.convert(folder)
    text = str(error.value)
    assert words in text and f"{folder / 'Annotations' / 'a.xml'} object[1]" in text and "\n" not in text
    problems: list[InputError] = []
    # An answer that lacks a box is not asked for, and what may be there is not called absent.
    assert [s.id for s in voc.convert(folder, absent=3, problems=problems)] == ["a.png#dent"]
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (_xml(_object("", 0, 0, 5, 5)), DataError, "object[0] name: missing or empty"),
        (_xml(_object("x", 0, 0, 5, 5), size=(60, 100)), DataError, "60x100 pixels, but a.png has 100x60"),
        (_xml(size=("x", 1)), DataError, "size width: 'x'"),
        (_xml(name=""), DataError, "filename: missing or empty"),
        (_xml(name="no.png"), ImageError, "no.png' does not exist"),
        ("<annotation>", DataError, "not XML (no element found"),
        ("<note/>", DataError, "<note>; expected <annotation>"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', DataError, "not XML (unknown encoding"),
        (f'<!DOCTYPE annotation SYSTEM "file:///etc/passwd">{_xml()}', DataError, "a document type"),
        (
            '<!DOCTYPE annotation [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
            "<annotation><filename>&b;</filename></annotation>",
            DataError,
            "a document type (<!DOCTYPE annotation ...>)",
        ),
        ("<annotation><filename>&xxe;</filename></annotation>", DataError, "not XML (undefined entity"),
    ],
)
def test_wrong_files(folder: Path, text: str, kind: type[InputError], words: str) -> None:
    _file(folder, text)
    with pytest.raises(kind) as error:
        voc.convert(folder)
    message = str(error.value)
    assert words in message and str(folder / "Annotations" / "a.xml") in message and "\n" not in message
    # The others are converted.
    _file(folder, _xml(_object("dent", 0, 0, 5, 5), name="b.png"), "b")
    problems: list[InputError] = []
    assert [s.id for s in voc.convert(folder, problems=problems)] == ["b.png#dent"]
    assert [type(p) for p in problems] == [kind]


def test_folders_without_annotations(tmp_path: Path, folder: Path) -> None:
    for path, said in ((tmp_path / "no", "no such folder"), (folder, "no XML file in it")):
        with pytest.raises(DataError, match=said):
            voc.convert(path)


def test_a_picture_that_comes_twice(folder: Path) -> None:
    for stem in ("a", "b"):
        _file(folder, _xml(_object("dent", 0, 0, 5, 5)), stem)
    with pytest.raises(DataError, match=r"b\.xml: the picture 'a.png' again, first at .*a\.xml"):
        voc.convert(folder)


@given(st.text(max_size=40), st.text(max_size=12))
def test_any_text_is_samples_or_errors(tmp_path_factory: pytest.TempPathFactory, text: str, value: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    Image.new("RGB", SIZE).save(folder / "a.png")
    for content in (text, _xml(text), _xml(_object("x", 1, escape(value), 9, 9)), _xml(name=escape(value))):
        (folder / "a.xml").write_text(content, encoding="utf-8")
        try:
            found = voc.convert(folder, absent=1)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert all(s.answer is not None for s in found)
