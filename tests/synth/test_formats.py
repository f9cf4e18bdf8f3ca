"""Every format of the task mix, with one sample: box texts parse, and the loss is on the answer alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from tsugiki import testing
from tsugiki.data import schema
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.data.convert import coco_captions, coco_keypoints
from tsugiki.data.images import image_size
from tsugiki.data.prompt import IGNORE
from tsugiki.errors import DataError, UnknownNameError
from tsugiki.synth import fonts, formats, ocr
from tsugiki.synth.phrases import FORMATS as PHRASES
from tsugiki.types import BoxPart, Sample, TextPart

BOXES = {"nut": [(10, 10, 20, 20), (60, 30, 18, 24)], "bolt": [(100, 40, 30, 30)]}
POINTS = ["left_end", "right_end", "head"]
FROM_OCR = {"spotting": "spotting", "ocr": "read", "table": "table"}
EVERY = (*formats.FORMATS, *FROM_OCR, "keypoints")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    names = ["nut", "bolt", "hole", "stain", "crack"]
    annotations: list[dict[str, Any]] = [
        {"id": len(BOXES[name]) * 10 + i, "image_id": 1, "category_id": names.index(name) + 1, "bbox": list(box)}
        for name in BOXES
        for i, box in enumerate(BOXES[name])
    ]
    annotations[-1] |= {"keypoints": [102, 42, 2, 128, 68, 1, 0, 0, 0]}
    data = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": annotations,
        "categories": [
            {"id": i + 1, "name": n, "keypoints": POINTS if n == "bolt" else []} for i, n in enumerate(names)
        ],
    }
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


@pytest.fixture
def sample_of(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(fonts, "load", lambda name, size: ImageFont.load_default(size))

    def find(name: str, language: str) -> Sample:
        if name in FROM_OCR:
            out, task = tmp_path / f"{name} {language}", FROM_OCR[name]
            return ocr.generate(1, out=out, tasks=[task], languages=[language], backgrounds=["plain"])[0]
        if name == "keypoints":
            return formats.keypoints(coco, language=language)[0]
        return formats.convert(coco, formats=[name], languages=[language], questions=1)[0]

    return find


def said(sample: Sample, turn: int) -> str:
    parts = sample.messages[turn].parts
    return "".join(p.text if isinstance(p, TextPart) else "#" if isinstance(p, BoxPart) else "" for p in parts)


@pytest.mark.parametrize("language", PHRASES)
@pytest.mark.parametrize("name", EVERY)
def test_every_format(name: str, language: str, sample_of: Any) -> None:
    sample = sample_of(name, language)
    model = testing.tiny_model(llm={"max_position_embeddings": 4096})
    model.tokenizer.model_max_length = 4096
    batch = model.encode_samples([sample], labels=True)
    labels, ids = batch.labels[0].tolist(), batch.input_ids[0].tolist()
    told = model.tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label != IGNORE])
    codec, square = BoxCodec(), PaddedSquare(*image_size(sample.images[0]))
    answer = "".join(
        codec.encode(p.box, square) if isinstance(p, BoxPart) else p.text
        for p in sample.messages[1].parts
        if isinstance(p, BoxPart | TextPart)
    )
    # Loss on the answer and the end of the turn, nowhere else; every box is read back.
    assert told.replace("<|im_end|>", "").strip() == answer.strip()
    gold = [p.box for p in sample.messages[1].parts if isinstance(p, BoxPart)]
    found = codec.parse(told, square)
    assert len(found) == len(gold)
    for a, b in zip(found, gold, strict=True):
        assert (a.x1, a.y1, a.x2, a.y2) == pytest.approx((b.x1, b.y1, b.x2, b.y2), abs=square.side / codec.steps)
    assert bool(gold) == (name in ("grounded caption", "rec", "detection", "spotting", "keypoints"))


def test_answers_are_those_of_the_annotations(coco: Path) -> None:
    for seed in range(12):
        for sample in formats.convert(coco, questions=7, seed=seed):
            question, answer, kind = said(sample, 0), said(sample, 1), sample.meta["format"]
            labels = [p.label for p in sample.messages[1].parts if isinstance(p, BoxPart)]
            if kind == "vqa":
                assert answer == ("two" if "nut" in question else "one")
            elif kind == "choice":
                shown = question[question.index(f"{answer}) ") + 3 :]
                assert any(shown.startswith(name) for name in BOXES)
                assert sample.options == tuple("ABCD")
            elif kind == "rec":
                assert set(labels) == {"nut" if "nut" in question else "bolt"}
                assert len(labels) == (2 if "nut" in question else 1)
            elif kind == "reg":
                (box,) = [p.box for p in sample.messages[0].parts if isinstance(p, BoxPart)]
                assert (box.x1, box.y1, box.width, box.height) in BOXES[answer]
            elif kind == "detection":
                asked = sample.meta["category"]
                wanted = {"": ["nut", "nut", "bolt"], "nut": ["nut", "nut"], "bolt": ["bolt"]}
                assert labels == wanted.get(asked, [])
            elif kind == "grounded caption":
                assert labels == ["nut", "nut", "bolt"]


def test_the_same_seed_asks_the_same(coco: Path, tmp_path: Path) -> None:
    first, second = (formats.convert(coco, questions=5, seed=3, languages=["en", "ja"]) for _ in range(2))
    assert [schema.to_record(s, {0: "a"}) for s in first] == [schema.to_record(s, {0: "a"}) for s in second]
    schema.write(tmp_path / "made.jsonl", first)
    assert schema.check(tmp_path / "made.jsonl") == []


def test_keypoints_are_centres_of_boxes(coco: Path) -> None:
    (sample,) = coco_keypoints.convert(coco)
    boxes = [p for p in sample.messages[1].parts if isinstance(p, BoxPart)]
    assert [(p.label, p.box.center) for p in boxes] == [("left end", (102, 42)), ("right end", (128, 68))]
    assert said(sample, 0) == "Where are the key points of the bolt in the box #?"
    data = json.loads(coco.read_text(encoding="utf-8"))
    data["annotations"][-1]["keypoints"] = [500, 42, 2, 128, 68, 1, 0, 0, 0]
    coco.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(DataError, match=r"point \(500, 42\) is not inside the picture of 160x90"):
        coco_keypoints.convert(coco)
    data["annotations"][-1]["keypoints"] = [1, 2]
    coco.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(DataError, match="2 numbers; expected 3 for each of the category's 3 keypoints"):
        coco_keypoints.convert(coco)


def test_captions_of_coco(coco: Path) -> None:
    data = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": " two  nuts "}]}
    coco.write_text(json.dumps(data), encoding="utf-8")
    (sample,) = coco_captions.convert(coco)
    assert (sample.task, said(sample, 1)) == ("caption", "two nuts")
    data["annotations"] = [{"image_id": 2, "caption": "x"}]
    coco.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(DataError, match="image_id 2 is not listed"):
        coco_captions.convert(coco)


def test_unknown_names(coco: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown format 'recs'.*Did you mean 'rec'"):
        formats.convert(coco, formats=["recs"])
    with pytest.raises(UnknownNameError, match="unknown language"):
        formats.convert(coco, languages=["xx"])


def test_languages_are_as_complete_as_english() -> None:
    english = PHRASES["en"]
    for phrases in PHRASES.values():
        assert phrases.questions.keys() == english.questions.keys()
        assert phrases.hints.keys() == english.hints.keys() and phrases.words.keys() == english.words.keys()


def test_what_has_no_box_of_its_own_makes_no_answer(coco: Path) -> None:
    data = json.loads(coco.read_text(encoding="utf-8"))
    data["annotations"].append({"id": 99, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "iscrowd": 1})
    coco.write_text(json.dumps(data), encoding="utf-8")
    left_out: Counter[str] = Counter()
    made = formats.convert(coco, questions=len(formats.FORMATS), left_out=left_out)
    kinds = {s.meta["format"] for s in made}
    assert kinds and not kinds & {"caption", "grounded caption"} and left_out
    for sample in made:
        assert not any(part.label == "nut" for part in sample.boxes)
        assert "nut" not in "".join(p.text for p in sample.messages[-1].parts if isinstance(p, TextPart))
