"""WINGS' tensors: low-rank residual attention (LoRRA), the router, and what the layers share. arXiv:2406.03496.

No tensor of n x n per head is made. Up to `MASKED` pairs of query and key each learner has a mask that its heads and
all layers share; beyond them, keys of the other learner are excluded by a channel of their own in the scores, and the
kernel's own causality does the rest (a prompt read in long parts has one boolean mask).

Shapes: B rows, T positions of this forward, P positions whose keys are known, D LLM width, H heads, K = D / H, r rank,
n active learners, E further channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.grafts._rotary import Rotary, Tables, narrow, widen
from tsugiki.grafts._statistics import attend

LEARNERS = ("visual", "textual")
FACTORS = ("q", "k", "v", "o")
CHANNELS = 8
MASKED = 1 << 14
"""Pairs of a query and a key up to which each learner gets its own keys and one mask, which is faster."""


@dataclass(frozen=True)
class Keys:
    """What all layers share in one forward. Order of learners: visual, textual."""

    features: Tensor  # float [B, P, D], input of layer 0
    kind: Tensor  # float [B, P, 2], 1 where the position is a key of the learner
    tail: Tensor  # float [B, 1, P, E], added to the scores of a learner by its own channel; E = 0 with masks
    order: Tensor | None  # int64 [B, P], places of the keys if they are sorted, visual ones first
    columns: tuple[slice, slice]  # which keys a learner looks at
    rows: tuple[int, int]  # the first query that asks a learner; those before it have no key
    masks: tuple[Tensor | None, Tensor | None]  # float [B, 1, T, its keys] to add to scores, or bool [T, P]
    causal: tuple[bool, bool]  # whether the kernel's own causality is the right one
    reads: Tensor  # float [B, T, 2], 1 where the token has any key of the learner
    routed: Tensor  # bool [B, T], True from the first image on: before it, textual learners have weight 1
    queries: Mapping[str, Tables]  # kind of rotation -> tables of the T queries
    keys: Mapping[str, Tables]  # ... of the P keys


def lay_out(
    features: Tensor,
    kind: Tensor,
    t: int,
    *,
    routed: Tensor,
    tables: Mapping[str, Tables],
    visual_keys: tuple[int, int],
    spans: tuple[slice, slice],
    see_later: bool = False,
) -> Keys:
    """Arrange the keys of a forward.

    Args:
        features: [B, P, D], P >= T, of the last P positions, in order.
        kind: bool [B, P, 2], which learner's key a position is.
        t: T.
        routed: bool [B, T].
        tables: of all P positions.
        visual_keys: the smallest and the largest number of visual keys of a row.
        spans: the part of the P positions outside of which no row has keys of a learner.
        see_later: whether visual keys are visible from before them (released code).
    """
    p = features.shape[1]
    reads = (kind.long().cumsum(1) > 0)[:, -t:]
    if see_later:
        reads = torch.stack([kind[..., 0].any(1, keepdim=True).expand(-1, t), reads[..., 1]], -1)
    few, many = visual_keys
    columns, order, causal = spans, None, (t == p > 1 and not see_later, t == p > 1)
    rows = (spans[0].start if causal[0] else 0, spans[1].start if causal[1] else 0)
    masks: tuple[Tensor | None, Tensor | None] = (None, None)
    asked = {name: (cos[:, -t:], sin[:, -t:]) for name, (cos, sin) in tables.items()}
    if t > 1 and t * p <= MASKED:
        columns, order, causal = (slice(many), slice(few, None)), _visual_first(kind), (False, False)
        rows = (0, 0)
        features, kind = _sorted(features, order), _sorted(kind, order)
        tables = {name: (_sorted(cos, order), _sorted(sin, order)) for name, (cos, sin) in tables.items()}
        asking = torch.arange(p - t, p, device=kind.device)[:, None]
        seen = order[:, None] <= asking  # [B, T, P]
        open_ = [kind[:, None, c, i] & (seen[..., c] | (see_later and i == 0)) for i, c in enumerate(columns)]
        masks = (_exclusion(open_[0], features.dtype)[:, None], _exclusion(open_[1], features.dtype)[:, None])
        tail = features.new_zeros(len(kind), 1, p, 0)
    else:
        tail = F.pad(_exclusion(kind, features.dtype), (0, CHANNELS - 2))[:, None]
        if t not in (1, p):
            own = torch.arange(p, device=kind.device) <= torch.arange(p - t, p, device=kind.device)[:, None]
            masks = (None if see_later else own[:, spans[0]], own[:, spans[1]])
    return Keys(
        features=features,
        kind=kind.to(features.dtype),
        tail=tail,
        order=order,
        columns=columns,
        rows=rows,
        masks=masks,
        causal=causal,
        reads=reads.to(features.dtype),
        routed=routed,
        queries=asked,
        keys=tables,
    )


def _visual_first(kind: Tensor) -> Tensor:
    """Places [B, P] that put visual keys before all others, each kind in its order."""
    return kind[..., 0].long().argsort(dim=1, descending=True, stable=True)


def _sorted(x: Tensor, order: Tensor) -> Tensor:
    """x [B or 1, P, ...] by places [B, P]."""
    index = order.reshape(*order.shape, *[1] * (x.dim() - 2))
    return x.expand(len(order), *x.shape[1:]).gather(1, index.expand(*order.shape, *x.shape[2:]))


def _exclusion(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where bool `seen`, else a number that no score outweighs, and that leaves a row without any key finite."""
    device = seen.device.type
    kernel = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
    far = -1e9 if torch.finfo(kernel).max > 1e9 else -3e4
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, far)


class Learners(nn.Module):
    """The visual and the textual learner of one layer; second factors start at zero, so they add nothing.

    Args:
        dim: D.
        heads: H.
        rank: r.
        built: the learners that exist.
    """

    def __init__(self, dim: int, heads: int, rank: int, built: tuple[str, ...]) -> None:
        super().__init__()
        self.heads, self.rank, self.built = heads, rank, built
        for learner in built:
            for factor in FACTORS:
                down = nn.Parameter(nn.init.trunc_normal_(torch.empty(rank, dim), std=0.02))
                self.register_parameter(f"{learner}_{factor}_down", down)
                self.register_parameter(f"{learner}_{factor}_up", nn.Parameter(torch.zeros(dim, rank)))

    def _factors(self, name: str, active: tuple[str, ...]) -> list[Tensor]:
        return [getattr(self, f"{learner}_{name}") for learner in active]

    def codes(self, features: Tensor, kind: Tensor, active: tuple[str, ...]) -> Tensor:
        """features [B, P, D] -> [B, P, 2, n, r]: low-rank parts of key and value, 0 where another learner's key is."""
        down = torch.cat([*self._factors("k_down", active), *self._factors("v_down", active)])
        codes = F.linear(features, down).unflatten(-1, (2, len(active), self.rank))
        own: Tensor = codes * kind[..., None, :, None]
        return own

    def forward(
        self,
        x: Tensor,
        keys: Keys,
        gate: Tensor,
        rotary: Rotary | None,
        rotation: str,
        active: tuple[str, ...],
        store: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """What is added to the attention's output.

        Args:
            x: queries [B, T, D].
            gate: [B, T, learners], their weights; 0 where a token has no key.
            rotation: the kind of this layer's rotary tables.
            active: the learners that take part.
            store: takes the codes of the T positions, [B, T, 2, r], and returns those of all P; None = T is P.

        Returns:
            [B, T, D] in the dtype of the weights.
        """
        b, t, d = x.shape
        n, shape = len(active), (b, -1, self.heads, d // self.heads)
        index = [LEARNERS.index(a) for a in active]
        kind = keys.kind[..., index]  # [B, P, n]
        flat = keys.features.flatten(0, 1)  # [B P, D]
        if store is None:
            codes = self.codes(keys.features, kind, active)
        else:  # a position is a key of one learner at most: one code is kept for it, in the order of positions
            new = _placed(keys.features, keys.order)[:, -t:], _placed(kind, keys.order)[:, -t:]
            kept = store(self.codes(*new, active).sum(-2))
            kept = kept if keys.order is None else _sorted(kept, keys.order)
            codes = kept[..., None, :] * kind[..., None, :, None]
        codes = codes.flatten(-2).flatten(0, 1)  # [B P, 2, n r]
        # For the same reason one key and one value tensor serve both learners.
        up = [torch.cat(self._factors(f"{f}_up", active), 1).T for f in ("k", "v")]  # [n r, D] each
        k, v = (torch.addmm(flat, codes[:, i], up[i]).view(shape) for i in range(2))
        low = F.linear(x, torch.cat(self._factors("q_down", active))).view(b * t, n, self.rank).transpose(0, 1)
        ups = torch.stack(self._factors("q_up", active)).transpose(1, 2)  # [n, r, D]
        q = torch.baddbmm(x.reshape(1, -1, d).expand(n, -1, -1), low, ups).view(n, *shape)
        attended = self._attend(q, k, v, keys, index, rotary, rotation)
        down = self._factors("o_down", active)
        out = []
        for a, w, g in zip(attended, down, gate.split(1, -1), strict=True):
            late = t - a.shape[1]
            out.append(F.pad(F.linear(a, w) * g[:, late:], (0, 0, late, 0)) if late else F.linear(a, w) * g)
        return F.linear(torch.cat(out, -1), torch.cat(self._factors("o_up", active), 1))

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Keys,
        index: list[int],
        rotary: Rotary | None,
        rotation: str,
    ) -> list[Tensor]:
        """q [n, B, T, H, K], k and v [B, P, H, K] -> n tensors [B, T or fewer, D], of the last queries."""
        n, width, extra = len(q), q.shape[-1], keys.tail.shape[-1]
        own = torch.eye(max(extra, 2), dtype=q.dtype, device=q.device)[index, :extra].view(n, 1, 1, 1, extra)
        if rotary is not None:
            q = rotary.turn(q, keys.queries[rotation], own)
            k = rotary.turn(k, keys.keys[rotation], keys.tail)
        else:
            q, k = widen(q, own), widen(k, keys.tail)
        v = widen(v, torch.zeros_like(own[0]))
        found = []
        for learner, queries in zip(index, q.unbind(), strict=True):
            where, mask, causal = keys.columns[learner], keys.masks[learner], keys.causal[learner]
            out = F.scaled_dot_product_attention(
                queries[:, :, keys.rows[learner] :],
                k[:, :, where],
                v[:, :, where],
                mask,
                is_causal=causal,
                scale=width**-0.5,
            )
            found.append(narrow(out, width))
        return found


def _placed(x: Tensor, order: Tensor | None) -> Tensor:
    """The reverse of `_sorted`."""
    return x if order is None else _sorted(x, order.argsort(1))


class Router(nn.Module):
    """Weights of the two learners for each token, from where its attention goes; equal at the start.

    Args:
        inputs: positions (or segments) that it tells apart.
    """

    def __init__(self, inputs: int, segments: bool) -> None:
        super().__init__()
        self.segments = segments
        self.weight = nn.Parameter(torch.zeros(2, inputs))
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(
        self, call: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, scaling: float, keys: Tensor
    ) -> tuple[Any, Tensor]:
        """Run the main attention `call`, and weigh the learners.

        Args:
            keys: float [B, S, 3], the segment of each key; or int64 [B, S], its position id.

        Returns:
            The attention's own output, and softmax(SiLU(W u + b)) [B, T, 2], with u the token's attention summed over
            heads (by position) or averaged (by segment).
        """
        channels = keys if self.segments else F.embedding(keys.clamp(max=self.weight.shape[1] - 1), self.weight.T)
        output, mass = attend(call, q, k, v, channels, scaling)
        mass = mass.to(self.weight.dtype)
        scores = F.linear(mass / q.shape[1], self.weight) if self.segments else mass
        return output, F.silu(scores + self.bias).softmax(-1)
