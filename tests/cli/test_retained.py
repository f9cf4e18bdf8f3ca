"""Retention from the command line: suites by name, own prompts, int8, what items can show, budget and exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tsugiki.cli import _app, _models, _retained, app
from tsugiki.data.files import sha256_file
from tsugiki.errors import InputError
from tsugiki.evals import power, results
from tsugiki.evals.budget import SUITES, items_needed
from tsugiki.evals.tables import finite, number
from tsugiki.testing import tiny_model
from tsugiki.types import Score

Run = Callable[..., Result]
OWN = [{"prompt": f"What is {i}?", "answer": f"The number {i}."} for i in range(8)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The app in a folder with own prompts; every model is one tiny one."""
    model = tiny_model()
    monkeypatch.setattr(_models, "load_model", lambda *_, **__: model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(_app.out, "width", 300)
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, OWN)))

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["eval", "graft", *(str(a) for a in arguments)], catch_exceptions=False)

    return invoke


def test_own_prompts_are_asked_alone_with_int8_and_a_budget(run: Run, tmp_path: Path) -> None:
    (tmp_path / "budget.yaml").write_text("own_answers@int8.kl: 0\nown_answers@picture@int8.kl: 0.000001\n")
    result = run("--own", "own.jsonl", "--limit", 5, "--int8", "--budget", "budget.yaml", "-o", "scores.json")
    assert result.exit_code == 1, result.stderr
    said, error = result.stderr.splitlines()
    assert said.startswith("@int8: int8 weights, ")
    assert error.startswith("Error: own_answers@picture@int8.kl dropped by ")
    assert error.endswith("over the budget of 1e-06 (own_answers@picture@int8.kl)")
    scores = {f"{s.task}.{s.metric}": s for s in results.read("scores.json")}
    places = ("", "@picture", "@int8", "@picture@int8")
    assert set(scores) == {f"own_answers{place}.{metric}" for place in places for metric in ("loss", "kl")}
    assert all(s.n == 5 for s in scores.values())
    assert scores["own_answers@int8.kl"].value == 0 and "int8 weights" in scores["own_answers@int8.kl"].note

    content = json.loads(Path("scores.json").read_text())
    assert content["settings"]["int8"] is True and content["settings"]["suites"] == []
    assert {"file": "own.jsonl", "sha256": sha256_file("own.jsonl")} in content["data"]
    kept, broken = sorted(content["budget"], key=lambda line: line["figure"])
    assert (kept["figure"], kept["holds"], kept["limit"]) == ("own_answers@int8.kl", True, 0)
    assert (broken["line"], broken["holds"], broken["items"]) == ("own_answers@picture@int8.kl", False, 5)
    needed = items_needed(scores["own_answers@picture@int8.kl"], 1e-6)
    assert needed is not None and needed > 5 and broken["items_needed"] == finite(needed)

    told = result.stdout[result.stdout.index("What these items can show") :]
    row = next(line for line in told.splitlines() if "own_answers@picture@int8.kl" in line)
    assert (number(needed) if needed == float("inf") else f"{needed:.0f}") in row.split("│")[-2]
    (tmp_path / "budget.yaml").write_text("own_answers.kl: 0\nloss@picture: 100\n")
    assert run("--own", "own.jsonl", "--limit", 5, "--budget", "budget.yaml").exit_code == 0


def test_mistakes_are_one_line_before_the_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "wrong.jsonl").write_text('{"prompt": "a"}\n{"prompt": "a", "answr": "b"}\n')
    (tmp_path / "budget.yaml").write_text("wiki@int8.loss: 1\n")
    for arguments, said in (
        (("--own", "wrong.jsonl"), "Error: wrong.jsonl:2: unknown field 'answr'"),
        (("--own", "none.jsonl"), "Error: none.jsonl: the file does not exist"),
        (("--own", "own.jsonl", "--budget", "budget.yaml"), "the line wiki@int8.loss judges nothing"),
        (("--task", "wiki", "--budget", "budget.yaml"), "the line wiki@int8.loss judges nothing"),
        (("--task", "iit", "--budget", "budget.yaml"), "the line wiki@int8.loss judges nothing"),
        (("--task", "iit", "--int8"), "--int8 without a suite of retention"),
        (("--suite", "arc"), "Error: suite arc: its data can't be read"),
        (("--suite", "wikki"), "Did you mean 'wiki'?"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
        assert said in result.stderr


def test_names_of_suites_stand_for_retention() -> None:
    assert _retained.asked(["iit"], None, False) == (["iit"], {})
    assert _retained.asked(["retention"], None, True) == (["retention"], {"suites": list(SUITES), "int8": True})
    assert _retained.asked(["iit", "wiki", "mmlu"], None, False) == (["iit", "retention"], {"suites": ["wiki", "mmlu"]})
    both = _retained.asked(["mmlu", "retention", "wiki"], None, False)
    assert both == (["retention"], {"suites": [*SUITES, "mmlu"]})
    with pytest.raises(InputError, match="--int8"):
        _retained.asked(["iit"], None, True)


def test_where_the_items_are_too_few_it_says_how_many_would_do() -> None:
    def score(metric: str, detectable: float | None, **fields: Any) -> Score:
        return Score(task="t", metric=metric, value=0.5, stderr=0.1, n=50, detectable=detectable, spread=0.4, **fields)

    scores = [score("loss", 0.16), score("accuracy", 0.16), score("kl", 0.01), score("agreement", None)]
    table = _retained.power(scores, {"t.loss": 0.05, "t.kl": 0.05, "accuracy": 0.0})
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["t.loss", "t.accuracy", "t.kl"]
    assert columns[4] == [f"{power.items_needed(0.05, 0.4, binary=False):.0f}", "∞", ""]
    assert list(_retained.power(scores, None).columns[4].cells) == ["", "", ""]


@pytest.mark.parametrize("line", [OWN[0], {"prompt": "What?", "options": ["a", "b"], "answer": "a"}])
def test_one_item_has_a_value_and_no_interval_and_is_not_judged(run: Run, tmp_path: Path, line: Any) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    key = "own_options.accuracy" if "options" in line else "own_answers.loss"
    (tmp_path / "budget.yaml").write_text(f"{key}: 100\n")
    result = run("--own", "own.jsonl", "--budget", "budget.yaml")
    assert result.exit_code == 1  # nothing shows that the budget is kept to
    assert not {"∞", "inf", "nan"} & set(result.output.replace("[", " ").replace(",", " ").split())
    assert "∞" not in result.output
    (said,) = [line for line in result.stdout.splitlines() if line.startswith("Too few items for an interval")]
    assert "takes 2 or more" in said and f"{key} (1)" in said
    assert f"Error: {key} can't be judged ({key}): too few items for an interval (1)" in result.stderr
    assert "dropped" not in result.stderr
