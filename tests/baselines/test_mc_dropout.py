"""MC Dropout against explicit passes, and dropout in the U-Net."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.baselines import mc_dropout
from maxquery_jax.models.backbones.topology import plan_topology
from maxquery_jax.models.backbones.unet import UNet
from maxquery_jax.models.segmenter import Segmenter
from maxquery_jax.train.state import init_params

PATCH = (4, 8, 8)


def build(rate):
    topology = plan_topology(PATCH, (2.0, 2.0, 2.0), base=4, cap=8, min_edge=2, max_stages=2)
    backbone = UNet(topology=topology, convs_per_stage=1, dropout_rate=rate)
    return Segmenter(backbone=backbone, num_classes=3, deep_supervision=False)


@pytest.fixture(scope='module')
def trained():
    """A network with dropout, its parameters, two images, and its compiled single pass."""
    model = build(0.5)
    params = init_params(model, (1, *PATCH, 2), jax.random.key(0))
    image = np.random.default_rng(0).normal(size=(2, *PATCH, 2)).astype(np.float32)
    one = jax.jit(functools.partial(model.apply, train=True))
    return model, params, image, lambda x, key: one({'params': params}, x, rngs={'dropout': key})


def test_entropy_of_the_mean_of_explicit_passes(trained):
    model, params, image, one = trained
    base = jax.random.key(0)
    keys = [jax.random.fold_in(base, t) for t in range(3)]
    passes = np.array([[one(x[None], k).seg_logits[0] for x in image] for k in keys], np.float64)
    assert np.abs(passes[0] - passes[1]).max() > 0.01  # dropout is on, and differs between passes
    found = jax.jit(lambda p, x: mc_dropout.mean_logits(model, p, x, 3))(params, image)
    np.testing.assert_allclose(found, passes.mean(0), rtol=1e-3, atol=1e-4)
    entropy = np.zeros((2, *PATCH))
    for index in np.ndindex(*entropy.shape):
        z = passes.mean(0)[index]
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        entropy[index] = -(p * np.log(p)).sum()
    np.testing.assert_allclose(mc_dropout.entropy_score(found), entropy, rtol=1e-3, atol=1e-4)


def test_entropy_stays_finite_at_certainty():
    z = jnp.array([[1e4, 0.0], [0.0, 0.0]]).reshape(2, 1, 1, 1, 2)
    np.testing.assert_allclose(mc_dropout.entropy_score(z).ravel(), [0.0, np.log(2)], atol=1e-7)


def test_dropout_adds_no_parameters_and_is_off_outside_training(trained):
    model, params, image, _ = trained
    plain = build(0.0)
    other = init_params(plain, (1, *PATCH, 2), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, other)

    def program(network):
        apply = functools.partial(network.apply, train=False)
        return jax.jit(apply).lower({'params': params}, image).as_text()

    assert program(model) == program(plain)


@pytest.mark.parametrize(
    ('stages', 'expected'),
    [
        (2, ['encoder_dropout1']),  # never at the input's resolution
        (3, ['encoder_dropout1', 'encoder_dropout2', 'decoder_dropout1']),
        (4, ['encoder_dropout2', 'encoder_dropout3', 'decoder_dropout2']),
    ],
)
def test_which_stages_drop(stages, expected):
    shape = (16, 32, 32)
    topology = plan_topology(shape, (2.0,) * 3, base=4, cap=8, min_edge=2, max_stages=stages)
    model = UNet(topology=topology, convs_per_stage=1, dropout_rate=0.5)
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    found = []

    def spy(method, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            found.append(context.module.name)
            assert kwargs == {'deterministic': False}
        return method(*args, **kwargs)

    with nn.intercept_methods(spy):
        jax.eval_shape(lambda x: model.init(rngs, x, train=True), jnp.zeros((1, *shape, 1)))
    assert found == expected
