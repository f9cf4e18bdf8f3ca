"""What a recipe's source says about demonstrations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tsugiki.data.splits import THRESHOLD


class Demos(BaseModel):
    """Demonstrations before a source's samples, drawn anew each time: N ~ U{0..most} others of the same task, each with
    another picture. The loss is that of the sample's own answer alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    most: int = Field(ge=0)
    """N_max; 0 is training without any."""
    sampler: Literal["random", "nearest", "diverse", "balanced"] = "random"
    """Which ones: `random`; the `nearest` to the sample's picture by the tower's features, or near and `diverse`; or
    `balanced`, as many of each answer."""
    form: Literal["visual_guided_text", "textual_guided_visual", "uni_modal", "both"] | None = None
    """How a hub hands them to the LLM. None = as the hub's settings say. Without a hub they are pictures and their
    texts, which is `uni_modal`."""
    near: Annotated[int, Field(ge=0, le=64)] | None = THRESHOLD
    """Bits of 64 in which hashes of pictures may differ that count as one. None = equal pixels only, as pictures of one
    fixed camera need."""

    @field_validator("sampler", mode="before")
    @classmethod
    def _no_losses(cls, value: Any) -> Any:
        if value == "hard":
            raise ValueError(
                "sampler: hard needs the model's loss of every sample, which a stage does not know; use random,"
                " nearest, diverse or balanced"
            )
        return value
