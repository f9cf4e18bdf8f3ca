from __future__ import annotations

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
from tsugiki.errors import DataError, ImageError, UnknownNameError
from tsugiki.evals.tasks import decisions, grounding, vqa
from tsugiki.synth.defects import generate, reduced
from tsugiki.synth.flaws import SEVERITIES, SIZES, TYPES
from tsugiki.synth.inspection import ON_CLEAN, TASKS
from tsugiki.synth.phrases import DEFECTS
from tsugiki.synth.phrases.base import FORMS
from tsugiki.types import Box, BoxPart, Message, Sample, TextPart


@pytest.fixture(scope="session")
def nominal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photographs of 150x130."""
    folder = tmp_path_factory.mktemp("nominal")
    rng = np.random.default_rng(0)
    for i in range(10):
        grain = rng.normal(128, 30, (130, 150)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grain).convert("RGB").save(folder / f"布 {i}.png")
    return folder


@pytest.fixture
def make(nominal: Path, tmp_path: Path) -> Any:
    """`generate` with made photographs, in a new folder each time."""
    numbers = itertools.count()

    def call(n: int, **options: Any) -> list[Sample]:
        return generate(n, **({"out": tmp_path / f"run {next(numbers)}", "photos": nominal, "size": 96} | options))

    return call


def said(message: Message) -> str:
    return "".join(p.text if isinstance(p, TextPart) else "#" for p in message.parts if not hasattr(p, "source"))


def boxes(message: Message) -> list[Box]:
    return [p.box for p in message.parts if isinstance(p, BoxPart)]


def pixels(sample: Sample) -> bytes:
    with Image.open(str(sample.images[0])) as image:
        return image.tobytes()


def _truth(sample: Sample) -> tuple[str, list[list[float]]]:
    """The short answer and the boxes, found again from the defects and the words of the question alone."""
    there, phrases, question = sample.meta["defects"], DEFECTS[sample.meta["language"]], said(sample.messages[0])
    kind, none = sample.meta["kind"], phrases.numbers[0]
    # The longest name in the question: "傷" could be in "引っかき傷".
    named = max((t for t in TYPES if phrases.words[t] in question), key=lambda t: len(phrases.words[t]), default=None)
    found = [d for d in there if named is None or d["type"] == named]
    if kind == "type box":
        (asked,) = boxes(sample.messages[0])
        found = [d for d in there if Box(*d["box"]) == asked]
    marked = [d["box"] for d in found]
    if kind == "presence":
        return phrases.answers["yes" if found else "no", "short"], marked
    if kind == "caption":
        return "", marked
    if kind == "box":
        return "" if found else none, marked
    if not found:
        return none, []
    assert len(found) == 1
    return phrases.words[found[0]["severity" if kind == "severity" else "type"]], marked


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_answer_is_true(make: Any, language: str) -> None:
    samples = make(150, languages=[language], questions_per_picture=4, defects=(1, 3), seed=3)
    phrases = DEFECTS[language]
    seen: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        short, marked = _truth(sample)
        answer, form = said(sample.messages[1]), sample.meta["form"]
        seen[sample.task, form] += 1
        assert sample.meta["short"] == short, (said(sample.messages[0]), answer)
        assert (sample.task == "absent") == (short == phrases.numbers[0])
        if form == "short" and sample.task != "caption":
            assert answer == short
            assert short in sample.options
            assert len(set(sample.options)) == len(sample.options)
        else:
            assert not sample.options
        if form == "full" and sample.task in ("type", "severity"):
            assert short in answer
        if sample.task == "caption":
            names = [phrases.words[d["type"]] for d in sample.meta["defects"]]
            assert all(name in answer for name in names)
            assert bool(names) == (answer not in {phrases.answers["clean", f] for f in FORMS})
        assert [[b.x1, b.y1, b.x2, b.y2] for b in boxes(sample.messages[1])] == (marked if form == "boxes" else [])
        assert not (set("{}\ufffc") & set(said(sample.messages[0]) + answer))
        if language == "ja":
            assert not [c for c in (said(sample.messages[0]) + answer).replace("#", "") if c.isascii()]
    assert {task for task, _ in seen} == set(TASKS)
    for task in set(TASKS) - {"box"}:
        assert all(seen[task, form] for form in FORMS), task
    assert {form for task, form in seen if task == "box"} == {"boxes"}


def test_questions_state_the_form(make: Any) -> None:
    """One question text never has answers of two forms."""
    forms: dict[str, set[str]] = {}
    for sample in make(200, questions_per_picture=4):
        answer = sample.messages[1]
        only = bool(boxes(answer)) and not said(answer).strip("# ")
        form = sample.meta["form"] + (" only" if only or said(answer) in ("none", "なし") else "")
        forms.setdefault(said(sample.messages[0]), set()).add("short" if sample.meta["form"] == "short" else form)
    assert all(len(found) == 1 for found in forms.values()), {q: f for q, f in forms.items() if len(f) > 1}


def test_files_are_what_meta_says(make: Any, nominal: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    for sample in make(30, out=out):
        with Image.open(nominal / sample.meta["photo"]) as photo:
            before = np.asarray(reduced(photo.convert("RGB"), 96))
        with Image.open(str(sample.images[0])) as picture:
            changed = (np.asarray(picture) != before).any(-1)
            assert sample.meta["size"] == list(picture.size) == [96, 83]
        union = np.zeros_like(changed)
        for defect in sample.meta["defects"]:
            with Image.open(out / defect["mask"]) as image:
                assert image.mode == "L"
                mask = np.asarray(image)
            assert set(np.unique(mask)) == {0, 255}
            rows, columns = np.nonzero(mask)
            assert defect["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert not (union & (mask > 0)).any()
            union |= mask > 0
            low, high = SIZES[defect["size"]]
            assert low <= defect["fraction"] < high
            assert SEVERITIES[defect["severity"]][0] - 1e-4 <= defect["contrast"] <= SEVERITIES[defect["severity"]][1]
        assert (union == changed).all()


def test_a_run_is_a_matter_of_its_arguments(make: Any) -> None:
    first, same, longer, other = make(6), make(6), make(9), make(6, seed=1)
    assert [_comparable(s) for s in first] == [_comparable(s) for s in same] == [_comparable(s) for s in longer[:6]]
    assert [pixels(s) for s in first] == [pixels(s) for s in same] == [pixels(s) for s in longer[:6]]
    assert not {pixels(s) for s in first if s.meta["defects"]} & {pixels(s) for s in other if s.meta["defects"]}


def _comparable(sample: Sample) -> Any:
    return sample.id, said(sample.messages[0]), said(sample.messages[1]), sample.options, json.dumps(sample.meta)


def test_another_process_makes_the_same(make: Any, nominal: Path, tmp_path: Path) -> None:
    here = make(4)
    code = (
        "import sys; from tsugiki.synth.defects import generate;"
        "generate(4, out=sys.argv[1], photos=sys.argv[2], size=96)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there"), str(nominal)], check=True, env=environment)
    there = schema.load(tmp_path / "there" / "samples.jsonl")
    assert [_comparable(s) for s in here] == [_comparable(s) for s in there]
    assert [pixels(s) for s in here] == [pixels(s) for s in there]


def test_no_photograph_is_in_both_splits(make: Any) -> None:
    train, test = (
        {s.meta["photo"] for s in make(60, split=split, seed=i)} for i, split in enumerate(("train", "test"))
    )
    assert (len(train), len(test)) == (8, 2)
    assert not train & test


def test_files_are_checked_and_not_made_again(make: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    made = make(5, out=out, questions_per_picture=2)
    assert schema.check(out / "samples.jsonl") == []
    stamps = {f: f.stat().st_mtime_ns for f in out.rglob("*")}
    assert make(5, out=out, questions_per_picture=2) == made == schema.load(out / "samples.jsonl")
    assert {f: f.stat().st_mtime_ns for f in out.rglob("*")} == stamps
    # Another run replaces it, pictures and masks too; a run that was cut short is made again.
    again = make(3, out=out, negatives=0)
    assert len(list((out / "images").iterdir())) == 3
    assert {f"masks/{f.name}" for f in (out / "masks").iterdir()} == {
        d["mask"] for s in again for d in s.meta["defects"]
    }
    (out / "samples.jsonl").unlink()
    assert make(3, out=out, negatives=0) == again
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("")
    with pytest.raises(DataError, match="other files"):
        make(1, out=tmp_path / "mine")


def test_the_mix_is_a_setting(make: Any) -> None:
    samples = make(60, negatives=0.5, sizes={"large": 1, "small": 0}, severities=["high"], types=["hole", "stain"])
    found = [d for s in samples for d in s.meta["defects"]]
    assert {(d["size"], d["severity"]) for d in found} == {("large", "high")}
    assert {d["type"] for d in found} == {"hole", "stain"}
    clean = [s for s in samples if not s.meta["defects"]]
    assert 15 < len(clean) < 45
    assert {s.task for s in clean} <= set(ON_CLEAN)
    assert {s.meta["caption"] for s in clean} == {"no defect"}
    assert all(s.meta["defects"] for s in make(20, negatives=0))
    assert not any(s.meta["defects"] for s in make(20, negatives=1))
    answers = Counter(s.meta["short"] for s in make(200, tasks=["presence"], languages=["en"]))
    assert 0.35 < answers["yes"] / 200 < 0.65


def test_the_scores_take_the_samples(make: Any) -> None:
    samples = make(100, questions_per_picture=3)
    placed = grounding.select(samples)
    assert {"box", "absent", "type", "presence"} <= {s.task for s in placed}
    assert {grounding.size_class(s, boxes(s.messages[1])[0]) for s in placed if s.task == "box"} <= set(SIZES)
    for sample in placed:
        if sample.task == "box" and len(boxes(sample.messages[1])) == 1:
            size = sample.meta["defects"][sample.meta["targets"][0]]["size"]
            assert grounding.size_class(sample, boxes(sample.messages[1])[0]) == size
    assert {"type", "severity", "presence", "absent"} == {s.task for s in decisions.select(samples)}
    assert {"type", "severity", "presence"} <= {s.task for s in vqa.select(samples)}


def test_progress_and_nothing(make: Any) -> None:
    calls: list[tuple[int, int]] = []
    make(3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert make(0) == []


WRONG: Sequence[tuple[dict[str, Any], str]] = [
    ({"split": "val"}, "unknown split 'val'"),
    ({"types": ["scrach"]}, "unknown type 'scrach'.*'scratch'"),
    ({"severities": ["severe"]}, "unknown severity"),
    ({"sizes": {"huge": 1}}, "unknown size"),
    ({"tasks": ["naming"]}, "unknown task"),
    ({"languages": ["de"]}, "unknown language"),
    ({"forms": ["long"]}, "unknown form"),
    ({"defects": (0, 1)}, "defects"),
    ({"defects": (1, 4)}, "defects: 1 to 4 defects; expected 1 to 3"),
    ({"types": ["hole"]}, "defects: 1 to 2 defects; expected 1 to 1"),
    ({"negatives": 1.5}, "negatives"),
    ({"negatives": float("nan")}, "negatives"),
    ({"tasks": ["box"]}, "no task for them"),
    ({"tasks": ["box"], "negatives": 0, "forms": ["short"]}, "without the form boxes"),
    ({"size": 10}, "64 to 1024"),
    ({"seed": -1}, "seed"),
    ({"n": -1}, "pictures"),
    ({"questions_per_picture": 0}, "questions_per_picture"),
    ({"test_share": 1.0}, "test_share"),
    ({"photos": "nowhere"}, "nowhere: no such folder"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=str)
def test_wrong_arguments_are_named(make: Any, tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises((DataError, UnknownNameError), match=words):
        make(**{"n": 1, "out": tmp_path / "never"} | wrong)
    assert not (tmp_path / "never").exists()


def test_a_photograph_that_is_cut_short_is_named(make: Any, nominal: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in nominal.glob("*.png"):
        (broken / file.name).write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ImageError, match=r"布 \d\.png is damaged"):
        make(3, photos=broken, out=tmp_path / "half")
    assert not (tmp_path / "half" / "samples.jsonl").exists()


@pytest.mark.assets("fabric")
def test_real_photographs(tmp_path: Path) -> None:
    train = generate(12, out=tmp_path / "train", seed=5)
    test = generate(12, out=tmp_path / "test", seed=5, split="test")
    assert schema.check(tmp_path / "train" / "samples.jsonl") == schema.check(tmp_path / "test" / "samples.jsonl") == []
    assert not {s.meta["photo"] for s in train} & {s.meta["photo"] for s in test}
    assert "conformal-clip-data" in (tmp_path / "train" / "ATTRIBUTION.txt").read_text()
