"""What a stage may cost the text: how often it is measured, how much is allowed, and what is done beyond that."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Retention(BaseModel):
    """The text loss on held-out texts against the base's, while the LLM trains."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    every: int = Field(default=50, gt=0)
    """Steps from one measurement to the next; the last step of the stage is measured too."""
    budget: float = Field(default=0.05, gt=0)
    """Largest rise of the loss, nats a token. What counts is the upper end of the 95 % interval over the texts."""
    pull: bool = False
    """Once, the first time that the budget is broken, set the LLM's trained weights to beta theta + (1 - beta)
    theta_base and go on, instead of stopping; a second time the stage stops. Needs the base's source files."""
    room: float = Field(default=0.5, gt=0, le=1)
    """Share of the budget that may be used up after the pull: beta is the largest that keeps to it."""
    bisections: int = Field(default=6, gt=0, le=20)
    """Halvings of the interval 0 to 1 in which beta is looked for."""
    n: int = Field(default=32, gt=1)
    """Texts."""
    texts: Path | None = None
    """A text file with blank lines between the texts, relative to the recipe's file. None = articles of the asset
    `wiki` that are in no training split. Take others than those that the result is judged by."""
