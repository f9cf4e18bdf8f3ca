"""Arms that take turns, and ratios of what they spend, for benchmarks that compare costs side by side."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats


def timed(function: Callable[[], Any]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def turns(arms: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor of each arm in each round; `function` gives them. A round before is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(-1, rounds):
        order = list(arms)
        random.Random(i).shuffle(order)
        for name in order:
            spent = arms[name]()
            if i >= 0:
                seconds[name].append(spent)
        if i >= 0:
            print(f"round {i}: " + "  ".join(f"{name} {s[-1]:.3f}" for name, s in seconds.items()), flush=True)
    return seconds


def median(values: Sequence[float]) -> str:
    """`1.40 (1.36 to 1.45)`: the median and its 95 % interval."""
    rng = np.random.default_rng(0)
    found = stats.bootstrap((np.array(values),), np.median, n_resamples=9999, method="percentile", rng=rng)
    low, high = found.confidence_interval
    return f"{np.median(values):.2f} ({low:.2f} to {high:.2f})"


def ratios(above: Sequence[float], below: Sequence[float], minus: Sequence[float] | None = None) -> list[float]:
    """Of each round; with `minus`, of what is beyond it."""
    base = minus or [0.0] * len(above)
    return [(a - m) / (b - m) for a, b, m in zip(above, below, base, strict=True)]
