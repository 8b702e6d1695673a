"""Layers: initialisers, norms, drop path, names and logical axes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax import axes
from maxquery_jax.models import layers


def test_kernels_start_with_nnunets_standard_deviation():
    # PyTorch's kaiming_normal_(a=0.01): std = sqrt(2 / (1 + a^2) / fan), where a transposed
    # convolution's weight [Cin, Cout, ...] counts Cout as its fan.
    kernel = layers.he_normal()(jax.random.key(0), (3, 3, 3, 16, 64))
    assert float(kernel.std()) == pytest.approx((2 / 1.0001 / (27 * 16)) ** 0.5, rel=0.02)
    kernel = layers.he_normal(fan_axis=-1)(jax.random.key(0), (2, 2, 2, 64, 32))
    assert float(kernel.std()) == pytest.approx((2 / 1.0001 / (8 * 32)) ** 0.5, rel=0.02)
    assert abs(float(kernel.mean())) < 0.01 * float(kernel.std()) * 5


def test_layer_norm_equals_the_definition_at_a_large_mean():
    x = np.random.default_rng(0).normal(1000.0, 1.0, (2, 3, 64)).astype(np.float32)
    model = layers.LayerNorm()
    variables = {'params': {'scale': jnp.ones(64), 'bias': jnp.zeros(64)}}
    y = model.apply(variables, x)
    exact = x.astype(np.float64)
    exact = exact - exact.mean(-1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, exact, atol=1e-3)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = jnp.ones((400, 2, 3))
    model = layers.DropPath(rate=0.2)
    y = model.apply({}, x, train=True, rngs={'dropout': jax.random.key(0)})
    flat = np.asarray(y).reshape(400, -1)
    assert (flat == flat[:, :1]).all()
    kept = flat[:, 0] > 0
    np.testing.assert_allclose(flat[kept], 1 / 0.8, rtol=1e-6)
    assert 0.7 < kept.mean() < 0.9
    again = model.apply({}, x, train=True, rngs={'dropout': jax.random.key(1)})
    assert (np.asarray(again) != np.asarray(y)).any()


def test_drop_path_is_the_identity_outside_training_and_needs_no_rng():
    x = jnp.ones((2, 3))
    assert layers.DropPath(rate=0.5).apply({}, x, train=False) is x
    assert layers.DropPath(rate=0.0).apply({}, x, train=True) is x


def test_mlp_is_linear_after_its_last_layer():
    x = jax.random.normal(jax.random.key(1), (2, 5, 4))
    model = layers.MLP(features=(8, 3), activation=jax.nn.relu, last_axis=axes.CLASS)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    specs = nn.get_partition_spec(variables)['params']
    assert tuple(specs['layer0']['kernel']) == ('features_in', 'features_out')
    assert tuple(specs['layer1']['kernel']) == ('features_in', 'class')
    assert tuple(specs['layer1']['bias']) == ('class',)
    variables = nn.meta.unbox(variables)
    p = variables['params']
    hidden = np.maximum(np.asarray(x) @ p['layer0']['kernel'], 0)
    expected = hidden @ p['layer1']['kernel']
    np.testing.assert_allclose(model.apply(variables, x), expected, atol=1e-5)


def test_layers_compute_in_their_dtype_and_store_float32():
    x = jnp.ones((1, 2, 4, 4, 3), jnp.float32)
    for model in (
        layers.Conv3D(features=2, dtype=jnp.bfloat16),
        layers.ConvTranspose3D(features=2, stride=(1, 2, 2), dtype=jnp.bfloat16),
        layers.ConvNormAct(features=2, dtype=jnp.bfloat16),
        layers.Dense(features=2, dtype=jnp.bfloat16),
        layers.LayerNorm(dtype=jnp.bfloat16),
    ):
        y, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
        assert y.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_a_layer_without_bias_stores_a_kernel_only():
    x = jnp.zeros((1, 2, 4, 4, 3))
    for model in (
        layers.Conv3D(features=2, use_bias=False),
        layers.ConvTranspose3D(features=2, stride=(1, 2, 2), use_bias=False),
        layers.Dense(features=2, use_bias=False),
    ):
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        assert list(variables['params']) == ['kernel']


def test_remat_changes_neither_names_nor_values():
    x = jax.random.normal(jax.random.key(1), (1, 2, 4, 4, 1))

    class Net(nn.Module):
        remat: bool

        @nn.compact
        def __call__(self, x):
            unit = nn.remat(layers.ConvNormAct) if self.remat else layers.ConvNormAct
            return unit(features=2, name='unit')(x)

    plain, saved = Net(remat=False), Net(remat=True)
    shapes = [nn.meta.unbox(jax.eval_shape(m.init, jax.random.key(0), x)) for m in (plain, saved)]
    assert shapes[0] == shapes[1]
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes[0])
    gradients = [
        jax.jit(jax.grad(lambda v, m=model: jnp.sum(m.apply(v, x) ** 3)))(variables)
        for model in (plain, saved)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *gradients)
