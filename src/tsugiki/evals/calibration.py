"""How far probabilities can be trusted: ECE, Brier score, reliability by bins, accuracy without unsure answers.

Confidence is the probability of the chosen option. Shapes: n items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 10

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bin:
    """Items whose confidence lies in one of the equal intervals (i / BINS, (i + 1) / BINS]; the first holds 0 too."""

    n: int
    confidence: float
    """Mean."""
    accuracy: float


def reliability(confidence: Floats, correct: Floats, bins: int = BINS) -> list[Bin]:
    """Bins that hold any item, in order; confidence and correct [n]."""
    where = _bins(confidence, bins)
    return [
        Bin(int(here.sum()), float(confidence[here].mean()), float(correct[here].mean()))
        for here in (where == i for i in range(bins))
        if here.any()
    ]


def ece(confidence: Floats, correct: Floats, bins: int = BINS) -> float:
    """Expected calibration error: |accuracy - confidence| of each bin, weighted by its share of items (1706.04599)."""
    where = _bins(confidence, bins)
    gaps = np.bincount(where, np.asarray(correct, dtype=np.float64) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def brier(probabilities: Mapping[str, float], gold: str) -> float:
    """Sum over the options of (probability - 1 for the true one, else 0) squared: 0 is best, 2 is worst."""
    missed = 0.0 if gold in probabilities else 1.0
    return missed + sum((p - (name == gold)) ** 2 for name, p in probabilities.items())


def reject_curve(confidence: Floats, correct: Floats) -> list[tuple[float, float]]:
    """(share of items answered, their accuracy), the surest items first; equally sure ones come in together."""
    order = np.argsort(-confidence, kind="stable")
    right, sure = np.cumsum(np.asarray(correct, dtype=np.float64)[order]), confidence[order]
    last = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
    return [((i + 1) / len(sure), float(right[i] / (i + 1))) for i in last.tolist()]


def confidences(probabilities: Sequence[Mapping[str, float]]) -> Floats:
    """The probability of the likeliest option of each item, [n]."""
    return np.array([max(p.values()) for p in probabilities])


def _bins(confidence: Floats, bins: int) -> npt.NDArray[np.intp]:
    return np.clip(np.ceil(confidence * bins).astype(np.intp) - 1, 0, bins - 1)
