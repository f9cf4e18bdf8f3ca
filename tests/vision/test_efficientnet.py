"""The EfficientNet-Lite asset against the asset's own code, unfolded."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tsugiki import assets
from tsugiki.errors import AssetError, UnsupportedError
from tsugiki.vision import efficientnet
from tsugiki.vision.tower import build_tower


def test_folding_keeps_the_function() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
    )
    for norm in (net[1], net[4]):
        assert isinstance(norm, nn.BatchNorm2d)
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.data.uniform_(0.2, 2)
    net.eval()
    x = torch.randn(2, 3, 9, 9)
    expected = net(x)
    efficientnet._fold(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.assets("efficientnet-lite0", "efficientnet-lite-code")
@pytest.mark.parametrize(("size", "grid"), [(None, (7, 7)), (448, (14, 14)), (260, (9, 9))])
def test_grids(size: int | None, grid: tuple[int, int]) -> None:
    tower = build_tower("efficientnet-lite0", size)
    assert tower.grid == grid and tower.width == 1280 and tower.licence == "Apache-2.0"
    assert tower.frozen and tower.channels_last


@pytest.mark.assets("efficientnet-lite0", "efficientnet-lite-code")
def test_features_are_those_of_the_original() -> None:
    paths, modules = list(sys.path), set(sys.modules)
    tower = build_tower("efficientnet-lite0")
    assert sys.path == paths and "efficientnet_lite_pytorch" not in set(sys.modules) - modules
    code = efficientnet._code()
    original = code.EfficientNet(*code.get_model_params("efficientnet-lite0", {"image_size": 224})).eval()
    file = next(assets.path("efficientnet-lite0").glob("*/models/*.pth"))
    original.load_state_dict(torch.load(file, weights_only=True))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8))
    pixels = (torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() - 127) / 128
    torch.testing.assert_close(tower.transform(picture), pixels, rtol=0, atol=1e-6)
    with torch.no_grad():
        expected = original.extract_features(pixels[None]).flatten(2).transpose(1, 2)
        found = tower(pixels[None])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    half = tower.encode(pixels[None]).float()
    assert (half - found).abs().max() <= 2**-9  # values below 6: half an fp16 step of 2**-8


@pytest.mark.assets("efficientnet-lite0", "efficientnet-lite-code")
def test_too_small_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="at least 32"):
        build_tower("efficientnet-lite0", 16)


def test_without_the_asset_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delitem(sys.modules, efficientnet._MODULE, raising=False)
    with pytest.raises(AssetError, match="tsugiki assets fetch"):
        build_tower("efficientnet-lite0")


@pytest.mark.assets("efficientnet-lite0", "efficientnet-lite-code")
def test_a_damaged_conversion_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = assets.path
    before = build_tower("efficientnet-lite0", 32).weights_sha256()
    folders = {name: path(name) for name in ("efficientnet-lite0", "efficientnet-lite-code")}
    monkeypatch.setattr(assets, "resolve", lambda name: str(folders[name]))
    monkeypatch.setattr(assets, "cache_dir", lambda: tmp_path)
    assert build_tower("efficientnet-lite0", 32).weights_sha256() == before
    (file,) = (tmp_path / "converted").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    assert build_tower("efficientnet-lite0", 32).weights_sha256() == before
    assert build_tower("efficientnet-lite0", 64).weights_sha256() == before
