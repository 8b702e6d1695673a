"""MaxQuery as a whole, on a backbone that only pools: what learns, what comes out, and when."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from maxquery_jax import axes
from maxquery_jax.losses.total import maxquery_objective
from maxquery_jax.models.kmax_decoder import DecoderOptions
from maxquery_jax.models.maxquery import MaxQuery, anomaly_map, average_pool, segment
from maxquery_jax.ops.anomaly import SCORES
from maxquery_jax.ops.assignment import aggregate, assignment
from maxquery_jax.typing import PixelFeatures
from tests.models.random_params import draw_params

SHAPE, N, K = (4, 8, 8), 6, 4
GROUPS = {'query_groups': (2, 1, 3), 'class_groups': (0, 1, 2, 2)}


class PoolingBackbone(nn.Module, kw_only=True):
    """Pools the image to strides 4, 2 and 1 and mixes channels."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image, *, train=False):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes.DENSE_KERNEL)
        mix = nn.Dense(7, dtype=self.dtype, use_bias=False, kernel_init=init, name='mix')
        maps = {s: nn.leaky_relu(mix(average_pool(image, (s, s, s)))) for s in (4, 2, 1)}
        return PixelFeatures(encoder=maps, decoder=maps, full=maps[1])


def build(**kwargs) -> MaxQuery:
    sizes = {
        'num_queries': N,
        'output_strides': (4, 2),
        'query_dim': 8,
        'embed_dim': 6,
        'num_heads': 2,
        'ffn_dim': 12,
    }
    own = {
        name: kwargs.pop(name) for name in ('deep_supervision', 'pixel_stride') if name in kwargs
    }
    options = DecoderOptions(**{**sizes, **kwargs})
    backbone = PoolingBackbone(dtype=options.dtype)
    return MaxQuery(backbone=backbone, num_classes=K, decoder=options, **own)


@pytest.fixture(scope='module')
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *SHAPE, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def label() -> np.ndarray:
    return np.random.default_rng(1).integers(0, K, (2, *SHAPE))


def abstract_params(model, image):
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    return jax.eval_shape(lambda r: model.init(r, image, train=True), rngs)['params']


@pytest.fixture(scope='module')
def params(image):
    return draw_params(abstract_params(build(), image), seed=2)


def path_names(tree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator='/'): leaf for p, leaf in leaves}


def gradients(model, params, image, label) -> dict[str, np.ndarray]:
    @jax.jit
    @jax.grad
    def grad(p):
        rngs = {'dropout': jax.random.key(3)}
        outputs = model.apply({'params': p}, image, train=True, rngs=rngs)
        return maxquery_objective(outputs, label, **GROUPS)[0]

    found = {name: np.asarray(leaf) for name, leaf in path_names(grad(params)).items()}
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    return found


def test_every_parameter_learns(params, image, label):
    grads = gradients(build(drop_path=0.0), params, image, label)
    assert [name for name, leaf in grads.items() if not leaf.any()] == []


def test_frozen_backbone_gets_no_gradient(params, image, label):
    @jax.jit
    @jax.grad
    def grad(backbone):
        variables = {'params': {**params, 'backbone': backbone}}
        rngs = {'dropout': jax.random.key(3)}
        outputs = build().apply(variables, image, train=True, freeze_backbone=True, rngs=rngs)
        return maxquery_objective(outputs, label, **GROUPS)[0]

    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grad(params['backbone'])))


def test_only_the_hard_assignment_needs_deep_supervision(params, image, label):
    decoder = {k: v for k, v in params['query_decoder'].items() if k != 'block1'}
    params = {**params, 'query_decoder': decoder}
    model = build(drop_path=0.0, deep_supervision=False, output_strides=(2,))
    dead = {name for name, leaf in gradients(model, params, image, label).items() if not leaf.any()}
    # What predicts R_l and C_K of a block: the argmax passes no gradient.
    parts = ('/cluster_head/', '/pixel_response/')
    blocks = [n for n in path_names(params) if n.startswith('query_decoder/block0')]
    assert dead == {name for name in blocks if any(part in name for part in parts)}


def test_outputs_in_training_and_evaluation(params, image):
    model = build(drop_path=0.5)
    train = jax.eval_shape(
        lambda p, k: model.apply({'params': p}, image, train=True, rngs={'dropout': k}),
        params,
        jax.random.key(0),
    )
    assert [p.query_response.shape for p in train.aux_outputs] == [(2, N, 1, 2, 2), (2, N, 2, 4, 4)]
    assert [p.class_logits.shape for p in train.aux_outputs] == [(2, N, K)] * 2
    run = jax.jit(model.apply)
    outputs = run({'params': params}, image)  # needs no random stream
    assert outputs.aux_outputs == ()
    assert outputs.final.query_response.shape == (2, N, *SHAPE)
    assert outputs.seg_logits.shape == (2, *SHAPE, K)
    mask = assignment(outputs.final.query_response)
    expected = aggregate(outputs.final.class_logits, mask)
    np.testing.assert_allclose(outputs.seg_logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(anomaly_map(outputs), -outputs.final.query_response.max(axis=1))
    category = anomaly_map(outputs, 'category_logit')
    np.testing.assert_array_equal(category, -outputs.seg_logits.max(axis=-1))


def test_outputs_are_float32_in_bfloat16(params, image):
    model = build(dtype=jnp.bfloat16)
    outputs = jax.eval_shape(lambda p: model.apply({'params': p}, image), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype('float32')}
    shapes = meta.unbox(abstract_params(model, image))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}


def test_the_order_of_queries_does_not_matter(params, image):
    run = jax.jit(build().apply)
    order = np.array([3, 1, 5, 0, 2, 4])
    decoder = params['query_decoder']
    permuted = {**params, 'query_decoder': {**decoder, 'queries': decoder['queries'][order]}}
    one, two = run({'params': params}, image), run({'params': permuted}, image)
    np.testing.assert_allclose(
        one.final.query_response[:, order], two.final.query_response, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(one.seg_logits, two.seg_logits, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(anomaly_map(one), anomaly_map(two), rtol=1e-3, atol=1e-4)


def test_coarse_pixel_stride_keeps_the_outputs_size(params, image):
    outputs = jax.jit(build(pixel_stride=(1, 2, 4)).apply)({'params': params}, image)
    assert outputs.final.query_response.shape == (2, N, 4, 4, 2)
    assert outputs.seg_logits.shape == (2, *SHAPE, K)
    for name in SCORES:
        score = anomaly_map(outputs, name)
        assert score.shape == (2, *SHAPE)
        assert score.dtype == jnp.float32
    # Along an axis that is not coarser, nothing is interpolated.
    coarse = -outputs.final.query_response.max(axis=1)
    np.testing.assert_allclose(anomaly_map(outputs)[:, :, 0, 0], coarse[:, :, 0, 0], rtol=1e-5)


def test_average_pool_matches_loop():
    x = np.random.default_rng(4).normal(size=(2, 4, 4, 6, 3)).astype(np.float32)
    expected = np.zeros((2, 2, 4, 2, 3))
    for z, y, w in np.ndindex(2, 4, 2):
        block = x[:, 2 * z : 2 * z + 2, y : y + 1, 3 * w : 3 * w + 3]
        expected[:, z, y, w] = block.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(average_pool(jnp.asarray(x), (2, 1, 3)), expected, atol=1e-6)


def test_recomputing_the_assignment_changes_no_gradient():
    rng = np.random.default_rng(5)
    classes = jnp.asarray(rng.normal(size=(1, N, K)), jnp.float32)
    response = jnp.asarray(rng.normal(size=(1, N, *SHAPE)), jnp.float32)

    def plain(c, r):
        return jnp.sum(aggregate(c, assignment(r)) ** 2)

    expected = jax.jit(jax.grad(plain, (0, 1)))(classes, response)
    result = jax.jit(jax.grad(lambda c, r: jnp.sum(segment(c, r) ** 2), (0, 1)))(classes, response)
    for one, two in zip(result, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_every_parameter_has_logical_axes(image):
    known = {
        value for name, value in vars(axes).items() if name.isupper() and isinstance(value, str)
    }
    boxed = abstract_params(build(), image)
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == len(leaf.value.shape)
        assert set(leaf.names) <= known


def test_parameter_paths(image):
    """Names are the checkpoint format: a change here breaks trained models."""
    names = {name.split('/')[0] for name in path_names(meta.unbox(abstract_params(build(), image)))}
    assert names == {'backbone', 'query_decoder', 'cluster_head', 'pixel_response'}
    decoder = meta.unbox(abstract_params(build(), image))['query_decoder']
    assert set(decoder) == {'queries', 'block0', 'block1'}
    assert set(decoder['block0']) == {
        'query_projection',
        'pixel_projection',
        'cluster_head',
        'pixel_response',
        'kmeans',
        'attention',
        'ffn_hidden',
        'ffn_out',
    }


def test_p_is_never_built(image):
    """No array of C channels at the input's size, C being unlike any other width here."""
    model = build(embed_dim=29)
    shapes = meta.unbox(abstract_params(model, image))
    text = jax.jit(lambda p: model.apply({'params': p}, image)).lower(shapes).as_text()
    assert '2x4x8x8x7x' in text
    assert '2x4x8x8x29x' not in text
