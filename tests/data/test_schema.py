from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tsugiki.data import schema
from tsugiki.errors import BoxError, DataError, ImageError, InputError
from tsugiki.testing import tiny_images
from tsugiki.types import Box, BoxPart, ImagePart, Message, Sample, TextPart

IMAGE = {"type": "image", "image": "絵/a.png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "絵").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "絵" / "a.png")
    return tmp_path


def _line(content: Any = "What?", answer: Any = "A cup.", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **more}


def _file(folder: Path, *lines: Any) -> Path:
    path = folder / "data.jsonl"
    text = "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def _single(path: Path, kind: type[InputError], *words: str) -> None:
    """Exactly one error, on one line, with all the words."""
    (error,) = schema.check(path)
    assert type(error) is kind, error
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error), str(error)


def test_reading(folder: Path) -> None:
    box = {"type": "box", "box": [1, 2, 10.5, 20], "image": 0, "label": "杯"}
    path = _file(
        folder,
        _line([IMAGE, {"type": "text", "text": "どこ?"}], [box], id=7, task="box", meta={"a": 1}),
        "",
        _line(options=["A cup.", "B"]),
    )
    first, second = schema.load(path)
    assert first == Sample(
        id="7",
        messages=(
            Message("user", (ImagePart(folder / "絵/a.png"), TextPart("どこ?"))),
            Message("assistant", (BoxPart(Box(1, 2, 10.5, 20), 0, "杯"),)),
        ),
        task="box",
        meta={"a": 1},
    )
    assert first.where == f"{path}:1"
    assert (second.id, second.options, second.where) == ("3", ("A cup.", "B"), f"{path}:3")
    assert schema.check(path) == []


def test_byte_order_mark_and_windows_lines(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(_line()).encode() + b"\r\n")
    assert len(schema.load(path)) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": 1,', ("not JSON", "column 10")),
        ("[1, 2]", ("[1, 2]", "expected a map")),
        ("{}", ("messages: missing", "expected a list")),
        ({"messages": []}, ("no message",)),
        ({"message": []}, ("unknown field 'message'", "Did you mean 'messages'?", "meta")),
        ({"messages": [{"role": "assistent", "content": ""}]}, ("messages[0].role", "'assistent'", "'assistant'?")),
        ({"messages": [{"role": ["user"], "content": ""}]}, ("messages[0].role", "unknown role")),
        ({"messages": [{"role": "user"}]}, ("messages[0].content: missing", "a text or a list of parts")),
        ({"messages": [{"role": "user", "content": 3}]}, ("messages[0].content: 3",)),
        (_line([{"type": "image"}]), ("messages[0].content[0].image", "an image part without an image")),
        (_line([{"type": "image", "image": None}]), ("an image part without an image",)),
        (_line([{"type": "image", "image": 5}]), ("5 is no path",)),
        (_line([{"type": "image", "image": "https://a.b/c.png"}]), ("nothing is fetched",)),
        (_line([{"type": "img", "image": "a"}]), ("content[0].type", "'img'")),
        (_line([{"type": ["text"]}]), ("unknown part type",)),
        (_line([{"type": "text", "txt": "a"}]), ("unknown field 'txt'", "Did you mean 'text'?")),
        (_line([{"type": "text"}]), ("content[0].text: missing",)),
        (_line([{"type": "box", "box": [0, 0, 5, 5]}]), ("a box in picture 0, but the sample has 0",)),
        (_line([IMAGE, {"type": "box", "box": [0, 0, 5, 5], "image": 1}]), ("content[1].image", "picture 1")),
        (_line([IMAGE, {"type": "box", "box": [0, 0, 5, 5], "image": True}]), ("True",)),
        (_line([IMAGE, {"type": "box", "box": [0, 0, 5]}]), ("content[1].box", "four finite numbers")),
        (_line([IMAGE, {"type": "box", "box": "0,0,5,5"}]), ("four finite numbers",)),
        (_line([IMAGE, {"type": "box", "box": [0, 0, 5, "9"]}]), ("four finite numbers",)),
        ('{"messages": [{"role": "user", "content": [{"type": "box", "box": [0, 0, NaN, 5]}]}]}', ("four finite",)),
        (_line(id=None), (" id: missing",)),
        (_line(options="a"), (" options", "expected a list")),
        (_line(options=[1]), (" options[0]: 1",)),
        (_line(meta=[1]), (" meta", "expected a map")),
        (_line("a\ud800b"), ("surrogate", "character 1")),
        ("[" * 100_000, ("not usable JSON",)),
        ('{"id": ' + "9" * 5000 + "}", ("not usable JSON",)),
    ],
)  # fmt: skip
def test_wrong_lines(folder: Path, line: Any, words: tuple[str, ...]) -> None:
    if isinstance(line, dict) and "\ud800" in json.dumps(line, ensure_ascii=False):
        line = json.dumps(line)
    path = _file(folder, _line(id="ok"), line, _line(id="fine"))
    _single(path, DataError, f"{path}:2", *words)
    with pytest.raises(DataError, match=":2"):
        schema.load(path)
    assert [s.id for s in schema.scan(path) if isinstance(s, Sample)] == ["ok", "fine"]


def test_bytes_that_are_no_text(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_bytes(json.dumps(_line()).encode() + b"\n\xff\xfe\n")
    _single(path, DataError, ":2", "not UTF-8")


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([5, 5, 2, 9], "has width -3"),
        ([-4, 0, 5, 5], "outside its picture"),
        ([0, 0, 41, 5], "outside its picture of 40x30"),
    ],
)
def test_wrong_boxes(folder: Path, box: list[int], words: str) -> None:
    path = _file(folder, _line([IMAGE], [{"type": "box", "box": box}]))
    _single(path, BoxError, f"{path}:1 messages[1].content[0].box", words)


def test_pictures_are_opened_by_check_only(folder: Path) -> None:
    (folder / "cut.png").write_bytes((folder / "絵/a.png").read_bytes()[:60])
    (folder / "empty.png").write_bytes(b"")
    for name, words in (("no.png", "does not exist"), ("cut.png", "damaged"), ("empty.png", "0 bytes")):
        path = _file(folder, _line([IMAGE, {"type": "image", "image": name}]))
        assert len(schema.load(path)) == 1
        _single(path, ImageError, f"{path}:1 messages[0].content[1].image", name, words)


def test_every_line_is_told_but_each_picture_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    original = schema.open_image
    monkeypatch.setattr(schema, "open_image", lambda s, **k: (opened.append(s), original(s, **k))[1])
    bad = {"type": "image", "image": "no.png"}
    path = _file(folder, *(_line([part], id=str(i)) for i, part in enumerate([IMAGE, bad, bad, IMAGE])))
    assert [e.where.split(" ")[0] for e in schema.check(path)] == [f"{path}:2", f"{path}:3"]
    assert len(opened) == 2


def test_ids_and_options(folder: Path) -> None:
    path = _file(folder, _line(id="a"), _line(id="a"))
    _single(path, DataError, f"{path}:2 id", "'a' again", f"{path}:1")
    path = _file(folder, _line(answer="cop", options=["cup", "can"]))
    _single(path, DataError, f"{path}:1 options", "answer 'cop' is not an option", "Did you mean 'cup'?")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    _single(tmp_path / "no.jsonl", DataError, "no.jsonl", "does not exist")
    _single(tmp_path, DataError, "is a folder")
    (tmp_path / "a.jsonl").write_text("\n \n")
    _single(tmp_path / "a.jsonl", DataError, "no sample in it")


def test_open_pictures_are_stored(tmp_path: Path) -> None:
    picture = tiny_images(1)[0]
    sample = Sample(id="1", messages=(Message.of("user", "何?", (picture, (tmp_path / "x.png"))),))
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    schema.write(tmp_path / "out" / "d.jsonl", [sample])
    (back,) = schema.load(tmp_path / "out" / "d.jsonl")
    assert schema.check(tmp_path / "out" / "d.jsonl") == []
    with Image.open(back.images[0]) as stored:
        assert stored.tobytes() == picture.tobytes()
    assert "../x.png" in (tmp_path / "out" / "d.jsonl").read_text()


def test_what_json_cannot_hold(tmp_path: Path) -> None:
    for meta in ({"a": object()}, {"a": float("nan")}, {"a": "\ud800"}):
        with pytest.raises(DataError, match="can't be written as JSON"):
            schema.write(tmp_path / "d.jsonl", [Sample(id="1", messages=(Message.of("user", "a"),), meta=meta)])
    assert not (tmp_path / "d.jsonl").exists()


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_edges = st.lists(st.integers(0, 40), min_size=2, max_size=2, unique=True).map(sorted)
_box = st.builds(lambda x, y, label: BoxPart(Box(x[0], y[0], x[1], y[1]), 0, label), _edges, _edges, st.none() | _text)
_message = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant"]),
    st.lists(st.builds(TextPart, _text) | _box | st.just(ImagePart(Path("/pictures/絵 a.png"))), max_size=4).map(tuple),
)
_first = Message.of("user", "q", (Path("/pictures/first.png"),))
_sample = st.builds(
    Sample,
    id=_text,
    messages=st.lists(_message, max_size=3).map(lambda turns: (_first, *turns)),
    task=_text,
    options=st.lists(_text, max_size=3).map(tuple),
    meta=st.dictionaries(_text, _text | st.integers(), max_size=2),
)


@given(st.lists(_sample, min_size=1, max_size=3))
def test_written_is_read(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> None:
    path = tmp_path_factory.mktemp("schema") / "d.jsonl"
    schema.write(path, samples)
    back = schema.load(path)

    def resolved(sample: Sample) -> Sample:
        names = {i: str(Path(str(s)).resolve()) for i, s in enumerate(sample.images)}
        return schema.from_record(schema.to_record(sample, names), folder=Path("/"), where="")

    assert [resolved(s) for s in back] == [resolved(s) for s in samples]
