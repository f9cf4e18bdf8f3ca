"""k-fold runs by number of pictures: who learns from what, what is written, what is not done twice."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.studies._pictures import picture

from tsugiki.errors import DataError, RecipeError
from tsugiki.evals import stats
from tsugiki.evals.tasks import grounding
from tsugiki.studies import grounding_curve as study
from tsugiki.studies.grounding_curve import CurveResult, grounding_curve
from tsugiki.testing import tiny_model
from tsugiki.types import Box, BoxPart, Message, Sample

RECIPE: dict[str, Any] = {
    "stages": [{"train": {"projector": 0.01}, "data": "train", "batch_size": 4, "steps": 2, "warm_start": True}]
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """16 pictures with one box question each, every fourth also with one about what is not there; a clean picture."""
    rng, out = random.Random(0), []
    (tmp_path / "pictures").mkdir()
    for i in range(17):
        file = tmp_path / "pictures" / f"{i}.png"
        picture(i % 2, i).save(file)
        asked = Message.of("user", "Where is it? Answer with boxes.", (file,))
        absent = (asked, Message.of("assistant", "none"))
        if i < 16:
            x, y = rng.uniform(0, 15), rng.uniform(0, 15)
            part = BoxPart(Box(x, y, x + 20, y + 20), label="dent")
            out.append(Sample(id=f"{i}", messages=(asked, Message("assistant", (part,))), task="box"))
        if i % 4 == 0:
            out.append(Sample(id=f"{i} none", messages=absent, task="absent"))
    return out


def run(samples: list[Sample], out: Path, **options: Any) -> CurveResult:
    given: dict[str, Any] = {"recipe": RECIPE, "sizes": (8, 16), "folds": 2, "near": None, "max_new_tokens": 4}
    return grounding_curve(samples, tiny_model, out=out, say=lambda _: None, **{**given, **options})


def test_every_picture_is_asked_once_by_a_graft_that_did_not_learn_from_it(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[set[str]] = []
    real = study.train

    def train(model: Any, plan: Any, out: Path, *, data: Any, **options: Any) -> Any:
        learned.append({str(s.images[0]) for s in data})
        return real(model, plan, out, data=data, **options)

    monkeypatch.setattr(study, "train", train)
    result = run(samples, tmp_path / "study")
    by_id = {s.id: str(s.images[0]) for s in samples}
    asked = [[by_id[row["id"]] for row in cell["rows"]] for cell in result.cells]
    assert [(c["size"], c["fold"]) for c in result.cells] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    for pictures, known in zip(asked, learned, strict=True):
        assert not set(pictures) & known
    assert len(set(asked[0] + asked[1])) == 8 and len(set(asked[2] + asked[3])) == 16
    assert set(asked[0] + asked[1]) < set(asked[2] + asked[3])
    assert all("none" not in row["id"] for cell in result.cells for row in cell["rows"])
    assert any(c["learned"] > 8 for c in result.cells)  # what is not there is learned from


def test_intervals_over_pictures_and_the_spread_of_the_folds_stand_apart(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random weights write no box; these answers are right in one picture of two.
    said = ["[0.100,0.100,0.600,0.600]", "here"]

    def spoken(self: Any, asked: list[Sample]) -> list[str]:
        return [said[int(s.id.split()[0]) % 2] if s.images else "" for s in asked]

    monkeypatch.setattr(grounding.FreeAnswerer, "__call__", spoken)
    result = run(samples, tmp_path / "study")
    own = {(s.task, s.metric): s for s in result.scores}
    for size in (8, 16):
        cells = [c for c in result.cells if c["size"] == size]
        hits = [[row["sides"]["model"]["Acc@0.5"] for row in c["rows"]] for c in cells]
        pooled, folds = [h for fold in hits for h in fold], [float(np.mean(fold)) for fold in hits]
        score = own[f"grounding/{size} pictures", "Acc@0.5"]
        assert score.value == pytest.approx(sum(pooled) / size) and score.n == size and score.base == 0.0
        expected = stats.proportion(int(sum(pooled)), size)
        point = next(p for p in result.points["model"] if p.x == size)
        assert (point.low, point.high) == pytest.approx((expected.low, expected.high)) and point.parts == tuple(folds)
        assert f"{folds[0]:.3f}, {folds[1]:.3f}" in score.note
        assert f"{abs(folds[0] - folds[1]) / 2**0.5:.3f}" in score.note
        assert "constant" in score.yardsticks
    assert set(result.points) == {"model", "constant", "ridge"}
    # Ridge needs five pictures to learn from; eight in two folds are four.
    assert [p.x for p in result.points["ridge"]] == [16]
    assert "ridge" in own["grounding/16 pictures", "Acc@0.5"].yardsticks
    assert own["grounding/16 pictures", "Acc@0.5 minus ridge"].n == 16
    content = json.loads((tmp_path / "study" / "curve.json").read_text())
    assert content["facts"]["steps"] == 2 and len(content["points"]["model"]) == 2
    for name in ("curve.html", "curve.md"):
        page = (tmp_path / "study" / name).read_text(encoding="utf-8")
        assert "By amount of data" in page and "standard deviation" in page


def test_a_finished_cell_is_not_run_again(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    real = study._cell

    def cell(*args: Any) -> Any:
        built.append(1)
        if len(built) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(study, "_cell", cell)
    with pytest.raises(KeyboardInterrupt):
        run(samples, tmp_path / "study")
    assert sorted(f.name for f in (tmp_path / "study" / "cells").iterdir()) == ["8-0.json", "8-1.json"]
    result = run(samples, tmp_path / "study")
    assert len(built) == 5 and len(result.cells) == 4
    again = run(samples, tmp_path / "study", sizes=(8, 12, 16))  # a further size is added
    assert len(built) == 7 and len(again.cells) == 6
    assert [s.value for s in again.scores if "/8 " in s.task] == [s.value for s in result.scores if "/8 " in s.task]


def test_two_studies_are_not_mixed(samples: list[Sample], tmp_path: Path) -> None:
    run(samples, tmp_path / "study", sizes=(8,))
    with pytest.raises(RecipeError, match="recipe is"):
        run(samples, tmp_path / "study", sizes=(8,), overrides=["steps=3"])
    with pytest.raises(RecipeError, match="data is"):
        run(samples[1:], tmp_path / "study", sizes=(8,))
    with pytest.raises(RecipeError, match="the same base and grafts"):
        grounding_curve(
            samples, lambda: tiny_model("wings", rank=2), out=tmp_path / "study", recipe=RECIPE, sizes=(8, 16), folds=2,
            near=None, max_new_tokens=4, say=lambda _: None,
        )  # fmt: skip


@pytest.mark.parametrize("wrong", [{"sizes": (17,)}, {"sizes": (3,)}, {"folds": 1}, {"sizes": ()}])
def test_too_few_pictures(samples: list[Sample], tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="of 16 pictures with boxes"):
        run(samples, tmp_path / "study", **wrong)
    assert not (tmp_path / "study").exists()
