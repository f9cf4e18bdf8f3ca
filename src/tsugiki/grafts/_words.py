"""Word vectors of a branch's own, at the LLM's input and in its head: whole matrices, or differences for a few words.

Shapes: B rows, T positions, D LLM width, E width of its word embeddings, V words, R words with a difference.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.decoder import DecoderSpec


class Words(nn.Module):
    """Starts with the LLM's own vectors.

    Args:
        decoder: of the LLM.
        rows: token ids whose vectors are trained, as differences to the LLM's; None = all words, in own matrices.
    """

    number: Tensor  # int64 [V], which difference a word has; R = none
    rows: Tensor  # int64 [R]

    def __init__(self, decoder: DecoderSpec, rows: Sequence[int] | None) -> None:
        super().__init__()
        self.embed: Any = None
        self.head: Any = None
        if rows is None:
            self.embed, self.head = (
                copy.deepcopy(m).float().requires_grad_(True) for m in (decoder.embed, decoder.head)
            )
            return
        place = decoder.embed.weight.device
        number = torch.full((decoder.vocabulary,), len(rows), device=place)
        number[torch.tensor(rows, device=place)] = torch.arange(len(rows), device=place)
        self.register_buffer("number", number, persistent=False)
        self.register_buffer("rows", torch.tensor(rows, device=place), persistent=False)
        self.input = nn.Parameter(torch.zeros(len(rows), decoder.embedding_size, device=place))
        self.output = nn.Parameter(torch.zeros(len(rows), decoder.head.weight.shape[1], device=place))

    def forward(self, given: Tensor | None, *, ids: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """Embeddings, or scores.

        Args:
            given: the LLM's own: embeddings [B, T, E], or scores [.., V]; whole matrices don't need them.
            ids: int64 [B, T], for embeddings.
            hidden: float [.., D], for scores.
        """
        if self.embed is not None:
            whole: Tensor = self.embed(ids) if ids is not None else self.head(_as(hidden, self.head.weight))
            return whole if hidden is None else whole.to(hidden.dtype)
        assert given is not None
        if ids is not None:
            table = F.pad(self.input, (0, 0, 0, 1))  # [R + 1, E], the last row is zero
            return given + F.embedding(self.number[ids], table)
        assert hidden is not None
        more = F.linear(_as(hidden, self.output), self.output)  # [.., R]
        return given.index_add(-1, self.rows, more.to(given.dtype))


def _as(x: Tensor | None, weight: Tensor) -> Tensor:
    assert x is not None
    return x.to(weight.dtype)
