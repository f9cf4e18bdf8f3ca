"""What a stage is run with, and the clock that it is run by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsugiki.training.checkpoints import Checkpoint
from tsugiki.training.recipe import Recipe
from tsugiki.training.sources import Stream


class Clock:
    """Seconds of training, those before an interruption included."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def set(self, seconds: float) -> None:
        self._before = seconds

    def start(self) -> None:
        self._since = time.monotonic()

    def stop(self) -> None:
        self._before, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        return self._before + (time.monotonic() - self._since if self._since is not None else 0.0)


@dataclass(kw_only=True)
class Work:
    """What a stage is run with."""

    recipe: Recipe
    index: int
    """The stage's number in the recipe."""
    stream: Stream
    keeps: Mapping[str, Any]
    """Parts whose weights belong in a checkpoint: those that trained in this stage or before."""
    folder: Path
    """Where checkpoints go."""
    record: Callable[[dict[str, Any], float], None]
    """Called after each step with its row for the log and the share of the stage that is done."""
    sync: Callable[[], None]
    """Called before a checkpoint is written: the log must not be behind it."""
    checkpoint: Checkpoint | None = None
    """Of this stage, to continue from; the weights are in the model already."""
    state: dict[str, Any] = field(default_factory=dict)
    """Further values for the checkpoints' state."""
