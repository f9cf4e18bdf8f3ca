"""Errors and intervals: thin typed wrappers of scipy and statsmodels, which the extra `eval` installs.

Everything is at 95 % and two-sided. Items are paired by position: `values[i]` and `base[i]` belong to one item.
Units are those of the values (a share in [0, 1], nats per token, pixels, seconds).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tsugiki.errors import DataError
from tsugiki.evals import power
from tsugiki.evals.power import ALPHA as ALPHA
from tsugiki.extras import require
from tsugiki.types import Score

Numbers = Sequence[float] | Sequence[int] | Sequence[bool] | npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 4_999
MARGIN = 0.10
"""How far above chance the base's lower bound has to be before a task counts."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, its standard error and its 95 % interval."""

    value: float
    stderr: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        ends = f" [{self.low:.3f}, {self.high:.3f}]" if np.isfinite([self.low, self.high]).all() else ""
        return f"{self.value:.3f}{ends} (n={self.n})"


@dataclass(frozen=True, slots=True)
class McNemar:
    """Exact test of paired yes/no outcomes."""

    pvalue: float
    only_model: int
    """Items that only the model has right."""
    only_base: int
    """Items that only the base has right."""


def proportion(hits: int, n: int) -> Interval:
    """Share `hits / n` with Wilson's interval.

    Raises:
        DataError: n is 0, or hits is not in 0..n.
    """
    if n < 1 or not 0 <= hits <= n:
        raise DataError(f"{hits} hits of {n} items", expected="0 <= hits <= n and n >= 1")
    smp = require("statsmodels.stats.proportion", extra="eval")
    low, high = smp.proportion_confint(hits, n, alpha=ALPHA, method="wilson")
    share = hits / n
    return Interval(share, float(smp.std_prop(share, n)), float(low), float(high), n)


def mean(values: Numbers, weights: Numbers | None = None, groups: Sequence[Hashable] | None = None) -> Interval:
    """Mean with its bootstrap error and BCa interval.

    Args:
        values: one number an item.
        weights: how much an item counts (its number of tokens, say); then the mean is sum(w v) / sum(w).
        groups: items of one group (questions on one picture, say) are drawn together; the interval is over groups.
    """
    v, w = _arrays(values, weights)
    totals, counts = _by_group(v * w, w, groups)
    return _ratio(totals, counts, len(v))


def paired(
    values: Numbers, base: Numbers, weights: Numbers | None = None, groups: Sequence[Hashable] | None = None
) -> Interval:
    """Mean of `values - base` over the same items, with its bootstrap error and BCa interval. Arguments as in `mean`.

    Raises:
        DataError: the two have different lengths, or no items.
    """
    v, b = _vector(values), _vector(base)
    if len(v) != len(b):
        raise DataError(f"{len(v)} values and {len(b)} of the base", expected="one of each for every item")
    return mean(v - b, weights, groups)


def bootstrap(
    statistic: Callable[..., float], *samples: Numbers, resamples: int = 1_999, seed: int = 0, n: int | None = None
) -> Interval:
    """Any statistic of one or more paired samples (macro-F1 of gold and predicted classes, say).

    Args:
        statistic: takes the samples as arrays, in order, and gives a number.
        samples: equally long; items are drawn with replacement, the same ones in every sample.
    """
    arrays = [np.asarray(s) for s in samples]
    if not arrays or not len(arrays[0]) or any(len(a) != len(arrays[0]) for a in arrays):
        raise DataError(f"samples of {[len(a) for a in arrays]} items", expected="equally long and not empty")
    index = np.arange(len(arrays[0]))
    estimate = float(statistic(*arrays))

    def of(chosen: npt.NDArray[np.intp]) -> float:
        return float(statistic(*(a[chosen] for a in arrays)))

    return _bootstrap((index,), of, estimate, n or len(index), vectorized=False, resamples=resamples, seed=seed)


def median_ratio(times: Numbers, base: Numbers) -> Interval:
    """Median of `times[i] / base[i]`, two things measured side by side in interleaved pairs."""
    t, b = _vector(times), _vector(base)
    if len(t) != len(b):
        raise DataError(f"{len(t)} and {len(b)} times", expected="pairs")
    ratios = t / b
    return _bootstrap((ratios,), np.median, float(np.median(ratios)), len(ratios), vectorized=True)


def mcnemar(correct: Numbers, base_correct: Numbers) -> McNemar:
    """Is the model right more (or less) often than the base on the same items? Exact two-sided test."""
    a, b = _vector(correct) > 0.5, _vector(base_correct) > 0.5
    if len(a) != len(b):
        raise DataError(f"{len(a)} and {len(b)} outcomes", expected="one of each for every item")
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    test = require("statsmodels.stats.contingency_tables", extra="eval").mcnemar(table, exact=True)
    return McNemar(float(test.pvalue), table[0][1], table[1][0])


def detectable_drop(
    values: Numbers, base: Numbers, weights: Numbers | None = None, groups: Sequence[Hashable] | None = None
) -> float:
    """Smallest drop that these items can tell from nothing: 80 % power, 5 % two-sided, in the units of the values.

    From the spread of the paired differences (`power.smallest_drop` has the formula and its source). For yes/no values
    it is never less than what McNemar's exact test can see when items are only lost, so that "no item differs" does not
    read as "a drop of 0 would be seen". For other values without any difference it is 0: whatever differs is seen.
    `inf` where no drop can be seen (n < 6, say).
    """
    return power.smallest_drop(*_spread(values, base, weights, groups), binary=_binary(values, base, weights))


def above_chance(base: Interval, chance: float, margin: float = MARGIN) -> bool:
    """Does a task tell anything: is the base's lower bound at least `margin` above chance?"""
    return base.low >= chance + margin


def score(
    task: str,
    metric: str,
    values: Numbers,
    base: Numbers | None = None,
    *,
    weights: Numbers | None = None,
    groups: Sequence[Hashable] | None = None,
    chance: float | None = None,
    **fields: Any,
) -> Score:
    """A Score of paired items: Wilson's interval for plain yes/no values, else BCa; the difference is always paired.

    Args:
        chance: if given, the score is informative only where the base is clearly above it.
        fields: other fields of Score (version, yardsticks, note, ...).
    """
    own = _interval(values, weights, groups)
    if base is None:
        fields.update(low=own.low, high=own.high)
        return Score(task=task, metric=metric, value=own.value, stderr=own.stderr, n=own.n, **fields)
    reference, change = _interval(base, weights, groups), paired(values, base, weights, groups)
    if chance is not None:
        fields.setdefault("informative", above_chance(reference, chance))
    spread, count = _spread(values, base, weights, groups)
    fields.setdefault("detectable", power.smallest_drop(spread, count, binary=_binary(values, base, weights)))
    fields.setdefault("spread", spread)
    return Score(
        task=task,
        metric=metric,
        value=own.value,
        stderr=own.stderr,
        n=own.n,
        low=own.low,
        high=own.high,
        base=reference.value,
        difference=change.value,
        difference_low=change.low,
        difference_high=change.high,
        **fields,
    )


def _interval(values: Numbers, weights: Numbers | None, groups: Sequence[Hashable] | None) -> Interval:
    v = _vector(values)
    if weights is None and groups is None and np.isin(v, (0.0, 1.0)).all():
        return proportion(int(v.sum()), len(v))
    return mean(v, weights, groups)


def _spread(
    values: Numbers, base: Numbers, weights: Numbers | None, groups: Sequence[Hashable] | None
) -> tuple[float, int]:
    """Standard deviation of the paired differences over items (or groups), and how many of them there are."""
    n = len(_vector(values)) if groups is None else len(set(groups))
    return (paired(values, base, weights, groups).stderr * n**0.5 if n > 1 else 0.0), n


def _binary(values: Numbers, base: Numbers, weights: Numbers | None) -> bool:
    return weights is None and all(bool(np.isin(_vector(v), (0.0, 1.0)).all()) for v in (values, base))


def _vector(values: Numbers) -> Floats:
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or not len(v):
        raise DataError(f"values of shape {v.shape}", expected="a row of at least one number")
    if not np.isfinite(v).all():
        raise DataError(f"{int((~np.isfinite(v)).sum())} of {len(v)} values are not finite", expected="numbers")
    return v


def _arrays(values: Numbers, weights: Numbers | None) -> tuple[Floats, Floats]:
    v = _vector(values)
    w = np.ones_like(v) if weights is None else _vector(weights)
    if len(v) != len(w) or (w < 0).any() or w.sum() <= 0:
        raise DataError(f"{len(v)} values and {len(w)} weights", expected="one weight >= 0 for every value, not all 0")
    return v, w


def _by_group(totals: Floats, counts: Floats, groups: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    if groups is None:
        return totals, counts
    if len(groups) != len(totals):
        raise DataError(f"{len(groups)} groups for {len(totals)} items", expected="one group for every item")
    number: dict[Hashable, int] = {}
    index = np.array([number.setdefault(g, len(number)) for g in groups])
    return np.bincount(index, totals).astype(np.float64), np.bincount(index, counts).astype(np.float64)


def _ratio(totals: Floats, counts: Floats, n: int) -> Interval:
    """sum(totals) / sum(counts), the pairs drawn together."""
    if (counts == counts[0]).all():  # a plain mean: half the work
        v = totals / counts[0]
        return _bootstrap((v,), np.mean, float(v.mean()), n, vectorized=True)

    def ratio(t: Floats, c: Floats, axis: int = -1) -> Floats:
        return np.asarray(t.sum(axis) / c.sum(axis), dtype=np.float64)

    return _bootstrap((totals, counts), ratio, float(totals.sum() / counts.sum()), n, vectorized=True)


def _bootstrap(
    data: tuple[npt.NDArray[Any], ...],
    statistic: Callable[..., Any],
    value: float,
    n: int,
    *,
    vectorized: bool,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """`scipy.stats.bootstrap`, paired, BCa; percentile where BCa has no answer (few items, ties)."""
    stats: Any = require("scipy.stats", extra="eval")
    rows = len(data[0])
    if rows == 1:
        return Interval(value, float("inf"), float("-inf"), float("inf"), n)
    # Nothing varies: scipy would warn and give nan. The interval is the point.
    if vectorized and _same(data):
        return Interval(value, 0.0, value, value, n)
    options: dict[str, Any] = {
        "paired": True,
        "vectorized": vectorized,
        "n_resamples": resamples,
        "confidence_level": CONFIDENCE,
        "batch": max(1, 2_000_000 // rows),
    }
    for method in ("BCa", "percentile"):
        # DegenerateDataWarning: answered by the percentile interval.
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            result = stats.bootstrap(data, statistic, method=method, rng=np.random.default_rng(seed), **options)
        low, high = map(float, result.confidence_interval)
        if np.isfinite([low, high]).all():
            break
    return Interval(value, float(result.standard_error), low, high, n)


def _same(data: tuple[npt.NDArray[Any], ...]) -> bool:
    """Do all rows have the same ratio (or value)?"""
    ratios = data[0] if len(data) == 1 else np.divide(data[0], data[1], out=np.zeros_like(data[0]), where=data[1] > 0)
    return bool((ratios == ratios[0]).all())
