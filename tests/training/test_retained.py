"""Text loss against the base while the LLM trains: measured, a budget that stops, and one pull towards the base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.training._tiny import cache, model, recipe, samples, state
from torch.nn import functional as F

from tsugiki.errors import DataError, RecipeError
from tsugiki.testing import TinyTower, tiny_llm, tiny_tokenizer
from tsugiki.training import recipe as recipes
from tsugiki.training import retained
from tsugiki.training.limits import Retention
from tsugiki.training.trainer import train
from tsugiki.types import Message, Sample

TEXTS = [f"Text number {i} is about {'things ' * (1 + i % 4)}and ends." for i in range(8)]
DOCUMENTS = [Sample(id=f"d{i}", messages=(Message.of("assistant", "word " * (3 + i % 5)),)) for i in range(6)]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LLM that knows the texts, so that it has something to lose."""
    llm, tokenizer = tiny_llm(), tiny_tokenizer()
    inputs = tokenizer(TEXTS, add_special_tokens=False, padding=True, return_tensors="pt")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(llm.parameters(), lr=1e-2)
    for _ in range(40):
        llm(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("learned")
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def base(learned: Path, tmp_path: Path) -> Path:
    """Its folder; and the texts in a file."""
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    return learned


def loaded(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    import tsugiki

    llm = AutoModelForCausalLM.from_pretrained(base)
    return tsugiki.attach(llm, "projector", vision=TinyTower(), tokenizer=tiny_tokenizer())


def run(built: Any, folder: Path, name: str = "run", *, on_step: Any = None, **limits: Any) -> Any:
    limits = {"every": 2, "texts": str(folder / "texts.txt"), **limits}
    stage = {k: limits.pop(k) for k in ("steps", "llm", "train") if k in limits}
    plan = recipe("projector", "llm", retention=limits, batch_size=2, **{"steps": 6, **stage})
    features = cache(built, folder)
    return train(built, plan, folder / name, data=samples(4), progress=False, features=features, on_step=on_step)


def logged(folder: Path, name: str = "run") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]


def test_the_rise_is_the_mean_over_all_tokens(base: Path, tmp_path: Path) -> None:
    built = loaded(base)
    limits = Retention(texts=tmp_path / "texts.txt")
    watch = retained.Watch.begin(built, limits)
    assert watch.measure(built).difference == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for p in built.language_model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    total = tokens = 0
    for text in TEXTS:
        ids = [built.tokenizer.bos_token_id, *built.tokenizer(text, add_special_tokens=False)["input_ids"]]
        logits = built.language_model(input_ids=torch.tensor([ids])).logits[0].double()
        for t in range(len(ids) - 1):
            total -= float(F.log_softmax(logits[t], -1)[ids[t + 1]])
        tokens += len(ids) - 1
    assert watch.measure(built).value == pytest.approx(total / tokens, rel=1e-5)


def test_it_is_measured_and_stored_when_due(base: Path, tmp_path: Path) -> None:
    built = loaded(base)
    result = run(built, tmp_path, every=4, budget=100)
    rows = logged(tmp_path)
    assert [r["step"] for r in rows if "retention" in r] == [4, 6]  # and the last step
    last = rows[-1]["retention"]
    assert last["held"] and not last["stopped"] and last["rise"] == pytest.approx(last["loss"] - last["base"])
    assert [r["step"] for r in result.reports["0"]["retention"]] == [4, 6]
    assert json.loads((tmp_path / "run/result.json").read_text())["reports"]["0"]["retention"][-1]["held"]


def test_a_broken_budget_stops_the_stage_and_stays_stopped(base: Path, tmp_path: Path) -> None:
    result = run(loaded(base), tmp_path, budget=1e-4)
    assert result.steps == 2 and logged(tmp_path)[-1]["retention"]["stopped"]
    again = run(loaded(base), tmp_path, budget=1e-4)
    assert again.steps == 2 and again.losses == result.losses
    assert again.reports["0"]["retention"][-1]["stopped"]


def test_measuring_changes_no_number(base: Path, tmp_path: Path) -> None:
    watched, plain = loaded(base), loaded(base)
    run(watched, tmp_path, budget=100)
    fields = recipe("projector", "llm", batch_size=2, steps=6)
    train(plain, fields, tmp_path / "plain", data=samples(4), progress=False, features=cache(plain, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("llm", ["trainable", "last_2"])
def test_a_pull_blends_with_the_base_within_the_room(llm: str, base: Path, tmp_path: Path) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}
    theta: dict[str, torch.Tensor] = {}
    built = loaded(base)
    start = state(built)
    free = loaded(base)
    run(
        free, tmp_path, "free", budget=100, steps=3, llm=llm,
        on_step=lambda report: theta.update(state(free) if report.step == 2 else {}),
    )  # fmt: skip
    score = logged(tmp_path, "free")[1]["retention"]
    budget = 0.6 * score["worst"]

    def keep(report: Any) -> None:
        seen[report.step] = state(built)

    run(built, tmp_path, budget=budget, pull=True, llm=llm, on_step=keep, bisections=5, steps=3)
    rows = [r for r in logged(tmp_path) if "beta" in r.get("retention", {})]
    assert [r["step"] for r in rows] == [2]  # once
    found = rows[0]["retention"]
    beta = found["beta"]
    assert 0 < beta < 1 and math.isclose(beta * 32, round(beta * 32)) and found["worst"] <= budget / 2
    assert found["worst_before"] == score["worst"]
    moved = 0
    for name, value in seen[2].items():
        whole = theta[name]
        if name.startswith("language_model."):
            moved += int(not torch.equal(whole, start[name]))
            whole = (beta * theta[name].double() + (1 - beta) * start[name].double()).float()
        torch.testing.assert_close(value, whole, rtol=1e-5, atol=1e-6)
    assert moved
    assert not list((tmp_path / "run" / "checkpoints").glob(".theta*"))


def test_a_second_break_stops(base: Path, tmp_path: Path) -> None:
    result = run(loaded(base), tmp_path, budget=1e-3, pull=True, steps=8)
    found = {r["step"]: r["retention"] for r in logged(tmp_path) if "retention" in r}
    assert "beta" in found[2] and not found[2]["stopped"] and found[2]["held"]
    assert found[4]["stopped"] and result.steps == 4


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_stopped_run_continues_through_a_pull(at: int, base: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(report: Any) -> None:
        if report.step == at:
            raise Stop

    options = {"budget": 0.01, "pull": True, "steps": 4, "every": 2}
    whole = loaded(base)
    run(whole, tmp_path, "whole", **options)
    with pytest.raises(Stop):
        run(loaded(base), tmp_path, "cut", on_step=stop, **options)
    again = loaded(base)
    run(again, tmp_path, "cut", **options)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))
    logs = [[r.get("retention") for r in logged(tmp_path, name)] for name in ("whole", "cut")]
    assert logs[0] == logs[1] and any(r and "beta" in r for r in logs[0])


def test_the_ends_of_a_blend_are_the_parents_bits(base: Path, tmp_path: Path) -> None:
    built = loaded(base)
    built.freeze_llm(False)
    start = state(built)
    theta = {n: p.detach() + 0.1 for n, p in built.named_parameters() if n.startswith("language_model.")}
    save_file(theta, tmp_path / "theta.safetensors")
    retained.blend(built, tmp_path / "theta.safetensors", 1.0)
    assert all(torch.equal(p, theta[n]) for n, p in built.named_parameters() if n in theta)
    retained.blend(built, tmp_path / "theta.safetensors", 0.0)
    assert all(torch.equal(p, start[n]) for n, p in built.named_parameters())
    with safe_open(tmp_path / "theta.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(theta)


def test_a_second_stage_is_measured_against_the_source(base: Path, tmp_path: Path) -> None:
    built = loaded(base)
    run(built, tmp_path, "first", budget=100, steps=2)
    first = logged(tmp_path, "first")[-1]["retention"]
    run(built, tmp_path, "second", budget=100, steps=2)
    second = logged(tmp_path, "second")[-1]["retention"]
    assert second["base"] == pytest.approx(first["base"], rel=1e-6) and second["loss"] != first["loss"]


def test_what_cannot_be_watched(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages\.0\.retention: .*they do not: text requests stay exact"):
        run(loaded(base), tmp_path, train={"projector": 1e-3})
    built = model()
    with pytest.raises(RecipeError, match="has no source files here"):
        run(built, tmp_path, pull=True)
    with pytest.raises(DataError, match=r"none\.txt: can't be read"):
        run(loaded(base), tmp_path, texts=str(tmp_path / "none.txt"))
    with pytest.raises(RecipeError, match="unknown key 'budgets'.*Did you mean 'budget'"):
        run(loaded(base), tmp_path, budgets=0.1)


def test_texts_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "stages: [{train: {llm: 1.0e-5}, data: x, steps: 1, retention: {texts: held.txt}}]", encoding="utf-8"
    )
    limits = recipes.load(tmp_path / "r.yaml").stages[0].retention
    assert limits is not None and limits.texts == tmp_path / "held.txt"


def test_the_demo_recipe_runs(base: Path, tmp_path: Path) -> None:
    built = loaded(base)
    result = train(
        built, "sphinx-demo", tmp_path / "run", data={"train": samples(6), "text": DOCUMENTS}, progress=False,
        features=cache(built, tmp_path), overrides=[
            "steps=6", "batch_size=2", f"stages.main.retention.texts={tmp_path / 'texts.txt'}",
            "stages.main.retention.every=3",
        ],
    )  # fmt: skip
    found = result.reports["main"]
    assert 0 < found["text"]["share"] < 1 and [r["step"] for r in found["retention"]][-1] == result.steps
    assert built.guarantee == "bounded"


def test_a_run_does_not_go_on_with_other_texts(base: Path, tmp_path: Path) -> None:
    def stop(report: Any) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(loaded(base), tmp_path, budget=9.0, on_step=stop)
    (tmp_path / "texts.txt").write_text("\n\n".join(f"{text} Indeed." for text in TEXTS), encoding="utf-8")
    with pytest.raises(DataError, match="other texts than this run began with"):
        run(loaded(base), tmp_path, budget=9.0)
