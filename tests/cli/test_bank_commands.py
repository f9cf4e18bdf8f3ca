"""`tsugiki bank`, and `--bank` of predict, chat and eval, from the command line to the library with a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.studies._pictures import folder, picture
from typer.testing import CliRunner, Result

from tsugiki.cli import _app, _models, app
from tsugiki.data import schema
from tsugiki.testing import tiny_model
from tsugiki.types import Message, Sample

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The app in a folder with pictures of two classes and a bank of them; every model is one tiny one."""
    model = tiny_model(llm={"max_position_embeddings": 2048})
    monkeypatch.setattr(_models, "load_model", lambda *_, **__: model)
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(_app.out, "width", 300)
    folder(tmp_path / "photos", (4, 3))
    (tmp_path / "new").mkdir()
    for i in range(2):
        picture(2, i).save(tmp_path / "new" / f"{i}.png")

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    built = invoke("bank", "build", "graft", "photos", "-o", "bank", "--note", "first")
    assert (built.exit_code, built.output) == (0, "bank: 7 added\n")
    return invoke


def test_add_withdraw_and_query(run: Run) -> None:
    refused = run("bank", "add", "bank", "graft", "new", "--label", "傷")
    assert refused.exit_code == 2 and "--new-class" in refused.stderr and refused.stderr.count("\n") == 1
    assert run("bank", "add", "bank", "graft", "new", "--label", "傷", "--new-class").output == "bank: 2 added\n"
    again = run("bank", "add", "bank", "graft", "new/0.png", "--label", "傷", "--keep", "reference")
    assert again.output == "bank: 0 added, 1 were there already\n"
    table = run("bank", "query", "bank").output
    assert "9 in use, 9 in all, of the tower tiny-tower" in table and "傷" in table
    near = run("bank", "query", "bank", "--model", "graft", "--image", "new/1.png", "-k", 2).output
    assert near.count("傷") == 2 and "0.0000" in near and "first" not in near
    assert run("bank", "withdraw", "bank", 8, 9, "--note", "wrong").output == "bank: 2 withdrawn, 7 in use\n"
    assert "7 in use, 9 in all" in run("bank", "query", "bank").output


def test_mistakes_are_one_line(run: Run) -> None:
    for arguments, said in (
        (("build", "graft", "photos", "-o", "bank"), "something is there already"),
        (("withdraw", "bank", 99), "no entry 99"),
        (("query", "nowhere"), "the folder does not exist"),
        (("query", "bank", "--image", "new/0.png"), "a picture without a model"),
        (("add", "bank", "graft", "photos/none", "--label", "良品"), "no picture"),
    ):
        result = run("bank", *arguments)
        assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_predict_writes_the_entries_behind_each_answer(run: Run) -> None:
    result = run("predict", "graft", "new", "-o", "a.jsonl", "--bank", "bank", "--neighbours", 2, "--form", "words")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in Path("a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 2 and all(len(row["neighbours"]) == 2 for row in rows)
    assert set(rows[0]["probabilities"]) == {"良品", "不良"}


def test_chat_says_which_entries_it_shows(run: Run) -> None:
    result = run("chat", "graft", "--image", "new/0.png", "--ask", "?", "--bank", "bank", "--tokens", 3)
    assert result.exit_code == 0
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("bank: ")]
    assert line.count("(") == 4
    assert "bank:" not in run("chat", "graft", "--ask", "?", "--bank", "bank", "--tokens", 3).stderr


def test_eval_scores_against_the_vote(run: Run) -> None:
    samples: list[Any] = []
    for label, name in enumerate(("良品", "不良")):
        for i in range(3):
            picture(label, 40 + i).save(f"{label}-{i}.png")
            question = Message.of("user", "どれですか。", (f"{label}-{i}.png",))
            sample = Sample(id=f"{label}-{i}", messages=(question, Message.of("assistant", name)), task="decision")
            samples.append(Sample(sample.id, sample.messages, sample.task, ("良品", "不良")))
    schema.write("test.jsonl", samples)
    result = run("eval", "graft", "--data", "test.jsonl", "--task", "decisions", "--bank", "bank")
    assert result.exit_code == 0 and "bank vote" in result.output


def labelled(file: str = "test.jsonl") -> None:
    samples: list[Any] = []
    for label, name in enumerate(("良品", "不良")):
        for i in range(3):
            picture(label, 40 + i).save(f"{label}-{i}.png")
            messages = (Message.of("user", "どれですか。", (f"{label}-{i}.png",)), Message.of("assistant", name))
            samples.append(Sample(f"{label}-{i}", messages, "decision", ("良品", "不良")))
    schema.write(file, samples)


def test_calibrated_answers(run: Run) -> None:
    labelled()
    as_it_is = run("predict", "graft", "new", "-o", "a.jsonl", "--bank", "bank")
    calibrated = run("predict", "graft", "new", "-o", "b.jsonl", "--bank", "bank", "--calibrate")
    assert (as_it_is.exit_code, calibrated.exit_code) == (0, 0), calibrated.stderr
    plain, other = ([json.loads(line) for line in Path(f).read_text().splitlines()] for f in ("a.jsonl", "b.jsonl"))
    assert plain[0]["probabilities"] != other[0]["probabilities"] and sum(
        other[0]["probabilities"].values()
    ) == pytest.approx(1)
    mixed = run("predict", "graft", "new", "-o", "a.jsonl", "--bank", "bank", "--calibrate")
    assert mixed.exit_code == 2 and "other options" in mixed.stderr
    scored = run("eval", "graft", "--data", "test.jsonl", "--task", "decisions", "--bank", "bank", "--calibrate")
    assert scored.exit_code == 0 and "accuracy" in scored.output
    said = run("chat", "graft", "--image", "new/0.png", "--ask", "?", "--bank", "bank", "--calibrate")
    assert said.exit_code == 0 and said.stdout.split(" (")[0] in ("良品", "不良") and "bank: " in said.stderr
    for command in (
        ("predict", "graft", "new", "-o", "c.jsonl", "--option", "a", "--option", "b"),
        ("eval", "graft", "--data", "test.jsonl"),
        ("chat", "graft", "--image", "new/0.png", "--ask", "?"),
    ):
        result = run(*command, "--calibrate")
        assert result.exit_code == 2 and "without demonstrations" in result.stderr and result.stderr.count("\n") == 1
    assert not Path("c.jsonl").exists()


def test_report(run: Run) -> None:
    labelled()
    alone = run("bank", "report", "bank")
    assert alone.exit_code == 0 and "entries by source" in alone.output and "first" in alone.output
    assert "no bank" not in alone.output and "changes" not in alone.output
    options = ("--model", "graft", "--data", "test.jsonl", "--limit", 4, "--orders", 2, "-o", "bias.json")
    asked = run("bank", "report", "bank", *options)
    assert asked.exit_code == 0, asked.stderr
    content = json.loads(Path("bias.json").read_text(encoding="utf-8"))
    assert content["balances"]["questions by class"]["counts"] and len(content["scores"]) == 6
    assert {s["n"] for s in content["scores"]} == {4} and "another order" in asked.output
    lost = run("bank", "report", "bank", "--data", "test.jsonl")
    assert lost.exit_code == 2 and "questions without a model" in lost.stderr
