"""Cells and comparisons of a table: intervals over cases, spread over seeds, tests between rows."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from maxquery_jax.metrics.bootstrap import (
    Statistic,
    bootstrap,
    paired_difference,
    resample_weights,
)
from maxquery_jax.study.measures import Measured, nan_mean

RESAMPLES = 10_000  # so that a p-value can stay below 0.05 after Holm's correction


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        value: mean over seeds.
        low: lower end of the 95% interval over cases, the same cases drawn for all seeds.
        high: upper end.
        seeds: seed to its value.
        is_joint: whether the interval is of the mean over seeds; otherwise it is the mean of the
            intervals of the seeds, as only those are at hand.
    """

    value: float
    low: float
    high: float
    seeds: Mapping[int, float]
    is_joint: bool = True

    @property
    def seed_sd(self) -> float:
        """Standard deviation over seeds; NaN for one seed."""
        values = list(self.seeds.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


@dataclasses.dataclass(frozen=True)
class Comparison:
    """First row minus second row of one column.

    Attributes:
        value: mean over the seeds that both have.
        low: lower end of the bootstrap interval over cases, paired where they are the same.
        high: upper end.
        p_bootstrap: two-sided, of that bootstrap.
        p_wilcoxon: two-sided, of Wilcoxon's signed-rank test on the values of the cases, each the
            mean over seeds; NaN where a case has no value of its own, or the cases differ.
        seeds: seed to difference.
        is_paired: whether both rows are of the same cases.
        p_bootstrap_holm: corrected for the number of pairs of the table.
        p_wilcoxon_holm: likewise.
    """

    value: float
    low: float
    high: float
    p_bootstrap: float
    p_wilcoxon: float
    seeds: Mapping[int, float]
    is_paired: bool = True
    p_bootstrap_holm: float = math.nan
    p_wilcoxon_holm: float = math.nan


def make_cell(measured: Mapping[int, Measured]) -> Cell:
    """Combines a column over seeds.

    Args:
        measured: seed to the column; at least one.
    """
    seeds = {seed: part.value for seed, part in measured.items()}
    value = float(np.mean(list(seeds.values())))
    statistic = _mean_statistic(list(measured.values()))
    if statistic is not None:
        support = np.array([min(part.support for part in measured.values())])
        (estimate,) = bootstrap(*statistic, support=support, resamples=RESAMPLES)
        return Cell(estimate.value, estimate.low, estimate.high, seeds)
    intervals = [part.interval for part in measured.values() if part.interval is not None]
    if not intervals:
        return Cell(value, math.nan, math.nan, seeds)
    low, high = np.mean(intervals, axis=0)
    return Cell(value, float(low), float(high), seeds, is_joint=len(seeds) == 1)


def compare(first: Mapping[int, Measured], second: Mapping[int, Measured]) -> Comparison | None:
    """First minus second on the same cases; None without a common seed.

    Where the two are of different cohorts, the cases of each are drawn by themselves.

    Args:
        first: seed to the column, of the same cases in the same order as `second`, or of another
            cohort.
        second: likewise.
    """
    common = [seed for seed in first if seed in second]
    if not common:
        return None
    seeds = {seed: first[seed].value - second[seed].value for seed in common}
    value = float(np.mean(list(seeds.values())))
    sides = [[row[seed] for seed in common] for row in (first, second)]
    is_paired = len({part.cohort for parts in sides for part in parts}) == 1
    one, two = (_mean_statistic(parts) for parts in sides)
    low = high = p_value = math.nan
    support = min(part.support for parts in sides for part in parts)
    if one is not None and two is not None and support > 1:
        other = two[0] if is_paired else _drawn_apart(*two)
        found = paired_difference(one[0], other, one[1], resamples=RESAMPLES)[0]
        low, high, p_value = found.low, found.high, found.p_value
    p_wilcoxon = _wilcoxon(*sides) if is_paired else math.nan
    return Comparison(value, low, high, p_value, p_wilcoxon, seeds, is_paired)


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Adds Holm's correction over the pairs of one column of a table."""
    bootstrapped = holm([found.p_bootstrap for found in comparisons])
    ranked = holm([found.p_wilcoxon for found in comparisons])
    return [
        dataclasses.replace(found, p_bootstrap_holm=one, p_wilcoxon_holm=two)
        for found, one, two in zip(comparisons, bootstrapped, ranked, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand. J. Statist. 1979); NaN stays NaN and does not count."""
    values = np.asarray(p_values, float)
    defined = np.flatnonzero(np.isfinite(values))
    corrected = np.full(values.shape, np.nan)
    largest = 0.0
    for rank, index in enumerate(defined[np.argsort(values[defined], kind='stable')]):
        largest = max(largest, min(1.0, values[index] * (len(defined) - rank)))
        corrected[index] = largest
    return corrected.tolist()


def _mean_statistic(parts: Sequence[Measured]) -> tuple[Statistic, int] | None:
    """Mean over seeds as a function of case weights, and the number of cases."""
    statistics = [part.statistic for part in parts if part.statistic is not None]
    if len(statistics) < len(parts):
        return None
    counts = {part.num_cases for part in parts}
    if len(counts) > 1:
        return None

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.mean([part(weights) for part in statistics], axis=0)

    return statistic, counts.pop()


def _drawn_apart(statistic: Statistic, num_cases: int) -> Statistic:
    """The statistic over draws of its own, as many as it is given weights [R, n] of other cases."""

    def apart(weights: np.ndarray) -> np.ndarray:
        if len(weights) == 1:  # the value on all cases
            return statistic(np.ones((1, num_cases)))
        return statistic(resample_weights(num_cases, len(weights), seed=1))

    return apart


def _wilcoxon(first: Sequence[Measured], second: Sequence[Measured]) -> float:
    sides = []
    for parts in (first, second):
        values = [part.per_case for part in parts if part.per_case is not None]
        if len(values) < len(parts):
            return math.nan
        sides.append(nan_mean(np.stack(values, axis=-1)))
    difference = sides[0] - sides[1]
    difference = difference[np.isfinite(difference)]
    if len(difference) < 2 or not difference.any():
        return math.nan if len(difference) < 2 else 1.0
    found: Any = scipy.stats.wilcoxon(difference)
    return float(found.pvalue)
