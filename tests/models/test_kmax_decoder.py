"""Query decoder against a NumPy reading of it, and the properties that its norms are there for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from maxquery_jax.models.kmax_decoder import (
    ClusterHead,
    DecoderOptions,
    KMaxBlock,
    PixelResponse,
    QueryDecoder,
)
from maxquery_jax.typing import PixelFeatures
from tests.models.random_params import draw_params

Q, C, N, K, HEADS = 8, 6, 5, 3, 2


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def init(module, *args):
    """Random parameters; no scale is one and no bias zero."""
    return draw_params(jax.eval_shape(module.init, jax.random.key(0), *args)['params'], seed=7)


# The oracle, in float64.


def np_norm(x, params, over):
    mean, var = x.mean(axis=over, keepdims=True), x.var(axis=over, keepdims=True)
    out = (x - mean) / np.sqrt(var + 1e-5) * params['scale']
    return out + params.get('bias', 0.0)


def np_dense(x, params):
    return x @ params['kernel'] + params.get('bias', 0.0)


def np_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def np_softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def np_query_projection(x, params):
    return np_gelu(np_norm(np_dense(x, params['dense']), params['norm'], (-1,)))


def np_pixel_projection(x, params):
    return np_norm(np_dense(x, params['dense']), params['norm'], (1, 2, 3))


def np_cluster_head(queries, params):
    centers = np_norm(np_dense(queries, params['center']), params['center_norm'], (-1,))
    mlp = params['class_mlp']
    hidden = np_gelu(np_dense(centers, mlp['layer0']))
    return centers, np_dense(np_gelu(np_dense(hidden, mlp['layer1'])), mlp['layer2'])


def np_response(features, centers, params, l2=False):
    pixels = features @ params['kernel']  # P, built
    norm = {'scale': params['norm_scale'], 'bias': params['norm_bias']}
    pixels = np_norm(pixels, norm, (1, 2, 3))
    if l2:
        pixels = pixels / np.linalg.norm(pixels, axis=-1, keepdims=True)
    return np.einsum('bnc,bzyxc->bnzyx', centers, pixels)


def np_attention(x, params):
    query, key, value = (x @ params[name]['kernel'] for name in ('query', 'key', 'value'))
    out = np.zeros_like(value)
    wide, narrow = Q // HEADS, Q // 2 // HEADS
    for h in range(HEADS):
        q, k = (a[..., h * narrow : (h + 1) * narrow] for a in (query, key))
        weights = np_softmax(q @ k.swapaxes(1, 2) / math.sqrt(narrow))
        part = slice(h * wide, (h + 1) * wide)
        out[..., part] = weights @ value[..., part]
    return np_dense(np_gelu(np_norm(out, params['norm'], (-1,))), params['out'])


def np_block(queries, pixels, params, attend):
    query_space = np_query_projection(queries, params['query_projection'])
    pixel_space = np_gelu(np_pixel_projection(np_gelu(pixels), params['pixel_projection']))
    centers, class_logits = np_cluster_head(query_space, params['cluster_head'])
    response = np_response(pixel_space, centers, params['pixel_response'])
    values = np_pixel_projection(pixel_space, params['kmeans']['value'])
    update = np.zeros_like(queries)
    for b, z, y, x in np.ndindex(*pixels.shape[:4]):
        update[b, response[b, :, z, y, x].argmax()] += values[b, z, y, x]
    update = np_norm(update, params['kmeans']['norm'], (-1,))
    queries = queries + np_dense(update, params['kmeans']['out'])
    if attend == 'post':
        query_space = np_query_projection(queries, params['query_projection'])
    queries = np_gelu(queries + np_attention(query_space, params['attention']))
    hidden = np_query_projection(queries, params['ffn_hidden'])
    queries = np_gelu(queries + np_dense(hidden, params['ffn_out']))
    return queries, response, class_logits


def double(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def block(**kwargs):
    sizes = {'embed_dim': C, 'num_heads': HEADS, 'ffn_dim': 12}
    return KMaxBlock(num_classes=K, options=DecoderOptions(**{**sizes, **kwargs}))


@pytest.mark.parametrize('attend', ['pre', 'post'])
def test_block_matches_numpy(attend):
    module = block(self_attention_input=attend)
    queries, pixels = normal(0, 2, N, Q), normal(1, 2, 3, 4, 5, 7)
    params = init(module, queries, pixels)
    result, prediction = jax.jit(module.apply)({'params': params}, queries, pixels)
    expected = np_block(double(queries), double(pixels), double(params), attend)
    np.testing.assert_allclose(prediction.query_response, expected[1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(prediction.class_logits, expected[2], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(result, expected[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('norm', ['instance', 'l2'])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(jnp.float32, 1e-4), (jnp.bfloat16, 3e-2)])
def test_pixel_response_equals_the_response_of_a_built_p(dtype, tolerance, norm):
    features = 3.0 + 0.5 * normal(0, 2, 3, 4, 5, 7)  # far from zero mean
    centers = normal(1, 2, N, C)
    module = PixelResponse(norm=norm, dtype=dtype)
    params = init(module, features, centers)
    response = jax.jit(module.apply)({'params': params}, features, centers)
    expected = np_response(double(features), double(centers), double(params), l2=norm == 'l2')
    assert response.dtype == jnp.float32
    np.testing.assert_allclose(response, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('norm', ['instance', 'l2'])
def test_responses_have_unit_size_at_the_start(norm):
    """At the paper's widths: deviation about 1, so that the softmax is not saturated."""
    features = np.maximum(normal(0, 1, 6, 8, 8, 32), 0)
    queries = normal(1, 1, 32, 256)
    head, pixel = ClusterHead(num_classes=9), PixelResponse(norm=norm)

    @jax.jit
    def start(key):
        (centers, _), _ = head.init_with_output(key, queries)
        return pixel.init_with_output(key, features, centers)[0]

    response = start(jax.random.key(0))
    assert 0.7 < float(jnp.std(response)) < 1.4
    assert float(jax.nn.softmax(response, axis=1).max(axis=1).mean()) < 0.3


def test_centers_have_no_component_common_to_all_queries_from_a_bias():
    queries = normal(0, 1, N, Q)
    head = ClusterHead(num_classes=K, embed_dim=C)
    params = init(head, queries)
    assert set(params['center_norm']) == {'scale'}
    assert set(params['center']) == {'kernel'}
    centers, class_logits = head.apply({'params': params}, queries)
    np.testing.assert_allclose(
        (centers / params['center_norm']['scale'][None, None]).mean(-1), 0, atol=1e-5
    )
    assert class_logits.shape == (1, N, K)


def test_update_does_not_grow_with_the_number_of_voxels():
    """Eight copies of a volume have eight times the sum of Eq. 2, and the same update."""
    module = block()
    queries, pixels = normal(0, 1, N, Q), normal(1, 1, 3, 4, 5, 7)
    params = init(module, queries, pixels)
    apply = jax.jit(module.apply)
    small, _ = apply({'params': params}, queries, pixels)
    large, _ = apply({'params': params}, queries, np.tile(pixels, (1, 2, 2, 2, 1)))
    np.testing.assert_allclose(small, large, atol=2e-3)


def test_drop_path_keeps_or_drops_whole_updates():
    module = block(drop_path=0.5)
    queries, pixels = normal(0, 64, N, Q), normal(1, 64, 2, 2, 2, 7)
    queries[:], pixels[:] = queries[:1], pixels[:1]  # samples differ by what is dropped only
    params = init(module, queries, pixels)
    run = jax.jit(
        lambda key: module.apply(
            {'params': params}, queries, pixels, train=True, rngs={'dropout': key}
        )[0]
    )
    dropped = np.asarray(run(jax.random.key(0))).reshape(64, -1).round(4)
    assert 5 <= len(np.unique(dropped, axis=0)) <= 8  # of the 2^3 combinations
    nothing = np_gelu(np_gelu(double(queries[0]))).reshape(1, -1)
    assert np.isclose(dropped, nothing, atol=1e-3).all(axis=1).any()
    still, _ = jax.jit(module.apply)({'params': params}, queries, pixels)  # needs no stream
    assert len(np.unique(np.asarray(still).reshape(64, -1).round(4), axis=0)) == 1


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_decoder_predicts_at_each_stride(dtype):
    maps = {8: normal(0, 2, 1, 2, 3, 9).astype(dtype), 4: normal(1, 2, 2, 4, 6, 7).astype(dtype)}
    features = PixelFeatures(encoder={}, decoder=maps, full=jnp.zeros((2, 8, 16, 24, 4)))
    options = DecoderOptions(
        num_queries=N,
        output_strides=(8, 4),
        query_dim=Q,
        embed_dim=C,
        num_heads=HEADS,
        ffn_dim=12,
        dtype=dtype,
    )
    module = QueryDecoder(num_classes=K, options=options)
    variables = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), features))
    queries, predictions = jax.eval_shape(module.apply, variables, features)
    assert queries.shape == (2, N, Q)
    assert queries.dtype == jnp.float32
    shapes = [p.query_response.shape for p in predictions]
    assert shapes == [(2, N, 1, 2, 3), (2, N, 2, 4, 6)]
    for prediction in predictions:
        assert prediction.class_logits.shape == (2, N, K)
        assert {leaf.dtype for leaf in jax.tree.leaves(prediction)} == {jnp.dtype('float32')}
