"""Towers from transformers, tiny and random: one of each kind of output, positions and image processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from tsugiki.errors import AssetError, StoreError, UnsupportedError
from tsugiki.testing import tiny_images
from tsugiki.vision.frontend import FrontEnd
from tsugiki.vision.tower import build_tower

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def _model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    configs = {
        "vit": lambda: hf.ViTConfig(**_SMALL),
        "clip": lambda: hf.CLIPVisionConfig(**_SMALL),
        "siglip": lambda: hf.SiglipVisionConfig(**_SMALL),
        "siglip2": lambda: hf.Siglip2VisionConfig(
            **{k: v for k, v in _SMALL.items() if k != "image_size"}, num_patches=16
        ),
        "dinov2": lambda: hf.Dinov2Config(**_SMALL),
        "dinov2_registers": lambda: hf.Dinov2WithRegistersConfig(**_SMALL, num_register_tokens=3),
        "dinov3": lambda: hf.DINOv3ViTConfig(**_SMALL, num_register_tokens=4),
        "aimv2": lambda: hf.Aimv2VisionConfig(**_SMALL),
        "swin": lambda: hf.SwinConfig(image_size=64, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
        "convnext": lambda: hf.ConvNextConfig(hidden_sizes=[8, 12, 16, 32], depths=[1, 1, 1, 1], image_size=64),
    }
    model: nn.Module = hf.AutoModel.from_config(configs[kind]())
    model.mean, model.std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)  # type: ignore[assignment]
    return model


_PREFIX = {"vit": 1, "clip": 1, "dinov2": 1, "dinov2_registers": 4, "dinov3": 5}
_PLAIN = ["vit", "clip", "siglip", "dinov2", "dinov2_registers", "dinov3", "aimv2"]


@pytest.mark.parametrize("kind", _PLAIN)
def test_patches_are_what_follows_cls_and_registers(kind: str) -> None:
    model = _model(kind).eval()
    tower = build_tower(model)
    assert (tower.input_size, tower.grid, tower.width) == (32, (4, 4), 32)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = model(pixels).last_hidden_state
    assert states.shape[1] == 16 + _PREFIX.get(kind, 0)
    assert torch.equal(tower(pixels), states[:, _PREFIX.get(kind, 0) :])


@pytest.mark.parametrize(
    ("kind", "size", "grid"),
    [
        *[(kind, 48, (6, 6)) for kind in _PLAIN if kind != "aimv2"],
        ("siglip2", None, (4, 4)),
        ("siglip2", 48, (6, 6)),
        ("swin", None, (8, 8)),
        ("convnext", None, (2, 2)),
        ("convnext", 96, (3, 3)),
    ],
)
def test_other_sizes(kind: str, size: int | None, grid: tuple[int, int]) -> None:
    tower = build_tower(_model(kind), size)
    assert tower.grid == grid
    assert tower.encode(torch.randn(3, 3, tower.input_size, tower.input_size)).shape == (3, grid[0] * grid[1], 32)


def test_a_size_without_interpolation_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="does not run on 48x48"):
        build_tower(_model("aimv2"), 48)


def test_hidden_layer() -> None:
    model = _model("clip").eval()
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    tower = build_tower(model, layer=-2)
    assert torch.equal(tower(pixels), expected)
    assert tower.fingerprint() != build_tower(model).fingerprint()


@pytest.mark.parametrize("kind", ["vit", "siglip", "dinov2_registers", "convnext", "siglip2"])
def test_encoding_does_not_depend_on_company(kind: str) -> None:
    tower = build_tower(_model(kind))
    pixels = torch.stack([tower.transform(picture) for picture in tiny_images(7)])
    together = tower.encode(pixels)
    assert all(torch.equal(tower.encode(pixels[i : i + 1])[0], together[i]) for i in range(7))


def test_free_aspect_patches_against_a_loop() -> None:
    backbone: Any = build_tower(_model("siglip2")).backbone
    pixels = torch.randn(1, 3, 16, 24)
    patches, extra = backbone._patches(pixels)
    assert extra["spatial_shapes"].tolist() == [[2, 3]]
    for row in range(2):
        for column in range(3):
            for y in range(8):
                for x in range(8):
                    for c in range(3):
                        got = patches[0, row * 3 + column, (y * 8 + x) * 3 + c]
                        assert got == pixels[0, c, row * 8 + y, column * 8 + x]


def _save(folder: Path, model: Any, processor: dict[str, Any] | None) -> Path:
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A tower\n")
    return folder


_PROCESSOR = {
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "do_center_crop": True,
    "crop_size": {"height": 48, "width": 48},
    "size": {"shortest_edge": 60},
}


def test_folder_and_its_image_processor(tmp_path: Path) -> None:
    tower = build_tower(_save(tmp_path, hf.ViTModel(hf.ViTConfig(**_SMALL)), _PROCESSOR))
    assert tower.input_size == 48 and tower.grid == (6, 6) and tower.licence == "mit"
    assert tower.normalise == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert build_tower(tmp_path, 32).input_size == 32


def test_transforms_of_two_towers_differ(tmp_path: Path) -> None:
    plain = {**_PROCESSOR, "do_normalize": False, "do_center_crop": False, "size": {"height": 32, "width": 32}}
    model = hf.ViTModel(hf.ViTConfig(**_SMALL))
    first = build_tower(_save(tmp_path / "a", model, _PROCESSOR))
    second = build_tower(_save(tmp_path / "b", model, plain))
    picture = tiny_images(1)[0]
    assert first.transform(picture).shape == (3, 48, 48)
    pixels = second.transform(picture)
    assert pixels.shape == (3, 32, 32) and pixels.min() >= 0 and pixels.max() <= 1
    assert first.fingerprint() != second.fingerprint() and first.weights_sha256() == second.weights_sha256()


def test_two_tower_models_give_their_vision_part(tmp_path: Path) -> None:
    text = {**_SMALL, "vocab_size": 60, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    clip = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=_SMALL)).eval()
    tower = build_tower(_save(tmp_path, clip, _PROCESSOR), 32)
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = clip.vision_model(pixels).last_hidden_state[:, 1:]
    assert torch.equal(tower(pixels), expected)


def test_no_normalisation_is_refused(tmp_path: Path) -> None:
    folder = _save(tmp_path, hf.ViTModel(hf.ViTConfig(**_SMALL)), None)
    with pytest.raises(UnsupportedError, match=r"preprocessor_config\.json"):
        build_tower(folder)


@pytest.mark.parametrize("processor", [{"size": 32}, {**_PROCESSOR, "do_flip_channel_order": True}])
def test_a_processor_that_says_too_little_or_bgr_is_refused(tmp_path: Path, processor: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="image_mean|BGR"):
        build_tower(_save(tmp_path, hf.ViTModel(hf.ViTConfig(**_SMALL)), processor))


def test_other_rescale_factors() -> None:
    from tsugiki.vision.hf import _scaled

    pixel, file = 200.0, {"rescale_factor": 1 / 127.5, "image_mean": [1.0], "image_std": [0.5]}
    mean, std = _scaled(file)
    assert abs((pixel / 255 - mean[0]) / std[0] - (pixel / 127.5 - 1.0) / 0.5) < 1e-9


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    _save(tmp_path, hf.ViTModel(hf.ViTConfig(**_SMALL)), _PROCESSOR)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(StoreError, match="pickle"):
        build_tower(tmp_path)


def test_unknown_names_and_language_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="efficientnet-light9"):
        build_tower("efficientnet-light9")
    llm = hf.LlamaModel(hf.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, vocab_size=40))
    with pytest.raises(UnsupportedError, match="takes no pixels"):
        build_tower(_save(tmp_path, llm, None))


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _save(tmp_path, hf.ViTModel(hf.ViTConfig(**_SMALL)), _PROCESSOR)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    state.pop(next(k for k in state if "embeddings" in k))
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(StoreError, match="1 weights are missing"):
        build_tower(tmp_path)


def test_a_checkpoint_without_its_pooler_has_one_fingerprint(tmp_path: Path) -> None:
    _save(tmp_path, hf.ViTModel(hf.ViTConfig(**_SMALL), add_pooling_layer=False), _PROCESSOR)
    assert build_tower(tmp_path).fingerprint() == build_tower(tmp_path).fingerprint()


def test_a_front_end_of_a_folder_is_found_again(tmp_path: Path) -> None:
    folder = _save(tmp_path, hf.ViTModel(hf.ViTConfig(**_SMALL)), _PROCESSOR)
    frontend = FrontEnd.build(str(folder), 16, 0.1)
    again = FrontEnd.build(frontend.config, 16)
    again.load_trainable_state(frontend.trainable_state())
    pixels = torch.randn(1, 3, 48, 48)
    assert torch.equal(frontend(pixel_values=pixels).tokens, again(pixel_values=pixels).tokens)
