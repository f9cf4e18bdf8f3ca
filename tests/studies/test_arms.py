"""Tuning in context with a hub and without: what is learned from has the form that is asked, and the hub learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.studies._pictures import folder

from tsugiki.data.images import pixel_key
from tsugiki.errors import RecipeError
from tsugiki.evals.options import OptionScorer
from tsugiki.studies import _arms, _draws, _start
from tsugiki.studies._arms import Draw
from tsugiki.studies._draws import Few, short_answer
from tsugiki.testing import tiny_model
from tsugiki.training import recipe as recipes
from tsugiki.types import DEMO_FORMS, DemoPart, ImagePart, Part, Sample, TextPart

HUB = {"layers": 2, "width": 16, "heads": 2, "hidden": 24, "queries": 4}
RECIPE: dict[str, Any] = {
    "stages": [{"train": {"projector": 0.01}, "data": "train", "loss": "per_query", "batch_size": 4, "steps": 6}]
}


def hub_model(form: str = DEMO_FORMS[0]) -> Any:
    return tiny_model("mmict", hub={**HUB, "demos": form}, llm={"max_position_embeddings": 2048})


def plain_model() -> Any:
    return tiny_model(llm={"max_position_embeddings": 2048})


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Few:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    return _draws.own(folder(tmp_path / "写真", (12, 12)), test=6)


def draw_of(few: Few, start: Any, out: Path) -> Draw:
    labelled = _draws.draws(few, 8, 1, 0)[0][0]
    return Draw(
        labelled=labelled,
        test=few.test,
        start=start,
        model=start(),
        features=None,
        plan=recipes.load(RECIPE),
        folder=out,
        shown=3,
        classes=few.classes,
        seed=0,
    )


def watched(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Sample], list[Sample], Any]:
    """What the arm learned from, what it was asked, and the model that it had then."""
    seen: dict[str, Any] = {}
    learn, ask = _arms.train, OptionScorer.__call__

    def train(model: Any, plan: Any, out: Path, *, data: Sequence[Sample], **given: Any) -> Any:
        seen["learned"] = list(data)
        return learn(model, plan, out, data=data, **given)

    def asked(self: OptionScorer, samples: Sequence[Sample]) -> Any:
        assert self.demos is not None
        seen["asked"], seen["model"] = self.demos(samples), self.model
        return ask(self, samples)

    monkeypatch.setattr(_arms, "train", train)
    monkeypatch.setattr(OptionScorer, "__call__", asked)
    assert set(_arms.in_context(draw)) <= set(draw.classes)
    return seen["learned"], seen["asked"], seen["model"]


def front(sample: Sample) -> tuple[Part, ...]:
    """What stands before the picture that is asked about."""
    parts = sample.prompt[-1].parts
    return parts[: max(i for i, p in enumerate(parts) if isinstance(p, ImagePart))]


@pytest.mark.parametrize("form", [None, "visual_guided_text", "both"])
def test_the_form_that_is_learned_is_the_form_that_is_asked(
    form: str | None, few: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = draw_of(few, plain_model if form is None else lambda: hub_model(form), tmp_path / "arm")
    learned, asked, _ = watched(draw, monkeypatch)
    label = {pixel_key(s.images[0]): short_answer(s) for s in draw.labelled}
    question = next(p.text for p in few.test[0].prompt[-1].parts if isinstance(p, TextPart))
    shown = 0
    for sample in (*learned, *asked):
        parts, own = list(front(sample)), pixel_key(sample.images[-1])
        while parts:
            picture = parts.pop(0)
            assert isinstance(picture, ImagePart) and pixel_key(picture.source) != own
            said = label[pixel_key(picture.source)]  # of the labelled ones, with its own label
            if form is None:
                assert not isinstance(picture, DemoPart) and parts.pop(0) == TextPart(f"{said}\n")
            else:
                assert picture == DemoPart(picture.source, f"{question.strip()}\n{said}", form)
            shown += 1
    assert shown > 3 * len(asked) and all(len(sample.images) == 4 for sample in asked)


def test_what_is_learned_from_is_the_same_with_a_hub_and_without(
    few: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name, start in (("plain", plain_model), ("hub", hub_model)):
        with monkeypatch.context() as patch:
            learned, asked, _ = watched(draw_of(few, start, tmp_path / name), patch)
        found.append([(s.id, s.images, s.answer) for s in (*learned, *asked)])
    assert found[0] == found[1]


def test_gradients_reach_the_hub_through_the_text_of_demonstrations(
    few: Few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last layer's text branch is read nowhere else; the LLM stays as it is."""
    draw = draw_of(few, hub_model, tmp_path / "arm")
    _, _, model = watched(draw, monkeypatch)
    before, after = draw.model.frontend.state_dict(), model.frontend.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("layers.1.text_ffn" in name for name in moved), sorted(moved)
    assert any("layers.0.cross" in name for name in moved) and any("gate" in name for name in moved)
    old, new = draw.model.language_model.state_dict(), model.language_model.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_two_recipes_alike() -> None:
    own, other = recipes.load("mmict-demo"), recipes.load("projector", ["steps=7", "batch_size=3", "seed=5"])
    found = _start.alike(own, other)
    (stage,) = found.stages
    assert (found.seed, stage.steps, stage.batch_size, stage.draws) == (5, 7, 3, 21)
    assert stage.loss == "per_query" and stage.train == {"projector": 3e-4} and stage.warm_start is not None
    assert all(source.demos is None for source in stage.data.values()) and own.stages[0].data["train"].demos is not None
    bare = _start.alike(own, recipes.load(other, ["warm_start=false", "steps=null", "minutes=2"])).stages[0]
    assert (bare.steps, bare.minutes, bare.warm_start) == (None, 2, None)
    assert recipes.load(found.model_dump(mode="json")) == found
    stages = [{"train": {"projector": 1e-3}, "data": "train", "steps": 1}] * 2
    with pytest.raises(RecipeError, match=r"^hub_recipe two: stages: 2 stages; expected one.*Give a recipe of one"):
        _start.alike(recipes.load({"name": "two", "stages": stages}), other)
