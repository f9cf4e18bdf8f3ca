"""WINGS as it is published, written the straightforward way: what the graft's cost is measured against.

Nothing of `tsugiki.grafts` runs here. The LLM attends eagerly and hands out its weights, the router is a linear layer
on the [T, T] sum of them over heads, each learner makes full keys and values in every layer and attends through [T, k]
scores of each head and a mask. The formulas are the corrected ones (causal by position, text keys from the image on),
so that logits equal the graft's. For Llama, rows of one layout: text, one image, text.

Shapes: B rows, T positions, D width, H heads, r rank, k keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import rotate_half

WIDTH = 4096


class Learner(nn.Module):
    """LoRRA: queries x + x A B, keys and values f + f A B, output through A B alone."""

    def __init__(self, dim: int, heads: int, rank: int) -> None:
        super().__init__()
        self.heads = heads
        self.down = nn.ModuleDict({f: nn.Linear(dim, rank, bias=False) for f in "qkvo"})
        self.up = nn.ModuleDict({f: nn.Linear(rank, dim, bias=False) for f in "qkvo"})

    def _low(self, factor: str, x: Tensor) -> Tensor:
        y: Tensor = self.up[factor](self.down[factor](x))
        return y

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, features: Tensor, where: slice, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Queries x [B, T, D], keys at the positions `where` of features [B, T, D] -> [B, T, D]."""
        f = features[:, where]
        q = turned(self._split(x + self._low("q", x)), *tables)
        k = turned(self._split(f + self._low("k", f)), *(t[:, where] for t in tables))
        v = self._split(f + self._low("v", f))
        places = torch.arange(x.shape[1])
        open_ = places[None, where] <= places[:, None]  # [T, k]
        mask = torch.zeros(open_.shape).masked_fill(~open_, torch.finfo(x.dtype).min)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + mask  # [B, H, T, k]
        attended = F.softmax(scores, -1, dtype=torch.float32).to(x.dtype) @ v
        out = self._low("o", attended.transpose(1, 2).flatten(2))
        return out * open_.any(-1, keepdim=True)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x [B, H, T, K], tables [1, T, K]."""
    return x * cos[:, None] + rotate_half(x) * sin[:, None]


class PlainWings(nn.Module):
    """A Llama of transformers with learners and routers in every layer.

    Args:
        llm: made with `attn_implementation="eager"`; its weights get no gradient.
        rank: r.
    """

    def __init__(self, llm: Any, rank: int) -> None:
        super().__init__()
        config = llm.config
        self.llm = llm.requires_grad_(False)
        d, h, depth = config.hidden_size, config.num_attention_heads, len(llm.model.layers)
        self.visual = nn.ModuleList(Learner(d, h, rank) for _ in range(depth))
        self.textual = nn.ModuleList(Learner(d, h, rank) for _ in range(depth))
        self.routers = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in range(depth))

    def own(self) -> list[nn.Parameter]:
        return [p for part in (self.visual, self.textual, self.routers) for p in part.parameters()]

    def take(self, graft: Mapping[str, Tensor]) -> None:
        """The weights of a wings graft's state dict."""
        with torch.no_grad():
            for i in range(len(self.visual)):
                for name in ("visual", "textual"):
                    learner: Any = getattr(self, name)[i]
                    for f in "qkvo":
                        learner.down[f].weight.copy_(graft[f"layers.{i}.{name}_{f}_down"])
                        learner.up[f].weight.copy_(graft[f"layers.{i}.{name}_{f}_up"])
                router: Any = self.routers[i]
                router.weight.copy_(graft[f"routers.{i}.weight"])
                router.bias.copy_(graft[f"routers.{i}.bias"])

    def forward(self, ids: Tensor, visual: Tensor, first: int, keep: Tensor) -> Tensor:
        """Logits [B, L, vocabulary] at the positions `keep` [L].

        Args:
            ids: [B, T]; those of the image's positions are not looked at.
            visual: [B, M, D], of the image that begins at the position `first`.
        """
        body = self.llm.model
        words, end = body.embed_tokens(ids), first + visual.shape[1]
        x = features = torch.cat([words[:, :first], visual, words[:, end:]], 1)
        b, t, _ = x.shape
        tables = body.rotary_emb(x, torch.arange(t)[None])
        mask = torch.full((t, t), torch.finfo(x.dtype).min).triu(1).expand(b, 1, t, t)
        for i, layer in enumerate(body.layers):
            normed = layer.input_layernorm(x)
            out, attention = layer.self_attn(normed, position_embeddings=tables, attention_mask=mask)
            x = x + out
            router: Any = self.routers[i]
            u = attention.sum(1)  # [B, T, T]
            w = F.silu(F.linear(u, router.weight[:, :t], router.bias)).softmax(-1)
            seen = self.visual[i](x, features, slice(first, end), tables)
            read = self.textual[i](x, features, slice(end, t), tables)
            x = x + w[..., :1] * seen + w[..., 1:] * read
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        logits: Tensor = self.llm.lm_head(body.norm(x)[:, keep])
        return logits
