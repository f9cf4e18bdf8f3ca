"""Few labels: who learns from what, what is written, what is not done twice, what can't be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.studies._pictures import folder

from tsugiki.errors import DataError, InputError, RecipeError, UnknownNameError, UnsupportedError
from tsugiki.studies import _arms, _draws
from tsugiki.studies import fewshot as study
from tsugiki.studies._arms import Draw
from tsugiki.studies._draws import Few
from tsugiki.studies.fewshot import FewshotResult, fewshot
from tsugiki.testing import tiny_model

RECIPE: dict[str, Any] = {
    "stages": [{"train": {"projector": 0.01}, "data": "train", "batch_size": 4, "steps": 2, "warm_start": True}]
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def few(tmp_path: Path) -> Few:
    """Two classes, 24 pictures to draw from or more, 8 to ask."""
    return _draws.own(folder(tmp_path / "写真", (16, 16)), test=8)


def start() -> Any:
    return tiny_model(llm={"max_position_embeddings": 2048})


def hub_start(seed: int = 0, **hub: Any) -> Any:
    sizes = {"layers": 2, "width": 16, "heads": 2, "hidden": 24, "queries": 4, **hub}
    return tiny_model("mmict", seed=seed, hub=sizes, llm={"max_position_embeddings": 2048})


def run(few: Few, out: Path, **options: Any) -> FewshotResult:
    given: dict[str, Any] = {"recipe": RECIPE, "sizes": (5, 8), "folds": 2, "shown": 2, "say": lambda _: None}
    return fewshot(few, start, out=out, **{**given, **options})


def label(sample: Any) -> str:
    return str(_draws.short_answer(sample))


# -- draws -------------------------------------------------------------------------------------------------------------


def test_folds_are_balanced_nested_and_apart_where_there_is_enough(few: Few) -> None:
    drawn, apart = _draws.draws(few, 12, 2, 0)
    assert apart and not {s.id for s in drawn[0]} & {s.id for s in drawn[1]}
    for fold in drawn:
        for size in range(2, 13, 2):
            assert Counter(map(label, fold[:size])) == {"良品": size // 2, "不良": size // 2}
    small, _ = _draws.draws(few, 6, 2, 0)
    assert [[s.id for s in fold] for fold in small] == [[s.id for s in fold[:6]] for fold in drawn]
    large, apart = _draws.draws(few, 13, 2, 0)
    assert not apart and [len(fold) for fold in large] == [13, 13]
    assert {s.id for s in large[0]} != {s.id for s in large[1]}


def test_a_rare_class_is_in_every_fold(tmp_path: Path) -> None:
    few = _draws.own(folder(tmp_path / "photos", (20, 8)), test=7)
    rare = Counter(map(label, few.pool))["不良"]
    drawn, apart = _draws.draws(few, 6, 2, 3)
    assert apart and all(Counter(map(label, fold))["不良"] == min(3, rare // 2) for fold in drawn)


def test_test_pictures_are_not_drawn_from(few: Few) -> None:
    assert len(few.test) == 8 and not {s.id for s in few.test} & {s.id for s in few.pool}
    assert few.classes == ["不良", "良品"] and few.chance == 0.5


# -- the study ---------------------------------------------------------------------------------------------------------


def test_every_arm_gets_the_same_pictures_and_is_asked_the_same(
    few: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[list[str], list[str]]]] = {}

    def watched(name: str, real: Callable[[Draw], list[str]]) -> Callable[[Draw], list[str]]:
        def arm(draw: Draw) -> list[str]:
            seen.setdefault(name, []).append(([s.id for s in draw.labelled], [s.id for s in draw.test]))
            return real(draw)

        return arm

    monkeypatch.setattr(study, "ARMS", {name: watched(name, arm) for name, arm in _arms.ARMS.items()})
    result = run(few, tmp_path / "study", hub=hub_start)
    first, *others = seen.values()
    assert len(first) == 4 and all(other == first for other in others) and set(seen) == set(_arms.ARMS)
    assert [len(labelled) for labelled, _ in first] == [5, 5, 8, 8]
    assert set(first[0][0]) < set(first[2][0])
    assert set(result.points) == set(_arms.ARMS) and all(
        [p.x for p in line] == [5, 8] for line in result.points.values()
    )
    assert all(row["base"] is not None for cell in result.cells for row in cell["rows"])
    assert (tmp_path / "study" / "runs" / "fine-tuning-8-1" / "run" / "graft").is_dir()
    for name in ("curve.html", "curve.md"):
        page = (tmp_path / "study" / name).read_text(encoding="utf-8")
        assert "By amount of data" in page and "their variance" in page
    content = json.loads((tmp_path / "study" / "curve.json").read_text(encoding="utf-8"))
    assert content["facts"]["chance"] == 0.5 and content["facts"]["steps"] == 2


def fixed(rights: dict[tuple[str, int], list[int]]) -> Callable[[str], Callable[[Draw], list[str]]]:
    """Arms whose answers are right where `rights` of (arm, labelled) has a 1."""

    def of(name: str) -> Callable[[Draw], list[str]]:
        def arm(draw: Draw) -> list[str]:
            wanted = rights[name, draw.seed]
            return [label(s) if ok else "?" for s, ok in zip(draw.test, wanted, strict=True)]

        return arm

    return of


def test_accuracy_variance_and_differences_by_loops(few: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rights = {
        ("bank", 0): [1, 1, 1, 0, 1, 0, 1, 0],
        ("bank", 1): [1, 1, 1, 1, 1, 0, 1, 1],
        ("probe", 0): [0, 1, 0, 0, 1, 0, 1, 0],
        ("probe", 1): [1, 1, 0, 0, 0, 0, 1, 1],
    }
    of = fixed(rights)
    monkeypatch.setattr(study, "ARMS", {"bank": of("bank"), "probe": of("probe")})
    result = run(few, tmp_path / "study", sizes=(5,), arms=("bank", "probe"))
    own = {s.metric: s for s in result.scores}
    folds = [sum(rights["bank", fold]) / 8 for fold in (0, 1)]
    mean = sum(folds) / 2
    variance = sum((value - mean) ** 2 for value in folds) / 1
    assert own["accuracy of bank"].value == pytest.approx(mean)
    assert f"folds {folds[0]:.3f}, {folds[1]:.3f}; their variance {variance:.5f}" in own["accuracy of bank"].note
    total = 0.0
    for fold in (0, 1):
        for mine, other in zip(rights["bank", fold], rights["probe", fold], strict=True):
            total += (mine - other) / 16
    difference = own["bank minus probe"]
    assert difference.value == pytest.approx(total) and difference.n == 16
    assert difference.low is not None and difference.low <= total
    (point,) = result.points["bank"]
    assert point.parts == tuple(folds) and (point.low, point.high) == (
        own["accuracy of bank"].low,
        own["accuracy of bank"].high,
    )


def test_a_finished_cell_is_not_run_again(few: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def arm(draw: Draw) -> list[str]:
        asked.append(len(draw.labelled))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return [label(s) for s in draw.test]

    monkeypatch.setattr(study, "ARMS", {"probe": arm})
    told: list[str] = []
    options: dict[str, Any] = {"arms": ("probe",), "say": told.append}
    with pytest.raises(KeyboardInterrupt):
        run(few, tmp_path / "study", **options)
    assert sorted(f.name for f in (tmp_path / "study" / "cells").iterdir()) == ["probe-5-0.json", "probe-5-1.json"]
    assert any("probe, 5 pictures, fold 2: 8 of 8 right" in line for line in told) and "2 of 4" in told[-1]
    result = run(few, tmp_path / "study", **options)
    assert len(asked) == 5 and len(result.cells) == 4
    assert len(run(few, tmp_path / "study", **{**options, "sizes": (5, 7, 8)}).cells) == 6 and len(asked) == 7


def test_two_studies_are_not_mixed(few: Few, tmp_path: Path) -> None:
    options: dict[str, Any] = {"arms": ("probe",), "sizes": (5,)}
    run(few, tmp_path / "study", **options)
    with pytest.raises(RecipeError, match="recipe is"):
        run(few, tmp_path / "study", **options, overrides=["steps=3"])
    with pytest.raises(RecipeError, match="pool is"):
        run(replace(few, pool=few.pool[1:]), tmp_path / "study", **options)
    with pytest.raises(RecipeError, match="folds apart is False"):
        run(few, tmp_path / "study", arms=("probe",), sizes=(5, 20))
    with pytest.raises(RecipeError, match="start is"):
        fewshot(few, lambda: tiny_model(seed=1), out=tmp_path / "study", recipe=RECIPE, folds=2, shown=2, **options)


def test_fine_tuning_trains_and_the_bank_does_not(few: Few, tmp_path: Path) -> None:
    draw = Draw(
        labelled=_draws.draws(few, 10, 1, 0)[0][0],
        test=few.test,
        start=start,
        model=start(),
        features=None,
        plan=study.recipes.load(RECIPE),
        folder=tmp_path / "arm",
        shown=2,
        classes=few.classes,
        seed=0,
    )
    before = {k: v.clone() for k, v in draw.model.frontend.state_dict().items()}
    for arm in ("bank", "bank in words"):
        assert set(_arms.ARMS[arm](draw)) <= set(few.classes)
    after = draw.model.frontend.state_dict()
    assert all((before[k] == after[k]).all() for k in before)
    trained = draw.trained().frontend.state_dict()
    assert any((before[k] != trained[k]).any() for k in before)
    assert np.mean([c == label(s) for c, s in zip(_arms.probe(draw), few.test, strict=True)]) == 1.0


# -- with a hub --------------------------------------------------------------------------------------------------------


def test_the_start_with_a_hub_is_of_its_own_arm_alone(few: Few, tmp_path: Path) -> None:
    """A study gets the arm later, and keeps what it has; another start, or another recipe of it, is refused."""
    out, options = tmp_path / "study", {"sizes": (5,), "folds": 1}
    called: list[int] = []

    def hub(seed: int = 0) -> Any:
        called.append(seed)
        return hub_start(seed)

    run(few, out, arms=("probe",), hub=hub, **options)
    content = json.loads((out / "study.json").read_text())
    assert not called and "start of mmict" not in content
    cell = out / "cells" / "probe-5-0.json"
    before = (cell.read_bytes(), cell.stat().st_mtime_ns)
    told: list[str] = []
    result = run(few, out, arms=("probe", "mmict"), hub=hub, say=told.append, **options)
    assert {c["arm"] for c in result.cells} == {"probe", "mmict"} and not any("left out" in line for line in told)
    assert (cell.read_bytes(), cell.stat().st_mtime_ns) == before
    later = json.loads((out / "study.json").read_text())
    assert later.items() >= content.items() and set(later) - set(content) == {"start of mmict", "recipe of mmict"}
    assert later["start of mmict"] != later["start"]
    run(few, out, arms=("probe",), **options)  # and without it again
    with pytest.raises(RecipeError, match="start of mmict is"):
        run(few, out, arms=("mmict",), hub=lambda: hub(1), **options)
    with pytest.raises(RecipeError, match="recipe of mmict is"):
        run(few, out, arms=("mmict",), hub=hub, hub_recipe={**RECIPE, "precision": "bf16"}, **options)
    assert json.loads((out / "study.json").read_text()) == later


def test_mmict_has_the_steps_and_batches_of_the_others(few: Few, tmp_path: Path) -> None:
    out = tmp_path / "study"
    result = run(few, out, arms=("plain in context", "mmict"), sizes=(6,), folds=1, hub=hub_start)
    runs = [out / "runs" / f"{arm}-6-0" / "run" for arm in ("plain-in-context", "mmict")]
    plain, hub = (study.recipes.load(run / "recipe.yaml").stages[0] for run in runs)
    assert (plain.steps, plain.batch_size) == (hub.steps, hub.batch_size) == (2, 4) and hub.loss == "per_query"
    assert all((run / "log.jsonl").read_text().count("\n") == 2 for run in runs)
    assert any(s.metric == "mmict minus plain in context" for s in result.scores)


def test_of_a_graft_what_it_can_do(few: Few, tmp_path: Path) -> None:
    """Without a hub no MMICT, with one no plain tuning in context: said, and refused where nothing is left."""
    options: dict[str, Any] = {"sizes": (5,), "folds": 1}
    told: list[str] = []
    found = run(few, tmp_path / "plain", arms=("mmict", "probe"), say=told.append, **options)
    assert {c["arm"] for c in found.cells} == {"probe"}
    assert told[0] == "The arm 'mmict' is left out: the graft has no hub."
    told.clear()
    given = {**options, "recipe": RECIPE, "shown": 2, "say": told.append}
    both = ("plain in context", "mmict", "bank")
    found = fewshot(few, hub_start, out=tmp_path / "hub", arms=both, **given)
    assert {c["arm"] for c in found.cells} == {"mmict", "bank"}
    assert told[0] == "The arm 'plain in context' is left out: the graft has a hub, through which demonstrations go."
    with pytest.raises(UnsupportedError, match="'mmict': the graft has no hub; expected other arms"):
        run(few, tmp_path / "none", arms=("mmict",), **options)
    with pytest.raises(InputError, match="without a hub"):
        run(few, tmp_path / "none", arms=("mmict",), hub=start, **options)
    assert not (tmp_path / "none").exists()


def test_a_stopped_training_with_a_hub_goes_on(few: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"arms": ("mmict",), "sizes": (5,), "folds": 1, "hub": hub_start}
    options |= {"recipe": {**RECIPE, "save_steps": 1}}
    whole = run(few, tmp_path / "whole", **options)
    real = _arms.train

    def stopped(*args: Any, **given: Any) -> Any:
        def stop(report: Any) -> None:
            if report.step == 1:
                raise KeyboardInterrupt

        return real(*args, **given, on_step=stop)

    monkeypatch.setattr(_arms, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(few, tmp_path / "again", **options)
    monkeypatch.setattr(_arms, "train", real)
    again = run(few, tmp_path / "again", **options)
    assert [row["right"] for row in again.cells[0]["rows"]] == [row["right"] for row in whole.cells[0]["rows"]]
    graft = Path("runs/mmict-5-0/run/graft/model.safetensors")
    assert (tmp_path / "again" / graft).read_bytes() == (tmp_path / "whole" / graft).read_bytes()


# -- what can't be -----------------------------------------------------------------------------------------------------


def test_mistakes(few: Few, tmp_path: Path) -> None:
    n = len(few.pool)
    for sizes in ((5, n + 1), (3,), ()):
        with pytest.raises(DataError, match=f"from {n} labelled pictures; expected sizes from 5 to {n}"):
            run(few, tmp_path / "study", sizes=sizes)
    with pytest.raises(UnknownNameError, match="arm 'prob'.*'probe'"):
        run(few, tmp_path / "study", arms=("prob",))
    with pytest.raises(DataError, match="one class only, '良品'"):
        _draws.own(folder(tmp_path / "one", (12,)))
    assert not (tmp_path / "study").exists()


def test_labels_and_pictures_that_do_not_fit(few: Few) -> None:
    samples = [*few.pool, *few.test]
    wrong = replace(samples[0], options=("良品", "不良"), meta={**samples[0].meta, "short": "傷"})
    with pytest.raises(DataError, match="the label '傷' is not in the answer set"):
        _draws.own([wrong, *samples[1:]])
    with pytest.raises(DataError, match="is none of the 1 options"):
        _draws.own([replace(samples[0], options=("x",)), *samples[1:]])
    with pytest.raises(DataError, match="a second question about the same picture"):
        _draws.own([replace(samples[0], id="again"), *samples])
    with pytest.raises(DataError, match="asks a closed question"):
        _draws.own([replace(s, options=()) for s in samples])


def test_demonstrations_are_others_of_the_labelled_the_nearest_next_to_the_question(few: Few) -> None:
    labelled = _draws.draws(few, 8, 1, 0)[0][0]
    plan = study.recipes.load(RECIPE, ["steps=6"])  # 24 samples: three times eight
    seen: list[tuple[Any, ...]] = []

    def place(query: Any, demos: Any) -> Any:
        placed = _arms.as_pictures(query, demos)
        seen.append((query, demos, placed))
        return placed

    model = start()
    found = _arms.grouped(labelled, _arms.Recent(model), plan, place, most=3, seed=0)
    assert [s.id for s in found[:8]] == [s.id for s in labelled] and len(found) == 8 + 24 and len(seen) == 24
    assert len({s.id for s in found}) == 32 and {len(demos) for _, demos, _ in seen} == {0, 1, 2, 3}
    vectors = {s.id: _arms.pooled(_arms.Recent(model)(s.images[0])).astype(np.float64) for s in labelled}

    def cosine(a: Any, b: Any) -> float:
        x, y = vectors[a.id], vectors[b.id]
        return float((x * y).sum() / (x * x).sum() ** 0.5 / (y * y).sum() ** 0.5)

    for query, demos, placed in seen:
        assert query.id not in {d.id for d in demos}
        likeness = [cosine(query, d) for d in demos]
        assert likeness == sorted(likeness, reverse=True)
        assert placed.images == (*(d.images[0] for d in reversed(demos)), *query.images)
        texts = [p.text for p in placed.prompt[-1].parts if hasattr(p, "text")]
        assert texts[:-1] == [f"{label(d)}\n" for d in reversed(demos)]
