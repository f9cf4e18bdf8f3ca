"""The demo's whole path on fakes: two grafts by the clock, two proofs, scores, one report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tsugiki import assets
from tsugiki.studies import demo
from tsugiki.testing import tiny_images, tiny_model
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
    monkeypatch.setattr(demo, "build_model", lambda *a, **k: tiny_model())
    sets: dict[str, Any] = {
        name: (asked(tmp_path / name, task, 12, 0), asked(tmp_path / name, task, 6, 1))
        for name, task in (("scenes", "naming"), ("fabric", "decision"))
    }
    monkeypatch.setattr(demo, "_scenes", lambda folder, seed: sets["scenes"])
    monkeypatch.setattr(demo, "_fabric", lambda seed: sets["fabric"])
    said: list[str] = []
    result = demo.run(out=tmp_path / "demo", minutes=0.01, progress=False, say=said.append)
    assert result.holds and [p.name for p in result.parts] == ["scenes", "fabric"]
    assert {s.task for s in result.scores} >= {"decisions/naming", "decisions/decision"}
    page = result.report.read_text(encoding="utf-8")
    assert "Proof about the text: scenes" in page and "Proof about the text: fabric" in page
    content = json.loads((tmp_path / "demo" / "scores.json").read_text(encoding="utf-8"))
    assert content["findings"] and set(content["seconds"]) == set(result.steps)
    assert all((p.graft / "model.safetensors").is_file() for p in result.parts)
    assert (tmp_path / "demo" / "scores.md").read_text(encoding="utf-8").startswith("# Demo")
    assert any(line.startswith("scenes: train") for line in said)
