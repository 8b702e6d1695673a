"""Cells, intervals, tests and their corrections, against values by hand and scipy."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from maxquery_jax.metrics.bootstrap import mean_statistic
from maxquery_jax.study.measures import Measured
from maxquery_jax.study.statistics import compare, correct, holm, make_cell


def measured(values):
    values = np.asarray(values, float)
    statistic = mean_statistic(values[:, None])
    support = int(np.isfinite(values).sum())
    mean = float(np.nanmean(values))
    return Measured(mean, statistic, values, num_cases=len(values), support=support)


def test_one_deciding_case_gives_neither_interval_nor_test():
    one, other = ({0: measured([value, np.nan, np.nan])} for value in (0.9, 0.5))
    cell = make_cell(one)
    assert cell.value == 0.9 and math.isnan(cell.low) and math.isnan(cell.high)
    found = compare(one, other)
    assert found is not None and found.value == pytest.approx(0.4)
    assert all(map(math.isnan, (found.low, found.p_bootstrap, found.p_wilcoxon)))


def test_a_cell_is_the_mean_over_seeds_with_its_spread():
    cell = make_cell({0: measured([0.8, 0.9, 1.0]), 2: measured([0.6, 0.7, 0.8])})
    assert cell.value == pytest.approx(0.8) and cell.seeds == pytest.approx({0: 0.9, 2: 0.7})
    assert cell.seed_sd == pytest.approx(np.std([0.9, 0.7], ddof=1))
    # the seeds agree in which case is hard, so the interval is that of the mean (0.7, 0.8, 0.9)
    assert (cell.low, cell.high) == pytest.approx((0.7, 0.9), abs=1e-6) and cell.is_joint
    assert math.isnan(make_cell({0: measured([0.5, 0.6])}).seed_sd)


def test_numbers_of_a_summary_keep_its_interval_and_say_so():
    parts = {0: Measured(0.5, interval=(0.4, 0.7)), 1: Measured(0.7, interval=(0.6, 0.9))}
    cell = make_cell(parts)
    assert (cell.value, cell.low, cell.high) == pytest.approx((0.6, 0.5, 0.8))
    assert not cell.is_joint and make_cell({0: parts[0]}).is_joint
    assert math.isnan(make_cell({0: Measured(3.0)}).low)


def test_differences_are_those_of_the_seeds_that_both_have():
    first = {s: measured(v) for s, v in ((0, [0.5, 0.9]), (1, [0.6, 0.8]), (2, [0.1, 0.1]))}
    second = {0: measured([0.4, 0.8]), 1: measured([0.3, 0.5])}
    found = compare(first, second)
    assert found is not None
    assert found.value == pytest.approx(0.2) and found.seeds == pytest.approx({0: 0.1, 1: 0.3})
    # every case differs by 0.2 in the mean over seeds, so resampling cases changes nothing
    assert (found.low, found.high) == pytest.approx((0.2, 0.2))
    assert compare({5: measured([1.0, 2.0])}, second) is None


def test_wilcoxon_is_scipys_on_the_means_over_seeds():
    rng = np.random.default_rng(0)
    first = {s: measured(rng.normal(0.3, 1, 20)) for s in range(3)}
    second = {s: measured(rng.normal(0, 1, 20)) for s in range(3)}
    means = [np.mean([row[s].per_case for s in range(3)], axis=0) for row in (first, second)]
    expected = scipy.stats.wilcoxon(*means).pvalue
    found = compare(first, second)
    assert found is not None and found.p_wilcoxon == pytest.approx(expected)
    # a sign-flip permutation test asks the same question of the mean
    flipped = scipy.stats.permutation_test(
        means,
        lambda a, b: np.mean(a - b),
        permutation_type='samples',
        vectorized=False,
        n_resamples=2000,
        rng=np.random.default_rng(0),
    )
    assert found.p_bootstrap == pytest.approx(flipped.pvalue, abs=0.05)


def test_cases_without_a_value_on_either_side_are_left_out():
    first = {0: measured([0.9, np.nan, 0.8, 0.7, 0.9])}
    second = {0: measured([0.5, 0.1, np.nan, 0.4, 0.6])}
    found = compare(first, second)
    assert found is not None
    assert found.p_wilcoxon == pytest.approx(scipy.stats.wilcoxon([0.4, 0.3, 0.3]).pvalue)
    same = compare(first, first)
    assert same is not None and same.p_wilcoxon == 1.0 and same.value == 0


@pytest.mark.parametrize(
    ('p_values', 'expected'),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x, 2 x, 1 x but never below the one before
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02, math.nan, 0.03], [0.04, math.nan, 0.04]),
        ([], []),
    ],
)
def test_holm(p_values, expected):
    assert holm(p_values) == pytest.approx(expected, nan_ok=True)


def test_comparisons_are_corrected_together():
    rng = np.random.default_rng(1)
    base = {0: measured(rng.normal(0, 1, 12))}
    found = [compare({0: measured(rng.normal(m, 1, 12))}, base) for m in (0.5, 1.0, 2.0)]
    corrected = correct([one for one in found if one is not None])
    assert [one.p_wilcoxon_holm for one in corrected] == holm([c.p_wilcoxon for c in corrected])
    assert [one.p_bootstrap_holm for one in corrected] == holm([c.p_bootstrap for c in corrected])


def test_cohorts_are_drawn_apart():
    rng = np.random.default_rng(3)
    values, more = rng.normal(1.0, 0.1, 40), rng.normal(0.9, 0.1, 60)
    one, other = measured(values), dataclasses.replace(measured(more), cohort='other')
    found = compare({0: one}, {0: other})
    assert found is not None and not found.is_paired and math.isnan(found.p_wilcoxon)
    error = math.sqrt(values.var() / 40 + more.var() / 60)  # of two independent means
    assert found.value == pytest.approx(values.mean() - more.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert found.p_bootstrap < 0.01
    shifted = measured(values - 0.1)  # the same cases: all differ alike
    paired = compare({0: one}, {0: shifted})
    assert paired is not None and paired.is_paired and paired.low == pytest.approx(paired.high)
