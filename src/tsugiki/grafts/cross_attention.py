"""Gated cross-attention before every k-th decoder layer. Flamingo, arXiv:2204.14198, section 2.2 and figure 4.

    y = x + tanh(a) * CrossAttention(x, v)
    z = y + tanh(b) * FFN(y)        a = b = 0 at the start, so that z = x, bit for bit

A position reads the images that begin at or before it in its own row (`see: "all"`; the paper's form is `"last"`: the
one image that precedes it most closely). A position that can read no image is passed through unchanged.
Shapes: B rows, T positions, K images of a row, M visual tokens of an image, D width of the LLM, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.decoder import DecoderSpec
from tsugiki.errors import InputError, UnsupportedError
from tsugiki.grafts._base import Graft as Base
from tsugiki.grafts._context import Context
from tsugiki.grafts._sites import Site
from tsugiki.types import TEXT, VisualTokens

PAPER = "arXiv:2204.14198"
CODE = None  # the authors published none
LICENSE = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where the blocks stand and how wide they are."""

    every: int = 4
    """One block before every `every`-th layer, starting with the first."""
    heads: int | None = None
    """Attention heads of a block; must divide the LLM's width. None = the LLM's own number."""
    ffn_ratio: float = 4.0
    """Width of the block's FFN relative to the LLM's; 4 in the paper, 0 leaves the FFN out."""
    see: Literal["all", "last"] = "all"
    """Which images a position reads: all that came before it, or only the last one."""


class GatedBlock(nn.Module):
    """One gated cross-attention block; both gates start at zero.

    Args:
        dim: D, width of the LLM and of the visual tokens.
        heads: must divide `dim`.
        ffn_ratio: 0 for none.
    """

    def __init__(self, dim: int, heads: int, ffn_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.visual_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Parameter(torch.zeros(()))
        self.ffn: nn.Module | None = None
        if ffn_ratio > 0:
            wide = int(dim * ffn_ratio)
            self.ffn = nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, wide, bias=False), nn.GELU(), nn.Linear(wide, dim, bias=False)
            )
            self.ffn_gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, visual: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, D], visual [B, J, D], mask bool [B, T, J] (True = may read) -> [B, T, D] in the dtype of x."""
        b, t, d = x.shape
        came, x, visual = x, x.to(self.query.weight.dtype), visual.to(self.query.weight.dtype)
        reads = mask.any(-1)  # [B, T]
        # A row without any key would be a softmax over nothing: let it read everything, and drop the result.
        mask = mask | ~reads[..., None]
        q = self.query(self.norm(x)).view(b, t, self.heads, -1).transpose(1, 2)
        k, v = (
            self.key_value(self.visual_norm(visual)).view(b, visual.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])  # [B, H, T, D / H]
        y = x + self.gate.tanh() * self.out(attended.transpose(1, 2).reshape(b, t, d))
        if self.ffn is not None:
            y = y + self.ffn_gate.tanh() * self.ffn(y)
        return torch.where(reads[..., None], y.to(came.dtype), came)


def keys_of_rows(visual: VisualTokens, row_images: Tensor) -> tuple[Tensor, Tensor]:
    """Visual tokens of each row's own images: -> keys [B, K * M, D] and which of them are real, bool [B, K * M]."""
    n, m, d = visual.tokens.shape
    rows = row_images.clamp(min=0)  # [B, K]
    keys = visual.tokens[rows].flatten(1, 2)  # [B, K * M, D]
    real = (row_images >= 0)[..., None].expand(-1, -1, m)
    if visual.mask is not None:
        real = real & visual.mask[rows]
    return keys, real.flatten(1)


class Graft(Base):
    """Deep fusion: the prompt holds one tag per image, pictures enter inside the layers."""

    SPLICES = False
    STARTS_AS_IDENTITY = True
    PREFIX_EXACT = True

    def __init__(self, config: Config, decoder: DecoderSpec) -> None:
        super().__init__(config, decoder)
        d = decoder.hidden_size
        heads = config.heads or int(decoder.config.num_attention_heads)
        if d % heads:
            raise InputError(
                f"heads = {heads} does not divide the LLM's width {d}",
                expected="a divisor",
                where="cross_attention.heads",
            )
        if config.every < 1:
            raise InputError(f"every = {config.every}", expected="at least 1", where="cross_attention.every")
        if decoder.embedding_size != d:
            raise UnsupportedError(
                f"{decoder.name} has word embeddings of width {decoder.embedding_size} and layers of width {d}",
                expected="equal widths, since visual tokens have the embeddings' width",
                fix="Use the projector graft.",
            )
        count = len(decoder.layers[:: config.every])
        self.blocks = nn.ModuleList(GatedBlock(d, heads, config.ffn_ratio) for _ in range(count))

    def sites(self, decoder: DecoderSpec) -> Iterator[Site]:
        for i, (layer, block) in enumerate(zip(decoder.layers[:: self.config.every], self.blocks, strict=True)):
            yield Site("before", layer, partial(self.look, block), f"layer {i * self.config.every}")

    def look(self, block: nn.Module, x: Tensor, context: Context) -> Tensor:
        """x [B, T, D] -> [B, T, D], positions of kind text read the images before them."""
        assert context.visual is not None and context.row_images is not None
        assert context.visible is not None and context.token_kind is not None
        visible = context.visible  # [B, T, K]
        if self.config.see == "last":
            later = torch.cat([visible[..., 1:], torch.zeros_like(visible[..., :1])], dim=-1)
            visible = visible & ~later
        keys, real = keys_of_rows(context.visual, context.row_images)
        mask = visible.repeat_interleave(context.visual.per_image, dim=-1) & real[:, None]
        mask = mask & (context.token_kind == TEXT)[..., None]
        y: Tensor = block(x, keys, mask)
        return y
