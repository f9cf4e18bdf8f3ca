"""The file of answers: any text survives, and a file that is cut anywhere gives its finished rows."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugiki.errors import InputError, StoreError
from tsugiki.studies._rows import FIELDS, FORMATS, Rows

OPTIONS = ["良品", 'a, "b"\r\nc', "="]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
SOME = st.sampled_from(["", "良品", '"', "a\nb", "x,y", "\r\n", "\u2028", "'"]) | TEXTS


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(OPTIONS), unique=True))
    numbers = st.floats(0, 1).map(lambda v: round(v, 6))
    found: dict[str, Any] = {k: draw(SOME) for k in ("image", "answer", "error", "question", "graft", "run", "picture")}
    found["id"] = draw(SOME.filter(bool))
    found["probabilities"] = {o: draw(numbers) for o in OPTIONS if o in names}
    found["probability"] = draw(st.none() | numbers)
    found["boxes"] = draw(
        st.lists(st.lists(st.floats(0, 9999).map(lambda v: round(v, 1)), min_size=4, max_size=4), max_size=2)
    )
    return found


@pytest.mark.parametrize("suffix", sorted(FORMATS))
@given(content=st.lists(rows(), max_size=3), cut=st.floats(0, 1))
def test_any_text_and_any_cut(suffix: str, content: list[dict[str, Any]], cut: float) -> None:
    form = FORMATS[suffix](OPTIONS)
    parts = [form.encode(row) for row in content]
    raw = form.head + b"".join(parts)
    assert form.whole(raw) == len(raw)
    assert form.decode(raw) == content
    at = len(form.head) + int(cut * (len(raw) - len(form.head)))
    finished = raw[: form.whole(raw[:at])]
    ends = [len(form.head + b"".join(parts[:i])) for i in range(len(parts) + 1)]
    assert len(finished) == max(end for end in ends if end <= at)
    assert form.decode(finished) == content[: ends.index(len(finished))]


def test_read_leaves_an_unfinished_row_out_and_refuses_other_columns(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "a.csv", OPTIONS)
    rows.start([])
    rows.close()
    head = (tmp_path / "a.csv").read_bytes()
    assert rows.read() == []
    (tmp_path / "a.csv").write_bytes(head + b"1,a.png,good")
    assert rows.read() == []
    (tmp_path / "a.csv").write_bytes(b"")
    assert rows.read() == []
    (tmp_path / "a.csv").write_bytes(head)
    with pytest.raises(InputError, match="other options"):
        Rows(tmp_path / "a.csv", ["other"]).read()
    assert Rows(tmp_path / "none.jsonl", OPTIONS).read() == []
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="can't be read"):
        Rows(tmp_path / "folder.csv", OPTIONS).read()


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        Rows(tmp_path / "file" / "a.csv", OPTIONS).start([])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_table_without_a_bank_is_named(tmp_path: Path, name: str) -> None:
    row: dict[str, Any] = dict.fromkeys(FIELDS, "")
    row |= {"id": "1", "probability": 0.5, "probabilities": {"a": 0.5}, "boxes": []}
    with closing(Rows(tmp_path / name, ["a"], neighbours=False)) as plain:
        plain.start([row])
    with pytest.raises(InputError, match="it holds answers without a bank"):
        Rows(tmp_path / name, ["a"], neighbours=True).read()
