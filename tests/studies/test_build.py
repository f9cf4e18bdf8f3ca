"""Models by names: folders and objects, stacked methods, and mistakes before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tsugiki import store
from tsugiki.errors import AssetError, InputError, StoreError, UnknownNameError
from tsugiki.studies import _asked
from tsugiki.studies._build import build_model, load_graft, load_llm
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_tokenizer
from tsugiki.types import Message, Sample


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    tiny_llm(dtype=torch.bfloat16).save_pretrained(tmp_path / "llm")
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def test_a_folder(llm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    model = build_model(str(llm), ["projector", "cross_attention"], TinyTower(), device="cpu", positions="sincos")
    assert [graft.name for graft in model.grafts] == ["projector", "cross_attention"]
    assert model.language_model.dtype == torch.float32 and model.frontend.config.positions == "sincos"
    assert load_llm(llm, dtype=torch.bfloat16, device="cpu")[0].dtype == torch.bfloat16
    assert "Loading" not in capfd.readouterr().err


def test_a_saved_graft_fetches_its_tower(llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_model(llm, vision=TinyTower()).save(tmp_path / "graft")
    config = tmp_path / "graft" / "config.json"
    assert [g.name for g in load_graft(tmp_path / "graft", llm, vision=TinyTower()).grafts] == ["projector"]
    settings = json.loads(config.read_text())
    settings["frontend"]["tower"] = "efficientnet-lite0"
    config.write_text(store.config_text(settings))
    asked: list[str] = []

    def resolve(name: str, say: object = None) -> str:
        asked.append(name)
        if name.endswith("-code"):
            raise AssetError("no network")
        return name

    monkeypatch.setattr("tsugiki.studies._build.assets.resolve", resolve)
    with pytest.raises(AssetError, match="no network"):
        load_graft(tmp_path / "graft", llm)
    assert asked == ["efficientnet-lite0", "efficientnet-lite-code"]
    with pytest.raises(StoreError):
        load_graft(tmp_path / "none" / "there")


def test_an_object() -> None:
    llm = tiny_llm()
    assert build_model(llm, vision=TinyTower(), tokenizer=tiny_tokenizer()).language_model is llm


def test_mistakes(llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no causal LM"):
        build_model(tmp_path / "empty", vision=TinyTower())
    with pytest.raises(UnknownNameError, match="Did you mean 'smollm2-135m-instruct'"):
        build_model("smollm2-135m-instruc", vision=TinyTower())
    with pytest.raises(UnknownNameError, match="Did you mean 'efficientnet-lite"):
        build_model(llm, vision="efficientnet-lite")
    monkeypatch.setattr("tsugiki.studies._build.load_llm", None)
    with pytest.raises(UnknownNameError, match="Did you mean 'projector'"):
        build_model(llm, ["cross_attention", "projectr"], TinyTower())


def test_what_was_asked() -> None:
    a, b = tiny_images(2)

    def sample(question: str, image: object, *options: str) -> Sample:
        return Sample(id="", messages=(Message.of("user", question, (image,)),), options=options)  # type: ignore[arg-type]

    found = _asked.asked_of([sample("q", a, "x", "y"), sample("q", b, "x", "y")])
    assert found == _asked.Asked(question="q", options=("x", "y"))
    assert _asked.asked_of([sample("q", a), sample("other", b)]) is None
    assert _asked.asked_of([Sample(id="", messages=(Message.of("user", "q", (a, b)),))]) is None
    assert _asked.asked_of([Sample(id="", messages=(Message.of("user", "q"),))]) is None
    assert _asked.read(None) is _asked.read("/no/such/folder") is None
