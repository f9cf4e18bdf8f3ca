"""Ridge regression with an intercept, its strength chosen in closed form: by leave-one-out or on held-out rows.

Shapes: n rows, d inputs, D targets, k = rank of the centred inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Shares of the trace of X^T X."""


@dataclass(frozen=True)
class Ridge:
    """y = target_mean + (x - input_mean) @ matrix."""

    matrix: Tensor  # [d, D]
    input_mean: Tensor  # [d]
    target_mean: Tensor  # [D]
    strength: float
    """lambda as a share of the trace of X^T X."""
    r2: float
    """Of leave-one-out, or of the held-out pictures."""


def ridge(
    inputs: Tensor,
    targets: Tensor,
    held_out: tuple[Tensor, Tensor] | None = None,
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> Ridge:
    """Ridge regression with intercept; the strength is chosen on held-out rows, or else by leave-one-out, in closed
    form.

    With X = U S V^T and g = s^2 / (s^2 + lambda): fit = U g U^T Y, and row i's leave-one-out residual is (y_i -
    fit_i) / (1 - h_i), h_i = 1 / n + sum_k U_ik^2 g_k.

    Args:
        inputs: [n, d].
        targets: [n, D].
        held_out: inputs [m, d] and targets [m, D].
        strengths: shares of the trace to choose from.
    """
    x_mean, y_mean = inputs.mean(dim=0), targets.mean(dim=0)
    x, y = (inputs - x_mean).double(), (targets - y_mean).double()
    wide = x.shape[0] <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)  # of the smaller Gram matrix
    good = values > values.max().clamp_min(1e-300) * 1e-12
    square, vectors = values[good], vectors[:, good]
    left = vectors if wide else x @ vectors / square.sqrt()  # U [n, k]
    right = x.T @ vectors / square.sqrt() if wide else vectors  # V [d, k]
    projected, trace = left.T @ y, float(square.sum())
    best: tuple[float, float, Tensor] | None = None
    for strength in strengths:
        shrink = square / (square + strength * trace)
        if held_out is None:
            leverage = 1 / len(x) + left.pow(2) @ shrink
            error = (y - left @ (shrink[:, None] * projected)) / (1 - leverage).clamp_min(1e-6)[:, None]
            total = y
        else:
            total = held_out[1].double() - y_mean
            error = total - (held_out[0].double() - x_mean) @ right @ ((shrink / square.sqrt())[:, None] * projected)
        r2 = 1 - float(error.pow(2).sum() / total.pow(2).sum().clamp_min(1e-300))
        if best is None or r2 > best[0]:
            best = r2, strength, shrink
    assert best is not None
    matrix = right @ ((best[2] / square.sqrt())[:, None] * projected)
    return Ridge(matrix.float(), x_mean, y_mean, best[1], best[0])
