"""Recipes: what is shipped can be read, what is wrong is one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tsugiki.errors import RecipeError, UnknownNameError
from tsugiki.training import recipe as recipes
from tsugiki.training._demos import Demos
from tsugiki.training.recipe import FOLDER, Recipe, Source, Stage, WarmStart, available, load


def text(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(content, encoding="utf-8")
    return path


SMALL: dict[str, Any] = {"stages": [{"train": {"projector": 1e-3}, "data": {"train": 1}, "steps": 5}]}


def test_shipped_recipes() -> None:
    expected = {
        "projector",
        "cross_attention",
        "lora",
        "wings",
        "wings-demo",
        "demo/scenes",
        "demo/scenes-wings",
        "demo/fabric",
    }
    assert expected <= set(available())


@pytest.mark.parametrize("name", available())
def test_every_shipped_recipe_loads_and_opens_with_its_command(name: str) -> None:
    recipe = load(name)
    assert recipe.description.endswith(".")
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# tsugiki train {name} ")
    assert recipe.name == Path(name).name


@pytest.mark.parametrize("name", available())
def test_written_and_read_again_is_the_same(name: str, tmp_path: Path) -> None:
    recipe = load(name)
    assert load(text(tmp_path, recipe.to_yaml())) == recipe


@pytest.mark.parametrize("model", [Recipe, Stage, Source, Demos, WarmStart, recipes.ModelSpec])
def test_every_field_has_a_docstring(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_short_forms(tmp_path: Path) -> None:
    stage = {"train": {"projector": "1e-3"}, "steps": 1, "warm_start": True}
    one = load({"stages": [{**stage, "data": "scenes"}]}).stages[0]
    assert one.data == {"scenes": Source()} and one.warm_start == WarmStart() and one.train == {"projector": 1e-3}
    two = load({"stages": [{**stage, "data": {"a": 3, "b": "b.jsonl", "c": {"replay": "in_picture"}}}]}).stages[0]
    assert two.data["a"].weight == 3 and two.data["b"].path == Path("b.jsonl") and two.data["c"].replay == "in_picture"
    assert load({"stages": [{**stage, "data": "x", "warm_start": False}]}).stages[0].warm_start is None


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    sources = {"a": "x/a.jsonl", "b": {"path": "b.jsonl"}}
    data = load(text(tmp_path, yaml.safe_dump(with_stage(data=sources)))).stages[0].data
    assert data["a"].path == tmp_path / "x/a.jsonl" and data["b"].path == tmp_path / "b.jsonl"


# -- errors: file, key, what was found, what was expected, what to do --------------------------------------------------


def wrong(fields: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        load(fields)
    return str(caught.value)


def with_stage(**fields: Any) -> dict[str, Any]:
    return {"stages": [{**SMALL["stages"][0], **fields}]}


def test_unknown_keys_name_the_nearest_and_the_place(tmp_path: Path) -> None:
    assert "stages.0.batchsize: unknown key 'batchsize'" in wrong(with_stage(batchsize=4))
    assert "Did you mean 'batch_size'?" in wrong(with_stage(batchsize=4))
    assert "Did you mean 'stages'?" in wrong({**SMALL, "stage": 1})
    message = wrong(with_stage(data={"train": {"wieght": 1}}))
    assert "stages.0.data.train.wieght" in message and "Did you mean 'weight'?" in message
    message = wrong(with_stage(warm_start={"sample": 5}))
    assert "stages.0.warm_start.sample" in message and "'samples'" in message
    assert "model.visoin" in wrong({**SMALL, "model": {"visoin": "x"}})
    path = text(tmp_path, "stages: []\nsede: 1\n")
    with pytest.raises(RecipeError, match=r"own\.yaml"):
        load(path)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'demo/scenes'"):
        load("demo/scene")
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: there is no such file"):
        load("nowhere.yaml")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (with_stage(train={}), "trains nothing"),
        (with_stage(train={"projector": 0}), "trains nothing"),
        (with_stage(minutes=3), "both is given"),
        ({"stages": [{"train": {"projector": 1}, "data": "a"}]}, "neither is given"),
        (with_stage(data={}), "data is empty"),
        ({"stages": []}, "stages"),
        ({}, "stages: the key is missing"),
        (with_stage(batch_size=0), "greater than 0"),
        (with_stage(train={"projector": -1}), "stages.0.train.projector"),
        (with_stage(train={"projector": "fast"}), "found 'fast'"),
        (with_stage(train={"projector": float("nan")}), "finite"),
        (with_stage(warmup=1.5), "less than 1"),
        (with_stage(scheduler="cosin"), "'cosine'"),
        ({"stages": [SMALL["stages"][0] | {"name": "a"}] * 2}, "two stages are called 'a'"),
        (with_stage(data={"a": {"replay": "inpicture"}}), "'in_picture'"),
    ],
)
def test_wrong_values(fields: dict[str, Any], said: str) -> None:
    message = wrong(fields)
    assert said in message and message.startswith("recipe")


def test_yaml_errors_have_a_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"own\.yaml:2"):
        load(text(tmp_path, "stages:\n  - {a: [}\n"))
    with pytest.raises(RecipeError, match=r"own\.yaml:3: the key 'seed' is given twice"):
        load(text(tmp_path, "seed: 1\nstages: []\nseed: 2\n"))
    with pytest.raises(RecipeError, match="found list; expected keys and values"):
        load(text(tmp_path, "- a\n"))
    with pytest.raises(RecipeError, match="found nothing"):
        load(text(tmp_path, ""))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not YAML"):
        load(tmp_path / "binary.yaml")


def test_no_code_in_yaml(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="could not determine a constructor"):
        load(text(tmp_path, "seed: !!python/object/apply:os.getcwd []\n"))


def test_a_stage_of_a_warm_start_alone_is_allowed() -> None:
    assert load({"stages": [{"data": "a", "steps": 0, "warm_start": True}]}).stages[0].steps == 0


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(RecipeError, match="seed"):
        load("projector", [f"seed={seed}"])
