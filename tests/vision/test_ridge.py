"""Ridge against scikit-learn's, and leave-one-out against leaving each one out."""

from __future__ import annotations

import pytest
import torch

from tsugiki.vision.ridge import ridge


@pytest.mark.parametrize("shape", [(12, 40), (60, 9)])
def test_solution_and_leave_one_out_against_a_loop(shape: tuple[int, int]) -> None:
    n, d = shape
    inputs, targets = torch.randn(n, d).double(), torch.randn(n, 3).double()
    found = ridge(inputs, targets, strengths=[0.01])
    trace = (inputs - inputs.mean(0)).pow(2).sum()

    def solve(x: torch.Tensor, y: torch.Tensor, centre_x: torch.Tensor, centre_y: torch.Tensor) -> torch.Tensor:
        gram = (x - centre_x).T @ (x - centre_x) + 0.01 * trace * torch.eye(d, dtype=torch.float64)
        return torch.linalg.solve(gram, (x - centre_x).T @ (y - centre_y))

    expected = solve(inputs, targets, inputs.mean(0), targets.mean(0))
    torch.testing.assert_close(found.matrix.double(), expected, rtol=1e-4, atol=1e-5)
    error = 0.0
    for i in range(n):
        rest = torch.arange(n) != i
        x, y = inputs[rest], targets[rest]
        prediction = y.mean(0) + (inputs[i] - x.mean(0)) @ solve(x, y, x.mean(0), y.mean(0))
        error += float((targets[i] - prediction).pow(2).sum())
    total = float((targets - targets.mean(0)).pow(2).sum())
    assert abs(found.r2 - (1 - error / total)) < 1e-6


def test_strength_follows_the_noise() -> None:
    inputs = torch.randn(200, 20)
    clean = inputs @ torch.randn(20, 2)
    noisy = clean + 20 * torch.randn_like(clean)
    assert ridge(inputs, clean).strength < ridge(inputs, noisy).strength


def test_held_out_rows_choose() -> None:
    inputs = torch.randn(50, 30)
    targets = inputs @ torch.randn(30, 2) + torch.randn(50, 2)
    others = torch.randn(40, 30)
    found = ridge(inputs, targets, (others, torch.zeros(40, 2) + targets.mean(0) + 0.01))
    assert found.strength == 1.0  # nothing can be told about these: shrink


def test_constant_inputs_give_the_mean() -> None:
    found = ridge(torch.ones(5, 3), torch.arange(10.0).reshape(5, 2))
    assert torch.equal(found.matrix, torch.zeros(3, 2)) and found.target_mean.tolist() == [4, 5]
