"""How a learning rate changes with the share of the training that is done, by steps or by the clock."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine", "constant_decay"]


def factor(schedule: Schedule, progress: float, *, warmup: float, decay: float = 0.2) -> float:
    """Return what the learning rate is multiplied with.

        warm-up   progress / warmup                        for progress < warmup
        constant  1
        linear    1 - q
        cosine    (1 + cos(pi q)) / 2
        constant_decay   1, then linear to 0 over the last `decay` of the training

    where q is the share of what comes after the warm-up.

    Args:
        progress: share of the training that is done, 0 to 1; values beyond 1 count as 1.
        warmup: share of the training that is warm-up, below 1.
        decay: share of the training over which `constant_decay` falls to 0.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    q = (progress - warmup) / (1.0 - warmup)
    if schedule == "linear":
        return 1.0 - q
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * q))
    if schedule == "constant_decay" and decay > 0.0:
        return min(1.0, (1.0 - progress) / decay)
    return 1.0
