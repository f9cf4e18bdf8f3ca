"""The packaged starter graft, on a tiny one in a folder of the test's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.grafts._requests import request, wake

import tsugiki
from tsugiki import starter, store
from tsugiki.errors import AssetError, StoreError
from tsugiki.studies._build import load_graft
from tsugiki.testing import TinyTower, tiny_llm, tiny_model, tiny_tokenizer


def test_it_is_loaded_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "FOLDER", tmp_path / "packaged")
    model = tiny_model("wings", places=2)
    wake(model)
    store.save(model, starter.FOLDER)
    assert starter.is_packaged() and starter.folder() == tmp_path / "packaged"
    for load in (tsugiki.load, tsugiki.TsugikiForConditionalGeneration.from_pretrained):
        again = load("starter", base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower())
        assert store.graft_sha256(again) == store.graft_sha256(model)
    assert store.settings_of("starter")["grafts"][-1]["name"] == "wings"


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(starter, "FOLDER", tmp_path / "packaged")
    store.save(tiny_model("wings"), starter.FOLDER)
    store.save(tiny_model(), "starter")
    assert [g["name"] for g in store.settings_of("starter")["grafts"]] == ["projector"]


def test_an_installation_without_one_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "FOLDER", tmp_path / "none")
    assert not starter.is_packaged()
    with pytest.raises(StoreError, match=r"no starter graft.*tsugiki fit photos/"):
        tsugiki.load("starter")


def test_half_the_bytes_hold_the_rounded_numbers(tmp_path: Path) -> None:
    model = tiny_model("wings", places=2)
    wake(model)
    whole, half = store.save(model, tmp_path / "whole"), store.save(model, tmp_path / "half", dtype=torch.float16)
    sizes = [(folder / store.WEIGHTS).stat().st_size for folder in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    again = tsugiki.load(half, base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower())
    own, read = store.trained_state(model), store.trained_state(again)
    for name, value in own.items():
        assert read[name].dtype == value.dtype
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(read[name], expected), name
    # The hash is that of what a loaded model has, not of what was rounded away.
    assert json.loads((half / store.CONFIG).read_text())["tsugiki"]["graft_sha256"] == store.graft_sha256(again)
    assert store.graft_sha256(again) != store.graft_sha256(model)
    with torch.no_grad():
        rows = [m(**request(m, [[4, "i", 5]])).logits for m in (model, again)]
    torch.testing.assert_close(rows[1], rows[0], atol=1e-2, rtol=1e-2)


def test_a_base_that_is_not_there_is_fetched_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "FOLDER", tmp_path / "packaged")
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = tiny_model()
    model.base_identity["asset"] = "smollm2-135m-instruct"
    store.save(model, starter.FOLDER)
    with pytest.raises(AssetError, match="Run: tsugiki assets fetch smollm2-135m-instruct"):
        load_graft("starter")
