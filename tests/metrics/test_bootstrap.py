"""Bootstrap intervals: coverage on a known distribution, edge rules, paired differences."""

import numpy as np
import pytest

from maxquery_jax.metrics import bootstrap as boot


def _mean(values):
    return boot.mean_statistic(np.asarray(values, float).reshape(len(values), -1))


def test_weights_are_resamples_of_cases():
    weights = boot.resample_weights(7, 2000, seed=3)
    assert weights.shape == (2000, 7)
    assert (weights.sum(axis=1) == 7).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.1)
    np.testing.assert_allclose(weights.var(axis=0), 6 / 7, atol=0.1)
    np.testing.assert_array_equal(weights, boot.resample_weights(7, 2000, seed=3))
    assert (weights != boot.resample_weights(7, 2000, seed=4)).any()


def test_interval_covers_the_true_mean_about_95_percent_of_the_time():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        sample = rng.normal(3.0, 2.0, size=40)
        (estimate,) = boot.bootstrap(_mean(sample), 40, resamples=1000, seed=trial)
        hits += estimate.low <= 3.0 <= estimate.high
    assert 0.88 <= hits / 200 <= 0.99


def test_interval_has_the_width_theory_predicts():
    sample = np.random.default_rng(1).normal(0.0, 1.0, size=400)
    (estimate,) = boot.bootstrap(_mean(sample), 400, resamples=4000)
    assert estimate.value == pytest.approx(sample.mean())
    expected = 2 * 1.96 * sample.std() / 20
    assert estimate.high - estimate.low == pytest.approx(expected, rel=0.06)
    assert estimate.n == 400


def test_same_seed_same_interval():
    sample = np.random.default_rng(2).random(12)
    assert boot.bootstrap(_mean(sample), 12) == boot.bootstrap(_mean(sample), 12)
    assert boot.bootstrap(_mean(sample), 12) != boot.bootstrap(_mean(sample), 12, seed=1)


def test_one_case_has_no_interval():
    (estimate,) = boot.bootstrap(_mean([0.5]), 1)
    assert estimate.value == 0.5
    assert np.isnan([estimate.low, estimate.high]).all()
    assert estimate.n == 1
    with pytest.raises(ValueError, match='at least one case'):
        boot.bootstrap(_mean([0.5]), 0)


def test_undefined_cases_are_skipped_and_counted():
    values = np.array([[0.2, np.nan], [0.4, np.nan], [np.nan, 0.7]])
    defined = np.isfinite(values).sum(axis=0)
    first, second = boot.bootstrap(boot.mean_statistic(values), 3, counted=defined)
    assert first.value == pytest.approx(0.3)
    assert (first.n, first.skipped) == (2, 1)
    np.testing.assert_allclose([first.low, first.high], [0.2, 0.4])
    assert (second.value, second.n, second.skipped) == (0.7, 1, 2)
    assert np.isnan(second.low)


def test_support_decides_whether_there_is_an_interval():
    values = np.array([[0.1], [0.9], [0.4]])
    (alone,) = boot.bootstrap(boot.mean_statistic(values), 3, support=np.array([1]))
    assert alone.n == 3
    assert np.isnan(alone.low)


def test_mostly_undefined_resamples_give_no_interval():
    def rarely(weights):  # defined only when case 0 is drawn at least twice: about 26 %
        return np.where(weights[:, :1] >= 2, 1.0, np.nan)

    (estimate,) = boot.bootstrap(lambda w: np.where(len(w) == 1, 1.0, rarely(w)), 10)
    assert estimate.value == 1.0
    assert np.isnan(estimate.low)


def test_paired_difference_cancels_what_makes_a_case_hard():
    rng = np.random.default_rng(3)
    difficulty = rng.random(30)
    better = difficulty + 0.05 + 0.01 * rng.normal(size=30)
    (paired,) = boot.paired_difference(_mean(better), _mean(difficulty), 30)
    assert paired.value == pytest.approx((better - difficulty).mean())
    assert 0 < paired.low < paired.value < paired.high
    assert paired.high - paired.low < 0.02  # the unpaired intervals are about 0.2 wide
    assert paired.p_value == pytest.approx(2 / 1001)
    assert paired.n == 30


def test_paired_difference_of_equals_is_nothing():
    sample = np.random.default_rng(4).random(10)
    (same,) = boot.paired_difference(_mean(sample), _mean(sample), 10)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    (single,) = boot.paired_difference(_mean([0.3]), _mean([0.1]), 1)
    assert single.value == pytest.approx(0.2)
    assert np.isnan([single.low, single.high, single.p_value]).all()


def test_paired_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(5)
    p_values = []
    for trial in range(200):
        a, b = rng.normal(size=(2, 25))
        p_values += [
            boot.paired_difference(_mean(a), _mean(b), 25, resamples=400, seed=trial)[0].p_value
        ]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.12
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.08)
