from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.convert import labelstudio
from tsugiki.errors import BoxError, DataError, ImageError, InputError
from tsugiki.types import Sample

SIZE = (200, 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "写真 1.png"):
        Image.new("RGB", SIZE).save(tmp_path / "images" / name)
    return tmp_path


def _rectangle(label: Any, x: Any, y: Any, w: Any, h: Any, rotation: Any = 0, **more: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": w, "height": h, "rotation": rotation, "rectanglelabels": [label]}
    return {"type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value, **more}


def _choice(*chosen: str, name: str = "quality", **more: Any) -> dict[str, Any]:
    return {"type": "choices", "from_name": name, "to_name": "image", "value": {"choices": list(chosen), **more}}


def _task(*results: Any, image: str = "/data/upload/1/0a1b2c3d-a.png", **more: Any) -> dict[str, Any]:
    return {"id": 7, "data": {"image": image}, "annotations": [{"id": 1, "result": list(results), **more}]}


def _file(folder: Path, *tasks: Any) -> Path:
    (folder / "export.json").write_text(json.dumps(tasks, ensure_ascii=False), encoding="utf-8")
    return folder / "export.json"


def _edges(sample: Sample) -> list[tuple[float, ...]]:
    return [(p.box.x1, p.box.y1, p.box.x2, p.box.y2) for p in sample.boxes]


def test_boxes_of_a_label(folder: Path) -> None:
    size = {"original_width": 200, "original_height": 100, "image_rotation": 0}
    results = [
        _rectangle("傷", 50, 10, 20, 30, **size),
        _rectangle("dent", 0, 0, 100, 100),
        _rectangle("傷", 5, 5, 10, 10, 360),
    ]
    path = _file(folder, _task(*results))
    marks, dent = labelstudio.convert(path)
    assert (marks.id, marks.task, marks.images) == ("a.png#傷", "box", (folder / "images" / "a.png",))
    assert _edges(marks) == [pytest.approx((10, 5, 30, 15)), pytest.approx((100, 10, 140, 40))]
    assert _edges(dent) == [(0, 0, 200, 100)]
    schema.write(folder / "d.jsonl", [marks, dent])
    assert schema.check(folder / "d.jsonl") == []


@pytest.mark.parametrize(
    "exported",
    [
        "images/写真 1.png",
        "/data/local-files/?d=factory%2Fimages%2F%E5%86%99%E7%9C%9F%201.png",
        "https://host/bucket/%E5%86%99%E7%9C%9F%201.png?X-Sig=abc",
        "s3://bucket/写真 1.png",
        "/data/upload/3/01234567-写真 1.png",
    ],
)
def test_exported_paths(folder: Path, exported: str) -> None:
    (sample,) = labelstudio.convert(_file(folder, _task(_rectangle("x", 1, 1, 9, 9), image=exported)))
    assert sample.images == (folder / "images" / "写真 1.png",) or sample.images == (folder / "images/写真 1.png",)
    (again,) = labelstudio.convert(folder / "export.json", images=folder / "images")
    assert again.boxes == sample.boxes


def test_several_annotators(folder: Path) -> None:
    first, second, third = (
        {"id": i, "result": [_rectangle(name, 1, 1, 9, 9)]} for i, name in enumerate(("cancelled", "first", "true"))
    )
    task = {"data": {"image": "a.png"}, "annotations": [first | {"was_cancelled": True}, second, third]}
    assert [s.meta["category"] for s in labelstudio.convert(_file(folder, task))] == ["first"]
    third["ground_truth"] = True
    assert [s.meta["category"] for s in labelstudio.convert(_file(folder, task))] == ["true"]


def test_absent_labels(folder: Path) -> None:
    polygon = {"type": "polygonlabels", "value": {"points": [[1, 1], [9, 9], [1, 9]], "polygonlabels": ["rust"]}}
    tasks = [
        _task(_rectangle("傷", 1, 1, 9, 9), polygon),
        _task(image="写真 1.png"),
        {"data": {"image": "unlabelled.png"}, "annotations": []},
    ]
    asked = {s.id: s.task for s in labelstudio.convert(_file(folder, *tasks), absent=5)}
    assert asked == {"a.png#傷": "box", "写真 1.png#傷": "absent", "写真 1.png#rust": "absent"}


def test_choices_are_decisions(folder: Path) -> None:
    region = _choice("deep", name="depth", x=1, y=1, width=9, height=9)
    path = _file(folder, _task(_choice("良品"), region), _task(_choice("不良"), image="写真 1.png"))
    good, bad = labelstudio.convert(path, choice_question="{name}: {options}?")
    assert (good.id, good.task, good.options) == ("a.png:quality", "decision", ("不良", "良品"))
    assert good.answer is not None and schema.message_text(good.answer) == "良品"
    assert schema.message_text(bad.messages[0]) == "quality: 不良, 良品?"
    path = _file(folder, _task(_choice("a"), _choice("b", name="colour")))
    with pytest.raises(DataError, match=r"choices of 2 kinds \(colour, quality\)"):
        labelstudio.convert(path)
    assert len(labelstudio.convert(path, choice_question="{name}?")) == 2


fractions = st.tuples(*[st.floats(0.01, 1)] * 2, *[st.floats(0, 1)] * 2)


@given(fractions)
def test_boxes_come_back(tmp_path_factory: pytest.TempPathFactory, given_box: Any) -> None:
    """Percent as floats are exact to float arithmetic."""
    folder = tmp_path_factory.mktemp("ls")
    Image.new("RGB", SIZE).save(folder / "a.png")
    w, h, x, y = given_box
    x1, y1 = x * (1 - w), y * (1 - h)
    task = _task(_rectangle("x", 100 * x1, 100 * y1, 100 * w, 100 * h))
    (sample,) = labelstudio.convert(_file(folder, task))
    assert _edges(sample) == [pytest.approx((x1 * 200, y1 * 100, (x1 + w) * 200, (y1 + h) * 100), abs=1e-6)]


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        (_rectangle("傷", 5, 5, -3, 4), BoxError, "has width -6"),
        (_rectangle("傷", 5, 5, 0, 4), BoxError, "has width 0"),
        (_rectangle("傷", 90, 5, 30, 4), BoxError, "outside its picture of 200x100"),
        (_rectangle("傷", 5, 5, 9, 9, 30), DataError, "rotation 30; expected upright rectangles"),
        (_rectangle("傷", 5, 5, 9, 9, image_rotation=90), DataError, "image_rotation 90"),
        (_rectangle("傷", 5, 5, 9, None), DataError, "value.height: missing"),
        (_rectangle("傷", 5, 5, 9, "9"), DataError, "value.height: '9'"),
        (_rectangle("傷", 5, float("nan"), 9, 9), DataError, "value.y: nan"),
    ],
)
def test_malformed_boxes_are_reported(folder: Path, result: Any, kind: type[InputError], words: str) -> None:
    path = _file(folder, _task(_rectangle("dent", 0, 0, 5, 5), result, _rectangle("傷", 5, 5, 10, 10)))
    with pytest.raises(kind) as error:
        labelstudio.convert(path)
    text = str(error.value)
    assert words in text and f"{path}[0] annotations[0] result[1]" in text and "\n" not in text
    problems: list[InputError] = []
    assert [s.id for s in labelstudio.convert(path, absent=3, problems=problems)] == ["a.png#dent"]
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("task", "kind", "words"),
    [
        ([1], DataError, "[0]: [1]; expected a map"),
        ({"image": "a.png", "label": []}, DataError, "no annotations"),
        ({"data": {"image": "a.png"}, "annotations": 3}, DataError, "annotations: 3"),
        ({"data": {}, "annotations": [{"result": []}]}, DataError, "data.image: missing"),
        ({"data": {"image": "a.png"}, "annotations": [{}]}, DataError, "annotations[0] result: missing"),
        (_task(image="http://[x/no.png"), ImageError, "does not exist"),
        (_task(image="no.png"), ImageError, "no.png' does not exist"),
        (_task(_rectangle(3, 1, 1, 9, 9)), DataError, "rectanglelabels: 3"),
        (_task({"type": "rectanglelabels"}), DataError, "result[0] value: None"),
        (_task({"value": {}}), DataError, "result[0] type: missing"),
        (_task(_choice("a", "b")), DataError, "2 choices; expected one"),
        (_task(_rectangle("x", 1, 1, 9, 9, original_width=9)), DataError, "9x100 pixels, but a.png has 200x100"),
    ],
)
def test_wrong_tasks(folder: Path, task: Any, kind: type[InputError], words: str) -> None:
    path = _file(folder, task, _task(_rectangle("dent", 0, 0, 5, 5), image="写真 1.png"))
    with pytest.raises(kind) as error:
        labelstudio.convert(path)
    assert words in str(error.value) and f"{path}[0]" in str(error.value) and "\n" not in str(error.value)
    problems: list[InputError] = []
    assert [s.id for s in labelstudio.convert(path, problems=problems)] == ["写真 1.png#dent"]
    assert [type(p) for p in problems] == [kind]


def test_wrong_files(folder: Path) -> None:
    for text, words in (("{}", "expected a list"), ("{", "not JSON"), ("[]", "no sample in it")):
        (folder / "d.json").write_text(text)
        with pytest.raises(DataError, match=words):
            labelstudio.convert(folder / "d.json")


_KEYS = ["type", "value", "rectanglelabels", "choices", "x", "rotation", "from_name", "original_width", "polygonlabels"]
_LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4) | st.sampled_from(_KEYS)
_ANY = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner), max_leaves=12
)


@given(st.lists(_ANY, max_size=3), _ANY)
def test_any_results_are_samples_or_errors(
    tmp_path_factory: pytest.TempPathFactory, results: list[Any], more: Any
) -> None:
    folder = tmp_path_factory.mktemp("any")
    Image.new("RGB", SIZE).save(folder / "a.png")
    for task in (_task(*results), {"data": more, "annotations": more}, more):
        problems: list[InputError] = []
        try:
            found = labelstudio.convert(_file(folder, task), absent=1, problems=problems)
        except DataError as error:
            assert "no sample in it" in str(error) or "choices of" in str(error)
        else:
            assert all(sample.answer is not None for sample in found)
        assert all("\n" not in str(problem) for problem in problems)
