"""What n items can show, against the formula by simulation, and its inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugiki.errors import DataError
from tsugiki.evals import budget, power, stats


def test_the_formula_in_the_docstring() -> None:
    from scipy.stats import t

    for n in (30, 100, 1000):
        approximate = (t.ppf(0.975, n - 1) + t.ppf(0.80, n - 1)) * 0.4 / math.sqrt(n)
        assert power.smallest_drop(0.4, n, binary=False) == pytest.approx(approximate, rel=0.01)
    assert power.smallest_drop(0.4, 1, binary=False) == math.inf


@given(st.floats(0.02, 1.0), st.floats(0.0, 2.0), st.booleans())
def test_items_needed_is_the_inverse(drop: float, spread: float, binary: bool) -> None:
    n = power.items_needed(drop, spread, binary=binary)
    assert power.smallest_drop(spread, int(n), binary=binary) <= drop
    assert n == 2 or power.smallest_drop(spread, int(n) - 1, binary=binary) > drop


def test_so_many_items_do_find_the_drop_four_times_in_five() -> None:
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(1)
    n = int(power.items_needed(0.1, 0.5, binary=False))
    samples = rng.normal(-0.1, 0.5, (2000, n))
    assert np.mean(ttest_1samp(samples, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)


def test_without_a_lost_item_the_floor_holds() -> None:
    assert power.smallest_drop(0.0, 100, binary=True) == pytest.approx(0.0777, abs=0.001)
    assert power.smallest_drop(0.0, 5, binary=True) == math.inf
    assert power.items_needed(0.05, 0.0, binary=True) == pytest.approx(157, abs=2)
    same = [1, 0] * 20
    score = stats.score("t", "accuracy", same, same)
    assert score.spread == 0 and budget.items_needed(score, 0.05) == power.items_needed(0.05, 0.0, binary=True)
    assert budget.items_needed(stats.score("t", "loss", [0.5, 0.7, 0.9], [0.5, 0.7, 0.9]), 0.05) == 2
    whole = stats.score("t", "agreement", [1.0] * 9, [1.0] * 9)
    assert budget.items_needed(whole, 0.05) == power.items_needed(0.05, 0.0, binary=True)


def test_items_needed_of_a_score_are_those_of_its_items() -> None:
    own, base = [1.0, 0.7, 0.4, 0.9, 0.2], [0.9, 0.8, 0.4, 0.6, 0.4]
    score = stats.score("t", "loss", own, base)
    assert score.spread == pytest.approx(np.std(np.subtract(own, base)), rel=0.05)
    assert budget.items_needed(score, 0.01) == power.items_needed(0.01, score.spread or 0, binary=False)
    assert budget.items_needed(score, 0.0) == math.inf
    assert budget.items_needed(stats.score("t", "loss", own), 0.01) is None


@pytest.mark.parametrize("drop", [0.0, -0.1, float("nan")])
def test_no_drop_is_no_question(drop: float) -> None:
    with pytest.raises(DataError, match="above 0"):
        power.items_needed(drop, 1.0, binary=False)


def test_too_small_a_drop_has_no_answer() -> None:
    assert power.items_needed(1e-9, 1.0, binary=False) == math.inf
