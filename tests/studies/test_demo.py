"""The demo's whole path on fakes: three grafts by the clock, three proofs, scores, one report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tsugiki import assets
from tsugiki.studies import demo
from tsugiki.testing import tiny_images, tiny_model
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


def test_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "fetch", lambda name, say=None: tmp_path)
    monkeypatch.setattr(assets, "llm_folder", lambda name, say=None: tmp_path)
    monkeypatch.setattr(demo, "fetch_tower", lambda name, say=None: None)
    built: list[Any] = []

    def build_model(base: str, method: Any, vision: str, *, input_size: int, **options: Any) -> Any:
        built.append(tiny_model(method[-1], **options))
        return built[-1]

    monkeypatch.setattr(demo, "build_model", build_model)
    sets: dict[str, Any] = {
        name: (asked(tmp_path / name, task, 12, 0), asked(tmp_path / name, task, 6, 1))
        for name, task in (("scenes", "naming"), ("fabric", "decision"))
    }
    monkeypatch.setattr(demo, "_scenes", lambda folder, seed: sets["scenes"])
    monkeypatch.setattr(demo, "_fabric", lambda seed: sets["fabric"])
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


def test_time_is_shared_by_grafts_of_the_same_pictures() -> None:
    shares: dict[str, float] = {}
    for plan in demo.PLANS:
        shares[plan.data] = shares.get(plan.data, 0) + plan.share
        recipe = recipes.load(plan.recipe)
        assert recipe.stages[0].minutes == 3.0 * plan.share and recipe.model.base == demo.BASE
        assert recipe.model.input_size == demo.INPUT_SIZE and recipe.model.vision == demo.VISION
    assert set(shares.values()) == {1.0}
