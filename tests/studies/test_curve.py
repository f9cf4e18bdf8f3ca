"""The learning curve: who is drawn, what is written, and sizes that can't be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.studies._pictures import folder

from tsugiki.errors import DataError, InputError
from tsugiki.studies import _own
from tsugiki.studies._divide import class_of
from tsugiki.studies.curve import CurveResult, curve, drawn
from tsugiki.testing import TinyTower, tiny_llm, tiny_tokenizer

RECIPE: dict[str, Any] = {
    "stages": [{"train": {"projector": 0.01}, "data": "train", "batch_size": 4, "steps": 2, "warm_start": True}]
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))


def run(data: Any, out: Path, **options: Any) -> CurveResult:
    given = {"recipe": RECIPE, "sizes": (12, 20), "folds": 2, "progress": False, "vision": TinyTower(), **options}
    return curve(data, base=tiny_llm(), tokenizer=tiny_tokenizer(), out=out, **given)


def test_every_size_holds_the_smaller_ones_and_shares_out_the_classes(tmp_path: Path) -> None:
    samples = _own.read(folder(tmp_path / "p", (20, 10))).samples
    found = drawn(samples, (12, 24), 3, seed=1)
    assert {s.id for s in found[12]} < {s.id for s in found[24]} and len(found[24]) == 24
    assert [sum(class_of(s) == "不良" for s in found[n]) for n in (12, 24)] == [4, 8]


def test_a_curve(tmp_path: Path) -> None:
    result = run(folder(tmp_path / "p", (12, 12)), tmp_path / "run")
    own = {s.task: s for s in result.scores if s.metric == "accuracy"}
    assert set(own) == {"decisions/decision, 12 pictures", "decisions/decision, 20 pictures"}
    assert own["decisions/decision, 20 pictures"].n == 20 and "probe" in result.points
    assert [p.x for p in result.points["model"]] == [12, 20] and len(result.points["model"][0].parts) == 2
    for cells in ([c for c in result.cells if c["size"] == n] for n in (12, 20)):
        asked = [row["id"] for cell in cells for row in cell["rows"]]
        assert len(asked) == len(set(asked)) == cells[0]["size"]
    assert any("20 pictures" in line and "probe" in line for line in result.findings)
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "run" / "curve.json").read_text())["points"]["model"][1]["x"] == 20


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"sizes": (12, 99)}, DataError, "sizes 12, 99 in 2 folds of 20 pictures"),
        ({"folds": 1}, DataError, "in 1 folds"),
        ({"method": "projector,wings"}, InputError, "2 methods"),
    ],
)
def test_mistakes(tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run(folder(tmp_path / "p", (10, 10)), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
