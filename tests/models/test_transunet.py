"""TransUNet: its transformer against NumPy, its place in the U-Net, positions on other grids."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from maxquery_jax.models.backbones.topology import Topology
from maxquery_jax.models.backbones.transunet import TransUNet, VisionTransformer
from maxquery_jax.models.backbones.unet import UNet

GRID, WIDTH, HEADS = (2, 3, 2), 8, 2


def _draw(model, x):
    """Parameters of spread 0.5, without running the initialisers."""
    abstract = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), x))['params']
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), abstract)


def _norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']


def _linear(x, p):
    return x @ p['kernel'] + p['bias']


def _gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _slow_transformer(x, params, num_layers):
    """One sample [d, h, w, C], token by token."""
    params = jax.tree.map(np.float64, params)
    tokens = (_linear(x, params['embed']) + params['positions']).reshape(-1, WIDTH)
    size = WIDTH // HEADS
    for index in range(num_layers):
        p = params[f'block{index}']
        y = _norm(tokens, p['norm1'])
        query, key, value = (_linear(y, p[name]) for name in ('query', 'key', 'value'))
        retrieved = np.zeros_like(tokens)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(tokens)):
                weights = np.exp(key[:, part] @ query[t, part] / math.sqrt(size))
                retrieved[t, part] = weights @ value[:, part] / weights.sum()
        tokens = tokens + _linear(retrieved, p['out'])
        hidden = _gelu(_linear(_norm(tokens, p['norm2']), p['mlp']['layer0']))
        tokens = tokens + _linear(hidden, p['mlp']['layer1'])
    return _linear(_norm(tokens, params['norm']), params['project']).reshape(x.shape)


def test_the_transformer_equals_numpys():
    model = VisionTransformer(num_layers=2, width=WIDTH, num_heads=HEADS, grid=GRID)
    x = np.random.default_rng(1).normal(size=(2, *GRID, 5)).astype(np.float32)
    params = _draw(model, x)
    output = np.asarray(jax.jit(model.apply)({'params': params}, x))
    for sample in range(2):
        slow = _slow_transformer(x[sample], params, 2)
        np.testing.assert_allclose(output[sample], slow, atol=1e-5 * np.abs(slow).max())


def test_positions_stretch_to_another_grid():
    model = VisionTransformer(num_layers=0, width=2, num_heads=1, grid=(1, 1, 2))
    x = np.zeros((1, 1, 1, 4, 3), np.float32)
    params = _draw(model, x)
    params['positions'] = np.array([[[[1.0, 0.0], [0.0, 1.0]]]], np.float32)
    params['embed'] = {'kernel': np.zeros((3, 2), np.float32), 'bias': np.zeros(2, np.float32)}
    params['norm'] = {'scale': np.ones(2, np.float32), 'bias': np.zeros(2, np.float32)}
    params['project'] = {'kernel': np.ones((2, 3), np.float32), 'bias': np.zeros(3, np.float32)}
    params['project']['kernel'][1] = 0
    # Linear positions between the two: 1, 3/4, 1/4, 0; the norm makes them +1 or -1.
    output = model.apply({'params': params}, x)[0, 0, 0, :, 0]
    np.testing.assert_allclose(output, [1, 1, -1, -1], atol=1e-3)


def test_it_is_a_unet_with_a_transformer_at_the_bottom():
    topology = Topology(features=(2, 4), strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3),) * 2)
    options = {'transformer_layers': 1, 'transformer_dim': 8, 'transformer_heads': 2}
    model = TransUNet(topology=topology, convs_per_stage=1, grid=(2, 2, 2), **options)
    image = np.random.default_rng(2).normal(size=(1, 4, 4, 4, 1)).astype(np.float32)
    params = _draw(model, image)
    features = jax.jit(model.apply)({'params': params}, image)
    np.testing.assert_array_equal(features.decoder[2], features.encoder[2])
    unet = UNet(topology=topology, convs_per_stage=1)
    plain = {name: p for name, p in params.items() if name != 'transformer'}
    below = jax.jit(unet.apply)({'params': plain}, image)
    np.testing.assert_allclose(features.encoder[1], below.encoder[1], atol=1e-5)
    transformer = VisionTransformer(num_layers=1, width=8, num_heads=2, grid=(2, 2, 2))
    expected = transformer.apply({'params': params['transformer']}, below.encoder[2])
    np.testing.assert_allclose(features.encoder[2], expected, atol=1e-4)


def test_the_public_configuration_is_vit_base():
    model = VisionTransformer(num_layers=12, width=768, num_heads=12, grid=(6, 6, 6))
    x = jax.ShapeDtypeStruct((1, 6, 6, 6, 320), jnp.float32)
    params = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), x))['params']
    block = sum(leaf.size for leaf in jax.tree.leaves(params['block0']))
    assert block == 12 * 768**2 + 13 * 768  # 4 square maps, 2 of ratio 4, their biases, norms
