from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.convert import csv
from tsugiki.errors import DataError, ImageError, InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "写真 1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def _csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "d.csv").write_bytes(text.encode(encoding))
    return folder / "d.csv"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels(folder: Path, encoding: str) -> None:
    path = _csv(folder, "path,label,split,lot\r\na.png, 良品 ,train,7\r\n写真 1.png,不良,test,\r\n", encoding)
    good, bad = csv.convert(path, question="どちら?")
    assert good.meta == {"lot": "7", "label": "良品", "split": "train"} and bad.meta == {
        "label": "不良",
        "split": "test",
    }
    assert good.options == bad.options == ("不良", "良品")
    assert schema.message_text(good.messages[0]) == "どちら?"
    assert good.where == f"{path}:2"


def test_questions(folder: Path) -> None:
    path = _csv(folder, 'path,question,answer,options\na.png,"What, and\nwhere?",A cup,A cup|A can\na.png,q,x,\n')
    first, second = csv.convert(path)
    assert schema.message_text(first.messages[0]) == "What, and\nwhere?"
    assert first.options == ("A cup", "A can") and second.options == ()
    assert (first.task, second.where) == ("vqa", f"{path}:4")


def test_japanese_spreadsheets(folder: Path) -> None:
    path = _csv(folder, "path;label\na.png;不良\n", "cp932")
    with pytest.raises(DataError, match="not UTF-8.*encoding=cp932"):
        csv.convert(path)
    with pytest.raises(DataError, match="d.csv:1: the header 'path;label'.*delimiter="):
        csv.convert(path, encoding="cp932")
    (sample,) = csv.convert(path, encoding="cp932", delimiter=";")
    assert sample.options == ("不良",)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("", DataError, "d.csv:1: the header ''"),
        ("file,label\na.png,x\n", DataError, "d.csv:1: the header 'file,label'"),
        ("path,label\n", DataError, "d.csv: no sample in it"),
        ("path,label\na.png,x\nno.png,x\n", ImageError, "d.csv:3: the picture"),
        ("path,label\na.png\n", DataError, "d.csv:2: neither label, answer nor text"),
        ("path,label\n,x\n", DataError, "d.csv:2: no path of a picture"),
        ("path,label\na.png,x,y\n", DataError, "d.csv:2: 3 columns; expected 2"),
        ('path,label\na.png,"x\n', DataError, "d.csv: not CSV"),
        ('path,label\na.png,"x"y\n', DataError, "d.csv: not CSV"),
    ],
)
def test_wrong_files(folder: Path, text: str, kind: type[InputError], words: str) -> None:
    with pytest.raises(kind) as error:
        csv.convert(_csv(folder, text))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_other_mistakes(folder: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        csv.convert(folder / "no.csv")
    path = _csv(folder, "path,label\na.png,x\n")
    with pytest.raises(DataError, match="not CSV"):
        csv.convert(path, delimiter=";;")
    with pytest.raises(DataError, match="not CSV .unknown encoding"):
        csv.convert(path, encoding="utf-99")


def test_problems_are_collected(folder: Path) -> None:
    path = _csv(folder, "path,label\na.png,x\nno.png,x\na.png,\n")
    problems: list[InputError] = []
    assert len(csv.convert(path, problems=problems)) == 1
    assert [p.where for p in problems] == [f"{path}:3", f"{path}:4"]
