from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.convert import imagefolder
from tsugiki.errors import DataError, ImageError, InputError, UnknownNameError


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)


def _metadata(folder: Path, *rows: Any) -> None:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def test_one_folder_per_class(tmp_path: Path) -> None:
    for name in ("良品/1.png", "良品/深い/2.jpg", "不良/3.png", "不良/.hidden.png", "不良/Thumbs.db"):
        if name.endswith("db"):
            (tmp_path / name).write_bytes(b"x")
        else:
            _picture(tmp_path / name)
    samples = imagefolder.convert(tmp_path, question="この写真は{options}のどれ?", answer="{label}です")
    assert [s.id for s in samples] == ["不良/3.png", "良品/1.png", "良品/深い/2.jpg"]
    first = samples[0]
    assert first.options == ("不良です", "良品です") and first.task == "decision"
    assert schema.message_text(first.messages[0]) == "この写真は不良です, 良品ですのどれ?"
    assert first.answer is not None and schema.message_text(first.answer) == "不良です"
    assert first.meta == {"label": "不良"} and first.images == (tmp_path / "不良/3.png",)
    schema.write(tmp_path / "data.jsonl", samples)
    assert schema.check(tmp_path / "data.jsonl") == []


def test_decomposed_folder_names(tmp_path: Path) -> None:
    _picture(tmp_path / unicodedata.normalize("NFD", "がたつき") / "1.png")
    (sample,) = imagefolder.convert(tmp_path)
    assert sample.options == ("がたつき",)


def test_a_first_level_of_splits(tmp_path: Path) -> None:
    for name in ("train/ok/1.png", "train/ng/2.png", "test/ok/3.png"):
        _picture(tmp_path / name)
    samples = imagefolder.convert(tmp_path)
    assert {s.id: (s.meta["split"], s.meta["label"]) for s in samples} == {
        "train/ok/1.png": ("train", "ok"), "train/ng/2.png": ("train", "ng"), "test/ok/3.png": ("test", "ok")
    }  # fmt: skip
    assert {s.options for s in samples} == {("ng", "ok")}


def test_metadata(tmp_path: Path) -> None:
    _picture(tmp_path / "pictures/絵.png")
    name = "pictures/絵.png"
    _metadata(
        tmp_path,
        {"file_name": name, "text": "赤い四角。"},
        {"file_name": name, "label": 3, "lot": "A7"},
        {"file_name": name, "label": 4, "question": "何番?"},
        {"file_name": name, "question": "色は?", "answer": "赤", "options": ["赤", "青"]},
    )
    caption, label, asked, question = imagefolder.convert(tmp_path)
    assert (caption.task, caption.id, caption.options) == ("caption", name, ())
    assert (label.task, label.id, label.options) == ("decision", f"{name}#2", ("3", "4"))
    assert label.meta == {"label": "3", "lot": "A7"}
    assert schema.message_text(asked.messages[0]) == "何番?"
    assert (question.task, question.options) == ("vqa", ("赤", "青"))
    assert question.where == f"{tmp_path / 'metadata.jsonl'}:4"


def test_metadata_as_csv(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,A red square\n")
    (sample,) = imagefolder.convert(tmp_path)
    assert sample.task == "caption"


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ({"text": "x"}, DataError, "no path of a picture"),
        ({"file_name": "no.png", "text": "x"}, ImageError, "no.png' does not exist"),
        ({"file_name": ".", "text": "x"}, ImageError, "does not exist"),
        ({"file_name": "a.png"}, DataError, "neither label, answer nor text"),
        ({"file_name": "a.png", "answer": "x"}, DataError, "an answer without a question"),
        ({"file_name": "a.png", "label": ["x"]}, DataError, "label: ['x']"),
        ({"file_name": "a.png", "label": "x", "options": 3}, DataError, "options 3"),
        ([1], DataError, "[1]; expected a map"),
        ("{", DataError, "not JSON"),
    ],
)
def test_wrong_metadata(tmp_path: Path, row: Any, kind: type[InputError], words: str) -> None:
    _picture(tmp_path / "a.png")
    good = {"file_name": "a.png", "label": "x"}
    _metadata(tmp_path, good, row, good)
    with pytest.raises(kind) as error:
        imagefolder.convert(tmp_path)
    text = str(error.value)
    assert words in text and f"{tmp_path / 'metadata.jsonl'}:2" in text and "\n" not in text
    problems: list[InputError] = []
    assert len(imagefolder.convert(tmp_path, problems=problems)) == 2
    assert [type(p) for p in problems] == [kind]


def test_all_errors_are_counted(tmp_path: Path) -> None:
    _metadata(tmp_path, *[{"file_name": f"{i}.png", "label": "x"} for i in range(3)])
    with pytest.raises(ImageError, match=r"0.png' does not exist \(and 2 more errors\)"):
        imagefolder.convert(tmp_path)


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder in it"):
        imagefolder.convert(tmp_path)
    _picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="pictures, but no folder of a class"):
        imagefolder.convert(tmp_path)
    (tmp_path / "ok").mkdir()
    with pytest.raises(DataError, match="the class 'ok' has no picture"):
        imagefolder.convert(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        imagefolder.convert(tmp_path / "no")
    with pytest.raises(DataError, match="it is a file"):
        imagefolder.convert(tmp_path / "a.png")
    with pytest.raises(UnknownNameError, match="Did you mean 'question'"):
        imagefolder.convert(tmp_path, questoin="x")
