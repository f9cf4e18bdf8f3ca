"""IAA by its recipes: which set of layers trains in which stage, and what a branch starts as."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training._tiny import cache, model, samples, state

import tsugiki
from tsugiki.errors import RecipeError
from tsugiki.training import recipe as recipes
from tsugiki.training.trainer import StepReport, train

SHORT = ["steps=2", "batch_size=2", "gradient_accumulation=1", "save_steps=1", "warmup=0", "scheduler=constant"]
SEEN = ["precision=model", *(f"stages.{s}.train.graft.iaa.image=1e-2" for s in ("align", "instruct"))]
SEEN += ["stages.grounding.train.graft.iaa.grounding=1e-2", "gradient_checkpointing=false"]


def published() -> Any:
    return model("iaa", layers="iaa-8", init="copy", branches=("image", "grounding"), words="full")


def run(built: Any, folder: Path, **options: Any) -> Any:
    places = [replace(s, meta={"branch": "grounding"}) for s in samples(8)]
    data = {"align": samples(8), "instruct": samples(8), "grounding": places}
    given = {"features": cache(built, folder.parent), "progress": False, **options}
    return train(built, "iaa", folder, data=data, overrides=[*SHORT, *SEEN], **given)


def test_the_published_stages() -> None:
    plan = recipes.load("iaa")
    assert [list(s.parts) for s in plan.stages] == [
        ["projector"],
        ["projector", "graft.iaa.image"],
        ["projector", "graft.iaa.image"],
        ["graft.iaa.grounding"],
    ]
    assert plan.stages[3].settings == {"iaa": {"inherit": "image"}}
    assert [s.batch_size * s.gradient_accumulation for s in plan.stages] == [256, 256, 128, 128]
    assert plan.model.options["branches"] == ["image", "grounding"]


def test_each_stage_trains_its_branch_and_the_last_starts_from_the_first(tmp_path: Path) -> None:
    built = published()
    seen: dict[str, dict[str, torch.Tensor]] = {}

    def look(report: StepReport) -> None:
        if report.step == 1:
            seen[report.stage] = state(built)

    run(built, tmp_path / "run", on_step=look)
    after, graft = state(built), built.graft("iaa")
    image = [n for n in after if ".sets.image." in n]
    assert image and all(torch.equal(after[n], seen["grounding"][n]) for n in image)
    moved = [n for n in image if not torch.equal(after[n], seen["projector"][n])]
    assert moved, "the branch of images has trained"
    # The grounding layers are two small steps away from the image layers, and far from where they began.
    for name, own in graft.sets["grounding"].named_parameters():
        other = graft.sets["image"].get_parameter(name)
        assert (own - other).abs().max() <= 0.021, name
    assert built.guarantee == "exact" and tsugiki.verify(built, answers=2, max_new_tokens=4).holds


@pytest.mark.parametrize("at", ["align", "grounding"])
def test_a_stopped_run_continues_to_the_same_weights(tmp_path: Path, at: str) -> None:
    whole = published()
    run(whole, tmp_path / "whole")

    def stop(report: StepReport) -> None:
        if report.stage == at and report.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(published(), tmp_path / "run", on_step=stop)
    again = published()
    run(again, tmp_path / "run", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(state(whole).values(), state(again).values(), strict=True))


def test_the_demo_recipe_trains(tmp_path: Path) -> None:
    built = model("iaa", layers=2)
    assert recipes.load("iaa-demo").model.options == {"layers": 6}
    result = train(
        built, "iaa-demo", tmp_path / "run", data=samples(8), progress=False, features=cache(built, tmp_path),
        overrides=["steps=3", "batch_size=2"],
    )  # fmt: skip
    assert len(result.losses) == 3 and tsugiki.verify(built, answers=2, max_new_tokens=4).holds


def test_a_part_that_is_no_branch_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"graft\.iaa\.image"):
        train(
            model("iaa", layers=2), "iaa-demo", tmp_path / "run", data=samples(4), progress=False,
            overrides=["stages.main.train.graft.iaa.images=1e-3"],
        )  # fmt: skip


def test_samples_of_a_branch_that_does_not_train_are_told(tmp_path: Path) -> None:
    built = published()
    data = {name: samples(4) for name in ("align", "instruct", "grounding")}
    with pytest.raises(RecipeError, match="branch 'image', which does not train here"):
        train(built, "iaa", tmp_path / "run", data=data, overrides=[*SHORT, *SEEN], progress=False)
