"""Towers: what is kept of an output, frozen stays frozen, and one encoding for live and cached pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tsugiki.errors import InputError, UnsupportedError
from tsugiki.testing import TinyTower, tiny_images
from tsugiki.vision.tower import Tower, build_tower


class Fixed(nn.Module):
    """Returns a given tensor shape filled with the mean of each picture."""

    input_size, mean, std = 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, *shape: int, **attributes: Any) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.ones(()))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, pixel_values: Tensor) -> Tensor:
        size = self.shape
        numbers = torch.arange(torch.Size(size).numel(), dtype=torch.float32).reshape(size)
        return numbers.expand(len(pixel_values), *size) * self.weight + 0 * pixel_values.mean()


def test_maps_and_tokens_become_the_same_rows() -> None:
    first = build_tower(Fixed(6, 3, 3))  # [V, h, w]
    last = build_tower(Fixed(3, 3, 6))  # [h, w, V]
    pixels = torch.zeros(2, 3, 32, 32)
    assert first.grid == last.grid == (3, 3) and first.width == last.width == 6
    features = first(pixels)
    for y in range(3):
        for x in range(3):
            assert features[1, 3 * y + x].tolist() == [c * 9 + y * 3 + x for c in range(6)]
    assert last(pixels)[0, 4].tolist() == [24, 25, 26, 27, 28, 29]


@pytest.mark.parametrize(("tokens", "grid"), [(16, (4, 4)), (17, (4, 4)), (21, (4, 4)), (50, (7, 7)), (201, (14, 14))])
def test_prefix_tokens_are_dropped(tokens: int, grid: tuple[int, int]) -> None:
    tower = build_tower(Fixed(tokens, 2))
    assert tower.grid == grid
    kept = tower(torch.zeros(1, 3, 32, 32))[0, :, 0] / 2
    assert kept.tolist() == list(range(tokens - grid[0] * grid[1], tokens))


def test_patch_size_decides_where_squares_do_not() -> None:
    assert build_tower(Fixed(16 + 9, 2, patch_size=8)).grid == (4, 4)  # 25 is a square too
    assert build_tower(Fixed(8, 2, grid=(4, 2))).grid == (4, 2)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 2, 2, 2)])
def test_no_grid_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match="Fixed"):
        build_tower(Fixed(*shape))


def test_a_module_without_attributes_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no input_size and no mean and no std"):
        build_tower(nn.Linear(3, 3))


def test_wrong_pixels_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[N, 3, 32, 32\]"):
        build_tower(TinyTower()).encode(torch.zeros(1, 3, 16, 16))


def test_another_size_of_a_tower_object_is_refused() -> None:
    tower = build_tower(TinyTower())
    assert build_tower(tower) is tower
    with pytest.raises(InputError, match="64"):
        build_tower(tower, 64)


def test_frozen_stays_frozen_in_a_training_parent() -> None:
    tower = build_tower(Fixed(4, 2))
    nn.Sequential(tower).train()
    assert not tower.training and not tower.backbone.training
    assert not tower(torch.zeros(1, 3, 32, 32)).requires_grad
    tower.frozen = False
    nn.Sequential(tower).train()
    assert tower.training and tower(torch.zeros(1, 3, 32, 32)).requires_grad


def test_encode_does_not_depend_on_company() -> None:
    tower = build_tower(TinyTower())
    pixels = torch.stack([tower.transform(picture) for picture in tiny_images(11)])
    together = tower.encode(pixels)
    assert together.dtype == torch.float16 and together.shape == (11, 16, 24)
    for i in range(11):
        assert torch.equal(tower.encode(pixels[i : i + 1])[0], together[i])
    assert torch.equal(tower.encode(pixels.flip(0)).flip(0), together)
    assert tower.encode(pixels[:0]).shape == (0, 16, 24)


def test_other_batch_sizes_stay_within_an_fp16_step() -> None:
    tower = build_tower(TinyTower())
    pixels = torch.stack([tower.transform(picture) for picture in tiny_images(5)])
    first = tower.encode(pixels)
    tower.encode_batch = 3
    other = tower.encode(pixels)
    steps = (first.view(torch.int16).int() - other.view(torch.int16).int()).abs()
    assert int(steps.max()) <= 1


def test_encode_ignores_autocast_and_clamps() -> None:
    tower = build_tower(TinyTower())
    pixels = torch.randn(2, 3, 32, 32)
    plain = tower.encode(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tower.encode(pixels), plain)
    large = build_tower(Fixed(4, 60_000))  # features up to 240,000
    assert torch.isfinite(large.encode(pixels)).all()


def test_fingerprint_covers_weights_size_and_transform() -> None:
    tower = build_tower(TinyTower())
    same, other = build_tower(TinyTower()), build_tower(TinyTower(seed=1))
    size, light, code = TinyTower(input_size=64), TinyTower(), TinyTower()
    light.mean = (0.4, 0.5, 0.5)
    code.version = "2"
    prints = [build_tower(t).fingerprint() for t in (other, size, light, code)]
    assert tower.fingerprint() == same.fingerprint()
    assert len({tower.fingerprint(), *prints}) == 5
    before = tower.fingerprint()
    next(tower.backbone.parameters()).data[0, 0] += 1  # an edit in place is seen
    with torch.no_grad():
        next(tower.backbone.parameters()).add_(1)
    assert tower.fingerprint() != before


def test_a_rest_that_patches_leave_out_is_not_used() -> None:
    tower = Tower(Fixed(16, 2), name="t", input_size=35, mean=[0.5], std=[0.5], patch_size=8)
    assert tower.view_size == 32
    pixels = tower.transform(tiny_images(1)[0])
    assert pixels.shape == (3, 35, 35) and pixels[:, 32:].abs().max() < 0.005  # padding: the mean, up to 1/255
