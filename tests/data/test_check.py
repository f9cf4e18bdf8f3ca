from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tsugiki.data.check import check_file
from tsugiki.errors import BoxError, DataError, ImageError, PromptError
from tsugiki.testing import tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    (tmp_path / "empty.png").write_bytes(b"")
    return tmp_path


def _line(id: str, text: str = "何?", image: str = "a.png", box: Any = (1, 2, 30, 20)) -> str:
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    answer = [{"type": "box", "box": box, "label": "cup"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return json.dumps({"id": id, "task": "box", "messages": turns}, ensure_ascii=False)


def _file(folder: Path, *lines: str) -> Path:
    (folder / "d.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "d.jsonl"


def test_a_good_file(folder: Path) -> None:
    path = _file(folder, _line("1"), _line("2", "where?"))
    report = check_file(path, sheet=folder / "sheet.png", tokenizer=tiny_tokenizer(), tokens_per_image=4)
    assert report.ok and report.errors == ()
    assert (report.samples, report.pictures, report.boxes, report.tasks) == (2, 1, 2, {"box": 2})
    assert report.longest is not None and report.longest > 50
    assert report.sheet == folder / "sheet.png" and report.sheet.exists()
    assert str(report).startswith(f"{path}: 2 samples (box 2), 1 pictures, 2 boxes; longest")


def test_every_wrong_line_is_told_and_the_rest_is_kept(folder: Path) -> None:
    path = _file(
        folder,
        _line("1"),
        "not json",
        _line("3").replace("user", "usr"),
        _line("4", image="no.png"),
        _line("5", image="empty.png"),
        _line("6", box=[5, 5, 1, 1]),
        _line("7", box=[5, 5, 41, 9]),
        _line("8", text="long " * 100),
        _line("9"),
    )
    report = check_file(
        path, sheet=folder / "sheet.png", tokenizer=tiny_tokenizer(), tokens_per_image=4, max_length=200
    )
    kinds = [DataError, DataError, ImageError, ImageError, BoxError, BoxError, PromptError]
    assert [type(e) for e in report.errors] == kinds
    for number, error in enumerate(report.errors, 2):
        assert str(error).startswith(f"{path}:{number}") and "\n" not in str(error)
    assert not report.ok and report.samples == 2 and report.sheet is not None
    assert len(str(report).splitlines()) == 1 + 7 + 1


def test_no_sheet_where_there_is_nothing_to_see(folder: Path) -> None:
    report = check_file(folder / "no.jsonl", sheet=folder / "sheet.png")
    assert [type(e) for e in report.errors] == [DataError] and report.sheet is None
    assert not (folder / "sheet.png").exists()
