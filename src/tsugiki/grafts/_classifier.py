"""A logistic classifier of questions. It is fitted, not trained: no gradient reaches it. It is saved with its graft.

Shapes: n questions, D width of the word embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """x w + b, the log-odds of yes; 0 until it is fitted."""

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(dim))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, D] -> log-odds [n], float32."""
        return x.float() @ self.weight.float() + self.bias.float()

    @torch.no_grad()
    def fit(self, x: Tensor, yes: Tensor) -> None:
        """Set the weights from questions x [n, D] and their answers, bool [n], of which both have to occur."""
        weight, bias = logistic(x.double().cpu(), yes.cpu())
        self.weight.copy_(weight)
        self.bias.copy_(bias)


def logistic(x: Tensor, yes: Tensor, decay: float = 1e-2, steps: int = 200) -> tuple[Tensor, Tensor]:
    """Logistic regression on standardised features, both answers of equal weight: -> weight [D], bias.

    Args:
        x: float64 [n, D].
        yes: bool [n], with both values.
        decay: factor of half the squared norm of the weights.
        steps: of L-BFGS, at most.
    """
    centre, scale = x.mean(0), x.std(0, correction=0).clamp(min=1e-8)
    z, y = (x - centre) / scale, yes.to(x.dtype)
    each = torch.where(yes, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    w, b = x.new_zeros(x.shape[1], requires_grad=True), x.new_zeros((), requires_grad=True)
    solver = torch.optim.LBFGS([w, b], max_iter=steps, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        with torch.enable_grad():
            solver.zero_grad()
            total = F.binary_cross_entropy_with_logits(z @ w + b, y, weight=each, reduction="sum")
            total = total + decay / 2 * w.square().sum()
            total.backward()
        return total

    solver.step(loss)
    weight = w.detach() / scale
    return weight, b.detach() - centre @ weight
