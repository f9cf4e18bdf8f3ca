"""Retention: what the text lost against the base, on its own texts and questions; see `tsugiki.evals.retention`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsugiki.evals import own as own_prompts
from tsugiki.evals.retention import SUITES, VERSION, retention
from tsugiki.evals.task import Result, Settings
from tsugiki.types import Sample

DESCRIPTION = "no samples: it asks about held-out texts of its own"
NEEDS_SAMPLES = False
ITEMS = 100
"""Items a suite where `limit` is not set."""

__all__ = ["DESCRIPTION", "NEEDS_SAMPLES", "VERSION", "measure", "own_samples", "select"]


def own_samples(settings: Settings) -> list[Sample]:
    return []


def select(samples: Sequence[Sample]) -> list[Sample]:
    return []


def measure(model: Any, samples: Sequence[Sample], settings: Settings) -> Result:
    """The suites and own prompts on text requests and after an unrelated picture."""
    own = own_prompts.read(settings.own) if isinstance(settings.own, str | Path) else settings.own
    if settings.limit is not None and len(own) > settings.limit:
        own = random.Random(settings.seed).sample(list(own), settings.limit)
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        if settings.progress is not None:
            settings.progress("retention", len(told), 0)

    scores = retention(
        model,
        suites=SUITES if settings.suites is None else settings.suites,
        own=own,
        int8=settings.int8,
        n=settings.limit or ITEMS,
        base=settings.base,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        progress=tell,
    )
    return Result(task="retention", scores=scores)
