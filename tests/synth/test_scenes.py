from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tsugiki.data import schema
from tsugiki.data.images import image_size
from tsugiki.errors import DataError, UnknownNameError
from tsugiki.synth.backgrounds import PALETTES
from tsugiki.synth.layout import HELD_OUT
from tsugiki.synth.phrases import LANGUAGES
from tsugiki.synth.phrases.base import FORMS
from tsugiki.synth.pictograms import COLOURS, RENDERINGS, table
from tsugiki.synth.questions import TASKS
from tsugiki.synth.scenes import captions, generate
from tsugiki.types import Box, BoxPart, Message, Sample, TextPart

KNOWN = {p.en: p for p in table()}


@pytest.fixture
def make(svg_folder: Path, photographs: list[Path], tmp_path: Path) -> Any:
    """`generate` with made drawings, in a new folder each time."""

    numbers = itertools.count()

    def call(n: int, **options: Any) -> list[Sample]:
        given = {"pictograms": 30, "svg_folder": svg_folder, "photographs": photographs}
        return generate(n, **({"out": tmp_path / f"run {next(numbers)}"} | given | options))

    return call


def said(message: Message) -> str:
    return "".join(p.text if isinstance(p, TextPart) else "#" for p in message.parts if not hasattr(p, "source"))


def boxes(message: Message) -> list[Box]:
    return [p.box for p in message.parts if isinstance(p, BoxPart)]


def _truth(sample: Sample) -> tuple[str, list[list[float]]]:
    """The short answer and the boxes, found again from the objects and the words of the question alone."""
    objects, language, question = sample.meta["objects"], sample.meta["language"], said(sample.messages[0])
    phrases = LANGUAGES[language]
    key = "ja" if language == "ja" else "name"
    # The longest name in the question, or its plural: "tree" is in "palm tree" too.
    named = ""
    for p in KNOWN.values():
        name = p.name(language)
        for word in (name, phrases.fields(name, 2).get("names", name)):
            if word in question and len(name) > len(named):
                named = name
    there = [o for o in objects if o[key] == named]
    kind = sample.meta["kind"]
    if kind.startswith("naming"):
        asked = boxes(sample.messages[0])
        if kind == "naming box":
            there = [o for o in objects if Box(*o["box"]) == asked[0]]
        elif kind == "naming at":
            there = [o for o in objects if phrases.at[o["cell"]] in question]
            longest = max(len(phrases.at[o["cell"]]) for o in there)  # "左" is in "左上"
            there = [o for o in there if len(phrases.at[o["cell"]]) == longest]
        else:
            there = objects
        assert len(there) == 1
        return there[0][key], [o["box"] for o in there]
    if kind == "count all":
        there = objects
    if kind == "presence":
        return phrases.answers["yes" if there else "no", "short"], [o["box"] for o in there]
    if kind in ("caption", "box", "detect", "detect class"):
        everything = kind in ("caption", "detect")
        return "" if there or everything else phrases.numbers[0], [o["box"] for o in (objects if everything else there)]
    if not there:
        return phrases.numbers[0], []
    if kind.startswith("count"):
        return phrases.numbers[len(there)], [o["box"] for o in there]
    assert len(there) == 1
    values = {"colour": phrases.colours.get(there[0]["colour"]), "place": phrases.places[there[0]["cell"]]}
    return str(values[kind]), [there[0]["box"]]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_answer_is_true(make: Any, split: str, language: str) -> None:
    given: dict[str, Any] = {"questions_per_picture": 4, "objects": (1, 5), "size": 96, "seed": 3, "tasks": TASKS}
    samples = make(140, split=split, languages=[language], **given)
    seen: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        short, marked = _truth(sample)
        answer = said(sample.messages[1])
        form = sample.meta["form"]
        seen[sample.task, form] += 1
        assert sample.meta["short"] == short, (said(sample.messages[0]), answer)
        if sample.task == "absent":
            assert short == LANGUAGES[language].numbers[0]
        if form == "short" and sample.task != "caption":
            assert answer == short
            assert short in sample.options
            assert len(set(sample.options)) == len(sample.options)
        else:
            assert not sample.options
        if form == "full" and short and sample.task not in ("absent", "presence"):
            stated = LANGUAGES[language].at.get(_cell_of(short, language), short)
            assert short == "one" or stated in answer or short in answer
        if form == "boxes":
            assert [[b.x1, b.y1, b.x2, b.y2] for b in boxes(sample.messages[1])] == marked
        else:
            assert not boxes(sample.messages[1])
        assert not (set("{}\ufffc") & set(said(sample.messages[0]) + answer))
    assert {task for task, _ in seen} == set(TASKS)
    for task in set(TASKS) - {"box", "detect"}:
        assert all(seen[task, form] for form in FORMS), task
    assert {form for task, form in seen if task in ("box", "detect")} == {"boxes"}


def test_detection_lists_all_or_all_of_one_name(make: Any) -> None:
    samples = make(120, tasks=["detect"], forms=["boxes"], size=96, objects=(1, 4), seed=2)
    listed = [s for s in samples if s.meta["kind"] == "detect"]
    asked = [s for s in samples if s.meta["kind"] == "detect class"]
    absent = [s for s in asked if not s.meta["targets"]]
    assert len(listed) + len(asked) == 120 and min(len(listed), len(asked)) > 40 and 5 < len(absent) < len(asked) / 2
    for sample in listed:
        key = "ja" if sample.meta["language"] == "ja" else "name"
        names = [o[key] for o in sample.meta["objects"]]
        assert [p.label for p in sample.messages[1].parts if isinstance(p, BoxPart)] == names
        separator = LANGUAGES[sample.meta["language"]].separator.strip()
        assert [item.strip(" #") for item in said(sample.messages[1]).split(separator)] == names
        assert sample.meta["category"] == ""
    for sample in asked:
        assert sample.meta["category"] in said(sample.messages[0])
        assert said(sample.messages[1]).strip("# ") == (sample.meta["short"] if sample in absent else "")


def _cell_of(short: str, language: str) -> str:
    return next((cell for cell, said in LANGUAGES[language].places.items() if said == short), "")


def test_questions_state_the_form(make: Any) -> None:
    """One question text never has answers of two forms."""
    forms: dict[str, set[str]] = {}
    for sample in make(250, questions_per_picture=4, pictograms=4, size=64, picture_format="png", tasks=TASKS):
        answer = sample.messages[1]
        only = bool(boxes(answer)) and not said(answer).strip("# ")
        form = sample.meta["form"] + (" only" if only or said(answer) in ("none", "なし") else "")
        if sample.meta["form"] == "short":
            form = "short"
        forms.setdefault(said(sample.messages[0]), set()).add(form)
    assert all(len(found) == 1 for found in forms.values()), {q: f for q, f in forms.items() if len(f) > 1}


def test_japanese_is_japanese(make: Any) -> None:
    for sample in make(60, languages=["ja"], questions_per_picture=3, size=64):
        text = said(sample.messages[0]) + said(sample.messages[1])
        assert not [c for c in text.replace("#", "").replace("T", "") if c.isascii()]
        assert sample.meta["language"] == "ja"
        for option in sample.options:
            assert not option.isascii()


def test_training_never_shows_what_the_test_keeps_for_itself(make: Any) -> None:
    train, test = (make(80, split=split, size=64, objects=(1, 4)) for split in ("train", "test"))
    shown = {
        split: {o["rendering"] for s in samples for o in s.meta["objects"]}
        for split, samples in (("train", train), ("test", test))
    }
    assert shown == {"train": set(RENDERINGS) - {HELD_OUT}, "test": {HELD_OUT}}
    assert not {_pixels(s) for s in train} & {_pixels(s) for s in test}
    with pytest.raises(DataError, match=f"'{HELD_OUT}' in training"):
        make(1, renderings=["colour", HELD_OUT])
    assert make(3, split="test", renderings=["colour"], size=64)


@pytest.mark.parametrize("split", ["train", "test"])
def test_backgrounds_are_those_of_the_split(make: Any, split: str) -> None:
    palette = {"train": set(PALETTES["train"]), "test": set(PALETTES["test"])}[split]
    found = set()
    for sample in make(40, split=split, backgrounds=["plain"], size=64, picture_format="png"):
        with Image.open(str(sample.images[0])) as image:
            colours = image.getcolors(64 * 64) or []
        found.add(max(colours)[1])
    assert len(found) > 6
    assert found <= palette


def _pixels(sample: Sample) -> str:
    with Image.open(str(sample.images[0])) as image:
        return hashlib.sha256(image.tobytes()).hexdigest()


def test_the_colour_asked_for_is_on_the_picture(make: Any) -> None:
    samples = make(
        60,
        tasks=["colour"],
        languages=["en"],
        forms=["short"],
        backgrounds=["plain"],
        picture_format="png",
        split="test",
    )
    for sample in samples:
        item = sample.meta["objects"][sample.meta["targets"][0]]
        assert item["rendering"] == HELD_OUT
        assert item["colour"] == said(sample.messages[1])
        with Image.open(str(sample.images[0])) as image:
            part = np.asarray(image.crop(tuple(int(v) for v in item["box"]))).astype(int).reshape(-1, 3)
        bright = part[part.max(1) > 60]
        distance = {name: np.abs(bright - np.array(rgb) * 0.95).sum(1) for name, rgb in COLOURS.items()}
        nearest = min(distance, key=lambda name: float(np.quantile(distance[name], 0.15)))
        assert nearest == item["colour"]
    assert len({said(s.messages[1]) for s in samples}) >= 6


def test_a_run_is_a_matter_of_its_arguments(make: Any) -> None:
    first, same, longer, other = make(6, size=64), make(6, size=64), make(9, size=64), make(6, size=64, seed=1)
    assert [_comparable(s) for s in first] == [_comparable(s) for s in same] == [_comparable(s) for s in longer[:6]]
    assert [_pixels(s) for s in first] == [_pixels(s) for s in same] == [_pixels(s) for s in longer[:6]]
    assert not {_pixels(s) for s in first} & {_pixels(s) for s in other}


def _comparable(sample: Sample) -> Any:
    return sample.id, said(sample.messages[0]), said(sample.messages[1]), sample.options, json.dumps(sample.meta)


def test_another_process_makes_the_same(make: Any, svg_folder: Path, tmp_path: Path) -> None:
    here = make(4, size=64, backgrounds=["plain", "texture"])
    code = (
        "import sys; from pathlib import Path; from tsugiki.synth.scenes import generate;"
        "generate(4, out=sys.argv[1], size=64, pictograms=30, svg_folder=Path(sys.argv[2]),"
        "backgrounds=['plain', 'texture'])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there"), str(svg_folder)], check=True, env=environment)
    there = schema.load(tmp_path / "there" / "samples.jsonl")
    assert [_comparable(s) for s in here] == [_comparable(s) for s in there]
    assert [_pixels(s) for s in here] == [_pixels(s) for s in there]


def test_the_folder_is_read_not_made_again(make: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    made = make(5, out=out, size=64, questions_per_picture=2)
    assert schema.check(out / "samples.jsonl") == []
    assert "OpenMoji" in (out / "ATTRIBUTION.txt").read_text()
    stamps = {f: f.stat().st_mtime_ns for f in out.rglob("*")}
    assert make(5, out=out, size=64, questions_per_picture=2) == made == schema.load(out / "samples.jsonl")
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*")} == stamps
    assert all(Path(str(s.images[0])).is_absolute() and Path(str(s.images[0])).is_file() for s in made)
    # Another run replaces it, pictures too; a run that was cut short is made again.
    again = make(3, out=out, size=64)
    assert len(list((out / "images").iterdir())) == len(again) == 3
    (out / "samples.jsonl").unlink()
    assert make(3, out=out, size=64) == again
    (out / "images" / "000001.jpg").unlink()
    assert make(3, out=out, size=64) == again
    assert (out / "images" / "000001.jpg").is_file()


def test_a_folder_of_something_else_is_left_alone(make: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "samples.jsonl").write_text("{}")
    (tmp_path / "file").write_text("")
    for name in ("mine", "file"):
        with pytest.raises(DataError, match="other files"):
            make(1, out=tmp_path / name)
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["samples.jsonl"]


def test_naming_options(make: Any) -> None:
    only = {"tasks": ["naming"], "forms": ["short"], "languages": ["en"], "size": 64}
    for sample in make(30, options=8, objects=(3, 3), **only):
        assert len(sample.options) == 8
        assert {o["name"] for o in sample.meta["objects"]} <= set(sample.options)
    everything = tuple(p.en for p in table()[:30])
    assert all(s.options == everything for s in make(5, options=None, **only))
    assert all(s.options == everything[:25] for s in make(5, pictograms=25, options=25, **only))


def test_one_form_alone(make: Any) -> None:
    for form in FORMS:
        tasks = [task for task in TASKS if task not in ("box", "detect") or form == "boxes"]
        samples = make(30, forms=[form], tasks=tasks, questions_per_picture=3, size=64, objects=(2, 3))
        assert {s.meta["form"] for s in samples} == {form}


def test_weights_and_counts(make: Any) -> None:
    samples = make(150, tasks={"naming": 3, "presence": 1, "box": 0}, languages={"en": 1, "ja": 0}, size=64)
    tasks = Counter(s.task for s in samples)
    assert set(tasks) == {"naming", "presence"}
    assert 0.6 < tasks["naming"] / 150 < 0.9
    assert {s.meta["language"] for s in samples} == {"en"}
    yes = [s.meta["short"] == "yes" for s in make(150, tasks=["presence"], languages=["en"], size=64)]
    assert 0.35 < np.mean(yes) < 0.65
    counts = Counter(s.meta["short"] for s in make(200, tasks=["count"], languages=["en"], size=64))
    assert set(counts) == {"one", "two", "three"}
    assert min(counts.values()) > 20


def test_captions_name_each_picture_once(make: Any) -> None:
    samples = make(10, questions_per_picture=3, size=64, languages=["ja"])
    pictures, texts = captions(samples)
    assert len(pictures) == len(texts) == 10
    assert pictures == [Path(str(samples[3 * i].images[0])) for i in range(10)]
    for i, text in enumerate(texts):
        assert text.isascii()
        assert all(o["name"] in text for o in samples[3 * i].meta["objects"])


def test_progress_and_nothing(make: Any) -> None:
    calls: list[tuple[int, int]] = []
    make(3, size=64, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert make(0, size=64) == []


WRONG: Sequence[tuple[dict[str, Any], str]] = [
    ({"split": "val"}, "unknown split 'val'"),
    ({"tasks": ["name"]}, "unknown task 'name'.*'naming'"),
    ({"languages": ["de"]}, "unknown language"),
    ({"forms": {"long": 1}}, "unknown form"),
    ({"renderings": ["color"]}, "'colour'"),
    ({"backgrounds": ["plane"]}, "'plain'"),
    ({"picture_format": "gif"}, "picture format"),
    ({"pictograms": ["dogg"]}, "'dog'"),
    ({"pictograms": 3}, "more pictograms than objects"),
    ({"objects": (0, 2)}, "objects"),
    ({"objects": (3, 2)}, "objects"),
    ({"size": 10}, "64 to 1024"),
    ({"seed": -1}, "seed"),
    ({"n": -1}, "pictures"),
    ({"options": 1}, "options"),
    ({"questions_per_picture": 0}, "questions_per_picture"),
    ({"forms": ["short"], "tasks": ["box"]}, "without the form boxes"),
    ({"forms": ["short"], "tasks": ["detect"]}, "detect without the form boxes"),
    ({"tasks": {"naming": -1}}, "weights"),
    ({"tasks": {"naming": 0}}, "weights"),
    ({"tasks": []}, "weights"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=str)
def test_wrong_arguments_are_named(make: Any, tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises((DataError, UnknownNameError), match=words):
        make(wrong.pop("n", 1), out=tmp_path / "never", **wrong)
    assert not (tmp_path / "never").exists()


@pytest.mark.assets("openmoji", "fabric")
def test_real_scenes(tmp_path: Path) -> None:
    train = generate(12, out=tmp_path / "train", seed=5)
    test = generate(12, out=tmp_path / "test", seed=5, split="test", size=256)
    assert schema.check(tmp_path / "train" / "samples.jsonl") == schema.check(tmp_path / "test" / "samples.jsonl") == []
    assert {image_size(s.images[0]) for s in train} == {(224, 224)}
    assert {o["rendering"] for s in test for o in s.meta["objects"]} == {HELD_OUT}
