"""Mixtures of experts beside a frozen FFN, and what their routers are held to.

Shapes: B rows, T positions, D width of the LLM, N experts, k of them for each token, n = B * T tokens, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.decoder import DecoderSpec
from tsugiki.grafts._copies import copied


class Routing(NamedTuple):
    """Which experts the tokens of a layer went to."""

    probabilities: Tensor  # float [n, N], softmax of the router's scores
    chosen: Tensor  # int64 [n, k]


class Router(nn.Module):
    """Linear D -> N without bias, softmax, the best k; their weights are scaled to the sum 1, as MoE-LLaVA's code does.

    With k = 1 that would be a constant: the weight is p / p.detach(), which is 1 and has the gradient of log p.
    """

    def __init__(self, dim: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.scores = nn.Linear(dim, experts, bias=False)

    def forward(self, u: Tensor) -> tuple[Tensor, Routing]:
        """u [n, D] -> weights [n, k] of the chosen experts, and which these are."""
        p = probabilities(self.scores(u))
        best, chosen = p.topk(self.top_k, dim=-1)
        whole = best.detach() if self.top_k == 1 else best.sum(-1, keepdim=True)
        return best / whole, Routing(p, chosen)


def probabilities(scores: Tensor) -> Tensor:
    """Scores [n, N] -> [n, N], in full precision also under autocast: a router is not to round."""
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def dispatch(u: Tensor, experts: nn.ModuleList, weights: Tensor, chosen: Tensor) -> Tensor:
    """Each token through its experts: sorted by expert, none dropped. u [n, D], weights and chosen [n, k] -> [n, D]."""
    k = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)  # [n * k], places of `chosen` by expert
    counts = torch.bincount(chosen.flatten(), minlength=len(experts)).tolist()
    parts = u[order // k].split(counts)
    found = torch.cat([expert(part[None])[0] for expert, part in zip(experts, parts, strict=True) if len(part)])
    outputs = torch.empty_like(found)
    outputs[order] = found
    mixed: Tensor = (outputs.unflatten(0, (-1, k)) * weights[..., None]).sum(1)
    return mixed


def spread(weights: Tensor, routing: Routing) -> Tensor:
    """Weights [n, k] of the chosen experts -> [n, N], 0 for the others."""
    return torch.zeros_like(routing.probabilities).scatter(1, routing.chosen, weights)


class Copies(nn.Module):
    """N trainable copies of a frozen FFN in fp32; they drop nothing in training, as the frozen one does not."""

    def __init__(self, ffn: nn.Module, dim: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(copied(ffn) for _ in range(experts))
        self.router = Router(dim, experts, top_k) if experts > 1 else None

    def train(self, mode: bool = True) -> Copies:
        super().train(mode)
        self.experts.train(False)
        return self

    def forward(self, u: Tensor, frozen: Tensor | None = None) -> tuple[Tensor, Routing | None]:
        """u [B, T, D] -> [B, T, D] in its dtype; where there is but one expert, it has no routing."""
        x = u.to(next(self.parameters()).dtype)
        if self.router is None:
            alone: Tensor = self.experts[0](x)
            return alone.to(u.dtype), None
        weights, routing = self.router(x.flatten(0, 1))
        if self.router.top_k < len(self.experts):
            y = dispatch(x.flatten(0, 1), self.experts, weights, routing.chosen).view_as(x)
        else:
            each = spread(weights, routing).T.unflatten(1, x.shape[:2])[..., None]  # [N, B, T, 1]
            y = torch.stack([w * expert(x) for w, expert in zip(each, self.experts, strict=True)]).sum(0)
        return y.to(u.dtype), routing


class CopiedMixture(nn.Module):
    """A trainable copy of a frozen FFN that is a mixture itself, its router included.

    Args:
        ffn: the mixture.
        router: name, within it, of the module that gives (scores [n, N], weights [n, k], chosen [n, k]).
    """

    def __init__(self, ffn: nn.Module, router: str) -> None:
        super().__init__()
        self.mixture = copied(ffn)
        self.router_name = router

    def train(self, mode: bool = True) -> CopiedMixture:
        super().train(mode)
        self.mixture.train(False)
        return self

    def forward(self, u: Tensor, frozen: Tensor | None = None) -> tuple[Tensor, Routing]:
        """u [B, T, D] -> [B, T, D] in its dtype."""
        x = u.to(next(self.parameters()).dtype)
        y: Tensor = self.mixture(x)
        # Asked a second time: what it said the first time stays inside the block.
        scores, _, chosen = self.mixture.get_submodule(self.router_name)(x.flatten(0, 1))
        return y.to(u.dtype), Routing(probabilities(scores), chosen)


class LowRankExperts(nn.Module):
    """N experts E_e(u) = FFN(u) + B_e silu(A_e u) of rank r; B is zero at the start, so that all are the frozen FFN."""

    def __init__(self, dim: int, rank: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.experts = experts
        self.down = nn.Linear(dim, experts * rank, bias=False)
        self.up = nn.Linear(experts * rank, dim, bias=False)
        nn.init.zeros_(self.up.weight)
        self.router = Router(dim, experts, top_k) if experts > 1 else None

    def forward(self, u: Tensor, frozen: Tensor) -> tuple[Tensor, Routing | None]:
        """u [B, T, D] and FFN(u) -> [B, T, D] in its dtype."""
        x, routing = u.to(self.down.weight.dtype), None
        inner = F.silu(self.down(x)).unflatten(-1, (self.experts, -1))  # [B, T, N, r]
        if self.router is not None:
            weights, routing = self.router(x.flatten(0, 1))
            inner = inner * spread(weights, routing).view(*inner.shape[:-1], 1)
        return frozen + self.up(inner.flatten(-2)).to(frozen.dtype), routing


def balance(routing: Routing, real: Tensor) -> Tensor:
    """N * sum_e f_e p_e: 1 where all experts get as many tokens, N where one gets all.

    f_e is the share of assignments that went to e (all k of a token count, so that the shares add up to 1), p_e the
    mean probability of e.

    Args:
        real: float [n], 1 at tokens that count.
    """
    n = routing.probabilities.shape[-1]
    f = F.one_hot(routing.chosen, n).to(real.dtype).mean(1)  # [n, N]
    return n * (mean(f, real) * mean(routing.probabilities, real)).sum()


def entropy(routing: Routing, real: Tensor) -> Tensor:
    """Of each token's distribution over the experts, in nats, mean over the tokens that count."""
    p = routing.probabilities
    return mean(-(p * p.clamp(min=1e-9).log()).sum(-1), real)  # a probability of 0 has a gradient, too


def mean(values: Tensor, real: Tensor) -> Tensor:
    """Over the tokens that count: values [n, ...], real float [n] -> [...]."""
    total = (values * real.view(-1, *[1] * (values.dim() - 1))).sum(0)
    return total / real.sum().clamp(min=1)


@dataclass
class Ffn:
    """What a frozen FFN is, as seen in a forward of two tokens."""

    plain: bool = False
    """Whether it takes one tensor [B, T, D] and gives one."""
    router: str | None = None
    """Name, within it, of the module that routes tokens where it is a mixture of experts itself."""
    experts: int = 1
    top_k: int = 1
    mixture: bool = False
    copyable: bool = True
    """Whether its weights are numbers that can train: a quantised FFN's are not."""


def watch(decoder: DecoderSpec, ffns: Sequence[nn.Module]) -> list[Ffn]:
    """Look at FFNs of the LLM while two tokens run through it."""
    found = [_still(ffn) for ffn in ffns]
    handles = []
    for ffn, facts in zip(ffns, found, strict=True):
        handles.append(ffn.register_forward_hook(partial(_note_flow, facts), with_kwargs=True))
        for name, part in ffn.named_modules():
            if name:
                handles.append(part.register_forward_hook(partial(_note_router, facts, name)))
    try:
        decoder.probe()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _still(ffn: nn.Module) -> Ffn:
    lists = any(isinstance(m, nn.ModuleList) for m in ffn.modules())
    matrices = [p for p in ffn.parameters() if p.dim() > 1]
    return Ffn(
        mixture=lists or any(p.dim() == 3 for p in matrices),
        copyable=all(p.is_floating_point() for p in matrices),
    )


def _note_flow(facts: Ffn, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    x = args[0] if args else kwargs.get("hidden_states")
    facts.plain = len(given) == 1 and isinstance(x, Tensor) and isinstance(output, Tensor)
    facts.plain = facts.plain and given[0].dim() == 3 and given[0].shape == output.shape


def _note_router(facts: Ffn, name: str, _: nn.Module, args: Any, output: Any) -> None:
    """Routers give (scores [n, N], weights [n, k], chosen [n, k])."""
    if not isinstance(output, tuple) or len(output) != 3 or not all(isinstance(o, Tensor) for o in output):
        return
    scores, weights, chosen = output
    if scores.dim() == 2 and not chosen.is_floating_point() and weights.shape == chosen.shape:
        facts.router, facts.experts, facts.top_k = name, scores.shape[-1], chosen.shape[-1]
