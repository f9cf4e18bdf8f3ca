"""`key=value` overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsugiki.errors import RecipeError
from tsugiki.training._settings import _keys
from tsugiki.training.recipe import load


def test_every_form() -> None:
    recipe = load("demo/scenes", ["seed=7", "stages.scenes.train.projector=2e-3", "stages.0.batch_size=4"])
    assert recipe.seed == 7 and recipe.stages[0].train["projector"] == 2e-3 and recipe.stages[0].batch_size == 4


def test_a_stages_key_alone_is_for_all_stages() -> None:
    stage = {"train": {"projector": 1}, "data": "a", "steps": 1}
    recipe = load({"stages": [stage, stage]}, ["batch_size=3", "train.graft.lora=1e-4"])
    assert [s.batch_size for s in recipe.stages] == [3, 3]
    assert recipe.stages[1].train["graft.lora"] == 1e-4
    both = load({"stages": [{**stage, "name": "a"}, {**stage, "name": "b"}]}, ["stages.b.train.graft.lora=1e-4"])
    assert [len(s.train) for s in both.stages] == [1, 2]


def test_steps_take_the_place_of_minutes_and_back() -> None:
    stage = load("demo/scenes", ["steps=10"]).stages[0]
    assert stage.steps == 10 and stage.minutes is None
    assert load("projector", ["minutes=0.5"]).stages[0].minutes == 0.5


def test_paths_of_overrides_are_as_typed() -> None:
    recipe = load("projector", ["data.train.path=here/a.jsonl", "data.train.weight=2"])
    assert recipe.stages[0].data["train"].path == Path("here/a.jsonl") and recipe.stages[0].data["train"].weight == 2


def test_the_short_form_of_data_grows_when_a_field_is_set() -> None:
    fields = {"stages": [{"train": {"projector": 1}, "data": "a", "steps": 1}]}
    assert load(fields, ["data.a.replay=in_picture"]).stages[0].data["a"].replay == "in_picture"
    assert load(fields, ["warm_start.samples=5"]).stages[0].warm_start.samples == 5  # type: ignore[union-attr]
    assert fields["stages"][0]["data"] == "a"  # the caller's dict is left alone


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("stpes=3", "Did you mean 'steps'"),
        ("stages.scene.steps=3", "no stage 'scene'; expected stages.<one of scenes>"),
        ("stages.5.steps=3", "no stage '5'"),
        ("stages=3", "no stage"),
        ("stages.scenes.stpes=3", "Did you mean 'steps'"),
        ("seed=[", "not YAML"),
        ("steps=many", "found 'many'"),
        ("seed.x=1", "seed"),
    ],
)
def test_wrong_ones(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("demo/scenes", [override])
    assert said in str(caught.value)


def test_a_source_may_be_called_train() -> None:
    assert _keys("data.train.demos.most") == ["data", "train", "demos", "most"]
    assert _keys("stages.main.data.train.weight") == ["stages", "main", "data", "train", "weight"]
    assert _keys("stages.train.train.graft.wings") == ["stages", "train", "train", "graft.wings"]
    assert _keys("train.graft.wings") == ["train", "graft.wings"]
