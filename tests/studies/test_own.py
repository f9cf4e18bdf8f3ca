"""Own pictures: every format is recognised, broken pictures are left out, wrong labels stop with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.studies._pictures import folder, picture

from tsugiki.data.schema import message_text
from tsugiki.errors import BoxError, DataError, ImageError
from tsugiki.studies import _own
from tsugiki.testing import tiny_images
from tsugiki.types import BoxPart, Message, Sample


def question(sample: Sample) -> str:
    return message_text(sample.prompt[-1])


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    own = _own.read(folder(tmp_path / "p", (2, 3)))
    assert (own.kind, len(own.samples), own.left_out) == ("imagefolder", 5, [])
    assert {message_text(s.messages[-1]) for s in own.samples} == {"良品", "不良"}
    assert {question(s) for s in own.samples} == {"What is shown in this picture? Answer briefly."}
    assert {s.options for s in own.samples} == {("不良", "良品")}
    asked = _own.read(tmp_path / "p", question="良品ですか。")
    assert {question(s) for s in asked.samples} == {"良品ですか。短く答えてください。"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932"])
def test_csv_of_a_japanese_spreadsheet(encoding: str, tmp_path: Path) -> None:
    picture(0, 0).save(tmp_path / "表.png")
    (tmp_path / "a.csv").write_bytes("path,label\n表.png,良品\n".encode(encoding))
    own = _own.read(tmp_path / "a.csv")
    assert (own.kind, message_text(own.samples[0].messages[-1])) == ("csv", "良品")
    (tmp_path / "a.tsv").write_bytes("path\tquestion\tanswer\n表.png\tいくつ?\t三\n".encode(encoding))
    assert question(_own.read(tmp_path / "a.tsv").samples[0]) == "いくつ?"


def coco(tmp_path: Path, box: list[int]) -> Path:
    picture(0, 0).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}],
        "categories": [{"id": 1, "name": "scratch"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return tmp_path / "coco.json"


def test_coco(tmp_path: Path) -> None:
    own = _own.read(coco(tmp_path, [2, 3, 10, 12]))
    assert own.kind == "coco" and isinstance(own.samples[0].messages[-1].parts[0], BoxPart)
    assert question(own.samples[0]) == "Where is the scratch? Answer with boxes."
    with pytest.raises(BoxError, match="outside its picture"):
        _own.read(coco(tmp_path, [2, 3, 90, 12]))


def test_jsonl_and_llava(tmp_path: Path) -> None:
    picture(0, 0).save(tmp_path / "a.png")
    part = {"type": "image", "image": "a.png"}
    messages = [
        {"role": "user", "content": [part, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "yes"},
    ]
    (tmp_path / "own.jsonl").write_text(json.dumps({"messages": messages, "options": ["yes", "no"]}))
    assert _own.read(tmp_path / "own.jsonl").kind == "jsonl"
    with pytest.raises(DataError, match="ask their own"):
        _own.read(tmp_path / "own.jsonl", question="What?")
    (tmp_path / "own.jsonl").write_text(json.dumps({"messages": messages, "options": ["Yes", "no"]}))
    with pytest.raises(DataError, match=r"own.jsonl:1 options.*is not an option"):
        _own.read(tmp_path / "own.jsonl")
    turns = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "yes"}]
    entry = {"id": "1", "image": "a.png", "conversations": turns}
    (tmp_path / "llava.json").write_text(json.dumps([entry]))
    (tmp_path / "llava.jsonl").write_text(json.dumps(entry))
    assert [_own.read(tmp_path / f"llava.{s}").kind for s in ("json", "jsonl")] == ["llava", "llava"]


def test_broken_pictures_are_left_out_and_told(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", (3, 3))
    (root / "良品" / "空.jpg").touch()
    whole = (root / "不良" / "写真 0.png").read_bytes()
    (root / "不良" / "写真 0.png").write_bytes(whole[: len(whole) // 2])
    own = _own.read(root)
    assert len(own.samples) == 5
    assert [("0 bytes" in str(e), "写真 0.png" in str(e)) for e in own.left_out] == [(False, True), (True, False)]
    for file in root.rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(ImageError, match="and 6 more errors"):
        _own.read(root)


def make(tmp_path: Path, kind: str) -> Any:
    path = tmp_path / kind
    if kind == "empty":
        path.mkdir()
    elif kind == "class without pictures":
        folder(path, (2,))
        (path / "empty class").mkdir()
    elif kind == "pictures only":
        path.mkdir()
        picture(0, 0).save(path / "a.png")
    elif kind == "notes.txt":
        path.write_text("hello")
    elif kind == "list.json":
        path.write_text("{}")
    elif kind == "broken.json":
        path.write_text("{")
    elif kind == "no header.csv":
        path.write_text("a.png,x\n")
    elif kind == "no samples":
        return []
    elif kind == "wrong gold":
        messages = (Message.of("user", "?", (picture(0, 0),)), Message.of("assistant", "maybe"))
        return [Sample(id="a", messages=messages, options=("yes", "no"))]
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "does not exist"),
        ("empty", "no picture in the folder or below"),
        ("class without pictures", "'empty class' has no picture"),
        ("pictures only", "no folder of a class"),
        ("notes.txt", "notes.txt is nothing known"),
        ("list.json", "list.json is nothing known"),
        ("broken.json", "not JSON"),
        ("no header.csv", "the header"),
        ("no samples", "no sample in it"),
        ("wrong gold", "none of the 2 options"),
    ],
)
def test_mistakes_are_one_line(kind: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        _own.read(make(tmp_path, kind))
    assert "\n" not in str(caught.value)
    assert caught.value.expected


def test_folders_of_voc_and_yolo_and_an_export_of_label_studio(tmp_path: Path) -> None:
    for kind in ("voc", "yolo", "studio"):
        (tmp_path / kind / "images").mkdir(parents=True)
        picture(0, 0).save(tmp_path / kind / "images" / "a.png")
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    xml = f"<annotation><filename>a.png</filename><object><name>傷</name>{box}</object></annotation>"
    (tmp_path / "voc" / "Annotations").mkdir()
    (tmp_path / "voc" / "Annotations" / "a.xml").write_text(xml, encoding="utf-8")
    (tmp_path / "yolo" / "labels").mkdir()
    (tmp_path / "yolo" / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "yolo" / "data.yaml").write_text("names: [dent]\n")
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rectanglelabels": ["dent"]}
    result = {"type": "rectanglelabels", "from_name": "l", "value": value, "original_width": 40, "original_height": 40}
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [result]}]}
    (tmp_path / "studio" / "export.json").write_text(json.dumps([task]))
    found = {path.name: _own.read(path) for path in (tmp_path / "voc", tmp_path / "yolo", tmp_path / "studio")}
    assert [own.kind for own in found.values()] == ["voc", "yolo", "labelstudio"]
    assert found["voc"].found == "Found Pascal VOC boxes: 1 samples about 1 pictures; boxes of 傷"
    assert question(found["yolo"].samples[0]).startswith("Where is the dent?")
    assert _own.read(tmp_path / "yolo" / "data.yaml").kind == "yolo"


def test_ids_that_come_twice_are_told_apart() -> None:
    samples = [
        Sample(id=i, messages=(Message.of("user", "What?", (p,)), Message.of("assistant", "a")), task="decision",
               options=("a", "b"))
        for i, p in zip(("lot", "lot", "lot#2", "one"), tiny_images(4), strict=True)
    ]  # fmt: skip
    found = _own.read(samples)
    assert [s.id for s in found.samples] == ["lot", "lot#2", "lot#2#2", "one"]
