"""Instance norm: values from the definition, gradients against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.ops.norm import instance_norm


def _definition(x, scale, bias, negative_slope):
    """Plain code for automatic differentiation; [B, D, H, W, C]."""
    mean = x.mean((1, 2, 3), keepdims=True)
    variance = ((x - mean) ** 2).mean((1, 2, 3), keepdims=True)
    y = (x - mean) / jnp.sqrt(variance + 1e-5) * scale[None, None, None, None]
    y = y + bias[None, None, None, None]
    return jnp.where(y >= 0, y, negative_slope * y)


@pytest.mark.parametrize('negative_slope', [1.0, 0.01])
def test_value_and_gradients_equal_the_definitions(negative_slope):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(2.0, 3.0, (2, 3, 4, 5, 3))
        scale, bias = rng.normal(size=3), rng.normal(size=3)
        g = rng.standard_normal(x.shape)

        @jax.jit
        def both(*parameters):
            results = []
            for function in (instance_norm, _definition):
                y, pullback = jax.vjp(lambda *p, f=function: f(*p, negative_slope), *parameters)
                results.append((y, *pullback(g)))
            return results

        ours, expected = both(x, scale, bias)
        for name, a, b in zip(('y', 'dx', 'dscale', 'dbias'), ours, expected, strict=True):
            # Statistics are float32 by contract, also for float64 inputs.
            np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max(), err_msg=name)


def test_a_large_mean_costs_no_digits():
    x = np.random.default_rng(0).standard_normal((1, 16, 16, 16, 1)).astype(np.float32) + 5000
    y = instance_norm(jnp.asarray(x), jnp.ones(1), jnp.zeros(1))
    exact = (x.astype(np.float64) - x.mean(dtype=np.float64)) / x.std(dtype=np.float64)
    assert np.abs(np.asarray(y) - exact).max() < 1e-3


def test_samples_are_normalised_apart():
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 4, 2)).astype(np.float32)
    parameters = (jnp.ones(2), jnp.zeros(2))
    both = instance_norm(jnp.asarray(x), *parameters)
    alone = instance_norm(jnp.asarray(x[1:]), *parameters)
    np.testing.assert_allclose(both[1:], alone, atol=1e-6)


def test_bfloat16_input_has_float32_statistics():
    x = np.random.default_rng(0).normal(50.0, 1.0, (1, 8, 8, 8, 1))
    half = jnp.asarray(x, jnp.bfloat16)
    y = instance_norm(half, jnp.ones(1), jnp.zeros(1))
    assert y.dtype == jnp.bfloat16
    full = instance_norm(half.astype(jnp.float32), jnp.ones(1), jnp.zeros(1))
    np.testing.assert_allclose(np.asarray(y, np.float32), full, rtol=2**-8)
    dx = jax.grad(
        lambda x: instance_norm(x, jnp.ones(1), jnp.zeros(1)).astype(jnp.float32)[0].max()
    )
    assert dx(half).dtype == jnp.bfloat16
