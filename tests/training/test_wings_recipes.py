"""WINGS by its recipes: which part trains in which stage, at which rate, and what a wrong recipe is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training._tiny import cache, model, samples, state

import tsugiki
from tsugiki import build
from tsugiki.errors import RecipeError
from tsugiki.studies import _making
from tsugiki.testing import TinyTower, tiny_llm, tiny_tokenizer
from tsugiki.training import parts
from tsugiki.training import recipe as recipes
from tsugiki.training.trainer import StepReport, TrainResult, train
from tsugiki.types import Message, Sample

# Rates at which two steps can be seen; the shipped ones are for 7B.
SHORT = ["steps=2", "batch_size=2", "save_steps=1", "warmup=0", "scheduler=constant"]
SEEN = [
    "stages.align.train.projector=1e-3", "stages.align.train.graft.wings.visual=1e-2",
    "stages.instruct.train.projector=1e-3", "stages.instruct.train.graft.wings=1e-2", "stages.instruct.train.llm=1e-3",
]  # fmt: skip
TEXT = [
    Sample(id=f"text {i}", messages=(Message.of("user", "Hello?" * (i + 1)), Message.of("assistant", "Hello.")))
    for i in range(2)
]


class Stop(Exception):
    """Stands for whatever ends a run too early."""


def published(**options: Any) -> Any:
    return model("wings", **{"rank": 4, "width": 256, "llm": "trainable", **options})


def run(built: Any, tmp_path: Path, *overrides: str, name: str = "run", **options: Any) -> TrainResult:
    given: dict[str, Any] = {
        "data": {"align": samples(8), "instruct": [*samples(8), *TEXT]}, "progress": False,
        "features": cache(built, tmp_path), **options,
    }  # fmt: skip
    return train(built, "wings", tmp_path / name, overrides=[*SHORT, *SEEN, *overrides], **given)


def changed(built: Any, before: Mapping[str, torch.Tensor]) -> dict[str, set[str]]:
    """Part -> names of parameters that are no longer what they were."""
    asked = ["graft.wings.visual"]
    return {
        part: {n for n, p in content.items() if not torch.equal(p, before[n])}
        for part, content in parts.parts_of(built, asked).items()
    }


def logits(built: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = built(**built.processor.encode(samples(1)[0].messages)).logits
    return out


# -- the published recipe ----------------------------------------------------------------------------------------------


def test_the_published_settings() -> None:
    plan = recipes.load("wings")
    align, instruct = plan.stages
    assert plan.model.options["rank"] == 64 and plan.model.options["llm"] == "trainable" and plan.precision == "bf16"
    assert plan.model.dtype == "float32"  # the LLM trains
    assert align.parts == {"projector": 2e-5, "graft.wings.visual": 2e-5}
    assert instruct.parts == {"projector": 1e-5, "graft.wings": 2e-6, "llm": 2e-6}
    assert [s.settings["wings"]["active"] for s in plan.stages] == ["visual", "both"]
    assert [s.batch_size * s.gradient_accumulation for s in plan.stages] == [256, 64]
    assert [s.weight_decay for s in plan.stages] == [1e-9, 1e-8]
    assert [s.steps for s in plan.stages] == [3900, 9400]
    for stage in plan.stages:
        assert (stage.scheduler, stage.warmup, stage.max_grad_norm) == ("cosine", 0.03, 1.0)
        assert stage.gradient_checkpointing and stage.max_length == 2048


def test_first_the_visual_learners_then_everything(tmp_path: Path) -> None:
    built = published()
    start, seen = state(built), {}

    def on_step(report: StepReport) -> None:
        if report.step == 2:
            seen[report.stage] = changed(built, start), dict(built.config.grafts[-1]["config"]), state(built)

    result = run(built, tmp_path, on_step=on_step)
    first, settings, middle = seen["align"]
    assert settings["active"] == "visual"
    assert {part for part, names in first.items() if names} == {"projector", "graft.wings.visual"}
    second = changed(built, middle)
    assert {part for part, names in second.items() if names} == set(second) - {"tower", "graft.projector"}
    assert built.graft("wings").config.active == "both" and result.steps == 4

    assert built.guarantee == "bounded" and not any(p.requires_grad for p in built.language_model.parameters())
    saved = json.loads((result.graft / "config.json").read_text(encoding="utf-8"))
    wings = next(g for g in saved["grafts"] if g["name"] == "wings")
    assert wings["config"]["active"] == "both" and wings["config"]["llm"] == "trainable" and saved["llm_trained"]
    loaded = tsugiki.load(result.graft, base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower())
    assert loaded.guarantee == "bounded" and torch.equal(logits(loaded), logits(built))


def test_the_table_gives_each_part_its_rate(tmp_path: Path) -> None:
    run(published(), tmp_path)
    tables = json.loads((tmp_path / "run/parts.json").read_text())
    align = {row["part"]: row["lr"] for row in tables["align"]}
    assert align["graft.wings.visual"] == 1e-2 and align["graft.wings.textual"] is None and align["llm"] is None
    instruct = {row["part"]: row["lr"] for row in tables["instruct"]}
    assert (instruct["graft.wings"], instruct["llm"]) == (1e-2, 1e-3)


def test_parts_of_a_graft_are_groups_of_their_own() -> None:
    built = published()
    rates = {"graft.wings.visual": 1e-3, "graft.wings.textual": 1e-4, "graft.wings.router": 1e-5}
    groups = parts.groups(built, rates, 0.1)
    assert {g["lr"] for g in groups} == set(rates.values())
    ids = [id(p) for g in groups for p in g["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in built.graft("wings").parameters()}


@pytest.mark.parametrize("same", [False, True], ids=["another model", "the same model"])
def test_a_run_that_stopped_in_the_second_stage_goes_on_in_it(tmp_path: Path, same: bool) -> None:
    whole = published()
    expected = run(whole, tmp_path, name="whole")

    def stop(report: StepReport) -> None:
        if (report.stage, report.step) == ("instruct", 2):
            raise Stop

    built = published()
    with pytest.raises(Stop):
        run(built, tmp_path, on_step=stop)
    again = built if same else published()
    actives: list[str] = []
    result = run(again, tmp_path, on_step=lambda report: actives.append(again.graft("wings").config.active))
    assert result.resumed and actives == ["both"] and result.losses == expected.losses
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_a_run_that_is_done_gives_the_settings_again(tmp_path: Path) -> None:
    fields = {
        "train": {"graft.wings.visual": 1e-2}, "data": "train", "steps": 1, "batch_size": 2,
        "settings": {"wings": {"active": "visual"}},
    }  # fmt: skip
    for _ in range(2):
        built = model("wings", rank=4)
        result = train(
            built, {"stages": [fields]}, tmp_path / "run", data=samples(4), progress=False,
            features=cache(built, tmp_path),
        )  # fmt: skip
        assert built.graft("wings").config.active == "visual"
        saved = json.loads((result.graft / "config.json").read_text(encoding="utf-8"))
        assert saved["grafts"][-1]["config"]["active"] == "visual"


# -- the recipe for the assets, and the method -------------------------------------------------------------------------


def test_the_demo_recipe_leaves_the_llm(tmp_path: Path) -> None:
    built = model("wings", **recipes.load("wings-demo").model.options)
    before = state(built)
    overrides = ["steps=4", "batch_size=2", "warmup=0", "stages.main.train.graft.wings=1e-2"]
    features = cache(built, tmp_path)
    train(
        built, "wings-demo", tmp_path / "run", data=samples(8), overrides=overrides, features=features, progress=False
    )
    found = changed(built, before)
    assert not found["llm"] and all(found[f"graft.wings.{p}"] for p in ("visual", "textual", "router"))
    assert built.guarantee == "exact"


def test_the_method_takes_the_recipe_that_suits_it() -> None:
    assert build.preset("wings").recipe == "wings-demo" and build.preset("projector").recipe == "projector"
    plan = _making.Maker(base="").plan(("wings",))
    assert plan.name == "wings-demo" and plan.stages[0].steps == _making.STEPS and "llm" not in plan.stages[0].train


# -- what is wrong is said before anything starts ----------------------------------------------------------------------


def refused(tmp_path: Path, *overrides: str, built: Any = None, **options: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        run(built if built is not None else published(), tmp_path, *overrides, **options)
    assert not (tmp_path / "run" / "checkpoints").exists()
    return str(caught.value)


def test_the_published_recipe_on_a_frozen_wings_names_the_setting(tmp_path: Path) -> None:
    built = model("wings", rank=4)
    before = state(built)
    message = refused(tmp_path, built=built)
    assert "stages.1.train.llm" in message and "expected llm: trainable" in message and "wings-demo" in message
    assert built.guarantee == "exact" and all(torch.equal(p, before[n]) for n, p in built.named_parameters())
    assert built.graft("wings").config.active == "both"  # what stage 0 sets was not left behind


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.align.settings.wings.active=visaul", ("stages.0.settings.wings", "Did you mean 'visual'")),
        ("stages.align.settings.wings.rank=8", ("stages.0.settings.wings", "'rank'", "active, scale")),
        ("stages.instruct.settings.wings.scale=much", ("stages.1.settings.wings", "scale = 'much'", "a number")),
        ("stages.align.settings.wing.active=both", ("stages.0.settings.wing", "Did you mean 'wings'")),
        ("stages.align.train.graft.wings.visaul=1e-3", ("unknown part", "Did you mean 'graft.wings.visual'")),
        ("stages.align.train.graft.wings.textual=1e-3", ("stages.0.train.graft.wings.textual", "trains nothing")),
        ("stages.align.train.graft.wings.router=1e-3", ("stages.0.train.graft.wings.router", "trains nothing")),
    ],
)
def test_wrong_settings_and_parts(override: str, said: tuple[str, ...], tmp_path: Path) -> None:
    message = refused(tmp_path, override)
    assert "\n" not in message and all(words in message for words in said), message


def test_text_alone_teaches_the_first_stage_nothing(tmp_path: Path) -> None:
    message = refused(tmp_path, data={"align": [*samples(4), *TEXT], "instruct": samples(4)})
    assert "stages.0.data.align" in message and "text only" in message


def test_text_alone_teaches_the_second_stage(tmp_path: Path) -> None:
    text = [replace(s, id=f"{s.id}, alone") for s in TEXT]
    built = published()
    result = run(built, tmp_path, data={"align": samples(4), "instruct": text})
    assert result.steps == 4
