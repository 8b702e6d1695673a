"""Confidence intervals by resampling cases, for any metric that is a function of case weights.

Drawing n cases with replacement is the same as giving case i an integer weight, so a metric is
written once as a function of weights [R, n] and serves as the point estimate (all ones), the
bootstrap and the paired difference. Voxels of a case are correlated: only cases are resampled.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Maps case weights [R, n] to values [R, M]; NaN where a resample leaves the value undefined."""

NUM_RESAMPLES = 1000
LEVEL = 0.95
MIN_DEFINED_RATE = 0.5
"""With fewer defined resamples than this an interval would describe the lucky ones only."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its percentile bootstrap interval.

    Attributes:
        value: the metric on all cases.
        low: lower end of the interval; NaN when it cannot be had.
        high: upper end.
        n: cases that took part.
        skipped: cases left out because the metric is undefined for them.
    """

    value: float
    low: float
    high: float
    n: int
    skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Difference:
    """Metric of A minus metric of B over the same cases.

    Attributes:
        value: difference on all cases.
        low: lower end of the percentile interval.
        high: upper end.
        p_value: two-sided bootstrap p-value of a zero difference, at least 2 / (R + 1).
        n: cases.
    """

    value: float
    low: float
    high: float
    p_value: float
    n: int


def resample_weights(num_cases: int, resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """[R, n] how often each case is drawn; every row sums to n. The same for the same seed."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_cases, np.full(num_cases, 1 / num_cases), size=resamples)


def bootstrap(
    statistic: Statistic,
    num_cases: int,
    *,
    counted: np.ndarray | None = None,
    support: np.ndarray | None = None,
    resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> list[Estimate]:
    """Point estimate and percentile interval of each of the M values of a statistic.

    Args:
        statistic: maps case weights [R, n] to [R, M].
        num_cases: n.
        counted: [M] number of cases that take part in each value; all when not given.
        support: [M] number of cases that decide each value, for instance those that hold OOD
            voxels; `counted` when not given. Below two the interval is NaN: resampling one
            case says nothing about the next.
        resamples: R.
        seed: of the resampling; the same cases are drawn for every metric of the same n.
        level: coverage of the interval.

    Returns:
        M estimates.

    Raises:
        ValueError: if there is no case.
    """
    if num_cases < 1:
        raise ValueError('a bootstrap needs at least one case')
    values = statistic(np.ones((1, num_cases)))[0]
    counted = np.full(values.shape, num_cases) if counted is None else np.asarray(counted)
    support = counted if support is None else np.asarray(support)
    intervals = np.full((2, len(values)), np.nan)
    if np.any(support > 1):
        draws = statistic(resample_weights(num_cases, resamples, seed))
        intervals = _percentile_interval(draws, level)
        intervals[:, (support < 2) | ~np.isfinite(values)] = np.nan
    return [
        Estimate(float(value), float(low), float(high), int(count), num_cases - int(count))
        for value, low, high, count in zip(values, *intervals, counted, strict=True)
    ]


def paired_difference(
    statistic_a: Statistic,
    statistic_b: Statistic,
    num_cases: int,
    *,
    resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> list[Difference]:
    """Differences A - B between two methods measured on the same cases in the same order.

    Each resample draws the same cases for both methods, so what makes a case hard cancels.

    Args:
        statistic_a: method A, weights [R, n] to [R, M].
        statistic_b: method B, likewise.
        num_cases: n.
        resamples: R.
        seed: of the resampling.
        level: coverage of the interval.

    Returns:
        M differences; interval and p-value are NaN with fewer than two cases.
    """
    ones = np.ones((1, num_cases))
    values = statistic_a(ones)[0] - statistic_b(ones)[0]
    intervals = np.full((2, len(values)), np.nan)
    p_values = np.full(len(values), np.nan)
    if num_cases > 1:
        weights = resample_weights(num_cases, resamples, seed)
        draws = statistic_a(weights) - statistic_b(weights)
        intervals = _percentile_interval(draws, level)
        at_most, at_least = (draws <= 0).sum(axis=0), (draws >= 0).sum(axis=0)
        total = np.isfinite(draws).sum(axis=0)
        p_values = np.minimum(1.0, 2 * (np.minimum(at_most, at_least) + 1) / (total + 1))
        p_values[~np.isfinite(intervals[0])] = np.nan
    return [
        Difference(float(value), float(low), float(high), float(p_value), num_cases)
        for value, low, high, p_value in zip(values, *intervals, p_values, strict=True)
    ]


def mean_statistic(values: np.ndarray) -> Statistic:
    """Mean over cases, skipping undefined ones.

    Args:
        values: [n, M], NaN where a case does not define the value.

    Returns:
        Function of weights [R, n] giving [R, M].
    """
    defined = np.isfinite(values)
    filled = np.where(defined, values, 0.0)

    def statistic(weights: np.ndarray) -> np.ndarray:
        count = weights @ defined.astype(np.float64)
        out = np.full(count.shape, np.nan)
        return np.divide(weights @ filled, count, out=out, where=count > 0)

    return statistic


def _percentile_interval(draws: np.ndarray, level: float) -> np.ndarray:
    """[2, M] percentiles over the defined rows of draws [R, M]; NaN where too few are."""
    tail = (1 - level) / 2
    interval = np.full((2, draws.shape[1]), np.nan)
    enough = np.isfinite(draws).mean(axis=0) >= MIN_DEFINED_RATE
    if enough.any():
        interval[:, enough] = np.nanquantile(draws[:, enough], (tail, 1 - tail), axis=0)
    return interval
