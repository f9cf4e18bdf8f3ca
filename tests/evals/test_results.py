"""The file of scores: versions and hashes beside the figures, and another version told in a line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import transformers

from tsugiki import store, testing
from tsugiki.data.files import sha256_file
from tsugiki.errors import DataError
from tsugiki.evals import budget, results
from tsugiki.types import Score

SCORES = [
    Score(task="wiki", metric="loss", value=3.0, stderr=0.1, n=9, base=2.9, difference=0.1, yardsticks={"x": 1.0}),
    Score(task="t", metric="m", value=0.5, stderr=math.inf, n=1, low=-math.inf, high=math.inf, version=2),
]


def test_scores_come_back_with_what_they_were_measured_with(tmp_path: Path) -> None:
    data, file, model = tmp_path / "test.jsonl", tmp_path / "scores.json", testing.tiny_model()
    data.write_text("x")
    verdicts = budget.judge(SCORES, {"wiki.loss": 0.2})
    results.write(file, SCORES, model, data=[data], settings={"limit": 9}, verdicts=verdicts)
    assert results.read(file) == SCORES
    content = json.loads(file.read_text())
    assert content["version"] == results.VERSION and content["settings"] == {"limit": 9}
    (line,) = content["budget"]
    assert (line["figure"], line["limit"], line["holds"], line["items"]) == ("wiki.loss", 0.2, True, 9)
    assert content["data"] == [{"file": "test.jsonl", "sha256": sha256_file(data)}]
    assert content["model"]["graft_sha256"] == store.graft_sha256(model)
    assert content["model"]["guarantee"] == "exact" and content["model"]["base"]["tensors_sha256"]
    assert content["environment"]["torch"] == torch.__version__
    assert content["environment"]["transformers"] == transformers.__version__


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"version": 7, "scores": []}', "a file of scores of version 7"),
        ('[{"task": "t"}]', "a file of scores of version none"),
        ('{"scores": []}', "not a file of scores"),
        ('{"version": 1, "scores": [{"task": "t"}]}', "not a file of scores"),
        ("{", "not a file of scores"),
    ],
)
def test_another_file(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match=f"s.json: {found}") as caught:
        results.read(tmp_path / "s.json")
    assert "version 1" in str(caught.value)
    with pytest.raises(DataError, match=r"gone.json: not a file of scores \(FileNotFoundError"):
        results.read(tmp_path / "gone.json")
