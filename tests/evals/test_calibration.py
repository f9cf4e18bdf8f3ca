"""Calibration against loops."""

from __future__ import annotations

import numpy as np
import pytest

from tsugiki.evals import calibration


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_ece_and_reliability_are_loops_over_bins(bins: int) -> None:
    rng = np.random.default_rng(bins)
    sure, right = np.append(rng.random(200), [0.0, 1.0, 0.5]), rng.integers(0, 2, 203).astype(float)
    total, found = 0.0, []
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        here = [i for i, c in enumerate(sure) if low < c <= high or (b == 0 and c == 0)]
        if here:
            accuracy, mean = sum(right[i] for i in here) / len(here), sum(sure[i] for i in here) / len(here)
            total += len(here) / len(sure) * abs(accuracy - mean)
            found.append((len(here), mean, accuracy))
    assert calibration.ece(sure, right, bins) == pytest.approx(total, abs=1e-12)
    listed = calibration.reliability(sure, right, bins)
    assert [(b.n, pytest.approx(b.confidence), pytest.approx(b.accuracy)) for b in listed] == found


def test_brier() -> None:
    assert calibration.brier({"a": 0.7, "b": 0.2, "c": 0.1}, "b") == pytest.approx(0.49 + 0.64 + 0.01)
    assert calibration.brier({"a": 1.0, "b": 0.0}, "a") == 0 and calibration.brier({"a": 1.0, "b": 0.0}, "b") == 2


def test_reject_curve() -> None:
    curve = calibration.reject_curve(np.array([0.2, 0.9, 0.9, 0.5]), np.array([0.0, 1.0, 0.0, 1.0]))
    assert curve == [(0.5, 0.5), (0.75, pytest.approx(2 / 3)), (1.0, 0.5)]
    sure = calibration.confidences([{"a": 0.4, "b": 0.6}, {"a": 1.0}])
    assert sure.tolist() == [0.6, 1.0]
