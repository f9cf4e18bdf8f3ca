"""LynX by a recipe: who teaches in a stage, how its gate is fitted, and what a recipe that can't work is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training._tiny import cache, recipe, state

import tsugiki
from tsugiki.errors import RecipeError
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.training import gating, parts
from tsugiki.training import recipe as recipes
from tsugiki.training.trainer import StepReport, train
from tsugiki.types import Box, BoxPart, Message, Sample

THINGS = ("cup", "dog", "tree", "red car", "sun", "hat", "cat", "blue box", "moon", "key", "pen", "big bird")


def samples(n: int = 24) -> list[Sample]:
    """Questions of places, which are answered by a box, and of names, alternating."""
    pictures, found = tiny_images(4), []
    for i in range(n):
        thing, picture = THINGS[i // 2 % len(THINGS)], pictures[i % 4]
        where = i % 2 == 0
        asked = f"Where is the {thing}?" if where else f"What is beside the {thing}?"
        answer = Message("assistant", (BoxPart(Box(4, 4, 20, 20)),)) if where else Message.of("assistant", "A cup.")
        task = "box" if where else "vqa"
        found.append(Sample(id=str(i), task=task, messages=(Message.of("user", asked, (picture,)), answer)))
    return found


def made(gate: str = "prompt", **options: Any) -> Any:
    return tiny_model("lynx", **{"experts": 2, "gate": gate, **options})


def run(built: Any, tmp_path: Path, fields: Any, data: Any = None, **options: Any) -> Any:
    given = {"data": samples() if data is None else data, "progress": False, "features": cache(built, tmp_path)}
    return train(built, fields, tmp_path / "run", **{**given, **options})


def test_the_gate_is_fitted_before_the_stage_and_judged_on_what_was_held_out(tmp_path: Path) -> None:
    built = made()
    before = state(built)
    result = run(built, tmp_path, recipe("graft.lynx"))
    gate = result.reports["0"]["gate"]
    assert gate["questions"] == 24 and gate["held_out"] == 4 and gate["accuracy"] == 1.0
    assert gate["confusion"] == {"grounding": {"grounding": 2}, "image": {"image": 2}}
    assert json.loads((tmp_path / "run/result.json").read_text())["reports"]["0"]["gate"] == gate
    assert gating.told(gate).startswith("gate: 100.0% of 4 held-out questions right of 24 (")
    moved = {n for n, p in built.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, _ in built.named_parameters() if n.startswith("grafts.")}

    twin = tsugiki.load(result.graft, base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower())
    for question, branch in (("Where is the lamp?", "grounding"), ("What is beside the lamp?", "image")):
        for model in (built, twin):
            picture = (tiny_images(1)[0],)
            inputs = model.processor.encode((Message.of("user", question, picture),), add_generation_prompt=True)
            with torch.no_grad():
                chosen, named = model(**inputs).logits, model(**inputs, branch=branch).logits
                other = model(**inputs, branch="image" if branch == "grounding" else "grounding").logits
            assert torch.equal(chosen, named) and not torch.equal(chosen, other)


def test_only_samples_of_the_branch_that_trains_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, seen = made(), []
    forward = built.forward

    def watched(**inputs: Any) -> Any:
        seen.append(inputs["branch"])
        return forward(**inputs)

    monkeypatch.setattr(built, "forward", watched)
    run(built, tmp_path, recipe("graft.lynx", steps=3))
    assert (torch.cat(seen) == 2).all() and len(torch.cat(seen)) == 12
    seen.clear()
    run(built, tmp_path / "both", recipe("graft.lynx", "projector", steps=3))  # the projector learns from all
    assert set(torch.cat(seen).tolist()) == {1, 2}


def test_a_source_of_which_nothing_teaches_is_for_the_gate(tmp_path: Path) -> None:
    fields = recipe("graft.lynx", data={"boxes": 1, "others": 5}, steps=2)
    data = {"boxes": samples()[::2], "others": samples()[1::2]}
    assert run(made(), tmp_path, fields, data).reports["0"]["gate"]["questions"] == 24


def test_a_run_that_goes_on_keeps_the_gate(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(report: StepReport) -> None:
        if report.step == 2:
            raise Stop

    whole = made()
    want = run(whole, tmp_path / "whole", recipe("graft.lynx"))
    with pytest.raises(Stop):
        run(made(), tmp_path, recipe("graft.lynx"), on_step=stop)
    again = made()
    result = run(again, tmp_path, recipe("graft.lynx"))
    assert result.resumed and result.losses == want.losses and result.reports == want.reports
    assert torch.equal(again.graft("lynx").classifier.weight, whole.graft("lynx").classifier.weight)


def test_without_a_gate_to_fit_every_sample_has_to_teach(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is of the branch 'image', which does not train here"):
        run(made("task"), tmp_path, recipe("graft.lynx"))
    replayed = Sample(id="text", messages=(Message.of("user", "Hello?"), Message.of("assistant", "Hello.")))
    fields = recipe("graft.lynx", data={"train": {"replay": "in_picture"}})
    with pytest.raises(RecipeError, match="'text' is of the branch 'image'"):
        run(made("task"), tmp_path, fields, [*samples()[::2], replayed])
    assert not (tmp_path / "run").exists()
    run(made("soft"), tmp_path, recipe("graft.lynx", steps=1))  # it acts on every branch


@pytest.mark.parametrize("first", [0, 1])
def test_a_gate_needs_both_kinds_of_questions(tmp_path: Path, first: int) -> None:
    alone = ("grounding", "image")[first]
    with pytest.raises(RecipeError, match=f"branch {alone}; expected samples of both") as told:
        run(made(), tmp_path, recipe("graft.lynx"), samples()[first::2])
    assert "stages.0.data" in str(told.value) and not (tmp_path / "run").exists()
    assert run(made("task"), tmp_path, recipe("graft.lynx", steps=1), samples()[::2]).reports == {}


def test_few_questions_are_all_learned_from(tmp_path: Path) -> None:
    gate = run(made(), tmp_path, recipe("graft.lynx", steps=1), samples(2)).reports["0"]["gate"]
    assert gate["held_out"] == 0 and gate["accuracy"] is None
    assert gating.told(gate) == "gate fitted on 2 questions, too few different ones to hold any out"


def test_terms_may_be_set_by_a_stage(tmp_path: Path) -> None:
    losses = {}
    for balance in (0.0, 5.0):
        fields = recipe("graft.lynx", steps=1, settings={"lynx": {"balance": balance, "gate_sparsity": 0.0}})
        losses[balance] = run(made(), tmp_path / str(balance), fields).losses[0]
    assert losses[5.0] > losses[0.0] + 4  # c N sum f p is c at least


def test_parts_train_at_rates_of_their_own() -> None:
    built = made("soft")
    rates = {"graft.lynx.experts": 1e-4, "graft.lynx.router": 1e-2, "graft.lynx.gate": 1e-3}
    found = {row["part"]: row["lr"] for row in parts.table(built, rates)}
    assert rates.items() <= found.items()


def test_the_demo_recipe_end_to_end(tmp_path: Path) -> None:
    plan = recipes.load("lynx-demo")
    built = tiny_model("lynx", **{**plan.model.options, "every": 2})
    result = run(built, tmp_path, "lynx-demo", overrides=["steps=3", "batch_size=4"])
    assert result.steps == 6 and "matched" in result.reports["see"]
    assert result.reports["ground"]["gate"]["accuracy"] == 1.0
    assert built.guarantee == "exact"


def test_the_published_recipe() -> None:
    plan = recipes.load("lynx")
    options, ground = plan.model.options, plan.stages[1]
    assert (options["experts"], options["top_k"], options["every"], options["balance"]) == (4, 2, 2, 0.01)
    assert ground.parts == {"graft.lynx": 2e-5} and ground.batch_size * ground.gradient_accumulation == 128
