"""Moments, truncation and reproducibility of the host-drawn initialisers."""

import jax
import numpy as np
import pytest

from maxquery_jax.models import initializers

KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ('init', 'shape', 'std'),
    [
        (initializers.normal(0.3), (100, 200), 0.3),
        (initializers.truncated_normal(0.5), (100, 200), 0.5),
        (initializers.lecun_normal(), (3, 3, 3, 16, 40), (27 * 16) ** -0.5),
        (initializers.variance_scaling(2.0, fan_axis=-1), (2, 2, 1, 40, 60), (2 / 240) ** 0.5),
    ],
)
def test_mean_and_standard_deviation(init, shape, std):
    values = np.asarray(init(KEY, shape))
    assert values.shape == shape and values.dtype == np.float32
    assert abs(values.mean()) < 5 * std / values.size**0.5
    assert values.std() == pytest.approx(std, rel=0.03)


def test_truncation_bounds_the_tails():
    values = np.asarray(initializers.truncated_normal(1.0)(KEY, (50_000,)))
    assert np.abs(values).max() <= 2.0 / 0.8796 and np.abs(values).max() > 2.2


def test_values_follow_the_key_and_not_the_tracing():
    init = initializers.normal(1.0)
    eager = init(KEY, (5, 4))
    np.testing.assert_array_equal(eager, jax.jit(lambda key: init(key, (5, 4)))(KEY))
    assert not np.array_equal(eager, init(jax.random.key(4), (5, 4)))
