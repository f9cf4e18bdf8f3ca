from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.convert import llava
from tsugiki.errors import DataError, ImageError, InputError
from tsugiki.types import ImagePart, Message, TextPart


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def _turns(*values: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if i % 2 else "human", "value": value} for i, value in enumerate(values)]


def _entry(*values: str) -> dict[str, Any]:
    return {"image": "a.png", "conversations": _turns(*values)}


def _file(folder: Path, *entries: Any) -> Path:
    (folder / "llava.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return folder / "llava.json"


def test_pictures_anywhere(folder: Path) -> None:
    path = _file(
        folder,
        {"id": 5, "image": "a.png", "conversations": _turns("<image>\n何?", "カップ", "色は?", "赤"), "source": "x"},
        {"image": ["a.png", "b.png"], "conversations": _turns("A <image> と", "はい", "<image>?", "いいえ")},
        {"id": "t", "conversations": [{"from": "system", "value": "s"}, *_turns("q", "a")]},
    )
    one, two, text = llava.convert(path)
    assert one.id == "5" and one.meta == {"source": "x"}
    assert one.messages[0] == Message("user", (ImagePart(folder / "a.png"), TextPart("\n何?")))
    assert [m.role for m in one.messages] == ["user", "assistant"] * 2
    assert two.id == "1" and two.messages[0].parts == (TextPart("A "), ImagePart(folder / "a.png"), TextPart(" と"))
    assert two.messages[2].parts == (ImagePart(folder / "b.png"), TextPart("?"))
    assert [m.role for m in text.messages] == ["system", "user", "assistant"] and text.images == ()
    schema.write(folder / "d.jsonl", [one, two, text])
    assert schema.check(folder / "d.jsonl") == []


def test_jsonl_and_another_folder(folder: Path) -> None:
    below = folder / "below"
    below.mkdir()
    line = json.dumps({"image": "a.png", "conversations": _turns("<image>", "a")})
    (below / "d.jsonl").write_text(line + "\n\n" + line + "\n")
    samples = llava.convert(below / "d.jsonl", images=folder, task="caption")
    assert [s.where for s in samples] == [f"{below / 'd.jsonl'}:1", f"{below / 'd.jsonl'}:3"]
    assert {s.task for s in samples} == {"caption"}


@pytest.mark.parametrize(
    ("entry", "kind", "words"),
    [
        (_entry("<image><image>", "a"), DataError, "2 <image> placeholders for 1 pictures"),
        (_entry("<image>", "an <image>!"), DataError, "2 <image> placeholders for 1 pictures"),
        (_entry("no marker", "a"), DataError, "0 <image> placeholders for 1 pictures, fewer"),
        ({"conversations": _turns("Type <image>.", "a")}, DataError, "1 <image> placeholders for 0 pictures, more"),
        ({"image": "no.png", "conversations": _turns("<image>", "a")}, ImageError, "no.png' does not exist"),
        ({"image": [3], "conversations": _turns("<image>", "a")}, DataError, "image: 3"),
        ({"image": {}, "conversations": _turns("<image>", "a")}, DataError, "image: {}"),
        ({"image": "a.png"}, DataError, "conversations: missing"),
        ({"conversations": []}, DataError, "no turn"),
        ({"conversations": [{"from": "humn", "value": "a"}]}, DataError, "unknown speaker 'humn'"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, DataError, "unknown speaker"),
        ({"conversations": [{"from": "human"}]}, DataError, "conversations[0].value: missing"),
        ("x", DataError, "'x'; expected a map"),
    ],
)  # fmt: skip
def test_wrong_entries(folder: Path, entry: Any, kind: type[InputError], words: str) -> None:
    good = {"image": "a.png", "conversations": _turns("<image>", "a")}
    path = _file(folder, good, entry, good)
    with pytest.raises(kind) as error:
        llava.convert(path)
    text = str(error.value)
    assert words in text and f"{path}[1]" in text and "\n" not in text
    problems: list[InputError] = []
    assert len(llava.convert(path, problems=problems)) == 2 and len(problems) == 1


def test_wrong_files(folder: Path) -> None:
    for text, words in (("{", "not JSON"), ("{}", "expected a list"), ("[]", "no sample in it")):
        (folder / "d.json").write_text(text)
        with pytest.raises(DataError, match=words):
            llava.convert(folder / "d.json")
    with pytest.raises(DataError, match="does not exist"):
        llava.convert(folder / "no.json")
