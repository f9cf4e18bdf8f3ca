"""A hub's queries beside the cells of a mixed front-end: SPHINX's query branch, made to be trained (2311.07575).

SPHINX puts the outputs of BLIP-2's Q-Former, which stays frozen, before the cells of its other towers; a tower with
queries does just that. Here the reader is a hub that trains: in each view it reads the mixed cells e, or one tower's,

    q_v = LN(W hub(e_v) + b)      t_v = [s; q_v; z_v; e] as in `mix.py`

and its weights may come from a Q-Former. It reads pictures alone, as published, so it has no text branch.
Shapes: K views, P patches, V width of what is read, Q queries, W hub width, D LLM width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tsugiki.errors import InputError
from tsugiki.vision.hub import Hub, HubConfig
from tsugiki.vision.hub_projector import HubReader, HubStart
from tsugiki.vision.projector import gain_for


@dataclass(frozen=True, kw_only=True)
class QueryBranchSettings(HubStart):
    """What stands under `query_branch` in a front-end's config: the fields of `HubConfig`, and these."""

    tower: int | None = None
    """The number of the tower whose patches it reads, from 0 on, as a Q-Former needs whose weights are given; None =
    the cells of all towers side by side."""
    WHERE: ClassVar[str] = "front-end: query_branch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tower is not None and (isinstance(self.tower, bool) or not isinstance(self.tower, int)):
            raise InputError(f"tower={self.tower!r}", expected="a number of a tower, or None", where=self.WHERE)


class QueryBranch(HubReader):
    """A hub without text, with the LayerNorm behind its projection that a mix gives to all of its parts. To a warm
    start it is a projector.

    Args:
        sizes: of the hub.
        in_width: V.
        out_width: D.
    """

    def __init__(self, sizes: HubConfig, in_width: int, out_width: int) -> None:
        super().__init__(Hub(sizes, in_width, out_width, text=False))
        self.out_norm: nn.LayerNorm | None = nn.LayerNorm(out_width)
        self.out_width = out_width

    def content(self, features: Tensor) -> Tensor:
        """[K, P, V] -> [K, Q, D]."""
        tokens: Tensor = self.linear_2(self.hidden(features))
        return tokens if self.out_norm is None else self.out_norm(tokens)

    def forward(self, features: Tensor) -> Tensor:
        """[K, P, V] -> [K, Q, D]."""
        return self.content(features)

    @torch.no_grad()
    def set_output_rms(self, rms: float, features: Tensor) -> None:
        """Scale the norm, or the last matrix where it is taken off: the tokens of features [K, P, V] get this RMS."""
        gain = gain_for(self.content(features).double(), 0.0, rms)
        last = self.linear_2 if self.out_norm is None else self.out_norm
        last.weight.mul_(gain)
        last.bias.mul_(gain)

    def extra_repr(self) -> str:
        return f"tokens={self.tokens}"
