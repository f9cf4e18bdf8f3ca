from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from tsugiki.data import schema
from tsugiki.errors import DataError, UnknownNameError
from tsugiki.synth import fonts, ocr
from tsugiki.synth.backgrounds import PALETTES, Split
from tsugiki.synth.lettering import Sheet
from tsugiki.synth.pages import belongs
from tsugiki.synth.phrases import TEXTS
from tsugiki.synth.reading import ON_PAGE, TASKS, markdown
from tsugiki.types import BoxPart, Sample, TextPart

Make = Callable[..., list[Sample]]


@pytest.fixture
def make(photographs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`generate` in a new folder each time, with Pillow's own font in place of the assets (it has no kana: blocks)."""
    monkeypatch.setattr(fonts, "load", lambda name, size: ImageFont.load_default(size))
    numbers = itertools.count()

    def call(n: int, **options: Any) -> list[Sample]:
        return ocr.generate(n, **({"out": tmp_path / f"run {next(numbers)}", "photographs": photographs} | options))

    return call


def said(sample: Sample, turn: int) -> str:
    parts = sample.messages[turn].parts
    return "".join(p.text if isinstance(p, TextPart) else "#" if isinstance(p, BoxPart) else "" for p in parts)


def test_answers_follow_from_what_is_written(make: Make) -> None:
    samples = make(60, questions_per_picture=3)
    assert {s.task for s in samples} == set(TASKS)
    for sample in samples:
        texts, question, answer = sample.meta["texts"], said(sample, 0), said(sample, 1)
        assert sample.task in ON_PAGE[sample.meta["page"]]
        boxes = [p for p in sample.messages[1].parts if isinstance(p, BoxPart)]
        asked = [p for p in sample.messages[0].parts if isinstance(p, BoxPart)]
        if sample.task == "read":
            found = [t["text"] for t in texts if not asked or list(_xyxy(asked[0])) == t["box"]]
            assert found == [answer]
        elif sample.task == "field":
            names = TEXTS[sample.meta["language"]].fields
            assert [t["text"] for t in texts if t["role"] == "value" and names[t["key"]] in question] == [answer]
        elif sample.task == "cell":
            cells = [t for t in texts if t["role"] == "cell" and t["row"] in question and t["key"] in question]
            assert answer in [t["text"] for t in cells if t["row"] != t["text"]]
        elif sample.task == "gauge":
            gauge = sample.meta["gauge"]
            number, unit = answer.split(" ")
            assert unit == gauge["unit"] and gauge["low"] <= float(number) <= gauge["high"]
            assert (float(number) - gauge["low"]) / (gauge["step"] / 2) == pytest.approx(
                round((float(number) - gauge["low"]) / (gauge["step"] / 2))
            )
        elif sample.task == "text box":
            (box,) = boxes
            assert box.label in question and [t["box"] for t in texts if t["text"] == box.label] == [list(_xyxy(box))]
        elif sample.task == "spotting":
            assert [(p.label, list(_xyxy(p))) for p in boxes] == [(t["text"], t["box"]) for t in texts]
        else:
            assert answer.splitlines()[0] == "| " + " | ".join(t["text"] for t in texts if t["role"] == "head") + " |"
            assert all(t["text"] in answer for t in texts)


def test_the_needle_points_at_the_value(make: Make) -> None:
    """The red pixel that is farthest from the hub stands at the angle of the value."""
    for sample in make(6, pages=["gauge"], conditions=["clean"], backgrounds=["plain"], picture_format="png"):
        gauge = sample.meta["gauge"]
        pixels = np.asarray(Image.open(sample.images[0]), dtype=np.int64)
        ys, xs = np.nonzero((pixels[..., 0] > 180) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60))
        far = int(np.argmax((xs - 111.5) ** 2 + (ys - 111.5) ** 2))
        angle = np.degrees(np.arctan2(ys[far] - 111.5, xs[far] - 111.5))  # clockwise from the right
        share = ((angle - 135) % 360) / 270
        value = gauge["low"] + share * (gauge["high"] - gauge["low"])
        assert value == pytest.approx(float(gauge["value"]), abs=0.15 * gauge["step"])


@pytest.mark.parametrize("angle", [0.0, 14.0, -9.0])
def test_boxes_are_tight(monkeypatch: pytest.MonkeyPatch, angle: float) -> None:
    """Written in a pure colour on white, the letters can be found again from the picture alone."""
    monkeypatch.setattr(fonts, "load", lambda name, size: ImageFont.load_default(size))
    sheet = Sheet(200, "noto-sans")
    inks = [(255, 0, 0), (0, 0, 255)]
    sheet.write("Lot", (70, 80), 22, inks[0])
    sheet.write("A-123", (120, 140), 22, inks[1])
    picture, found = sheet.lay(Image.new("RGB", (200, 200), (255, 255, 255)), angle)
    pixels = np.asarray(picture, dtype=np.int64)
    for text, ink in zip(found, inks, strict=True):
        # 64 of 255 of the ink: what is left of white in the channels that the ink lacks.
        rows, columns = np.nonzero(pixels[..., 2 if ink[0] else 0] <= 255 - 64)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert (text.box.x1, text.box.y1, text.box.x2, text.box.y2) == box


def test_a_sheet_fits_a_text() -> None:
    sheet = Sheet(200, "noto-sans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fonts, "load", lambda name, size: ImageFont.load_default(size))
        size = sheet.fitting("coffee", 80, 60)
        assert size is not None and sheet.width("coffee", size) <= 80
        assert sheet.fitting("coffee" * 20, 80, 60) is None


def test_the_same_seed_draws_the_same(make: Make) -> None:
    few, many = make(4, seed=3), make(7, seed=3)
    for a, b in zip(few, many, strict=False):
        assert (a.id, said(a, 0), said(a, 1), a.meta) == (b.id, said(b, 0), said(b, 1), b.meta)
        assert Path(str(a.images[0])).read_bytes() == Path(str(b.images[0])).read_bytes()
    assert said(make(4, seed=4)[0], 1) != said(few[0], 1) or make(4, seed=4)[1].meta != few[1].meta


def test_splits_share_neither_words_nor_fonts_nor_backgrounds(make: Make) -> None:
    train, test = make(60), make(60, split="test")
    assert not {s.meta["font"] for s in train} & {s.meta["font"] for s in test}
    assert not set(PALETTES["train"]) & set(PALETTES["test"])
    shown: dict[Split, set[str]] = {"train": set(), "test": set()}
    for split, samples in (("train", train), ("test", test)):
        for sample in samples:
            for t in sample.meta["texts"]:
                named = t["role"] in ("word", "line") or t["key"] in ("model", "serial", "lot", "date")
                if named and t["role"] != "key":
                    assert belongs(t["text"], split)  # type: ignore[arg-type]
                    shown[split].add(t["text"])  # type: ignore[index]
    assert shown["train"] and shown["test"] and not shown["train"] & shown["test"]


def test_conditions_change_the_picture_alone(make: Make) -> None:
    made = {c: make(1, conditions=[c], pages=["label"], seed=5, picture_format="png")[0] for c in ocr.CONDITIONS}
    pixels = {c: np.asarray(Image.open(s.images[0]), dtype=np.float64) for c, s in made.items()}
    texts = {c: [t["text"] for t in s.meta["texts"]] for c, s in made.items()}
    assert all(t == texts["clean"] for t in texts.values())
    assert made["rotation"].meta["angle"] != 0 and made["blur"].meta["angle"] == 0
    assert made["blur"].meta["texts"] == made["clean"].meta["texts"] != made["rotation"].meta["texts"]
    assert pixels["blur"].std() < pixels["clean"].std() > pixels["low contrast"].std()


def test_the_file_is_what_the_checker_wants(make: Make, tmp_path: Path) -> None:
    samples = make(8, out=tmp_path / "here")
    assert schema.check(tmp_path / "here" / "samples.jsonl") == []
    again = make(8, out=tmp_path / "here")
    assert [s.id for s in again] == [s.id for s in samples]


def test_languages_are_as_complete_as_english() -> None:
    english = TEXTS["en"]
    for texts in TEXTS.values():
        assert texts.fields.keys() == english.fields.keys()
        assert texts.questions.keys() == english.questions.keys() and texts.hints.keys() == english.hints.keys()
        assert len(texts.columns) == len(set(texts.columns)) == len(english.columns)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"fonts": ["noto-sand"]},
            UnknownNameError,
            r"unknown font 'noto-sand'.*ipaex-gothic.*Did you mean 'noto-sans'",
        ),
        ({"fonts": ["noto-sans"]}, DataError, r"no font for the language ja; expected one of ipaex-gothic"),
        ({"fonts": ["noto-sans-italic", "ipaex-gothic"]}, DataError, "noto-sans-italic in training"),
        ({"tasks": ["gauge"], "pages": ["label"]}, DataError, "the tasks gauge on the pages label"),
        ({"tasks": ["smell"]}, UnknownNameError, "unknown task 'smell'"),
        ({"conditions": ["rain"]}, UnknownNameError, "unknown condition"),
        ({"size": 100}, DataError, "100 px"),
        ({"seed": -1}, DataError, "seed -1"),
    ],
)
def test_mistakes(make: Make, tmp_path: Path, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make(2, out=tmp_path / "wrong", **options)
    assert not (tmp_path / "wrong").exists()


def test_markdown() -> None:
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


@pytest.mark.assets("font-latin", "font-ja")
def test_the_fonts_have_the_letters_of_their_languages() -> None:
    for name, face in fonts.FACES.items():
        font = fonts.load(name, 24)
        letters = "Ag9" + ("電圧ホ" if "ja" in face.languages else "")
        missing = font.getmask("\U0010fffd").getbbox(), bytes(font.getmask("\U0010fffd"))
        for letter in letters:
            assert bytes(font.getmask(letter)) != missing[1], (name, letter)
    with pytest.raises(UnknownNameError, match="noto-sans-bold"):
        fonts.load("comic", 12)


def _xyxy(part: BoxPart) -> tuple[float, float, float, float]:
    return part.box.x1, part.box.y1, part.box.x2, part.box.y2
