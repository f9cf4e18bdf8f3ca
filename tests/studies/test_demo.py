"""The demo's whole path on fakes: three grafts, three proofs, scores, one report; with a starter graft and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tsugiki
from tsugiki import assets, starter, store
from tsugiki.studies import _demo_plan, demo
from tsugiki.studies._build import VISION
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_model, tiny_tokenizer
from tsugiki.training import recipe as recipes
from tsugiki.types import Message, Sample

pytest.importorskip("sklearn")


def asked(folder: Path, task: str, n: int, seed: int) -> list[Sample]:
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for i, picture in enumerate(tiny_images(n, seed=seed)):
        file = folder / f"{task}-{seed}-{i}.png"
        picture.save(file)
        messages = (Message.of("user", "which?", (file,)), Message.of("assistant", "ab"[i % 2]))
        out.append(Sample(id=file.stem, messages=messages, task=task, options=("a", "b")))
    return out


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The demo on tiny models, which are kept here in order, tiny pictures, and no starter graft."""
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "fetch", lambda name, say=None: tmp_path)
    monkeypatch.setattr(assets, "llm_folder", lambda name, say=None: tmp_path)
    monkeypatch.setattr(starter, "FOLDER", tmp_path / "starter")
    monkeypatch.setattr(demo, "fetch_tower", lambda name, say=None: None)
    built: list[Any] = []

    def build_model(base: str, method: Any, vision: str, *, input_size: int, **options: Any) -> Any:
        built.append(tiny_model(method[-1], **options))
        return built[-1]

    def load_graft(name: str, say: Any) -> Any:
        built.append(tsugiki.load(name, base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower()))
        return built[-1]

    monkeypatch.setattr(demo, "build_model", build_model)
    monkeypatch.setattr(demo, "load_graft", load_graft)
    sets: dict[str, Any] = {
        name: (asked(tmp_path / name, task, 12, 0), asked(tmp_path / name, task, 6, 1))
        for name, task in (("scenes", "naming"), ("fabric", "decision"))
    }
    monkeypatch.setattr(demo, "_scenes", lambda folder, seed: sets["scenes"])
    monkeypatch.setattr(demo, "_fabric", lambda seed: sets["fabric"])
    return built


def test_the_whole_path(built: list[Any], tmp_path: Path) -> None:
    said: list[str] = []
    result = demo.run(out=tmp_path / "demo", minutes=0.01, progress=False, say=said.append)
    assert result.holds and [p.name for p in result.parts] == ["scenes-projector", "scenes-wings", "fabric"]
    assert [m.grafts[-1].name for m in built] == ["projector", "wings", "projector"]
    assert built[1].graft("wings").config.rank == 16
    assert all(p.proof.holds and p.proof.guarantee == "exact" and p.proof.answers == 10 for p in result.parts)
    rows = [s.task for s in result.scores if s.metric == "accuracy"]
    assert rows == ["decisions/naming (projector)", "decisions/naming (wings)", "decisions/decision (projector)"]
    page = result.report.read_text(encoding="utf-8")
    assert all(f"Proof about the text: {p.name}" in page and f"{p.name}: Text" in page for p in result.parts)
    assert "naming (wings)" in page and "naming (projector)" in page
    content = json.loads((tmp_path / "demo" / "scores.json").read_text(encoding="utf-8"))
    assert set(content["seconds"]) == set(result.steps)
    compared = [f for f in content["findings"] if f.startswith("scenes: ")]
    assert [f.split(" ")[1] for f in compared] == ["decisions/naming", "vqa/naming"]
    assert all("naming in equal time, the same 6 items: wings after" in f for f in compared)
    assert content["facts"]["minutes of training, scenes-wings"] == 0.005
    assert content["facts"]["minutes of training, fabric"] == 0.01
    assert all((p.graft / "model.safetensors").is_file() for p in result.parts)
    assert (tmp_path / "demo" / "scores.md").read_text(encoding="utf-8").startswith("# Demo")
    assert all(any(line.startswith(f"{p.name}: train") for line in said) for p in result.parts)


def test_the_starter_is_adapted_beside_a_new_graft_of_its_make(built: list[Any], tmp_path: Path) -> None:
    model = tiny_model("wings", rank=4, places=2)
    with torch.no_grad():
        model.frontend.places.weight.normal_(std=0.1)  # fitted
    store.save(model, starter.FOLDER)
    changes = ["model.grafts=[wings]", "model.options.rank=4", "stages.eyes.train.graft.wings=1.0e-3"]
    recipe = recipes.load("demo/starter", changes)
    (starter.FOLDER / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    result = demo.run(out=tmp_path / "demo", minutes=0.01, progress=False, say=lambda _: None)
    assert [p.name for p in result.parts] == ["starter", "fabric-adapted", "fabric-new"] and result.holds
    assert [m.frontend.config.places for m in built] == [2, 2, 0]
    assert all(m.graft("wings").config.rank == 4 for m in built)
    assert store.graft_sha256(built[0]) == store.graft_sha256(model) != store.graft_sha256(built[1])
    assert torch.equal(built[1].frontend.places.weight, model.frontend.places.weight)
    first, adapted, new = result.parts
    assert first.training is None and adapted.training is not None and new.training is not None
    assert "warm_start: null" in (tmp_path / "demo" / "fabric-adapted" / "recipe.yaml").read_text()
    parts = json.loads((tmp_path / "demo" / "fabric-new" / "parts.json").read_text())
    assert "graft.wings" in json.dumps(parts)
    rows = [s.task for s in result.scores if s.metric == "accuracy"]
    labels = ["naming (starter)", "decision (adapted)", "decision (from scratch)"]
    assert rows == [f"decisions/{label}" for label in labels]
    content = json.loads((tmp_path / "demo" / "scores.json").read_text(encoding="utf-8"))
    compared = [f for f in content["findings"] if f.startswith("fabric: ")]
    assert any("decisions/decision in equal time, the same 6 items: from scratch after" in f for f in compared)
    assert set(content["facts"]) == {"seed", *(f"minutes of training, fabric-{n}" for n in ("adapted", "new"))}


def test_time_is_shared_by_grafts_of_the_same_pictures() -> None:
    shares: dict[str, float] = {}
    for plan in _demo_plan.PLANS:
        shares[plan.data] = shares.get(plan.data, 0) + plan.share
        recipe = recipes.load(plan.recipe)
        assert recipe.stages[0].minutes == 3.0 * plan.share and recipe.model.base == demo.BASE
        assert recipe.model.input_size == demo.INPUT_SIZE and recipe.model.vision == VISION
    assert set(shares.values()) == {1.0}
