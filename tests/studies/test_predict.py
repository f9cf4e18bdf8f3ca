"""predict: what it answers, what it writes, and how it goes on after a kill, a broken picture or a changed setting."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.studies._pictures import folder, picture

import tsugiki
from tsugiki.data import schema
from tsugiki.errors import DataError, InputError, PromptError, StoreError, UnknownNameError
from tsugiki.studies import _answers, _asked
from tsugiki.studies._rows import Rows
from tsugiki.studies.predict import predict
from tsugiki.testing import TinyTower, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.types import Box, Message, Sample

OPTIONS = ["良品", "不良", 'a, "b"\nc']


@pytest.fixture(scope="module")
def model() -> Any:
    built = tiny_model()
    with torch.no_grad():  # so that pictures matter
        built.frontend.projector.linear_2.weight.mul_(30)
    return built


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return folder(tmp_path / "写真", (4, 3))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def say(model: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every free answer becomes `text`."""
    monkeypatch.setattr(_answers.FreeAnswerer, "__call__", lambda _, samples: [text] * len(samples))


# -- answers -----------------------------------------------------------------------------------------------------------


def test_options_get_probabilities_that_fit_the_likelihoods(model: Any, photos: Path) -> None:
    found = predict(model, photos, options=OPTIONS, question="どれですか。")
    assert [p.id for p in found] == sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    for p in found:
        assert list(p.probabilities) == OPTIONS and sum(p.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert p.probability == max(p.probabilities.values())
        assert (p.image, p.error, p.question) == (p.id, "", "どれですか。短く答えてください。")
    logprobs = []
    for option in OPTIONS:  # by the plain forward, one option at a time
        messages = (Message.of("user", found[0].question, (photos / found[0].id,)), Message.of("assistant", option))
        batch = model.encode_samples([Sample(id="x", messages=messages)], labels=True)
        with torch.no_grad():
            output = model(**batch.inputs())
        logprobs.append(-float(output.loss) * output.label_ids.numel())
    wanted = torch.softmax(torch.tensor(logprobs, dtype=torch.float64), 0).tolist()
    assert list(found[0].probabilities.values()) == pytest.approx(wanted, abs=1e-4)
    assert len({tuple(p.probabilities.values()) for p in found}) == len(found)


def test_a_free_answer_is_that_of_chat(model: Any, photos: Path) -> None:
    found = predict(model, photos, question="What?", detail="full", max_new_tokens=6)
    for p in found:
        assert p.answer == model.chat("What?", [photos / p.id], detail="full", do_sample=False, max_new_tokens=6)
        assert (p.probabilities, p.probability) == ({}, None)
    (one,) = predict(model, photos / "良品" / "写真 1.png", question="What?", detail="full", max_new_tokens=6)
    assert (one.id, one.answer) == ("写真 1.png", next(p.answer for p in found if p.id == "良品/写真 1.png"))


def test_boxes_are_pixels_of_the_upright_original(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p").mkdir()
    picture(0, 0).resize((400, 200)).save(tmp_path / "p" / "a.png")
    exif = picture(0, 1).getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture(0, 1).resize((400, 200)).save(tmp_path / "p" / "b.jpg", exif=exif)
    say(model, "傷 [0.250, 0.500, 0.500, 0.600] と [0.1,0.2,", monkeypatch)
    a, b = predict(model, tmp_path / "p", question="傷はどこ?", detail="boxes", out=tmp_path / "a.csv")
    assert a.boxes == (Box(100, 100, 200, 140),)
    assert b.boxes == (Box(0, 200, 100, 240),)
    assert json.loads(read_csv(tmp_path / "a.csv")[0]["boxes"]) == [[100, 100, 200, 140]]
    assert predict(model, tmp_path / "p", question="傷はどこ?", detail="boxes", out=tmp_path / "a.csv") == [a, b]


def test_a_jsonl_asks_its_own_questions(model: Any, photos: Path, tmp_path: Path) -> None:
    image = photos / "良品" / "写真 0.png"
    samples = [
        Sample(
            id="1", messages=(Message.of("user", "Which?", (image,)), Message.of("assistant", "b")), options=("a", "b")
        ),
        Sample(id="2", messages=(Message.of("user", "A much longer question: how many?", (image, image)),)),
        Sample(id="3", messages=(Message.of("user", "Colour?", (image,)),), options=("red", "blue", "green")),
        Sample(id="4", messages=(Message.of("user", "?" * 600, (image,)),)),
        Sample(id="5", messages=(Message.of("user", "Gone?", (photos / "gone.png",)),)),
    ]
    schema.write(tmp_path / "own.jsonl", samples)
    found = predict(model, tmp_path / "own.jsonl", out=tmp_path / "a.csv", max_new_tokens=4)
    assert [list(p.probabilities) for p in found[:3]] == [["a", "b"], [], ["red", "blue", "green"]]
    assert [p.question for p in found[:2]] == ["Which?", "A much longer question: how many?"]
    assert "at most 512" in found[3].error and "gone.png" in found[4].error
    assert found[:3] == predict(model, samples[:3], max_new_tokens=4)
    rows = read_csv(tmp_path / "a.csv")
    assert list(rows[0])[4:9] == ["p(a)", "p(b)", "p(red)", "p(blue)", "p(green)"]
    assert rows[0]["p(red)"] == "" and rows[0]["image"].endswith("写真 0.png")
    assert predict(model, samples[1:2], options=["x", "y"])[0].answer in {"x", "y"}


def test_one_batch_is_as_one_by_one(model: Any, photos: Path) -> None:
    image = photos / "良品" / "写真 0.png"
    samples = [Sample(id=str(i), messages=(Message.of("user", "What is it? " * i, (image,)),)) for i in (1, 5, 2)]
    together = [p.answer for p in predict(model, samples, max_new_tokens=5)]
    assert together == [p.answer for p in predict(model, samples, max_new_tokens=5, batch_size=1)]


# -- the question ------------------------------------------------------------------------------------------------------


def test_the_question_of_the_training_is_kept_with_the_graft(photos: Path, tmp_path: Path) -> None:
    llm, tokenizer = tiny_llm(), tiny_tokenizer()
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    built = tsugiki.attach(llm, "projector", vision=TinyTower(), tokenizer=tokenizer)
    built.save(tmp_path / "graft")
    plain = tsugiki.load(tmp_path / "graft", base=str(tmp_path / "llm"), vision=TinyTower())
    assert predict(plain, photos, max_new_tokens=2)[0].question == "What is shown in this picture? Answer briefly."
    _asked.write(tmp_path / "graft", _asked.Asked(question="良品? 短く", options=("はい", "いいえ")))
    found = predict(plain, photos)[0]
    assert (found.question, list(found.probabilities)) == ("良品? 短く", ["はい", "いいえ"])
    assert predict(plain, photos, options=["a", "b"])[0].question == "良品? 短く"
    assert predict(plain, photos, options=(), max_new_tokens=2)[0].probabilities == {}
    other = predict(plain, photos, question="Other? Answer briefly.", max_new_tokens=2)[0]
    assert (other.question, other.probabilities) == ("Other? Answer briefly.", {})
    (tmp_path / "graft" / _asked.FILE).write_text("{broken")
    assert predict(plain, photos, max_new_tokens=2)[0].question.startswith("What is shown")


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out/answers.jsonl", "out/answers.csv"])
def test_a_broken_picture_is_a_row_and_is_counted(
    model: Any, photos: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "良品" / "壊れた.png").write_bytes(b"no picture")
    (photos / "不良" / "空.jpg").touch()
    (photos / "不良" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with caplog.at_level(logging.WARNING):
        found = predict(model, photos, out=tmp_path / name, options=OPTIONS)
    broken = [p for p in found if p.error]
    assert len(found) == 9 and {p.id for p in broken} == {"良品/壊れた.png", "不良/空.jpg"}
    assert all((p.answer, p.probabilities) == ("", {}) for p in broken)
    assert "2 of 9 without an answer" in caplog.text and "0 bytes" in caplog.text
    rows = read_csv(tmp_path / name) if name.endswith("csv") else read_jsonl(tmp_path / name)
    assert {r["id"]: r["error"] for r in rows} == {p.id: p.error for p in found}
    assert predict(model, photos, out=tmp_path / name, options=OPTIONS) == found


def test_what_is_written(model: Any, photos: Path, tmp_path: Path) -> None:
    found = predict(model, photos, out=tmp_path / "a.csv", options=OPTIONS)
    raw = (tmp_path / "a.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbfid,image,answer,") and "良品".encode() in raw
    rows = read_csv(tmp_path / "a.csv")
    assert [r["answer"] for r in rows] == [p.answer for p in found]
    assert [float(r["probability"]) for r in rows] == [p.probability for p in found]
    assert [float(r["p(不良)"]) for r in rows] == [p.probabilities["不良"] for p in found]
    predict(model, photos, out=tmp_path / "a.jsonl", options=OPTIONS)
    lines = read_jsonl(tmp_path / "a.jsonl")
    assert [line["probabilities"] for line in lines] == [dict(p.probabilities) for p in found]
    assert "良品" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("torn", [0, 7])
def test_a_killed_run_goes_on(
    model: Any, photos: Path, tmp_path: Path, suffix: str, torn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, counts = tmp_path / f"a.{suffix}", []
    whole = predict(model, photos, out=tmp_path / f"whole.{suffix}", options=OPTIONS, batch_size=2)

    def kill(done: int, total: int) -> None:
        counts.append((done, total))
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        predict(model, photos, out=out, options=OPTIONS, batch_size=2, progress=kill)
    full = (tmp_path / f"whole.{suffix}").read_bytes()
    assert full.startswith(out.read_bytes()) and counts == [(2, 7), (4, 7)]
    if torn:  # a crash in the middle of a row
        out.write_bytes(full[: len(out.read_bytes()) + torn])
    calls: list[int] = []
    real = _answers.OptionScorer.__call__
    monkeypatch.setattr(_answers.OptionScorer, "__call__", lambda s, x: calls.append(len(x)) or real(s, x))
    assert predict(model, photos, out=out, options=OPTIONS, batch_size=2) == whole
    assert calls == [2, 1]
    assert out.read_bytes() == full


def test_new_and_changed_pictures_are_asked(model: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    before = {p.id: p for p in predict(model, photos, out=out, options=OPTIONS)}
    picture(2, 5).save(photos / "良品" / "写真 0.png")
    picture(2, 6).save(photos / "良品" / "new.png")
    (photos / "良品" / "写真 1.png").unlink()
    after = {p.id: p for p in predict(model, photos, out=out, options=OPTIONS)}
    assert after == {p.id: p for p in predict(model, photos, options=OPTIONS)}
    assert after["良品/写真 0.png"].picture != before["良品/写真 0.png"].picture
    ids = [r["id"] for r in read_csv(out)]
    assert sorted(ids) == sorted({*before, *after})  # what is gone from the folder stays in the file


def test_other_settings_are_refused_and_nothing_is_lost(model: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    predict(model, photos, out=out, question="A?", max_new_tokens=2)
    before = out.read_bytes()
    other = tiny_model()
    for built, options, says in [
        (model, {"question": "B?"}, "the question 'A\\? Answer briefly.'"),
        (model, {"question": "A?", "detail": "full"}, "the question"),
        (model, {"question": "A?", "max_new_tokens": 3}, "other options, form or length"),
        (model, {"question": "A?", "options": ["a", "b"]}, "other options, form or length"),
        (other, {"question": "A?"}, "the graft"),
    ]:
        with pytest.raises(InputError, match=says) as caught:
            predict(built, photos, out=out, **{"max_new_tokens": 2, **options})
        assert "resume=False" in str(caught.value)
        assert out.read_bytes() == before
    predict(model, photos, out=out, question="B?", max_new_tokens=2, resume=False)
    assert {r["question"] for r in read_jsonl(out)} == {"B? Answer briefly."}
    predict(model, photos, out=tmp_path / "a.csv", options=["a", "b"])
    with pytest.raises(InputError, match="answers with other options"):
        predict(model, photos, out=tmp_path / "a.csv", options=["a", "c"])


@pytest.mark.parametrize("content", ['{"id": 1}\n', '{"id": "1"}\n', "no JSON", '"text"\n', "\xff\n"])
def test_another_file_is_never_replaced(model: Any, photos: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match="something else than answers"):
        predict(model, photos, out=tmp_path / "a.jsonl", options=OPTIONS)
    assert (tmp_path / "a.jsonl").read_text(encoding="latin-1") == content


def test_a_full_disk(model: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.csv"
    import tsugiki.studies._rows as rows

    calls: list[int] = []

    def full(_: int) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows.os, "fsync", full)
    monkeypatch.setattr(rows, "atomic_write", lambda path, data: path.write_bytes(data))
    with pytest.raises(StoreError, match="the disk is full"):
        predict(model, photos, out=out, options=OPTIONS, batch_size=3)
    monkeypatch.undo()
    assert len(read_csv(out)) == 3
    assert len(predict(model, photos, out=out, options=OPTIONS)) == 7


def test_two_processes_do_not_write_one_file(model: Any, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    held = Rows(tmp_path / "a.csv", OPTIONS)
    held.start([])
    with pytest.raises(StoreError, match="another process"):
        predict(model, photos, out=tmp_path / "a.csv", options=OPTIONS)
    held.close()
    predict(model, photos, out=tmp_path / "a.csv", options=OPTIONS)


# -- mistakes, progress ------------------------------------------------------------------------------------------------


def test_mistakes(model: Any, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "own.jsonl").write_text('{"messages": [{"role": "user", "content": "?"}]}\n')
    cases: list[tuple[Path, dict[str, Any], type[Exception], str]] = [
        (tmp_path / "none", {}, DataError, "does not exist"),
        (tmp_path / "empty", {}, DataError, "no picture in it or below"),
        (tmp_path / "notes.txt", {}, DataError, "expected a folder of pictures"),
        (tmp_path / "bad.jsonl", {}, DataError, "bad.jsonl:1"),
        (tmp_path / "own.jsonl", {"question": "?"}, InputError, "ask their own"),
        (tmp_path / "own.jsonl", {"out": tmp_path / "own.jsonl"}, InputError, "would replace the questions"),
        (photos, {"out": tmp_path / "a.xlsx"}, InputError, "a file ending in .jsonl or .csv"),
        (photos, {"options": ["a", "a"]}, InputError, "all different"),
        (photos, {"options": ["a"]}, InputError, "two or more"),
        (photos, {"question": "?", "detail": "long"}, UnknownNameError, "detail"),
        (photos, {"question": "?" * 600}, PromptError, "at most 512"),
        (photos, {"max_new_tokens": 0}, InputError, "at least 1"),
    ]
    for path, options, error, says in cases:
        with pytest.raises(error, match=says):
            predict(model, path, **options)
    with pytest.raises(DataError, match="id '1' again"):
        predict(model, [Sample(id="1", messages=(Message.of("user", "?"),))] * 2)
    with pytest.raises(StoreError, match="no folder"):
        predict(tmp_path / "no" / "graft", photos)


def test_progress(model: Any, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict(model, photos, options=OPTIONS, batch_size=4, progress=True)
    said = capsys.readouterr()
    assert said.out == "" and "7 of 7 pictures, " in said.err and " a second, 0:00 left" in said.err
    predict(model, photos, options=OPTIONS)
    assert capsys.readouterr().err == ""
