"""BLIP-2's vision model with its Q-Former (2301.12597) as a tower: learned queries read the picture, their last hidden
states are the features. They have no place, so a mix puts them beside the cells. Weights come without the LLM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MODEL_TYPE = "blip-2"
HEAD = "vision_projection"  # of the retrieval model, which is the one class of transformers without an LLM


class QFormerBackbone(nn.Module):
    """Pixels [N, 3, S, S] -> hidden states of the queries [N, Q, V].

    Args:
        model: a `Blip2VisionModelWithProjection`; its projection is not run.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        config: Any = model.config
        self.model = model
        self.identity = "QFormer"
        self.patch_size: int | None = None  # of no use: queries are no grid
        self.trained_size = int(config.vision_config.image_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        extra = {"interpolate_pos_encoding": True} if pixel_values.shape[-1] != self.trained_size else {}
        model: Any = self.model
        states = model.vision_model(pixel_values, **extra).last_hidden_state
        queries = model.query_tokens.expand(len(states), -1, -1).to(states)
        read: Tensor = model.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
        return read


def is_qformer(model: nn.Module) -> bool:
    """Whether a model is a BLIP-2, with or without its LLM."""
    return getattr(getattr(model, "config", None), "model_type", None) == MODEL_TYPE and hasattr(model, "query_tokens")


def loader() -> Any:
    """The class that loads the vision model, the Q-Former and its queries, and leaves the LLM in the file."""
    from transformers import Blip2VisionModelWithProjection

    return Blip2VisionModelWithProjection


@torch.no_grad()
def without_llm(model: Any) -> nn.Module:
    """The same vision model, Q-Former and queries (shared, not copied) in a model that holds nothing else."""
    if isinstance(model, loader()):
        return model  # type: ignore[no-any-return]
    with torch.device("meta"):
        alone = loader()(model.config)
    alone.vision_model, alone.qformer, alone.query_tokens = model.vision_model, model.qformer, model.query_tokens
    head = alone.vision_projection
    alone.vision_projection = nn.Linear(head.in_features, head.out_features)
    for parameter in alone.vision_projection.parameters():
        parameter.zero_()
    return alone.eval()  # type: ignore[no-any-return]
