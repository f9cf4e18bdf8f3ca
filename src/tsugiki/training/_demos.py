"""What a recipe's source says about demonstrations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tsugiki.data.splits import THRESHOLD


class Demos(BaseModel):
    """Demonstrations before a source's samples, drawn anew each time: N ~ U{0..most} others of the same task, each with
    another picture. The loss is that of the sample's own answer alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    most: int = Field(ge=0)
    """N_max; 0 is training without any."""
    sampler: Literal["random", "nearest", "diverse", "hard", "balanced"] = "random"
    """Which ones: `random`; the `nearest` to the sample's picture by the tower's features, or near and `diverse`; the
    `hard` ones, whose own answers had the highest loss when they were trained on last, random until each has been; or
    `balanced`, as many of each answer."""
    form: Literal["visual_guided_text", "textual_guided_visual", "uni_modal", "both"] | None = None
    """How a hub hands them to the LLM. None = as the hub's settings say. Without a hub they are pictures and their
    texts, which is `uni_modal`."""
    near: Annotated[int, Field(ge=0, le=64)] | None = THRESHOLD
    """Bits of 64 in which hashes of pictures may differ that count as one. None = equal pixels only, as pictures of one
    fixed camera need."""
