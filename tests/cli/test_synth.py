"""`tsugiki synth scout` on real files: what it writes, what it tells of wrong annotations, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.evals.test_iit import choices
from tests.synth.test_iit import encode, pictures
from typer.testing import CliRunner, Result

from tsugiki.cli import app
from tsugiki.data import schema
from tsugiki.evals.tasks import iit as suite
from tsugiki.evals.text_items import Choice
from tsugiki.synth import scout
from tsugiki.types import Message, Sample

BOXES = [[10, 10, 30, 30], [150, 12, 20, 28], [12, 90, 8, 8]]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (200, 120)).save("photos/a.png")
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["synth", "scout", *map(str, arguments)], catch_exceptions=False)


def coco(*annotations: Any) -> str:
    good = [{"id": i, "image_id": 1, "category_id": i + 1, "bbox": box} for i, box in enumerate(BOXES)]
    data = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [*good, *annotations],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(("nut", "bolt", "hole", "stain"))],
    }
    Path("coco.json").write_text(json.dumps(data), encoding="utf-8")
    return "coco.json"


def test_from_coco() -> None:
    result = run("--from", coco(), "--images", "photos", "--out", "out/scout.jsonl", "--questions", 5)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "out/scout.jsonl: 5 samples; 0 wrong entries\n"
    assert schema.check("out/scout.jsonl") == []
    first = Path("out/scout.jsonl").read_bytes()
    run("--from", "coco.json", "--images", "photos", "--out", "out/scout.jsonl", "--questions", 5)
    assert Path("out/scout.jsonl").read_bytes() == first
    assert [p.name for p in Path("out").iterdir()] == ["scout.jsonl"]


def test_from_samples_with_a_language_and_a_level() -> None:
    coco()
    converted = CliRunner().invoke(
        app, ["data", "convert", "coco", "coco.json", "images=photos", "--out", "boxes.jsonl"]
    )
    assert converted.exit_code == 0
    result = run("--from", "boxes.jsonl", "--language", "ja", "--level", 2, "--level", 3, "--seed", 3)
    assert result.exit_code == 0
    made = schema.load("scout.jsonl")
    assert made and {s.meta["language"] for s in made} == {"ja"} and {s.meta["level"] for s in made} <= {2, 3}


def test_wrong_annotations_are_one_line_each_and_a_count() -> None:
    wrong = [
        {"id": 10, "image_id": 1, "category_id": 4, "bbox": [5, 5, -3, 4]},
        {"id": 11, "image_id": 9, "category_id": 1, "bbox": [5, 5, 3, 4]},
        {"id": 12, "image_id": 1, "category_id": 4, "bbox": [190, 5, 40, 4]},
        {"id": 12, "image_id": 1, "category_id": 4, "bbox": [10, 5, 40, 4]},
    ]
    result = run("--from", coco(*wrong), "--images", "photos")
    assert result.exit_code == 1
    told = result.stderr.splitlines()
    assert len(told) == 4 and all(line.startswith("Error: coco.json annotations[") for line in told)
    assert "width -3" in told[0] and "image_id 9 is not listed" in told[1] and "outside its picture" in told[2]
    assert "id 12 again, first at" in told[3]
    assert result.stdout.endswith("4 wrong entries\n") and schema.load("scout.jsonl")


def test_an_id_twice_is_told() -> None:
    coco()
    assert (
        CliRunner().invoke(app, ["data", "convert", "coco", "coco.json", "images=photos", "-o", "b.jsonl"]).exit_code
        == 0
    )
    lines = Path("b.jsonl").read_text(encoding="utf-8")
    Path("b.jsonl").write_text(lines + lines.splitlines()[0] + "\n", encoding="utf-8")
    result = run("--from", "b.jsonl")
    assert result.exit_code == 1 and "1 wrong entries" in result.stdout
    assert len(result.stderr.splitlines()) == 1 and "id 'a.png#nut' again, first at b.jsonl:1" in result.stderr


def test_no_boxes_at_all() -> None:
    Path("coco.json").write_text(
        json.dumps(
            {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
        )
    )
    result = run("--from", "coco.json", "--images", "photos")
    assert result.exit_code == 2 and not Path("scout.jsonl").exists()
    assert (
        result.stderr.startswith("Error: coco.json: 1 pictures, and nothing to ask") and result.stderr.count("\n") == 1
    )


def test_nothing_usable_writes_nothing() -> None:
    Path("coco.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "lost.png"}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}],
                "categories": [{"id": 1, "name": "x"}],
            }
        )
    )
    result = run("--from", "coco.json", "--images", "photos")
    assert result.exit_code == 1 and not Path("scout.jsonl").exists()
    assert result.stdout == "nothing written: 0 samples; 1 wrong entries\n"
    assert "lost.png' does not exist" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "neither a number of scenes nor --from"),
        ((3, "--from", "coco.json"), "both a number of scenes and --from"),
        (("--from", "none.json"), "the file does not exist"),
        (("--from", "none.jsonl"), "the file does not exist"),
    ],
)
def test_mistakes(arguments: tuple[object, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


def test_scenes_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def generate(n: int, *, left_out: Any, progress: Any, **options: Any) -> list[Sample]:
        given.update(options, n=n)
        left_out["question with the same step twice"] += 2
        progress(n, n)
        return [Sample(id="a", messages=())]

    monkeypatch.setattr(scout, "generate", generate)
    result = run(7, "--out", "made", "--level", 3, "--absent", 0.2, "--split", "test", "--size", 128, "--seed", 5)
    assert result.exit_code == 0
    assert given == {
        "n": 7, "out": Path("made"), "levels": (3,), "absent": 0.2, "seed": 5, "languages": ("en", "ja"),
        "questions": 1, "split": "test", "size": 128,
    }  # fmt: skip
    assert result.stdout == (
        "left out: 2 x question with the same step twice\nmade/scout.jsonl: 1 samples; 0 wrong entries\n"
    )


def test_formats_from_coco() -> None:
    command = [
        "synth",
        "formats",
        coco(),
        "--images",
        "photos",
        "--format",
        "rec",
        "--format",
        "vqa",
        "-o",
        "mix.jsonl",
    ]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "mix.jsonl: 2 samples; 0 wrong entries\n" and schema.check("mix.jsonl") == []
    assert {s.meta["format"] for s in schema.load("mix.jsonl")} == {"rec", "vqa"}


def test_ocr_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def generate(n: int, *, progress: Any, **options: Any) -> list[Sample]:
        given.update(options, n=n)
        return [Sample(id="a", messages=())]

    monkeypatch.setattr("tsugiki.synth.ocr.generate", generate)
    command = ["synth", "ocr", "5", "--out", "made", "--page", "gauge", "--font", "ipaex-gothic", "--seed", "2"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0 and "made/samples.jsonl: 1 samples about 5 pictures" in result.stdout
    assert given == {
        "n": 5, "out": Path("made"), "pages": ["gauge"], "fonts": ["ipaex-gothic"], "seed": 2, "size": 224,
        "split": "train", "questions_per_picture": 1,
    }  # fmt: skip


def test_an_unknown_font_is_named() -> None:
    result = CliRunner().invoke(app, ["synth", "ocr", "5", "--font", "comic"])
    assert result.exit_code == 2 and "unknown font 'comic'; expected one of ipaex-gothic" in result.stderr


@pytest.mark.parametrize(("command", "task"), [("matching", "matching"), ("absent", "presence")])
def test_questions_from_scenes(command: str, task: str, tmp_path: Path) -> None:
    objects = [{"name": "cup", "ja": "コップ", "colour": "red", "cell": "left"}]
    other = [{"name": "dog", "ja": "犬", "colour": None, "cell": "top"}]
    pictures = []
    for i, things in enumerate((objects, other)):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
        messages = (Message.of("user", "?", (tmp_path / f"{i}.png",)), Message.of("assistant", "x"))
        pictures.append(Sample(str(i), messages, meta={"objects": things, "language": "en"}))
    schema.write(tmp_path / "scenes.jsonl", pictures)
    out = tmp_path / "out.jsonl"
    result = CliRunner().invoke(app, ["synth", command, str(tmp_path / "scenes.jsonl"), "--out", str(out)])
    assert result.exit_code == 0 and {s.task for s in schema.load(out)} == {task}


def test_conversations(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    def make(n: int, *, seed: int = 0) -> list[Choice]:
        return choices("title", 12)

    monkeypatch.setattr(suite, "SORTS", {"title": make})
    monkeypatch.setattr(suite, "SentenceEncoder", lambda: encode)
    schema.write("own.jsonl", pictures())
    given = ["synth", "iit", "5", "--data", "own.jsonl", "--licence", "CC0-1.0", "--out", "made"]
    result = CliRunner().invoke(app, given, catch_exceptions=False)
    assert result.exit_code == 0 and "made/iit.jsonl: 35 conversations" in result.output
    assert schema.check("made/iit.jsonl") == [] and len(suite.select(schema.load("made/iit.jsonl"))) == 35
    card = json.loads(Path("made/iit.json").read_text())
    assert [s["licence"] for s in card["sources"]] == ["CC-BY-SA-4.0", "Apache-2.0", "CC0-1.0"]
