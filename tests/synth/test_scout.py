"""SCouT: every statement is true of the boxes, found again here from the words alone."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.boxes import BoxCodec, PaddedSquare
from tsugiki.data.steps import marked
from tsugiki.errors import BoxError, DataError, ImageError, InputError
from tsugiki.synth import annotated, scout
from tsugiki.synth.annotated import Picture
from tsugiki.synth.phrases import LANGUAGES
from tsugiki.types import Box, BoxPart, ImagePart, Message, Sample, TextPart

SIZE = (200, 120)
NAMES = ("nut", "bolt", "hole", "scratch", "stain")
AREA: Callable[[Box], float] = lambda b: (b.x2 - b.x1) * (b.y2 - b.y1)  # noqa: E731


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scout")
    Image.new("RGB", SIZE).save(folder / "a.png")
    return folder


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[str, Box]]:
    """Up to seven named boxes anywhere on the picture; names occur several times."""
    found = []
    for _ in range(draw(st.integers(1, 7))):
        x, y = draw(st.integers(0, SIZE[0] - 2)), draw(st.integers(0, SIZE[1] - 2))
        wide, high = draw(st.integers(1, 80)), draw(st.integers(1, 60))
        box = Box(x, y, min(x + wide, SIZE[0]), min(y + high, SIZE[1]))
        found.append((draw(st.sampled_from(NAMES)), box))
    return found


def samples_of(folder: Path, things: Sequence[tuple[str | None, Box]], absent: Sequence[str] = ()) -> list[Sample]:
    """As a converter of boxes leaves them: one sample for each box, and for each absent name."""
    asked = (ImagePart(folder / "a.png"), TextPart("Where?"))
    marked = [
        Sample(id=f"b{i}", messages=(Message("user", asked), Message("assistant", (BoxPart(box, 0, name),))))
        for i, (name, box) in enumerate(things)
    ]
    missing = [
        Sample(
            id=f"n{name}",
            messages=(Message("user", asked), Message.of("assistant", "No.")),
            task="absent",
            meta={"category": name},
        )
        for name in absent
    ]
    return [*marked, *missing]


def lines(sample: Sample) -> list[tuple[str, list[BoxPart]]]:
    """The steps as their marks cut them: words with # for a box, and the boxes."""
    assert sample.answer is not None
    found, at = [], 0
    for count in marked(sample):
        parts = sample.answer.parts[at : at + count]
        text = "".join(p.text if isinstance(p, TextPart) else "#" for p in parts)
        found.append((text, [p for p in parts if isinstance(p, BoxPart)]))
        at += count
    return found


# --- the truth, written out again ---

ORDER = {
    "en": ["first", "second", "third", "fourth"],
    "ja": ["一つ目", "二つ目", "三つ目", "四つ目"],
}
# What a step may say, with the name of what it means.
SAID = {
    "en": [
        ("at", r"The (?P<a>\w+) is at #\."),
        ("nth", r"The (?P<nth>\w+) (?P<a>\w+) is at #\."),
        ("left", r"The (?P<a>\w+) is to the left of the (?P<b>\w+)\."),
        ("right", r"The (?P<a>\w+) is to the right of the (?P<b>\w+)\."),
        ("above", r"The (?P<a>\w+) is above the (?P<b>\w+)\."),
        ("below", r"The (?P<a>\w+) is below the (?P<b>\w+)\."),
        ("further left", r"The (?P<a>\w+) is further left than the (?P<b>\w+)\."),
        ("further right", r"The (?P<a>\w+) is further right than the (?P<b>\w+)\."),
        ("further above", r"The (?P<a>\w+) is further up than the (?P<b>\w+)\."),
        ("further below", r"The (?P<a>\w+) is further down than the (?P<b>\w+)\."),
        ("larger", r"The (?P<a>\w+) is larger than the (?P<b>\w+)\."),
        ("nearer", r"The (?P<a>\w+) is nearer to the (?P<c>\w+) than the (?P<b>\w+)\."),
        ("most left", r"The (?P<nth>\w+) (?P<a>\w+) is furthest left\."),
        ("most right", r"The (?P<nth>\w+) (?P<a>\w+) is furthest right\."),
        ("most above", r"The (?P<nth>\w+) (?P<a>\w+) is furthest up\."),
        ("most below", r"The (?P<nth>\w+) (?P<a>\w+) is furthest down\."),
        ("most larger", r"The (?P<nth>\w+) (?P<a>\w+) is the largest\."),
        ("most nearer", r"The (?P<nth>\w+) (?P<a>\w+) is nearest to the (?P<c>\w+)\."),
        ("answer", r"Answer: the (?P<a>\w+) at #\."),
        ("answer", r"Answer: the (?P<nth>\w+) (?P<a>\w+) at #\."),
        ("answer left", r"Answer: to the left of the (?P<b>\w+), at #\."),
        ("answer right", r"Answer: to the right of the (?P<b>\w+), at #\."),
        ("answer above", r"Answer: above the (?P<b>\w+), at #\."),
        ("answer below", r"Answer: below the (?P<b>\w+), at #\."),
        ("none", r"There is no (?P<a>\w+) in the picture\."),
        ("answer none", r"Answer: none\."),
    ],
    "ja": [
        ("at", r"(?P<a>[a-z]+)の位置は#です。"),
        ("nth", r"(?P<nth>.つ目)の(?P<a>[a-z]+)の位置は#です。"),
        *((side, rf"(?P<a>[a-z]+)は(?P<b>[a-z]+)の{word}です。") for side, word in
          (("left", "左"), ("right", "右"), ("above", "上"), ("below", "下"))),
        *((f"further {side}", rf"(?P<a>[a-z]+)は(?P<b>[a-z]+)より{word}です。") for side, word in
          (("left", "左"), ("right", "右"), ("above", "上"), ("below", "下"))),
        ("larger", r"(?P<a>[a-z]+)は(?P<b>[a-z]+)より大きいです。"),
        ("nearer", r"(?P<a>[a-z]+)は(?P<b>[a-z]+)より(?P<c>[a-z]+)に近いです。"),
        *((f"most {side}", rf"(?P<nth>.つ目)の(?P<a>[a-z]+)が最も{word}です。") for side, word in
          (("left", "左"), ("right", "右"), ("above", "上"), ("below", "下"), ("larger", "大きい"))),
        ("most nearer", r"(?P<nth>.つ目)の(?P<a>[a-z]+)が最も(?P<c>[a-z]+)に近いです。"),
        ("answer", r"答え：(?P<a>[a-z]+)、#。"),
        ("answer", r"答え：(?P<nth>.つ目)の(?P<a>[a-z]+)、#。"),
        *((f"answer {side}", rf"答え：(?P<b>[a-z]+)の{word}、#。") for side, word in
          (("left", "左"), ("right", "右"), ("above", "上"), ("below", "下"))),
        ("none", r"画像に(?P<a>[a-z]+)は見当たりません。"),
        ("answer none", r"答え：なし。"),
    ],
}  # fmt: skip


def understood(text: str, language: str) -> tuple[str, dict[str, str]]:
    for meaning, pattern in SAID[language]:
        if match := re.fullmatch(pattern, text.strip()):
            return meaning, match.groupdict()
    raise AssertionError(text)


def centre(box: Box) -> tuple[float, float]:
    return (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2


def holds(meaning: str, a: Box, b: Box, c: Box | None) -> bool:
    """The relations of the docstring, with their margins, for a picture whose longer side is 200."""
    (ax, ay), (bx, by) = centre(a), centre(b)
    kind = meaning.removeprefix("further ").removeprefix("most ")
    if kind == "larger":
        return AREA(a) >= 1.5 * AREA(b)
    if kind == "nearer":
        assert c is not None
        one, other = math.dist(centre(a), centre(c)), math.dist(centre(b), centre(c))
        return other >= 1.5 * one and other - one >= 20
    along = {"left": bx - ax, "right": ax - bx, "above": by - ay, "below": ay - by}[kind]
    if meaning != kind:
        return along >= 20
    across = abs(ay - by) if kind in ("left", "right") else abs(ax - bx)
    free = {"left": b.x1 - a.x2, "right": a.x1 - b.x2, "above": b.y1 - a.y2, "below": a.y1 - b.y2}[kind]
    return along >= 20 and along >= 2 * across and free >= 0


def check_truth(sample: Sample, things: dict[str, list[Box]]) -> None:
    """All that the steps say, and that nothing is missing for the answer."""
    language = sample.meta["language"]
    located: dict[tuple[str, str | None], Box] = {}
    stated: tuple[str, dict[str, str], Box] | None = None
    for text, parts in lines(sample):
        meaning, words = understood(text, language)
        if meaning in ("at", "nth"):
            boxes = sorted(things[words["a"]], key=lambda b: (b.x1, b.y1, b.x2, b.y2))
            nth = words.get("nth")
            assert nth is not None or len(boxes) == 1
            assert [p.box for p in parts] == [boxes[ORDER[language].index(nth) if nth else 0]]
            assert parts[0].label == words["a"]
            located[words["a"], nth] = parts[0].box
        elif meaning.startswith("most"):
            mine = located[words["a"], words["nth"]]
            group = [box for (name, nth), box in located.items() if name == words["a"]]
            assert len(group) == len(things[words["a"]]) and set(group) == set(
                things[words["a"]]
            )  # every one was looked at
            c = located[words["c"], None] if "c" in words else None
            assert all(holds(meaning, mine, other, c) for other in group if other != mine)
            stated = meaning, words, mine
        elif meaning == "none":
            assert words["a"] not in things and not parts
        elif not meaning.startswith("answer"):
            mine, c = located[words["a"], None], located[words["c"], None] if "c" in words else None
            assert holds(meaning, mine, located[words["b"], None], c)
            stated = meaning, words, mine
        elif meaning == "answer none":
            assert not parts and sample.task == "absent" and len(lines(sample)) == 2
        else:
            box = stated[2] if stated else located[words["a"], None]
            assert [p.box for p in parts] == [box]
            if stated and meaning == "answer":
                assert (words["a"], words.get("nth")) == (stated[1]["a"], stated[1].get("nth"))
            elif stated:
                assert (meaning, words["b"]) == (f"answer {stated[0]}", stated[1]["b"])
    assert len(located) >= sample.meta["level"] or sample.task == "absent"


@settings(max_examples=120)
@given(layouts(), st.integers(0, 5), st.sampled_from(["en", "ja"]))
def test_every_statement_is_true(folder: Path, layout: list[tuple[str, Box]], seed: int, language: str) -> None:
    things: dict[str, list[Box]] = {}
    for name, box in dict.fromkeys(layout):
        things.setdefault(name, []).append(box)
    absent = [name for name in NAMES if name not in things]
    schema.write(folder / "in.jsonl", samples_of(folder, layout, absent))
    left_out: Counter[str] = Counter()
    try:
        made = scout.convert(
            folder / "in.jsonl", questions=6, languages=[language], absent=0.3, seed=seed, left_out=left_out
        )
    except DataError:
        return  # nothing that is plain
    codec, square = BoxCodec(), PaddedSquare(*SIZE)
    for sample in made:
        check_truth(sample, things)
        texts = [text.strip() + "".join(str(p.box) for p in parts) for text, parts in lines(sample)]
        assert len(set(texts)) == len(texts)
        assert all(text.endswith("\n") for text, _ in lines(sample)[:-1]) and "\n" not in lines(sample)[-1][0]
        asked = schema.message_text(sample.messages[0])
        for part in sample.boxes:
            (back,) = codec.parse(codec.encode(part.box, square), square)
            for edge in ("x1", "y1", "x2", "y2"):
                assert abs(getattr(back, edge) - getattr(part.box, edge)) <= 0.5 / 1000 * 200 + 1e-6
            assert part.label is not None and (part.label in asked or part.label in things)
    schema.write(folder / "out.jsonl", made)
    assert schema.check(folder / "out.jsonl") == []
    assert [replace(s, where="") for s in schema.load(folder / "out.jsonl")] == made


GRID = [("nut", Box(10, 10, 40, 40)), ("bolt", Box(150, 12, 170, 40)), ("hole", Box(12, 90, 20, 98))]
MANY = [("scratch", Box(10, 10, 20, 20)), ("scratch", Box(100, 10, 130, 40)), ("scratch", Box(60, 80, 70, 90))]


def write(folder: Path, samples: Sequence[Sample]) -> Path:
    schema.write(folder / "in.jsonl", samples)
    return folder / "in.jsonl"


def test_levels_kinds_and_relations_all_occur(folder: Path) -> None:
    path = write(folder, samples_of(folder, [*GRID, *MANY], ["stain"]))
    seen: Counter[tuple[int, str]] = Counter()
    relations: set[str] = set()
    for seed in range(30):
        for sample in scout.convert(path, questions=8, seed=seed, absent=0.2):
            seen[sample.meta["level"], sample.meta["kind"]] += 1
            relations.update(sample.meta["relation"].split())
    assert set(seen) == {
        (1, "where"), (2, "side"), (2, "more"), (2, "most"), (3, "more"), (3, "most"), (3, "chain"),
    }  # fmt: skip
    assert relations == {"left", "right", "above", "below", "larger", "nearer"}
    only = [s.meta["level"] for s in scout.convert(path, questions=8, levels=[2])]
    assert only and set(only) == {2}


def test_one_name_of_several_things_is_enough(folder: Path) -> None:
    made = scout.convert(write(folder, samples_of(folder, MANY)), questions=6)
    assert {s.meta["kind"] for s in made} == {"most"} and {s.meta["level"] for s in made} == {3}


def test_what_is_not_there_is_answered_so_without_a_box(folder: Path) -> None:
    path = write(folder, samples_of(folder, GRID, ["stain"]))
    made = [s for seed in range(8) for s in scout.convert(path, questions=6, absent=0.5, seed=seed)]
    none = [s for s in made if s.task == "absent"]
    assert {s.meta["level"] for s in none} == {1, 2, 3}
    for sample in none:
        assert not sample.boxes and "stain" in schema.message_text(sample.messages[0])
        assert sample.meta["short"] == "none" and sample.meta["steps"] == [1, 1]
    assert not [s for s in scout.convert(path, questions=4, absent=0) if s.task == "absent"]
    # Where no sample says that something is absent, nothing is taken for it.
    assert not [
        s for s in scout.convert(write(folder, samples_of(folder, GRID)), questions=9, absent=0.9) if s.task == "absent"
    ]


def test_the_language_is_that_of_the_names(folder: Path) -> None:
    said = [("傷", Box(10, 10, 40, 40)), ("穴", Box(150, 12, 170, 40))]
    assert {s.meta["language"] for s in scout.convert(write(folder, samples_of(folder, said)))} == {"ja"}
    assert {s.meta["language"] for s in scout.convert(write(folder, samples_of(folder, GRID)))} == {"en"}
    both = scout.convert(folder / "in.jsonl", questions=12, languages=["en", "ja"])
    assert {s.meta["language"] for s in both} == {"en", "ja"}


def test_what_the_filters_leave_out_is_counted(folder: Path) -> None:
    tiny = ("speck", Box(100.02, 100.02, 100.08, 100.08))  # shorter than a step of the codec
    things = [*GRID, tiny, ("nut", Box(10.04, 10, 40, 40)), (None, Box(1, 1, 5, 5))]
    left_out: Counter[str] = Counter()
    made = scout.convert(write(folder, samples_of(folder, things)), questions=9, left_out=left_out)
    assert left_out == {
        "box without a label": 1,
        "name with the same box twice": 1,
        "name with a box that the codec does not bring back": 1,
    }
    labels = {part.label for sample in made for part in sample.boxes}
    assert labels == {"bolt", "hole"}  # "the nut" is no more plain: two boxes have the name


def test_a_sample_that_says_something_twice_or_of_nothing_is_refused(folder: Path) -> None:
    sample = scout.convert(write(folder, samples_of(folder, GRID)), levels=[2])[0]
    assert sample.answer is not None
    picture = Picture(folder / "a.png", SIZE, "a", {name: (box,) for name, box in GRID})
    codec = BoxCodec()
    assert scout.fault(sample, picture, codec) == ""
    parts, steps = sample.answer.parts, sample.meta["steps"]
    twice = replace(
        sample,
        messages=(sample.messages[0], Message("assistant", (*parts[: steps[0]], *parts))),
        meta={**sample.meta, "steps": [steps[0], *steps]},
    )
    assert scout.fault(twice, picture, codec) == "question with the same step twice"
    unknown = replace(sample, messages=(Message.of("user", "?", (folder / "a.png",)), sample.answer))
    assert "neither asked for nor annotated" in scout.fault(unknown, replace(picture, things={}), codec)
    coarse = BoxCodec(decimals=1)
    small = [BoxPart(Box(1, 1, 3, 3), 0, "nut") if isinstance(p, BoxPart) else p for p in parts]
    shrunk = replace(sample, messages=(sample.messages[0], Message("assistant", tuple(small))))
    assert "codec" in scout.fault(shrunk, picture, coarse)


def test_the_seed_decides(folder: Path) -> None:
    path = write(folder, samples_of(folder, [*GRID, *MANY], ["stain"]))
    assert scout.convert(path, seed=1) == scout.convert(path, seed=1)
    assert scout.convert(path, seed=1) != scout.convert(path, seed=2)
    one = scout.convert(path, questions=2, seed=1)
    assert scout.convert(path, questions=4, seed=1)[:2] == one  # more questions leave the first ones as they are


# --- COCO, and what is wrong in it ---


def coco(folder: Path, *annotations: Any, **more: Any) -> Path:
    names = [{"id": 1, "name": "nut"}, {"id": 2, "name": "bolt"}, {"id": 3, "name": "stain"}]
    data = {"images": [{"id": 7, "file_name": "a.png"}], "annotations": annotations, "categories": names, **more}
    (folder / "coco.json").write_text(json.dumps(data), encoding="utf-8")
    return folder / "coco.json"


def note(category: int, bbox: Any, image: int = 7, id: int = 1) -> dict[str, Any]:
    return {"id": id, "image_id": image, "category_id": category, "bbox": bbox}


def test_boxes_of_coco(folder: Path) -> None:
    path = coco(folder, note(1, [10, 10, 30, 30]), note(2, [150, 12, 20, 28], id=2))
    made = [s for seed in range(5) for s in scout.convert(path, questions=4, absent=0.3, seed=seed)]
    things = {"nut": [Box(10, 10, 40, 40)], "bolt": [Box(150, 12, 170, 40)]}
    for sample in made:
        check_truth(sample, things)
    assert {s.task for s in made} == {"scout", "absent"}
    assert all("stain" in schema.message_text(s.messages[0]) for s in made if s.task == "absent")


def test_wrong_annotations_are_told_and_the_others_used(folder: Path) -> None:
    wrong = [note(3, [5, 5, -3, 4], id=3), note(1, [0, 0, 5, 5], image=99, id=4)]
    path = coco(folder, note(1, [10, 10, 30, 30]), note(2, [150, 12, 20, 28], id=2), *wrong)
    problems: list[InputError] = []
    made = scout.convert(path, problems=problems, absent=0.5, questions=6)
    assert made and [type(p) for p in problems] == [BoxError, DataError]
    assert "image_id 99 is not listed" in str(problems[1])
    # Of the stain it is known that it is there, not where: it is neither asked for nor said to be absent.
    assert not [s for s in made if "stain" in schema.message_text(s.messages[0])]
    with pytest.raises(BoxError, match=r"annotations\[2\]"):
        scout.convert(path)


def test_wrong_lines_are_told_and_the_others_used(folder: Path) -> None:
    good = samples_of(folder, GRID)
    outside = samples_of(folder, [("stain", Box(190, 10, 260, 20))])[0]
    lost = Sample(id="x", messages=(Message.of("user", "?", (folder / "no.png",)), Message.of("assistant", "!")))
    path = write(folder, [*good, replace(outside, id="o"), lost, replace(good[0], where="")])
    problems: list[InputError] = []
    assert scout.convert(path, problems=problems)
    assert [type(p) for p in problems] == [BoxError, ImageError, DataError]
    assert "id 'b0' again" in str(problems[2])


@pytest.mark.parametrize("boxes", [[], [("nut", Box(0, 0, 9, 9))]])
def test_nothing_to_ask(folder: Path, boxes: list[tuple[str, Box]]) -> None:
    path = coco(folder, *(note(1, [0, 0, 9, 9]) for _ in boxes))
    with pytest.raises(DataError, match="1 pictures, and nothing to ask"):
        scout.convert(path, levels=[2])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"questions": 0}, "0 questions"), ({"levels": [4]}, "levels"), ({"levels": []}, "levels"),
     ({"absent": 1.0}, "share"), ({"absent": float("nan")}, "share")],
)  # fmt: skip
def test_settings_that_can_not_be(folder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        scout.convert(write(folder, samples_of(folder, GRID)), **options)


# --- scenes ---


def test_scenes(svg_folder: Path, photographs: list[Path], tmp_path: Path) -> None:
    own = {"pictograms": 20, "svg_folder": svg_folder, "photographs": photographs, "size": 96}
    made = scout.generate(25, out=tmp_path / "a", questions=3, absent=0.2, seed=4, **own)
    drawn = {s.images[0]: s.meta["objects"] for s in schema.load(tmp_path / "a" / "samples.jsonl")}
    assert len(drawn) == 25 and {s.meta["level"] for s in made} == {1, 2, 3}
    for sample in made:
        key = "ja" if sample.meta["language"] == "ja" else "name"
        things: dict[str, list[Box]] = {}
        for item in drawn[sample.images[0]]:
            things.setdefault(item[key], []).append(Box(*item["box"]))
        for text, parts in lines(sample):
            assert all(part.box in things[str(part.label)] for part in parts), text
        if sample.task == "absent":
            question = schema.message_text(sample.messages[0])
            assert not sample.boxes and any(
                p not in things and p in question
                for p in (q.name(sample.meta["language"]) for q in annotated_names(20))
            )
    assert schema.check(tmp_path / "a" / scout.FILE) == []
    again = scout.generate(25, out=tmp_path / "b", questions=3, absent=0.2, seed=4, **own)
    assert [(s.id, s.messages[1], s.meta) for s in again] == [(s.id, s.messages[1], s.meta) for s in made]
    rest = Counter[str]()
    # Where every name occurs several times, nothing can be asked at that level.
    easy = scout.generate(25, out=tmp_path / "b", levels=[1], seed=4, left_out=rest, **own)
    assert len(easy) == 25 - rest["picture without a clear question"] and {s.meta["level"] for s in easy} == {1}


def annotated_names(n: int) -> Any:
    from tsugiki.synth.pictograms import choose

    return choose(n)


def test_boxes_of_one_picture_belong_together(folder: Path) -> None:
    left_out: Counter[str] = Counter()
    (picture,) = annotated.from_samples(samples_of(folder, [*GRID, *GRID]), left_out=left_out)
    assert picture.singles == ["nut", "bolt", "hole"] and picture.span == 200 and not left_out
    (other,) = annotated.from_samples(samples_of(folder, MANY, ["scratch", "nut"]))
    assert other.things["scratch"] == (MANY[0][1], MANY[2][1], MANY[1][1])  # from left to right
    assert other.several(2, 4) == ["scratch"] and other.absent == ("nut",)


def test_phrases_are_complete() -> None:
    english = LANGUAGES["en"].stepwise
    for language, phrases in LANGUAGES.items():
        own = phrases.stepwise
        for name in ("questions", "steps", "side", "direction", "more", "most", "which"):
            assert getattr(own, name).keys() == getattr(english, name).keys(), (language, name)
        assert len(own.nth) == len(set(own.nth)) == len(english.nth)
        for templates in own.questions.values():
            assert len(set(templates)) == len(templates) >= 2
