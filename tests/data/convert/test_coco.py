from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.convert import coco
from tsugiki.errors import BoxError, DataError, ImageError, InputError
from tsugiki.types import Box, Sample

NUMBERS = itertools.count(100)
CATEGORIES = [{"id": 1, "name": "傷"}, {"id": 2, "name": "dent"}, {"id": 3, "name": "rust"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (100, 60)).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "b.png")
    return tmp_path


def _file(folder: Path, *annotations: Any, **more: Any) -> Path:
    images = [{"id": 10, "file_name": "a.png", "width": 100, "height": 60}, {"id": 11, "file_name": "b.png"}]
    data = {"images": images, "annotations": annotations, "categories": CATEGORIES, **more}
    (folder / "coco.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return folder / "coco.json"


def _note(category: int, bbox: Any, image: int = 10, **more: Any) -> dict[str, Any]:
    return {"id": next(NUMBERS), "image_id": image, "category_id": category, "bbox": bbox, **more}


def _boxes(sample: Sample) -> list[Box]:
    return [p.box for p in sample.boxes]


def test_boxes_of_a_category(folder: Path) -> None:
    path = _file(folder, _note(1, [50, 10, 20, 30]), _note(2, [0, 0, 100, 60]), _note(1, [5, 5, 10, 10]))
    marks, dent = coco.convert(path)
    assert (marks.id, marks.task, marks.images) == ("a.png#傷", "box", (folder / "images" / "a.png",))
    assert schema.message_text(marks.messages[0]) == "Where is the 傷?"
    assert _boxes(marks) == [Box(5, 5, 15, 15), Box(50, 10, 70, 40)]
    assert _boxes(dent) == [Box(0, 0, 100, 60)]
    assert {p.label for p in marks.boxes} == {"傷"}
    schema.write(folder / "d.jsonl", [marks, dent])
    assert schema.check(folder / "d.jsonl") == []


def test_absent_categories(folder: Path) -> None:
    path = _file(folder, _note(1, [5, 5, 10, 10]), _note(2, [0, 0, 9, 9], iscrowd=1))
    samples = coco.convert(path, absent=5, absent_answer="ありません。", question="{name}はどこ?")
    asked = {s.id: s.task for s in samples}
    assert asked == {
        "a.png#傷": "box", "a.png#rust": "absent",
        "b.png#傷": "absent", "b.png#dent": "absent", "b.png#rust": "absent",
    }  # fmt: skip
    absent = next(s for s in samples if s.task == "absent")
    assert absent.answer is not None and schema.message_text(absent.answer) == "ありません。"
    assert schema.message_text(absent.messages[0]) == "rustはどこ?"
    one = coco.convert(path, absent=1, seed=3)
    assert one == coco.convert(path, absent=1, seed=3) and len(one) == 3


def test_crowds_are_left_out(folder: Path) -> None:
    path = _file(folder, _note(1, [5, 5, 10, 10]), _note(1, {"counts": []}, iscrowd=1))
    (sample,) = coco.convert(path)
    assert _boxes(sample) == [Box(5, 5, 15, 15)]


def test_boxes_that_stand_over_by_rounding_are_cut(folder: Path) -> None:
    (sample,) = coco.convert(_file(folder, _note(1, [-0.4, 50.2, 50, 10.5])))
    (box,) = _boxes(sample)
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((0, 50.2, 49.6, 60))


@pytest.mark.parametrize(
    ("note", "kind", "words"),
    [
        (_note(1, [5, 5, -3, 4]), BoxError, "width -3 and height 4"),
        (_note(1, [5, 5, 0, 4]), BoxError, "width 0 and height"),
        (_note(1, [90, 5, 30, 4]), BoxError, "outside its picture of 100x60"),
        (_note(1, [-9, 5, 30, 4]), BoxError, "outside its picture"),
        (_note(1, [1, 2, 3]), DataError, "bbox: 3 numbers"),
        (_note(1, None), DataError, "bbox: missing"),
        (_note(1, [1, 2, "3", 4]), DataError, "bbox: '3'"),
        (_note(1, [1, 2, float("nan"), 4]), DataError, "bbox: nan"),
        (_note(9, [1, 2, 3, 4]), DataError, "category_id 9 is not listed"),
        (_note(1, [1, 2, 3, 4], image=99), DataError, "image_id 99 is not listed"),
        ({"id": 77, "category_id": 1}, DataError, "image_id: None"),
    ],
)
def test_malformed_boxes_are_reported(folder: Path, note: Any, kind: type[InputError], words: str) -> None:
    path = _file(folder, _note(2, [0, 0, 5, 5]), note, _note(1, [5, 5, 10, 10]))
    with pytest.raises(kind) as error:
        coco.convert(path)
    text = str(error.value)
    assert words in text and f"{path} annotations[1] (id {note['id']})" in text and "\n" not in text
    problems: list[InputError] = []
    samples = coco.convert(path, absent=3, problems=problems)
    assert len(problems) == 1
    # An answer that lacks a box is not asked for, and what may be there is not called absent.
    known = note.get("image_id") == 10 and note["category_id"] == 1
    assert ("a.png#傷" in {s.id for s in samples}) is not known


def test_wrong_pictures_are_told_once(folder: Path) -> None:
    images = [{"id": 10, "file_name": "a.png", "width": 60, "height": 100}, {"id": 11, "file_name": "no.png"}]
    notes = [_note(1, [0, 0, 5, 5]), _note(2, [0, 0, 5, 5]), _note(1, [0, 0, 5, 5], image=11)]
    path = _file(folder, *notes, images=images)
    with pytest.raises(DataError, match=r"images\[0\]: 60x100 pixels, but a.png has 100x60 .*\(and 1 more errors\)"):
        coco.convert(path)
    problems: list[InputError] = []
    assert coco.convert(path, problems=problems) == []
    assert [type(p) for p in problems] == [DataError, ImageError]


def test_a_rotated_picture_is_noticed(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 60)).save(folder / "images" / "a.png", exif=exif)
    with pytest.raises(DataError, match="after EXIF rotation"):
        coco.convert(_file(folder, _note(1, [0, 0, 5, 5])))


def test_wrong_files(folder: Path) -> None:
    for text, words in (("[]", "expected a map"), ("{}", "categories: missing"), ("{", "not JSON")):
        (folder / "d.json").write_text(text)
        with pytest.raises(DataError, match=words):
            coco.convert(folder / "d.json")
    with pytest.raises(DataError, match="no sample in it"):
        coco.convert(_file(folder))


def test_what_comes_again_and_settings_that_cannot_be(folder: Path) -> None:
    note = _note(1, [5, 5, 10, 10])
    again = [{"id": 10, "file_name": "a.png"}, {"id": 10, "file_name": "b.png"}]
    with pytest.raises(DataError, match=r"images\[1\]: id 10 again"):
        coco.convert(_file(folder, note, images=again))
    with pytest.raises(DataError, match=r"categories\[3\]: id 1 again"):
        coco.convert(_file(folder, note, categories=[*CATEGORIES, {"id": 1, "name": "x"}]))
    pair = [_note(1, [5, 5, 10, 10], id=3), _note(2, [0, 0, 9, 9], id=4), _note(1, [50, 5, 10, 10], id=3)]
    problems: list[InputError] = []
    (dent,) = coco.convert(_file(folder, *pair), problems=problems)
    assert dent.meta["category"] == "dent"  # which of the two marks is meant is not known
    assert len(problems) == 1 and "annotations[2] (id 3): id 3 again, first at" in str(problems[0])
    twice = [{"id": 10, "file_name": "a.png"}, {"id": 11, "file_name": "a.png"}]
    with pytest.raises(DataError, match=r"images\[1\]: the picture 'a.png' again, first at .*images\[0\]"):
        coco.convert(_file(folder, note, images=twice))
    for absent in (-1, "two"):
        with pytest.raises(DataError, match="absent: .*0 or more"):
            coco.convert(_file(folder, note), absent=absent)  # type: ignore[arg-type]
