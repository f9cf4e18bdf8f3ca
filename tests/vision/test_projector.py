"""Each projector against a loop in float64, odd grids, positions, and the size of what comes out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tsugiki.errors import InputError, UnknownNameError
from tsugiki.vision.projector import Projector, ProjectorConfig, build_projector, sincos_2d, unshuffle


def _gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def _linear(x: list[float], layer: Any) -> list[float]:
    rows, bias = layer.weight.tolist(), layer.bias.tolist()
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(rows, bias, strict=True)]


def _norm(x: list[float], layer: Any) -> list[float]:
    mean = sum(x) / len(x)
    std = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + layer.eps)
    return [(v - mean) / std * w + b for v, w, b in zip(x, layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def _by_loop(projector: Projector, picture: Tensor, grid: tuple[int, int]) -> list[list[float]]:
    """[P, V] -> tokens, written out."""
    (h, w), f = grid, projector.factor
    rows = picture.tolist()
    width = len(rows[0])
    tokens = []
    for top in range(0, h, f):
        for left in range(0, w, f):
            x: list[float] = []
            for y in range(top, top + f):
                for z in range(left, left + f):
                    x += rows[y * w + z] if y < h and z < w else [0.0] * width
            if projector.layer_norm is not None:
                x = _norm(x, projector.layer_norm)
            if projector.linear_1 is not None:
                x = [_gelu(v) for v in _linear(x, projector.linear_1)]
            x = _linear(x, projector.linear_2)
            if projector.positions is not None:
                x = [a + b for a, b in zip(x, projector.positions[len(tokens)].tolist(), strict=True)]
            tokens.append(x)
    return tokens


@pytest.mark.parametrize("kind", ["linear", "mlp", "pixel_unshuffle"])
@pytest.mark.parametrize("positions", ["none", "learned", "sincos"])
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_against_a_loop(kind: str, positions: str, grid: tuple[int, int]) -> None:
    config = ProjectorConfig(kind=kind, hidden=7, positions=positions)
    projector = build_projector(config, grid, 3, 8).double()
    for parameter in projector.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases and norms too
    features = torch.randn(2, grid[0] * grid[1], 3, dtype=torch.float64)
    expected = torch.tensor([_by_loop(projector, picture, grid) for picture in features], dtype=torch.float64)
    torch.testing.assert_close(projector(features), expected, rtol=1e-10, atol=1e-10)
    assert projector.tokens == expected.shape[1]


def test_shape_is_that_of_lfm2() -> None:
    """The same numbers as the projector of LFM2-VL in transformers."""
    from transformers import Lfm2VlConfig
    from transformers.models.lfm2_vl.modeling_lfm2_vl import Lfm2VlMultiModalProjector

    config = Lfm2VlConfig(
        vision_config={"model_type": "siglip2_vision_model", "hidden_size": 6},
        text_config={"model_type": "lfm2", "hidden_size": 8},
        projector_hidden_size=10,
    )
    theirs = Lfm2VlMultiModalProjector(config)
    ours = build_projector(ProjectorConfig(hidden=10), (4, 6), 6, 8)
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(2, 24, 6)
    expected = theirs(features.reshape(2, 4, 6, 6)).reshape(2, 6, 8)
    torch.testing.assert_close(ours(features), expected)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_unshuffle_loses_nothing(h: int, w: int, factor: int, width: int) -> None:
    features = torch.arange(1.0, h * w * width + 1).reshape(1, h * w, width)
    tokens = unshuffle(features, (h, w), factor)
    rows, columns = math.ceil(h / factor), math.ceil(w / factor)
    assert tokens.shape == (1, rows * columns, factor * factor * width)
    assert sorted(tokens[tokens != 0].tolist()) == features.flatten().tolist()
    # The block's upper left patch comes first.
    for row in range(rows):
        for column in range(columns):
            first = tokens[0, row * columns + column, :width]
            assert torch.equal(first, features[0, row * factor * w + column * factor])


def test_seven_by_seven_is_padded_to_sixteen_tokens() -> None:
    assert build_projector(ProjectorConfig(), (7, 7), 4, 8).tokens == 16
    assert build_projector(ProjectorConfig(), (14, 14), 4, 8).tokens == 49
    assert build_projector(ProjectorConfig(kind="mlp"), (7, 7), 4, 8).tokens == 49


@pytest.mark.parametrize("kind", ["linear", "mlp", "pixel_unshuffle"])
@pytest.mark.parametrize("positions", ["none", "learned"])
def test_output_rms(kind: str, positions: str) -> None:
    projector = build_projector(ProjectorConfig(kind=kind, positions=positions), (5, 5), 12, 16)
    features = 3 + 40 * torch.rand(6, 25, 12)
    projector.set_output_rms(0.13, features)
    assert abs(projector(features).pow(2).mean().sqrt().item() - 0.13) < 1e-5
    if projector.positions is not None:
        assert abs(projector.positions.pow(2).mean().sqrt().item() - 0.3 * 0.13) < 1e-5


def test_start_is_the_seed_s_alone() -> None:
    first = build_projector(ProjectorConfig(seed=3), (4, 4), 4, 8)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = build_projector(ProjectorConfig(seed=3), (4, 4), 4, 8)
    assert torch.equal(first.linear_2.weight, second.linear_2.weight)
    assert not torch.equal(first.linear_2.weight, build_projector(ProjectorConfig(), (4, 4), 4, 8).linear_2.weight)
    assert state.shape == torch.get_rng_state().shape


@pytest.mark.parametrize("width", [8, 10, 3, 64])
def test_positions_differ_everywhere(width: int) -> None:
    vectors = sincos_2d((4, 5), width)
    assert vectors.shape == (20, width)
    assert vectors.mean(dim=0).abs().max() < 1e-6 and abs(vectors.pow(2).mean().item() - 1) < 1e-5
    assert torch.pdist(vectors).min() > 0.05


def test_positions_train_only_if_learned() -> None:
    learned = build_projector(ProjectorConfig(positions=True), (2, 2), 4, 8)
    fixed = build_projector(ProjectorConfig(positions="sincos"), (2, 2), 4, 8)
    assert learned.positions is not None and learned.positions.requires_grad
    assert fixed.positions is not None and not fixed.positions.requires_grad


def test_wrong_names_and_numbers_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'pixel_unshuffle'"):
        ProjectorConfig(kind="pixel_unshufle")
    with pytest.raises(UnknownNameError, match="sincos"):
        ProjectorConfig(positions="sinus")
    with pytest.raises(InputError):
        ProjectorConfig(factor=0)
    with pytest.raises(InputError):
        ProjectorConfig(position_gain=1.0)
