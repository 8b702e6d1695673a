"""SynthCP: its parts against slow loops, where gradients go, and its score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from maxquery_jax.baselines.synthcp import losses
from maxquery_jax.baselines.synthcp.model import SynthCP, cosine, synthcp_objective, synthcp_score
from maxquery_jax.baselines.synthcp.networks import (
    Discriminator,
    Generator,
    SpadeBlock,
    enlarge,
    one_hot,
)
from maxquery_jax.models.backbones.topology import Topology
from maxquery_jax.models.backbones.unet import UNet
from maxquery_jax.models.segmenter import Segmenter
from maxquery_jax.ops.conv import conv3d

# Thick slices: the first reduction spares z.
TOPOLOGY = Topology(features=(4, 4), strides=((1, 1, 1), (1, 2, 2)), kernels=((1, 3, 3), (3, 3, 3)))
SHAPE = (1, 2, 4, 4)


def build():
    small = {'topology': TOPOLOGY, 'base_features': 2}
    segmenter = Segmenter(
        backbone=UNet(topology=TOPOLOGY, convs_per_stage=1), num_classes=3, deep_supervision=False
    )
    generator = Generator(max_features=4, convs_per_stage=1, label_features=2, **small)
    discriminator = Discriminator(num_layers=1, num_scales=2, **small)
    return SynthCP(segmenter=segmenter, generator=generator, discriminator=discriminator)


def random_params(module, *args, seed=0, **kwargs):
    """Parameters drawn without compiling `init`."""
    abstract = jax.eval_shape(lambda k: module.init(k, *args, **kwargs), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), meta.unbox(abstract)
    )


@pytest.fixture(scope='module')
def game():
    """The model, its parameters, a batch and the compiled gradients of single parts of the loss."""
    model = build()
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(*SHAPE, 2)), jnp.float32)
    label = jnp.asarray(rng.integers(0, 3, SHAPE))
    params = random_params(model, image, train=True)['params']

    def loss(params, weights):
        outputs = model.apply({'params': params}, image, label=label, train=True)
        _, parts = synthcp_objective(outputs, label)
        names = ('d_real', 'd_fake', 'g_hinge', 'g_features', 'g_l1')
        return sum(w * parts[name] for w, name in zip(weights, names, strict=True)), parts

    return model, params, image, jax.jit(jax.grad(loss, has_aux=True))


def size(tree):
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


def test_each_loss_trains_its_own_network(game):
    _, params, _, gradient = game
    assert set(params) == {'backbone', 'seg_head0', 'generator', 'discriminator'}
    for part in range(5):
        found, _ = gradient(params, np.eye(5, dtype=np.float32)[part])
        own, other = ('discriminator', 'generator') if part < 2 else ('generator', 'discriminator')
        assert size(found[own]) > 0 and size(found[other]) == 0
        assert size(found['backbone']) == size(found['seg_head0']) == 0


def test_routing_changes_no_value(game):
    """The two views of the synthesised image agree, so one of them can be checked."""
    model, params, image, gradient = game
    label = jnp.zeros(SHAPE, jnp.int32)
    outputs = jax.jit(lambda p: model.apply({'params': p}, image, label=label, train=True))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        outputs.fake_judged,
        outputs.fake_shown,
    )
    loss, parts = synthcp_objective(outputs, label, feature_weight=3.0, l1_weight=2.0)
    expected = parts['d_real'] + parts['d_fake'] + parts['g_hinge']
    expected += 3 * parts['g_features'] + 2 * parts['g_l1']
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(parts['g_l1'], np.abs(image - outputs.fake).mean(), rtol=1e-5)
    assert [x.shape for x in outputs.fake_judged[0]] == [(1, 2, 2, 2, 1), (1, 2, 2, 2, 1)]


def test_hinge_and_feature_matching_by_loops():
    rng = np.random.default_rng(0)
    real, fake = ([rng.normal(size=(1, 2, n, 1, 1)) for n in (3, 2)] for _ in range(2))
    expected = np.zeros(3)
    for a, b in zip(real, fake, strict=True):
        terms = [(max(0, 1 - x), max(0, 1 + y), -y) for x, y in zip(a.ravel(), b.ravel())]  # noqa: B905
        expected += np.mean(terms, axis=0) / 2
    found = (*losses.discriminator_hinge(real, fake), losses.generator_hinge(fake))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    total = 0.0
    for a, b in zip(real, fake, strict=True):
        for layer in (1, 2):
            pairs = zip((layer * a).ravel(), (layer * b).ravel(), strict=True)
            total += np.mean([abs(x - y) for x, y in pairs]) / 2
    layers = [[[layer * x for layer in (1, 2)] for x in logits] for logits in (real, fake)]
    np.testing.assert_allclose(losses.feature_matching(*layers), total, rtol=1e-5)


def test_spade_block_by_definition():
    """Instance norm, a scale and a shift per voxel from the labels, activation, convolution."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 2, 3, 3, 4)).astype(np.float32)
    labels = one_hot(jnp.asarray(rng.integers(0, 3, (2, 2, 3, 3))), 3)
    block = SpadeBlock(label_features=5, num_convs=1)
    params = random_params(block, x, labels)
    norm, conv = params['params']['norm0'], params['params']['conv0']
    hidden = conv3d(labels, norm['hidden']['kernel']) + norm['hidden']['bias'].reshape(
        1, 1, 1, 1, -1
    )
    hidden = np.maximum(hidden, 0)
    modulated = np.zeros(x.shape)
    for b, z, i, j, c in np.ndindex(*x.shape):
        mean, var = x[b, ..., c].mean(dtype=np.float64), x[b, ..., c].var(dtype=np.float64)
        gamma, beta = (
            hidden[b, z, i, j] @ norm[k]['kernel'][0, 0, 0, :, c] + norm[k]['bias'][c]
            for k in ('gamma', 'beta')
        )
        value = (x[b, z, i, j, c] - mean) / np.sqrt(var + 1e-5) * (1 + gamma) + beta
        modulated[b, z, i, j, c] = max(value, 0.2 * value)
    expected = conv3d(jnp.asarray(modulated, jnp.float32), conv['kernel'])
    expected = x + expected + conv['bias'].reshape(1, 1, 1, 1, -1)
    np.testing.assert_allclose(block.apply(params, x, labels), expected, rtol=1e-3, atol=1e-4)


def test_enlarging_repeats_voxels():
    x = jnp.arange(4.0).reshape(1, 1, 2, 2, 1)
    found = enlarge(x, (2, 1, 3))
    assert found.shape == (1, 2, 2, 6, 1)
    np.testing.assert_array_equal(found[0, 1, 1, :, 0], [2, 2, 2, 3, 3, 3])


def test_prediction_compares_the_segmenters_features(game):
    model, params, image, _ = game
    outputs = jax.jit(lambda p, x: model.apply({'params': p}, x))(params, image)
    segmenter = {name: params[name] for name in ('backbone', 'seg_head0')}
    segment = jax.jit(lambda x: model.segmenter.apply({'params': segmenter}, x))
    real = segment(image)
    np.testing.assert_allclose(outputs.seg_logits, real.seg_logits, rtol=1e-4, atol=1e-5)
    labels = one_hot(real.seg_logits.argmax(-1), 3)
    fake = model.generator.apply({'params': params['generator']}, labels, channels=2)
    a, b = np.asarray(real.features, np.float64), np.asarray(segment(fake).features, np.float64)
    expected = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(outputs.similarity, expected, rtol=1e-3, atol=1e-4)


def test_score_takes_the_softmax_where_it_is_sure():
    z = np.array([[9.0, 0.0], [6.8, 0.0], [1.0, 0.0]], np.float32).reshape(3, 1, 1, 1, 2)
    similarity = np.array([0.3, 0.3, -0.5], np.float32).reshape(3, 1, 1, 1)
    confidence = [1 / (1 + np.exp(-x)) for x in (9.0, 6.8, 1.0)]
    assert confidence[0] > 0.999 > confidence[1]
    found = synthcp_score(jnp.asarray(z), jnp.asarray(similarity)).ravel()
    np.testing.assert_allclose(found, [1 - confidence[0], 0.7, 1.5], rtol=1e-2)
    np.testing.assert_allclose(cosine(jnp.zeros((1, 2)), jnp.ones((1, 2))), 0.0)
