from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.convert import yolo
from tsugiki.errors import BoxError, DataError, ImageError, InputError
from tsugiki.types import Box, Sample

NAMES = "names:\n  0: 傷\n  1: dent\n  2: rust\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for inner in ("images", "labels"):
        (tmp_path / inner).mkdir()
    Image.new("RGB", (100, 50)).save(tmp_path / "images" / "a.png")
    (tmp_path / "data.yaml").write_text(NAMES, encoding="utf-8")
    return tmp_path


def _labels(folder: Path, *lines: str, name: str = "a") -> Path:
    (folder / "labels" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def _edges(sample: Sample) -> list[tuple[float, ...]]:
    return [(p.box.x1, p.box.y1, p.box.x2, p.box.y2) for p in sample.boxes]


def test_boxes_of_a_class(folder: Path) -> None:
    _labels(folder, "0 0.6 0.5 0.2 0.6", "1 0.5 0.5 1 1", "", "0.0 0.1 0.2 0.1 0.2")
    marks, dent = yolo.convert(folder)
    assert (marks.id, marks.task, marks.images) == ("images/a.png#傷", "box", (folder / "images" / "a.png",))
    assert schema.message_text(marks.messages[0]) == "Where is the 傷?"
    assert _edges(marks) == [pytest.approx((5, 5, 15, 15)), pytest.approx((50, 10, 70, 40))]
    assert _edges(dent) == [(0, 0, 100, 50)]
    schema.write(folder / "d.jsonl", [marks, dent])
    assert schema.check(folder / "d.jsonl") == []
    assert yolo.convert(folder / "data.yaml") == [marks, dent]


def test_polygons_become_their_bounding_box(folder: Path) -> None:
    (sample,) = yolo.convert(_labels(folder, "2 0.1 0.2 0.3 0.1 0.25 0.9"))
    assert _edges(sample) == [pytest.approx((10, 5, 30, 45))]


@pytest.mark.parametrize("pattern", ["{0}/{1}", "{1}/{0}"])
def test_splits_and_backgrounds(tmp_path: Path, pattern: str) -> None:
    for split in ("train", "valid"):
        for kind in ("images", "labels"):
            (tmp_path / pattern.format(kind, split)).mkdir(parents=True)
        Image.new("RGB", (10, 10)).save(tmp_path / pattern.format("images", split) / "a.jpg")
    (tmp_path / pattern.format("labels", "train") / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("good\ndent\n")
    box, absent, *empty = yolo.convert(tmp_path, absent=2)
    assert (box.task, box.meta) == ("box", {"category": "dent", "split": "train"})
    assert (absent.task, absent.meta["category"]) == ("absent", "good")
    assert {(s.task, s.meta["split"], s.meta["category"]) for s in empty} == {
        ("absent", "valid", "good"),
        ("absent", "valid", "dent"),
    }


values = st.tuples(*[st.floats(0.01, 1)] * 2, *[st.floats(0, 1)] * 2)


@given(values, values)
def test_boxes_come_back(tmp_path_factory: pytest.TempPathFactory, first: Any, second: Any) -> None:
    """Six digits, as tools write them, are within a thousandth of a pixel."""
    folder = tmp_path_factory.mktemp("yolo")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("a\nb\n")
    Image.new("RGB", (300, 200)).save(folder / "images" / "a.png")
    lines, true = [], []
    for number, (w, h, x, y) in enumerate((first, second)):
        x1, y1 = x * (1 - w), y * (1 - h)
        true.append((x1 * 300, y1 * 200, (x1 + w) * 300, (y1 + h) * 200))
        lines.append(f"{number} {x1 + w / 2:.6f} {y1 + h / 2:.6f} {w:.6f} {h:.6f}")
    samples = yolo.convert(_labels(folder, *lines))
    assert [_edges(s) for s in samples] == [[pytest.approx(t, abs=1e-3)] for t in true]


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("0 0.5 0.5 -0.2 0.2", BoxError, "has width -20"),
        ("0 0.5 0.5 0 0.2", BoxError, "has width 0"),
        ("0 0.95 0.5 0.2 0.2", BoxError, "outside its picture of 100x50"),
        ("0 50 25 10 10", DataError, "50; expected a fraction of the side"),
        ("0 0.5 0.5 0.2", DataError, "3 numbers after the class"),
        ("0 0.5 0.5 0.2 0.2 0.93", DataError, "5 numbers after the class"),
        ("0 0.5 0.5 0.2 nan", DataError, "'nan'"),
        ("0 0.5 0.5 0.2 inf", DataError, "'inf'"),
        ("0 0.5 0.5 0.2 x", DataError, "'x'"),
        ("0 0.1 0.1 0.1 0.2 0.1 0.3", BoxError, "has width 0"),
    ],
)
def test_malformed_lines_are_reported(folder: Path, line: str, kind: type[InputError], words: str) -> None:
    _labels(folder, "1 0.1 0.1 0.1 0.1", line, "0 0.2 0.2 0.1 0.1")
    with pytest.raises(kind) as error:
        yolo.convert(folder)
    text = str(error.value)
    assert words in text and f"{folder / 'labels' / 'a.txt'}:2" in text and "\n" not in text
    problems: list[InputError] = []
    # An answer that lacks a box is not asked for, and what may be there is not called absent.
    found = {s.id for s in yolo.convert(folder, absent=3, problems=problems)}
    assert found == {"images/a.png#dent", "images/a.png#rust"}
    assert len(problems) == 1


@pytest.mark.parametrize(("line", "words"), [("3 0.1 0.1 0.1 0.1", "class 3 has no name"), ("x 0 0 1 1", "class: 'x'")])
def test_a_picture_with_an_unknown_class_is_left_out(folder: Path, line: str, words: str) -> None:
    _labels(folder, "1 0.1 0.1 0.1 0.1", line)
    with pytest.raises(DataError, match=words):
        yolo.convert(folder)
    problems: list[InputError] = []
    assert yolo.convert(folder, absent=3, problems=problems) == [] and len(problems) == 1


def test_boxes_that_stand_over_by_rounding_are_cut(folder: Path) -> None:
    (sample,) = yolo.convert(_labels(folder, "0 0.05 0.9 0.11 0.21"))
    assert _edges(sample) == [pytest.approx((0, 39.75, 10.5, 50))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [a, b\n", "not YAML"),
        ("- a\n", "expected a map"),
        ("nc: 2\n", "names: missing|names: None"),
        ("names: []\n", "no name"),
        ("names: [a, no]\n", r"names\[1\]: False"),
        ("names: {a: b}\n", "class 'a'"),
        ("nc: 3\nnames: [a, b]\n", "nc 3, but 2 names"),
        ("kpt_shape: [17, 3]\nnames: [a]\n", "keypoints"),
        ("names: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("names: 2020-99-99\n", "not YAML"),
    ],
)
def test_wrong_names(folder: Path, text: str, words: str) -> None:
    (folder / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=words) as error:
        yolo.convert(_labels(folder, "0 0.5 0.5 0.2 0.2"))
    assert str(folder / "data.yaml") in str(error.value) and "\n" not in str(error.value)


def test_wrong_folders(folder: Path, tmp_path: Path) -> None:
    _labels(folder, "0 0.5 0.5 0.2 0.2")
    _labels(folder, "0 0.5 0.5 0.2 0.2", name="b")
    with pytest.raises(DataError, match=r"b\.txt: labels without a picture"):
        yolo.convert(folder)
    (folder / "images" / "b.png").write_bytes(b"")
    with pytest.raises(ImageError, match="0 bytes"):
        yolo.convert(folder)
    (folder / "data.yaml").unlink()
    for path in (folder, tmp_path / "none"):
        with pytest.raises(DataError, match="neither data.yaml nor classes.txt"):
            yolo.convert(path)
    (folder / "labels" / "classes.txt").write_bytes("傷\n".encode("cp932"))
    with pytest.raises(DataError, match="can't be read"):
        yolo.convert(folder)


def test_box_type(folder: Path) -> None:
    (sample,) = yolo.convert(_labels(folder, "0 0.5 0.5 0.5 0.5"))
    assert sample.boxes[0].box == Box(25, 12.5, 75, 37.5) and sample.boxes[0].label == "傷"


@given(st.text(max_size=40), st.text(st.sampled_from("01.-e nafix\n"), max_size=40))
def test_any_text_is_samples_or_errors(tmp_path_factory: pytest.TempPathFactory, names: str, lines: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    Image.new("RGB", (30, 20)).save(folder / "images" / "a.png")
    for yaml, text in ((names, "0 0.5 0.5 0.2 0.2"), (f"names: {names}", "0 0.5 0.5 0.2 0.2"), (NAMES, lines)):
        (folder / "data.yaml").write_text(yaml, encoding="utf-8")
        (folder / "labels" / "a.txt").write_text(text, encoding="utf-8")
        try:
            found = yolo.convert(folder, absent=1)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert all(s.answer is not None for s in found)
