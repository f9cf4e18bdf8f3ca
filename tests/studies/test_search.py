"""The search for weights: grafts of two tensors, scores that are a formula of what was mixed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.mixing._folders import llm

from tsugiki.data import schema
from tsugiki.errors import DataError, InputError, StoreError, UnknownNameError
from tsugiki.evals.retention import Material
from tsugiki.evals.rules import RULES, instructions
from tsugiki.evals.text_items import Choice
from tsugiki.studies import _graded, _pareto
from tsugiki.studies._points import Measured, Point, read
from tsugiki.studies.search import STEP, SWEEP, Found, search
from tsugiki.testing import tiny_images, tiny_model
from tsugiki.types import Message, Sample, Score

BUDGET = {"wiki.loss": 0.3}
Scores = Callable[[Path], list[Score]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two LLMs that differ in every tensor."""
    folder = tmp_path_factory.mktemp("parents")
    return llm(folder / "a", noise=1), llm(folder / "b", noise=2)


class Formula:
    """Vision is best at a weight `best` of the first parent; text loses `loss` times it. Reads both from the mix."""

    def __init__(self, two: tuple[Path, Path], *, best: float = 0.63, loss: float = 1.0) -> None:
        self.a, self.b = (load_file(folder / "model.safetensors") for folder in two)
        self.best, self.loss, self.asked = best, loss, 0

    def weight(self, mixed: dict[str, object], name: str) -> float:
        a, b, m = (float(t[name].flatten()[3]) for t in (self.a, self.b, mixed))  # type: ignore[index]
        return (m - b) / (a - b)

    def __call__(self, folder: Path) -> list[Score]:
        self.asked += 1
        mixed = load_file(folder / "model.safetensors")
        eyes = self.weight(mixed, "model.layers.0.mlp.up_proj.weight")
        words = self.weight(mixed, "lm_head.weight")
        vision = 1 - (eyes - self.best) ** 2
        drop = self.loss * words
        return [
            Score(
                task="naming", metric="accuracy", value=vision, stderr=0.01, n=50, low=vision - 0.02, high=vision + 0.02
            ),
            Score(
                task="wiki", metric="loss", value=3 + drop, stderr=0.0, n=50, base=3.0, difference=drop,
                difference_low=drop, difference_high=drop,
            ),
        ]  # fmt: skip


def run(two: tuple[Path, Path], out: Path, measure: Scores, **settings: object) -> Found:
    given = {"objective": "naming.accuracy", "budget": BUDGET, "trials": 4, **settings}
    return search(two, measure, out, **given)  # type: ignore[arg-type]


def test_the_sweep_comes_first_and_the_budget_binds(two: tuple[Path, Path], tmp_path: Path) -> None:
    found = run(two, tmp_path / "s", Formula(two))
    assert [m.point.beta for m in found.points[:11]] == list(SWEEP)
    assert len(found.points) == 15
    for measured in found.points:
        assert measured.used == pytest.approx(measured.point.beta / 0.3, abs=1e-4)
        assert measured.objective.value == pytest.approx(1 - (measured.point.beta - 0.63) ** 2, abs=1e-4)
        assert round(measured.point.beta / STEP, 6).is_integer()
    assert found.chosen is not None and 0.29 <= found.chosen.point.beta <= 0.3
    mixed = load_file(tmp_path / "s" / "mixed" / "model.safetensors")
    assert Formula(two).weight(mixed, "lm_head.weight") == pytest.approx(found.chosen.point.beta, abs=1e-4)


def test_a_part_gets_a_weight_of_its_own(two: tuple[Path, Path], tmp_path: Path) -> None:
    found = run(
        two, tmp_path / "s", Formula(two), parts=["llm.layers"], trials=25, ablate=["llm.layers", "llm.lm_head"]
    )
    assert found.chosen is not None
    # The words alone lose text: the layers may stay where vision is best.
    assert found.chosen.objective.value > 1 - (0.3 - 0.63) ** 2 + 0.01
    assert set(found.chosen.point.parts) == {"llm.layers"}
    layers, head = found.ablation["llm.layers"], found.ablation["llm.lm_head"]
    assert layers[0].objective.value == pytest.approx(1 - 0.37**2, abs=1e-3)
    assert layers[1].objective.value == pytest.approx(1 - 0.63**2, abs=1e-3)
    assert layers[0].used == pytest.approx(found.chosen.used, abs=1e-3)
    assert head[0].objective.value == pytest.approx(found.chosen.objective.value, abs=1e-3)
    assert (head[0].used, head[1].used) == (pytest.approx(1 / 0.3, abs=1e-3), pytest.approx(0, abs=1e-3))


def test_the_parts_of_an_llm_are_found(two: tuple[Path, Path], tmp_path: Path) -> None:
    found = run(two, tmp_path / "s", Formula(two), trials=0)
    assert list(found.ablation) == ["llm.lm_head", "llm.model", "llm.layers.0-1", "llm.layers.2-3"]
    assert found.ablation["llm.layers.2-3"][0].objective.value == pytest.approx(
        found.chosen.objective.value if found.chosen else 0, abs=1e-4
    )


def test_the_result_is_scored_again_on_unseen_items(two: tuple[Path, Path], tmp_path: Path) -> None:
    found = run(two, tmp_path / "s", Formula(two), unseen=Formula(two, best=0.5), trials=0, ablate=[])
    assert list(found.unseen) == ["chosen", "first alone", "second alone"]
    assert found.unseen["chosen"].objective.value == pytest.approx(1 - 0.2**2, abs=1e-4)
    assert found.unseen["first alone"].objective.value == pytest.approx(0.75, abs=1e-4)
    page = (tmp_path / "s" / "search.html").read_text()
    assert "Unseen items, chosen: naming.accuracy 0.960 [0.940, 0.980] (n=50), budget kept." in page
    assert "https://" not in page and page.count("<svg") == 1 and page.count("<circle") == len(found.points)
    assert (tmp_path / "s" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "s" / "search.json").read_text())
    assert written["chosen"]["beta"] == 0.3
    assert [s["task"] for s in written["unseen"]["chosen"]["scores"]] == ["naming", "wiki"]


def test_a_search_that_was_stopped_goes_on(two: tuple[Path, Path], tmp_path: Path) -> None:
    measure = Formula(two)

    def stops(folder: Path) -> list[Score]:
        if measure.asked == 13:
            raise KeyboardInterrupt
        return measure(folder)

    with pytest.raises(KeyboardInterrupt):
        run(two, tmp_path / "s", stops, ablate=[])
    files = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "s" / "points").iterdir()}
    assert not list((tmp_path / "s").glob(".mix-*")) and len(files) >= 12
    found = run(two, tmp_path / "s", measure, ablate=[])
    assert len(found.points) == 15
    assert len({m.point.beta for m in found.points}) == measure.asked  # nothing was measured twice
    assert all((tmp_path / "s" / "points" / name).stat().st_mtime_ns == time for name, time in files.items())
    again = Formula(two)
    assert run(two, tmp_path / "s", again, ablate=[]).points == found.points and again.asked == 0
    (tmp_path / "s" / "study.log").unlink()
    run(two, tmp_path / "s", again, ablate=[], trials=0)
    assert again.asked == 0  # the points are files of their own


def test_without_a_feasible_point_the_nearest_is_told(two: tuple[Path, Path], tmp_path: Path) -> None:
    class Always(Formula):
        def weight(self, mixed: dict[str, object], name: str) -> float:
            return 1.5 - super().weight(mixed, name) / 2

    found = run(two, tmp_path / "s", Always(two), trials=2)
    assert found.chosen is None and found.nearest.point.beta == 1.0
    said = "No point keeps the budget. The nearest, β 1, uses 333% of it."
    assert _pareto.findings(found) == ["13 points, 0 within the budget.", said]
    assert said in (tmp_path / "s" / "search.html").read_text()
    assert not (tmp_path / "s" / "mixed").exists()


def test_mistakes(two: tuple[Path, Path], tmp_path: Path) -> None:
    out, measure = tmp_path / "s", Formula(two)
    with pytest.raises(InputError, match="3 parents; expected two"):
        search([*two, two[0]], measure, out, objective="naming.accuracy", budget=BUDGET)
    with pytest.raises(UnknownNameError, match=r"unknown score 'naming\.acuracy'.*Did you mean 'naming\.accuracy'"):
        run(two, out, measure, objective="naming.acuracy")
    with pytest.raises(DataError, match="judges nothing"):
        run(two, tmp_path / "t", measure, budget={"wiki.kl": 0.1})
    with pytest.raises(UnknownNameError, match="unknown part 'llm.layer'"):
        run(two, tmp_path / "u", measure, parts=["llm.layer"])
    with pytest.raises(StoreError, match=r"another search is there: objective was \"naming\.acuracy\""):
        run(two, out, measure)


def test_points_are_told_apart_and_come_back(tmp_path: Path) -> None:
    same = Point(0.3, {"llm": 0.3})
    assert same.file == Point(0.3).file and str(same) == "β 0.3"
    first, second = Point(0.3, {"llm": 0.5}), Point(0.3, {"llm": 0.6})
    assert first.file != second.file and str(first) == "β 0.3, llm 0.5"
    assert list(Point(0.3, {"llm": 0.5, "frontend": 0.1}).moved("llm", 1.0).parts) == ["frontend", "llm"]
    scores = [Score(task="t", metric="m", value=0.5, stderr=float("inf"), n=1, low=float("-inf"), high=float("inf"))]
    text = Score(task="wiki", metric="loss", value=1.0, stderr=0.0, n=9, base=0.9, difference=0.1, difference_high=0.2)
    measured = Measured.of(first, [*scores, text], "t.m", BUDGET)
    measured.write(tmp_path / first.file)
    assert read(tmp_path / first.file, "t.m", BUDGET) == measured
    assert read(tmp_path / "none.json", "t.m", BUDGET) is None
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(StoreError, match="bad.json: can't be read"):
        read(tmp_path / "bad.json", "t.m", BUDGET)


def test_the_front_is_what_no_other_point_beats() -> None:
    def at(used: float, value: float) -> Measured:
        score = Score(task="t", metric="m", value=value, stderr=0.0, n=9)
        return Measured(Point(used), (score,), score, used, used <= 1)

    points = [at(0.5, 0.6), at(0.2, 0.5), at(0.4, 0.4), at(0.5, 0.7), at(float("inf"), 0.9), at(2.0, 0.7)]
    assert [(m.used, m.gain) for m in _pareto.front(points)] == [(0.2, 0.5), (0.5, 0.7)]


def test_the_halves_of_the_texts_share_nothing() -> None:
    choices = [Choice(str(i), "?", ("a", "b", "c", "d"), 0) for i in range(7)]
    one, two = _graded._halves(Material(texts=list("abcdef"), choices={"title_choice": choices}))
    assert (list(one.texts), list(two.texts)) == (["a", "c", "e"], ["b", "d", "f"])
    assert [
        c for pair in zip(one.choices["title_choice"], two.choices["title_choice"], strict=False) for c in pair
    ] == (choices[:6])
    one, two = _graded._halves(Material(instructions=instructions(28)))
    for half in (one, two):
        assert {name for item in half.instructions for name, _ in item.checks} == set(RULES)
    assert not {item.id for item in one.instructions} & {item.id for item in two.instructions}


def test_grafts_are_scored_on_halves_that_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    pictures = tiny_images(6)
    files = []
    for name, some in (("data", pictures[:3]), ("unseen", pictures[3:])):
        samples = []
        for i, picture in enumerate(some):
            picture.save(tmp_path / f"{name}-{i}.png")
            asked = Message.of("user", "Good?", (tmp_path / f"{name}-{i}.png",))
            answer = Message.of("assistant", "yes" if i % 2 else "no")
            samples.append(Sample(id=f"{name}-{i}", messages=(asked, answer), options=("yes", "no"), task="decision"))
        schema.write(tmp_path / f"{name}.jsonl", samples)
        files.append(tmp_path / f"{name}.jsonl")
    texts = [f"A text of its own, number {i}." for i in range(6)]
    monkeypatch.setattr(Material, "wiki", classmethod(lambda cls, n, suites: cls(texts=texts[:n])))
    budget = {"wiki.loss": 0.1}
    seen, other = _graded.both(["decisions"], *files, load=lambda folder: model, budget=budget, items=3)
    scores = {f"{s.task}.{s.metric}": s for s in seen(tmp_path)}
    assert scores["wiki.loss"].n == 3
    assert scores["decisions/decision.accuracy"].n == 3, sorted(scores)
    assert not set(seen.material.texts) & set(other.material.texts)
    with pytest.raises(DataError, match="same pixels"):
        _graded.both(["decisions"], files[0], files[0], load=lambda folder: model, budget=budget, items=3)
    with pytest.raises(DataError, match="own_options.accuracy judges nothing"):
        _graded.both(["decisions"], *files, load=lambda folder: model, budget={"own_options.accuracy": 0.1}, items=3)
    with pytest.raises(InputError, match="no task"):
        _graded.both(["retention"], *files, load=lambda folder: model, budget=budget)


def test_a_search_about_other_data_is_another_one(two: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = Formula(two), Formula(two)
    one.key, other.key = "of these", "of those"  # type: ignore[attr-defined]
    run(two, tmp_path / "s", one, ablate=[], trials=0)
    with pytest.raises(StoreError, match="another search is there: asked"):
        run(two, tmp_path / "s", other, ablate=[], trials=0)


def test_every_point_of_the_sweep_is_measured_however_often_it_stops(two: tuple[Path, Path], tmp_path: Path) -> None:
    measure = Formula(two)
    for most in (3, 5):

        def stops(folder: Path, most: int = most) -> list[Score]:
            if measure.asked == most:
                raise KeyboardInterrupt
            return measure(folder)

        with pytest.raises(KeyboardInterrupt):
            run(two, tmp_path / "s", stops, ablate=[], trials=0)
    found = run(two, tmp_path / "s", measure, ablate=[], trials=0)
    assert sorted(m.point.beta for m in found.points) == pytest.approx(list(SWEEP))
