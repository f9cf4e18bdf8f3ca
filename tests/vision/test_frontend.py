"""The front-end as one object: config, sizes, what is saved, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tsugiki.errors import BaseMismatchError, InputError, StoreError, UnknownNameError
from tsugiki.testing import TinyTower, tiny_images
from tsugiki.vision.frontend import FrontEnd, FrontEndConfig


def _pixels(frontend: FrontEnd, n: int = 3) -> torch.Tensor:
    return torch.stack([frontend.transform(picture) for picture in tiny_images(n)])


@pytest.mark.parametrize(("projector", "tokens"), [("linear", 25), ("mlp", 25), ("pixel_unshuffle", 9)])
def test_tokens_and_their_size(projector: str, tokens: int) -> None:
    tower = TinyTower(grid=(5, 5), input_size=40)
    frontend = FrontEnd.build(tower, 16, 0.07, projector=projector, positions=True)
    out = frontend(pixel_values=_pixels(frontend))
    assert out.tokens.shape == (3, tokens, 16) and frontend.tokens_per_image == tokens == out.per_image
    assert 0.5 < out.tokens.pow(2).mean().sqrt() / 0.07 < 2  # other pictures than those of the calibration
    frontend.calibrate(0.2, frontend.encode(_pixels(frontend)))
    assert abs(frontend(pixel_values=_pixels(frontend)).tokens.pow(2).mean().sqrt() - 0.2) < 1e-5


def test_config_describes_the_tower_and_survives_json() -> None:
    frontend = FrontEnd.build(TinyTower(), 16, 0.1)
    config = frontend.config
    assert (config.input_size, config.grid, config.width, config.licence) == (32, (4, 4), 24, "Apache-2.0")
    assert config.fingerprint == frontend.tower.fingerprint() and len(config.tower_sha256) == 64
    assert FrontEndConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_fields_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'input_size'"):
        FrontEndConfig.from_dict({"tower": "x", "input_sise": 3})
    with pytest.raises(UnknownNameError, match="Did you mean 'positions'"):
        FrontEnd.build(TinyTower(), 16, position=True)
    with pytest.raises(UnknownNameError, match="pixel_unshuffle"):
        FrontEndConfig(tower="not looked for", projector="resampler")
    with pytest.raises(InputError):
        FrontEndConfig(tower="x", encode_batch=0)


def test_only_the_projector_is_saved_and_loads_back() -> None:
    frontend = FrontEnd.build(TinyTower(), 16, 0.1, positions="learned")
    state = frontend.trainable_state()
    assert all(name.startswith("projector.") for name in state) and "projector.positions" in state
    again = FrontEnd.build(frontend.config, 16, tower=TinyTower())
    pixels = _pixels(frontend)
    assert not torch.equal(again(pixel_values=pixels).tokens, frontend(pixel_values=pixels).tokens)
    again.load_trainable_state({name: tensor.clone() for name, tensor in state.items()})
    assert torch.equal(again(pixel_values=pixels).tokens, frontend(pixel_values=pixels).tokens)


def test_a_state_that_does_not_fit_is_refused() -> None:
    frontend = FrontEnd.build(TinyTower(), 16, 0.1)
    state = dict(frontend.trainable_state())
    with pytest.raises(StoreError, match=r"shape \[32, 96\]"):
        frontend.load_trainable_state({**state, "projector.linear_1.weight": torch.zeros(3, 3)})
    state.pop("projector.linear_1.weight")
    with pytest.raises(StoreError, match="nothing for projector.linear_1.weight"):
        frontend.load_trainable_state(state)


def test_another_tower_is_refused() -> None:
    config = FrontEnd.build(TinyTower(), 16, 0.1).config
    with pytest.raises(BaseMismatchError, match="same version of the tower"):
        FrontEnd.build(config, 16, tower=TinyTower(seed=1))


def test_gradients_reach_the_projector_only() -> None:
    frontend = FrontEnd.build(TinyTower(), 16, 0.1, positions=True).train()
    frontend(pixel_values=_pixels(frontend)).tokens.sum().backward()
    assert all(p.grad is not None for p in frontend.projector.parameters())
    assert all(p.grad is None and not p.requires_grad for p in frontend.tower.parameters())
    assert not frontend.tower.training


def test_a_tower_that_trains_is_saved_and_never_cached() -> None:
    frontend = FrontEnd.build(TinyTower(), 16, 0.1, train_tower=True).train()
    pixels = _pixels(frontend)
    frontend(pixel_values=pixels).tokens.sum().backward()
    weight = next(frontend.tower.parameters())
    assert weight.grad is not None and frontend.tower.training
    with torch.no_grad():
        weight.add_(0.5)
    state = {name: tensor.clone() for name, tensor in frontend.trainable_state().items()}
    assert "tower.backbone.weight" in state
    again = FrontEnd.build(frontend.config, 16, tower=TinyTower())  # made from the original, then loaded
    again.load_trainable_state(state)
    assert torch.equal(again(pixel_values=pixels).tokens, frontend(pixel_values=pixels).tokens)
    with pytest.raises(InputError, match="cached features"):
        frontend(features=torch.zeros(1, 16, 24))


def test_inputs_are_one_of_two() -> None:
    frontend = FrontEnd.build(TinyTower(), 16, 0.1)
    with pytest.raises(InputError, match="no picture"):
        frontend()
    with pytest.raises(InputError, match="both"):
        frontend(pixel_values=_pixels(frontend), features=torch.zeros(3, 16, 24))
    with pytest.raises(InputError, match=r"\[N, 16, 24\]"):
        frontend(features=torch.zeros(3, 9, 24))


def test_other_dtypes() -> None:
    frontend = FrontEnd.build(TinyTower(), 16, 0.1)
    features = frontend.encode(_pixels(frontend))
    frontend.projector.to(torch.bfloat16)
    assert frontend(features=features).tokens.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(frontend(pixel_values=_pixels(frontend)).tokens.float()).all()


def test_towers_are_a_list() -> None:
    frontend = FrontEnd.build(TinyTower(), 16)
    assert frontend.towers == (frontend.tower,) and isinstance(frontend, nn.Module)


def test_two_calls_do_not_share_a_tower_s_freezing() -> None:
    tower = FrontEnd.build(TinyTower(), 16).tower
    FrontEnd.build(tower, 16, train_tower=False)
    assert tower.frozen
