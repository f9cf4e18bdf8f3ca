"""Visual tokens take the place of the prompt's placeholders. LLaVA, arXiv:2304.08485 and 2310.03744.

The projector's weights belong to the front-end; this graft only splices. Shapes: B rows, T positions, D LLM width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.decoder import DecoderSpec
from tsugiki.grafts._base import Graft as Base
from tsugiki.grafts._context import Context
from tsugiki.grafts._sites import Site
from tsugiki.types import DEMO, IMAGE, VisualTokens

PAPER = "arXiv:2310.03744"
CODE = "https://github.com/haotian-liu/LLaVA"
LICENSE = "Apache-2.0"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The splice has no setting; the projector's are the front-end's."""


def splice(
    embeddings: Tensor, visual: VisualTokens, token_kind: Tensor, image_index: Tensor, image_offset: Tensor
) -> Tensor:
    """x[b, t] = visual[image_index[b, t], image_offset[b, t]] where the kind is image or demo, else the word embedding.

    Args:
        embeddings: float [B, T, D].
        token_kind, image_index, image_offset: int64 [B, T].

    Returns:
        float [B, T, D].
    """
    rows = visual.tokens[image_index.clamp(min=0), image_offset]  # [B, T, D]
    seen = (token_kind == IMAGE) | (token_kind == DEMO)
    return torch.where(seen[..., None], rows.to(embeddings.dtype), embeddings)


class Graft(Base):
    """Early fusion: the LLM reads visual tokens as if they were words."""

    SPLICES = True
    STARTS_AS_IDENTITY = False  # the placeholders' embeddings are replaced from the first step
    PREFIX_EXACT = True

    def __init__(self, config: Config, decoder: DecoderSpec) -> None:
        super().__init__(config, decoder)

    def sites(self, decoder: DecoderSpec) -> Iterator[Site]:
        yield Site("embed", decoder.embed, self.fill, "word embeddings")

    def fill(self, embeddings: Tensor, input_ids: Tensor, context: Context) -> Tensor:
        """Put visual tokens at the image positions of this forward."""
        assert context.visual is not None and context.token_kind is not None
        assert context.image_index is not None and context.image_offset is not None
        return splice(embeddings, context.visual, context.token_kind, context.image_index, context.image_offset)
