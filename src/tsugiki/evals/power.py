"""What a number of items can show: the smallest detectable drop, and how many items a given drop takes.

For paired values d_i = value_i - base_i of standard deviation s over n items, tested with a two-sided t test of level
alpha = 0.05 at power 0.80, the smallest drop that is found is

    delta = (t_(1 - alpha/2, n-1) + t_(0.80, n-1)) s / sqrt(n)   (nearly 2.8 s / sqrt(n))

solved exactly through the noncentral t distribution by statsmodels (`TTestPower`; Cohen, Statistical Power Analysis,
1988, chapter 2). For language models: Miller, "Adding Error Bars to Evals", 2024, arXiv 2411.00640 (its power
analysis, with normal quantiles in place of t's).

Yes/no values of which none differs have s = 0, yet a small drop would go unseen. What McNemar's exact test can find
when items are only lost is the floor: with k = 6 lost items the test's p-value is 2 (1/2)^6 < 0.05, with 5 it is not;
so the rate of lost items has to make P(Binomial(n, rate) >= 6) = 0.80.
"""

from __future__ import annotations

import math

import numpy as np

from tsugiki.errors import DataError
from tsugiki.extras import require

ALPHA, POWER = 0.05, 0.80
MOST = 10_000_000
"""Items; where more would be needed, the answer is `inf`."""


def smallest_drop(spread: float, n: int, *, binary: bool) -> float:
    """Smallest drop that `n` items can tell from nothing, in the units of the values; `inf` where none can be.

    Args:
        spread: standard deviation of the paired differences.
        n: items, or groups where items are drawn in groups.
        binary: the values are 0 or 1.
    """
    if n < 2:
        return math.inf
    solver = require("statsmodels.stats.power", extra="eval").TTestPower()
    solved = solver.solve_power(effect_size=None, nobs=n, alpha=ALPHA, power=POWER)
    effect = float(np.ravel(solved)[0])  # a number or an array of one, by statsmodels' mood
    return max(effect * spread, _floor(n) if binary else 0.0)


def items_needed(drop: float, spread: float, *, binary: bool) -> float:
    """Fewest items with which `smallest_drop` is at most `drop`: the inverse of it.

    Args:
        drop: above 0, in the units of the values.
        spread: standard deviation of the paired differences.
        binary: the values are 0 or 1.

    Raises:
        DataError: a drop that is not above 0.
    """
    if not drop > 0:
        raise DataError(f"a drop of {drop:g}", expected="a number above 0", where="drop")
    low, high = 1, 2  # `low` is too few; the drop shrinks with every item
    while smallest_drop(spread, high, binary=binary) > drop:
        low, high = high, 2 * high
        if high > MOST:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        if smallest_drop(spread, middle, binary=binary) > drop:
            low = middle
        else:
            high = middle
    return high


def _floor(n: int) -> float:
    """Rate of lost items at which McNemar's exact test rejects in 80 % of samples when nothing is gained."""
    stats = require("scipy.stats", extra="eval")
    optimize = require("scipy.optimize", extra="eval")
    needed = next(k for k in range(1, 64) if stats.binomtest(k, k, 0.5).pvalue < ALPHA)
    if n < needed:
        return math.inf
    return float(optimize.brentq(lambda rate: stats.binom.sf(needed - 1, n, rate) - POWER, 1e-12, 1 - 1e-12))
