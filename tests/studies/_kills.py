"""Trainings that are killed at given steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsugiki.training.trainer import StepReport


class Killed(BaseException):
    """In the place of a signal: nothing catches it."""


def killing(real: Callable[..., Any], kills: list[tuple[str, int]]) -> Callable[..., Any]:
    """`train`, killed at each (name of the run's folder, step) of `kills` in turn, which is taken off the list."""

    def train(model: Any, plan: Any, out: Path, *, on_step: Any = None, **options: Any) -> Any:
        def step(report: StepReport) -> None:
            if on_step is not None:
                on_step(report)
            if kills and kills[0] == (out.name, report.step):
                kills.pop(0)
                raise Killed

        return real(model, plan, out, on_step=step, **options)

    return train
