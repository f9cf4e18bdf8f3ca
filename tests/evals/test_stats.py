"""The wrappers give what the formulas give, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugiki.errors import DataError
from tsugiki.evals import stats

Z = 1.959963984540054  # 97.5 % of the normal distribution


@given(st.integers(1, 400), st.data())
def test_proportion_is_wilsons_formula(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    p, found = hits / n, stats.proportion(hits, n)
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    assert found.value == p and found.n == n
    assert found.low == pytest.approx(centre - half, abs=1e-12) and found.high == pytest.approx(
        centre + half, abs=1e-12
    )
    assert found.stderr == pytest.approx(math.sqrt(p * (1 - p) / n))


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_proportion_refuses_impossible_counts(hits: int, n: int) -> None:
    with pytest.raises(DataError):
        stats.proportion(hits, n)


def test_mean_and_its_error() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = stats.mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(values.std(ddof=1) / 20, rel=0.05)
    assert found.low == pytest.approx(found.value - Z * found.stderr, abs=0.03)


def test_weights_are_those_of_a_ratio() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.normal(size=50), rng.integers(1, 9, 50)
    total = sum(float(v) * int(w) for v, w in zip(values, weights, strict=True)) / sum(int(w) for w in weights)
    assert stats.mean(values, weights).value == pytest.approx(total)
    repeated = np.repeat(values, weights)
    groups = np.repeat(np.arange(50), weights).tolist()
    a, b = stats.mean(values, weights), stats.mean(repeated, groups=groups)
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


def test_groups_widen_the_interval_of_dependent_items() -> None:
    rng = np.random.default_rng(2)
    values, groups = np.repeat(rng.normal(size=40), 10), np.repeat(np.arange(40), 10).tolist()
    alone, together = stats.mean(values), stats.mean(values, groups=groups)
    assert alone.value == pytest.approx(together.value) and together.n == 400
    assert together.stderr == pytest.approx(alone.stderr * math.sqrt(10), rel=0.1)


def test_pairing_removes_what_items_share() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(0, 10, 300)
    own = base + rng.normal(0.5, 0.1, 300)
    found = stats.paired(own, base)
    assert found.value == pytest.approx(0.5, abs=0.02) and found.stderr < 0.01
    assert found.low > 0.48 and found.high < 0.52


@pytest.mark.slow
def test_the_paired_interval_covers() -> None:
    rng, inside = np.random.default_rng(4), 0
    for _ in range(300):
        difference = rng.exponential(1.0, 60) - 1.0  # skewed, true mean 0
        found = stats.paired(difference, np.zeros(60))
        inside += found.low <= 0 <= found.high
    assert 0.90 <= inside / 300 <= 0.985


def test_nothing_that_varies_gives_a_point_without_a_warning() -> None:
    found = stats.paired([0.25] * 20, [0.25] * 20)
    assert (found.value, found.stderr, found.low, found.high) == (0, 0, 0, 0)
    assert stats.mean([2.0, 2.0], weights=[1, 5]).high == 2.0
    one = stats.mean([3.0])
    assert one.value == 3 and one.stderr == math.inf


def test_bootstrap_of_any_statistic() -> None:
    rng = np.random.default_rng(5)
    gold = rng.integers(0, 3, 200)
    guess = np.where(rng.random(200) < 0.7, gold, rng.integers(0, 3, 200))
    found = stats.bootstrap(lambda g, p: float((g == p).mean()), gold, guess)
    share = stats.proportion(int((gold == guess).sum()), 200)
    assert found.value == pytest.approx(share.value)
    assert (found.low, found.high) == pytest.approx((share.low, share.high), abs=0.02)
    with pytest.raises(DataError):
        stats.bootstrap(lambda a, b: 0.0, [1, 2], [1])


def test_median_ratio() -> None:
    base = np.random.default_rng(6).uniform(1, 2, 31)
    found = stats.median_ratio(base * 1.5, base)
    assert found.value == pytest.approx(1.5) and found.low == pytest.approx(1.5)
    noisy = stats.median_ratio(base * np.random.default_rng(7).uniform(0.9, 1.1, 31), base)
    assert noisy.low < noisy.value < noisy.high


@pytest.mark.parametrize(("only_model", "only_base"), [(0, 0), (3, 2), (0, 6), (10, 1)])
def test_mcnemar_is_the_binomial_test_of_the_items_that_differ(only_model: int, only_base: int) -> None:
    own = [1] * 5 + [1] * only_model + [0] * only_base + [0] * 4
    base = [1] * 5 + [0] * only_model + [1] * only_base + [0] * 4
    found, n = stats.mcnemar(own, base), only_model + only_base
    tail = sum(math.comb(n, k) for k in range(min(only_model, only_base) + 1)) / 2**n
    assert (found.only_model, found.only_base) == (only_model, only_base)
    assert found.pvalue == pytest.approx(min(1.0, 2 * tail))


def test_the_detectable_drop_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(8)
    spread = rng.normal(0, 1, 100)
    drop = stats.detectable_drop(spread, np.zeros(100))
    assert drop == pytest.approx(2.83 * spread.std() / 10, rel=0.05)
    seen = 0
    for _ in range(2000):
        sample = rng.normal(drop, spread.std(), 100)
        seen += abs(sample.mean()) / (sample.std(ddof=1) / 10) > 1.984
    assert seen / 2000 == pytest.approx(0.8, abs=0.04)


def test_equal_answers_do_not_mean_that_any_drop_would_be_seen() -> None:
    same = [1, 0] * 50
    drop = stats.detectable_drop(same, same)
    lost = np.random.default_rng(9).binomial(100, drop, 4000)
    assert np.mean(lost >= 6) == pytest.approx(0.8, abs=0.02)  # six lost, none gained: p = 0.031
    assert stats.detectable_drop([1, 0, 1], [1, 0, 1]) == math.inf
    assert stats.detectable_drop([0.5, 0.25], [0.5, 0.25]) == 0


def test_score_is_paired_and_says_whether_it_tells_anything() -> None:
    base = [1] * 30 + [0] * 70
    own = [1] * 28 + [0] * 72
    found = stats.score("title_choice", "accuracy", own, base, chance=0.25, note="x")
    interval = stats.proportion(28, 100)
    assert (found.value, found.low, found.high, found.n) == (0.28, interval.low, interval.high, 100)
    assert found.base == 0.3 and found.difference == pytest.approx(-0.02)
    assert found.difference_low is not None and found.difference_low <= -0.02 <= (found.difference_high or 0)
    assert not found.informative and found.detectable is not None and found.note == "x"
    assert stats.score("t", "accuracy", own, [1] * 50 + [0] * 50, chance=0.25).informative
    alone = stats.score("t", "iou", [0.2, 0.4])
    assert alone.base is None and alone.difference is None and alone.value == pytest.approx(0.3)


@given(st.integers(20, 500), st.integers(0, 500), st.floats(0.1, 0.6))
def test_above_chance_is_by_the_lower_bound(n: int, hits: int, chance: float) -> None:
    found = stats.proportion(min(hits, n), n)
    assert stats.above_chance(found, chance) == (found.low >= chance + 0.10)


@pytest.mark.parametrize("values", [[], [[1.0]], [float("nan"), 1.0]])
def test_unusable_values_are_refused(values: list[float]) -> None:
    with pytest.raises(DataError):
        stats.mean(values)
    with pytest.raises(DataError):
        stats.paired([1.0, 2.0], [1.0])
