"""The weights that a comparison begins with: made once, the same each time, and not of the held-out classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.studies._pictures import folder

from tsugiki.errors import InputError, RecipeError
from tsugiki.studies import _draws, _start
from tsugiki.synth import pictograms
from tsugiki.testing import tiny_model
from tsugiki.types import DemoPart, ImagePart, Sample


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    few = _draws.own(folder(tmp_path / "photos", (6, 6)), test=2)
    monkeypatch.setattr(_draws, "named_scenes", lambda *_: few.pool)
    built: list[str] = []

    def build(base: str, method: str, vision: Any, **_: Any) -> Any:
        built.append(method)
        return tiny_model(method, llm={"max_position_embeddings": 2048})

    monkeypatch.setattr(_start, "build_model", build)
    monkeypatch.setattr(_start, "load_graft", lambda graft, base: (Path(graft), base))
    return built


def test_a_start_is_trained_once(made: list[str], tmp_path: Path) -> None:
    told: list[str] = []
    options: dict[str, Any] = {"base": "b", "steps": 2, "say": told.append}
    start = _start.made(tmp_path / "start", **options)
    graft, base = start()
    assert graft == tmp_path / "start" / "run" / "graft" and graft.is_dir() and base == "b"
    assert _start.method_of(graft) == "projector" and "2 steps" in told[0]
    log = (tmp_path / "start" / "run" / "log.jsonl").read_text()
    before = (graft / "model.safetensors").read_bytes()
    _start.made(tmp_path / "start", **options)
    assert (tmp_path / "start" / "run" / "log.jsonl").read_text() == log and log.count("\n") == 2
    assert (graft / "model.safetensors").read_bytes() == before
    with pytest.raises(RecipeError, match="steps"):
        _start.made(tmp_path / "start", **{**options, "steps": 3})


def test_a_start_with_a_hub_learns_the_same_pictures_through_it(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, learned = _start.train, []

    def train(model: Any, plan: Any, out: Path, *, data: list[Sample], **given: Any) -> Any:
        learned.append((plan.stages[0], data))
        return real(model, plan, out, data=data, **given)

    monkeypatch.setattr(_start, "train", train)
    for method in ("projector", "mmict"):
        _start.made(tmp_path / method, base="b", method=method, steps=2, say=lambda _: None)
    (plain, pictures), (hub, read) = learned
    assert (plain.steps, plain.batch_size) == (hub.steps, hub.batch_size) == (2, 8)
    assert [(s.id, s.images, s.answer) for s in pictures] == [(s.id, s.images, s.answer) for s in read]
    assert any(len(s.images) > 1 for s in read)
    for sample in read:
        *front, own = [p for p in sample.prompt[-1].parts if isinstance(p, ImagePart)]
        assert all(isinstance(p, DemoPart) and p.form == "visual_guided_text" for p in front)
        assert not isinstance(own, DemoPart) and own.source not in [p.source for p in front]
    grafts = [tmp_path / method / "run" / "graft" for method in ("projector", "mmict")]
    assert [_start.method_of(graft) for graft in grafts] == ["projector", "mmict"]
    assert _start.has_hub("mmict") and not _start.has_hub("projector")


def test_without_steps_it_is_new_each_time(made: list[str], tmp_path: Path) -> None:
    start = _start.made(tmp_path / "start", steps=0)
    one, other = start().frontend.state_dict(), start().frontend.state_dict()
    assert all((one[k] == other[k]).all() for k in one) and made == ["projector"] * 2
    assert not (tmp_path / "start").exists()
    with pytest.raises(InputError, match="-1 steps"):
        _start.made(tmp_path / "start", steps=-1)


def test_the_start_has_not_seen_the_held_out_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(_draws.scenes, "generate", lambda n, **given: asked.append(given["pictograms"]) or [])
    _draws.named_scenes(tmp_path, 1, _draws.LEARNED, "train", 0)
    _draws.drawings(tmp_path, pool=3, test=2)
    learned = {p.en for p in pictograms.choose(asked[0])}
    assert len(learned) == 25 and asked[1] == asked[2] and len(asked[1]) == 5 and not learned & set(asked[1])
