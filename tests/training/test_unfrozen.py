"""What of the LLM trains: frozen, trainable, the last k layers, or a LoRA in its place; and the recipes that use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training._tiny import cache, model, recipe, samples, state

import tsugiki
from tsugiki import build
from tsugiki.errors import RecipeError
from tsugiki.training import parts
from tsugiki.training import recipe as recipes
from tsugiki.training.trainer import train


def run(built: Any, folder: Path, **stage: Any) -> set[str]:
    """Names of the parameters that changed."""
    before = state(built)
    plan = recipe("projector", "llm", steps=2, batch_size=2, **stage)
    train(built, plan, folder / "run", data=samples(4), progress=False, features=cache(built, folder))
    return {n for n, p in built.named_parameters() if not torch.equal(p, before[n])}


def llm_of(names: set[str]) -> set[str]:
    return {n for n in names if n.startswith("language_model.")}


def test_all_of_the_llm(tmp_path: Path) -> None:
    built = model()
    changed = run(built, tmp_path)
    assert "language_model.model.embed_tokens.weight" in changed and built.guarantee == "bounded"


def test_a_frozen_llm_whatever_its_rate(tmp_path: Path) -> None:
    built = model()
    assert not llm_of(run(built, tmp_path, llm="frozen")) and built.guarantee == "exact"


@pytest.mark.parametrize(("family", "norm"), [("llama", "model.norm"), ("gpt2", "transformer.ln_f")])
def test_the_last_layers_and_their_norm(family: str, norm: str, tmp_path: Path) -> None:
    built = model(family=family)
    changed = {n.removeprefix("language_model.") for n in llm_of(run(built, tmp_path, llm="last_2"))}
    layers = {".".join(n.split(".")[:3]) for n in changed if not n.startswith(norm)}
    body = norm.split(".")[0] + (".layers" if family == "llama" else ".h")
    assert layers == {f"{body}.2", f"{body}.3"} and any(n.startswith(norm) for n in changed)
    assert built.guarantee == "bounded" and not built.training
    rows = {r["part"]: r for r in parts.table(built, {"projector": 1.0, "llm.last_2": 1.0})}
    every = sum(p.numel() for p in built.language_model.parameters())
    assert rows["llm.last_2"]["trains"] and not rows["llm"]["trains"]
    assert rows["llm.last_2"]["parameters"] + rows["llm"]["parameters"] == every
    saved = built.save(tmp_path / "graft")
    again = tsugiki.load(saved, base=model(family=family).detach(), tokenizer=built.tokenizer,
                         vision=built.frontend.tower)  # fmt: skip
    assert again.guarantee == "bounded"
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), built.parameters(), strict=True))


def test_a_stopped_run_of_the_last_layers_continues(tmp_path: Path) -> None:
    def go(name: str, stop: int | None = None) -> Any:
        built = model()

        def watch(report: Any) -> None:
            if report.step == stop:
                raise KeyboardInterrupt

        plan = recipe("projector", "llm", steps=4, batch_size=2, llm="last_1")
        options = {"progress": False, "features": cache(built, tmp_path), "on_step": watch}
        train(built, plan, tmp_path / name, data=samples(4), **options)
        return built

    whole = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("cut", 2)
    again = go("cut")
    assert again.guarantee == "bounded"
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_a_lora_in_its_place(tmp_path: Path) -> None:
    built = model("lora", rank=2)
    changed = run(built, tmp_path, llm="lora")
    assert not llm_of(changed) and any(n.startswith("grafts.") for n in changed)
    assert built.guarantee == "exact" and tsugiki.verify(built, answers=2, max_new_tokens=4).holds


@pytest.mark.parametrize(
    ("stage", "graft", "said"),
    [
        ({"llm": "lora"}, "projector", "unknown part 'graft.lora'"),
        ({"llm": "last_9"}, "projector", "last_9 of an LLM of 4 layers; expected last_1 to last_4"),
        ({"llm": "last_0"}, "projector", "found 'last_0'"),
        ({"train": {"llm.last_0": 1e-3}}, "projector", "unknown part 'llm.last_0'"),
        ({"llm": "last_1", "train": {"projector": 1e-3}}, "projector", "last_1 without a rate"),
        ({"llm": "half"}, "projector", "found 'half'"),
        ({"llm": "lora", "train": {"llm": 1e-3, "graft.lora": 1e-3}}, "lora", "which has one too; leave one out"),
    ],
)
def test_what_is_wrong_is_told(stage: dict[str, Any], graft: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        run(model(graft), tmp_path, **stage)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_methods_and_their_recipes() -> None:
    assert {"full_finetune", "sphinx"} <= set(tsugiki.methods())
    assert build.preset("sphinx").recipe == "sphinx-demo" and build.preset("full_finetune").recipe == "full_finetune"
    published = recipes.load("sphinx")
    assert [s.batch_size * s.gradient_accumulation for s in published.stages] == [704, 128]
    text = published.stages[0].data["text"]
    assert published.stages[0].batch_size * text.pack_length == 65536 and published.stages[0].by_kind
    assert all(s.parts.keys() == {"projector", "llm"} for s in published.stages)


@pytest.mark.parametrize("llm", ["trainable", "last_2", "frozen"])
def test_the_full_recipe_runs(llm: str, tmp_path: Path) -> None:
    built = model()
    result = train(
        built, "full_finetune", tmp_path / "run", data=samples(8), progress=False, features=cache(built, tmp_path),
        overrides=["steps=2", "batch_size=2", f"llm={llm}"],
    )  # fmt: skip
    assert len(result.losses) == 2 and built.guarantee == ("exact" if llm == "frozen" else "bounded")
