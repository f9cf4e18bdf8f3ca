"""Saved grafts: round trips, refusals, and nothing half-written."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.grafts._requests import request, wake
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import tsugiki
from tsugiki import grafts, store
from tsugiki.data.boxes import BoxCodec
from tsugiki.errors import BaseMismatchError, StoreError
from tsugiki.testing import TinyTower, tiny_images, tiny_llm, tiny_model, tiny_tokenizer

PARTS: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "vision": TinyTower()}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**request(model, [[4, "i", 5]])).logits


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return tiny_model().save(tmp_path / "graft")


@pytest.mark.parametrize("name", grafts.available())
def test_round_trip(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    wake(model)
    folder = model.save(tmp_path / "graft")
    again = tsugiki.load(folder, base=tiny_llm(), **PARTS)
    assert torch.equal(logits(again), logits(model))
    assert store.graft_sha256(again) == store.graft_sha256(model)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    own = sum(p.numel() for part in (model.grafts, model.frontend.projector) for p in part.parameters())
    assert (folder / "model.safetensors").stat().st_size < 4 * own + 20_000  # not the LLM


def test_a_stack_and_save_pretrained_round_trip(tmp_path: Path) -> None:
    model = tsugiki.attach(tiny_model(), "cross_attention", every=2)
    wake(model)
    model.save_pretrained(tmp_path / "graft")
    again = type(model).from_pretrained(tmp_path / "graft", base=tiny_llm(), **PARTS)
    assert [g.name for g in again.grafts] == ["projector", "cross_attention"]
    assert torch.equal(logits(again), logits(model))


def test_places_and_the_text_of_boxes_are_saved(tmp_path: Path) -> None:
    model = tiny_model(places=2, box_text={"decimals": 0, "scale": 99, "whole": 2})
    model.frontend.places.weight.normal_()
    model.save(tmp_path / "graft")
    again = tsugiki.load(tmp_path / "graft", base=tiny_llm(), **PARTS)
    assert torch.equal(logits(again), logits(model)) and store.graft_sha256(again) == store.graft_sha256(model)
    assert (
        "[00,00,00,00] to [99,99,99,99]; those that a linear reader finds, 2 a"
        in (tmp_path / "graft" / "README.md").read_text()
    )
    codec = BoxCodec(decimals=0, scale=99, whole=2)
    processor = type(model.processor).from_pretrained(tmp_path / "graft", tokenizer=tiny_tokenizer())
    assert again.processor.codec == processor.codec == processor.collator().codec == codec


def test_a_graft_from_before_the_settings_of_boxes_keeps_its_hash(saved: Path) -> None:
    settings = json.loads((saved / "config.json").read_text())
    assert not {"places", "box_text"} & settings["frontend"].keys()
    again = tsugiki.load(saved, base=tiny_llm(), **PARTS)
    assert store.graft_sha256(again) == settings["tsugiki"]["graft_sha256"]
    assert again.processor.codec == BoxCodec()


def test_a_trained_llm_is_saved_too_and_said(tmp_path: Path) -> None:
    model = tiny_model()
    model.freeze_llm(False)
    with torch.no_grad():
        model.language_model.model.layers[0].mlp.up_proj.weight.add_(0.1)
    folder = model.save(tmp_path / "graft")
    assert (
        "bounded" in (folder / "README.md").read_text()
        and "the LLM's are included" in (folder / "README.md").read_text()
    )
    again = tsugiki.load(folder, base=tiny_llm(), **PARTS)
    assert again.guarantee == "bounded" and torch.equal(logits(again), logits(model))


def test_the_base_is_found_by_its_stored_source_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llm().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    llm = type(tiny_llm()).from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    model = tsugiki.attach(llm, "projector", vision=TinyTower(), tokenizer=tokenizer)
    folder = model.save(tmp_path / "graft")
    again = tsugiki.load(folder, vision=TinyTower())
    assert torch.equal(logits(again), logits(model))
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(StoreError, match=r"Pass base="):
        tsugiki.load(folder, vision=TinyTower())
    assert torch.equal(logits(tsugiki.load(folder, base=tmp_path / "moved", vision=TinyTower())), logits(model))
    without = tiny_model().save(tmp_path / "sourceless")
    monkeypatch.setenv("TSUGIKI_BASE", str(tmp_path / "moved"))
    assert tsugiki.load(without, vision=TinyTower()).guarantee == "exact"


def test_another_base_is_refused_with_both_names_and_the_first_difference(saved: Path) -> None:
    with pytest.raises(
        BaseMismatchError, match=r"made for LlamaForCausalLM .* is LlamaForCausalLM: tensor \S+ differs"
    ):
        tsugiki.load(saved, base=tiny_llm(seed=3), **PARTS)
    with pytest.raises(BaseMismatchError, match="Qwen2ForCausalLM"):
        tsugiki.load(saved, base=tiny_llm("qwen2"), **PARTS)


def test_another_tower_is_refused(saved: Path) -> None:
    with pytest.raises(BaseMismatchError, match="tower"):
        tsugiki.load(saved, base=tiny_llm(), tokenizer=tiny_tokenizer(), vision=TinyTower(seed=5))


def test_another_dtype_of_the_same_base_loads_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_llm().save_pretrained(tmp_path / "base")
    llm = type(tiny_llm()).from_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    folder = tsugiki.attach(llm, "projector", vision=TinyTower(), tokenizer=tiny_tokenizer()).save(tmp_path / "graft")
    again = tsugiki.load(folder, vision=TinyTower(), dtype=torch.bfloat16)
    assert next(again.language_model.parameters()).dtype == torch.bfloat16
    assert "dtype" in caplog.text


def change(folder: Path, **values: Any) -> None:
    """Other settings, as if they had been saved."""
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(store.config_text({**settings, **values}))


def test_a_newer_version_a_pickle_and_damage_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no folder"):
        tsugiki.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"no config\.json"):
        tsugiki.load(tmp_path / "empty")
    change(saved, format_version=99)
    with pytest.raises(StoreError, match="format version 99.*pip install -U"):
        tsugiki.load(saved)
    change(saved, format_version=1)
    data = bytearray((saved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(StoreError, match="not those that were saved"):
        tsugiki.load(saved, base=tiny_llm(), **PARTS)
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(StoreError, match="is a pickle.*never opens pickles"):
        tsugiki.load(saved)
    change(saved, model_type="llama")
    with pytest.raises(StoreError, match="model_type is 'llama'"):
        tsugiki.load(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(StoreError, match="not readable as JSON"):
        tsugiki.load(saved)


@pytest.mark.parametrize(
    "values",
    [{"grafts": [{"nme": "projector"}]}, {"grafts": [{"name": "projector", "config": {"zzz": 1}}]}, {"frontend": {}}],
)
def test_settings_that_were_edited_are_one_line(saved: Path, values: dict[str, Any]) -> None:
    change(saved, **values)
    with pytest.raises(StoreError, match=r"config\.json: its settings can't be used"):
        tsugiki.load(saved, base=tiny_llm(), **PARTS)


def test_a_setting_that_was_edited_is_noticed(saved: Path) -> None:
    """One that fits, too: with it the same weights would be another model."""
    file = saved / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings, indent=3, sort_keys=True))  # the same in another form
    tsugiki.load(saved, base=tiny_llm(), **PARTS)
    settings["frontend"]["input_size"] = 64
    file.write_text(json.dumps(settings))
    with pytest.raises(StoreError, match=r"config\.json: the settings are not those that were saved"):
        tsugiki.load(saved, base=tiny_llm(), **PARTS)
    del settings["tsugiki"][store.SEAL]  # as it was before there were seals
    settings["frontend"]["input_size"] = 32
    file.write_text(json.dumps(settings))
    tsugiki.load(saved, base=tiny_llm(), **PARTS)


def test_a_full_disk_leaves_the_older_graft_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    model = tiny_model()
    wake(model)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(StoreError):
        model.save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["graft"]


def test_an_export_needs_nothing_else(tmp_path: Path) -> None:
    from transformers import SiglipVisionConfig

    tower = AutoModel.from_config(
        SiglipVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                           image_size=32, patch_size=8)
    )  # fmt: skip
    tower.mean, tower.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    model = tsugiki.attach(tiny_llm(), "projector", vision=tower, tokenizer=tiny_tokenizer())
    folder = model.export(tmp_path / "whole")
    moved = folder.rename(tmp_path / "moved")
    again = tsugiki.load(moved)
    picture = tiny_images(1)
    assert again.chat("what?", images=picture, max_new_tokens=5, do_sample=False) == model.chat(
        "what?", images=picture, max_new_tokens=5, do_sample=False
    )


def test_what_else_is_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "out" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-5" / "x").write_text("mine")
    for _ in range(2):
        tiny_model().save(tmp_path / "out")
    assert (tmp_path / "out" / "checkpoint-5" / "x").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_another_models_folder_is_not_overwritten(tmp_path: Path) -> None:
    tiny_llm().save_pretrained(tmp_path / "base")
    with pytest.raises(StoreError, match="another model"):
        tiny_model().save(tmp_path / "base")
    assert (tmp_path / "base" / "generation_config.json").exists()


def test_an_export_in_another_dtype_than_the_source_loads(tmp_path: Path) -> None:
    tiny_llm(dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = tsugiki.attach(llm, "projector", **PARTS)
    again = tsugiki.load(model.export(tmp_path / "all"), **PARTS)
    assert torch.equal(logits(again), logits(model))
    assert again.base_identity["tensors_sha256"] == model.base_identity["tensors_sha256"]
    other = tiny_llm(seed=1)
    other.save_pretrained(tmp_path / "all" / "base")
    with pytest.raises(BaseMismatchError, match="differs"):
        tsugiki.load(tmp_path / "all", **PARTS)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_a_peft_model_is_a_base_to_load_onto(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(tiny_llm(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model = tsugiki.attach(wrapped, "projector", **PARTS)
    expected = logits(model)
    folder = model.save(tmp_path / "graft")
    model.detach()
    assert torch.equal(logits(tsugiki.load(folder, base=wrapped, **PARTS)), expected)
