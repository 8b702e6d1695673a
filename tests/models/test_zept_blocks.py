"""Blocks of ZePT against loops over queries and voxels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from maxquery_jax.models import zept_blocks as blocks
from maxquery_jax.ops.prompts import attention_bias

B, N, L, C, HEADS = 2, 3, 7, 4, 2


def draw(shapes):
    """Random parameters; norms near their start."""
    rng = np.random.default_rng(2)

    def one(path, leaf):
        is_scale = path[-1].key == 'scale'
        return (0.4 * rng.normal(size=leaf.shape) + is_scale).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, meta.unbox(shapes))


def run(module, *args, **kwargs):
    """Parameters and output of a module, compiled once."""
    shapes = jax.eval_shape(lambda k: module.init(k, *args), jax.random.key(0))['params']
    params = draw(shapes)
    return params, np.asarray(
        jax.jit(lambda p: module.apply({'params': p}, *args, **kwargs))(params)
    )


@pytest.fixture
def queries() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(B, N, C)).astype(np.float32)


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(B, L, 5)).astype(np.float32)


def linear(p, x):
    return x @ np.asarray(p['kernel'], float) + np.asarray(p['bias'], float)


def norm(p, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * p['scale'] + p['bias']


def loop_attention(p, queries, context, allowed):
    """Softmax over the allowed voxels, head by head and query by query."""
    q, k, v = linear(p['query'], queries), linear(p['key'], context), linear(p['value'], context)
    out = np.zeros(q.shape)
    width = C // HEADS
    for b, n, h in np.ndindex(B, q.shape[1], HEADS):
        part = slice(h * width, (h + 1) * width)
        voxels = [j for j in range(context.shape[1]) if allowed[b, j]]
        weights = np.array([np.exp(q[b, n, part] @ k[b, j, part] / width**0.5) for j in voxels])
        out[b, n, part] = sum(
            w * v[b, j, part] for w, j in zip(weights / weights.sum(), voxels, strict=True)
        )
    return linear(p['out'], out)


def test_masked_block_matches_loop(queries, features):
    allowed = np.random.default_rng(3).random((B, L)) < 0.5
    allowed[1] = False  # nothing to attend to: everything is attended to
    module = blocks.MaskedAttentionBlock(num_heads=HEADS)
    params, result = run(module, queries, features, attention_bias(jnp.asarray(allowed)))
    allowed[1] = True
    x = queries + loop_attention(params['attention'], queries, features, allowed)
    x = norm(params['attention_norm'], x)
    p, everyone = params['self'], np.ones((B, N), bool)
    x = norm(p['attention_norm'], x + loop_attention(p['attention'], x, x, everyone))
    hidden = np.maximum(linear(p['mlp']['layer0'], x), 0)
    x = norm(p['mlp_norm'], x + linear(p['mlp']['layer1'], hidden))
    np.testing.assert_allclose(result, x, rtol=1e-3, atol=1e-4)


def test_blocked_voxels_have_no_say_and_no_gradient(queries, features):
    allowed = np.zeros((B, L), bool)
    allowed[:, :3] = True
    module = blocks.MultiHeadAttention(num_heads=HEADS)
    bias = attention_bias(jnp.asarray(allowed))
    params = draw(jax.eval_shape(lambda k: module.init(k, queries, features), jax.random.key(0)))

    @jax.jit
    @jax.grad
    def grad(context):
        update: Any = module.apply(params, queries, context, bias)
        return jnp.sum(update**2)

    found = np.asarray(grad(jnp.asarray(features)))
    np.testing.assert_array_equal(found.any(axis=-1), allowed)


def test_grouping_block_matches_loop(queries, features):
    params, result = run(blocks.GroupingBlock(), queries, features)
    q, k = linear(params['query'], queries), linear(params['key'], features)
    v = linear(params['value'], features)
    grouped = np.zeros((B, N, C))
    for b in range(B):
        counts = np.ones(N)
        for j in range(L):
            winner = max(range(N), key=lambda n: q[b, n] @ k[b, j])  # noqa: B023
            grouped[b, winner] += v[b, j]
            counts[winner] += 1
        grouped[b] /= counts[:, None]
    x = queries + linear(params['out'], grouped)
    hidden = linear(params['mlp']['layer0'], norm(params['mlp_norm'], x))
    hidden = np.asarray(jax.nn.gelu(hidden, approximate=False))
    x += linear(params['mlp']['layer1'], hidden)
    np.testing.assert_allclose(result, x, rtol=1e-3, atol=1e-4)


def test_grouping_trains_every_parameter_through_its_hard_choice(queries, features):
    module = blocks.GroupingBlock()
    params = draw(jax.eval_shape(lambda k: module.init(k, queries, features), jax.random.key(0)))

    @jax.jit
    @jax.grad
    def grad(p):
        rngs = {'dropout': jax.random.key(1)}
        update: Any = module.apply(p, queries, features, train=True, rngs=rngs)
        return jnp.sum(update**3)

    leaves = jax.tree_util.tree_leaves_with_path(grad(params))
    dead = [jax.tree_util.keystr(path) for path, leaf in leaves if not np.asarray(leaf).any()]
    # A bias of the keys moves the similarities of all voxels to a query alike, which counts; one
    # of the queries moves those of all queries at a voxel alike, which a softmax over them ignores.
    assert [name for name in dead if "'query']['bias'" not in name] == []


def test_heads_that_do_not_divide_the_width(queries, features):
    with pytest.raises(ValueError, match='3 heads do not divide the query width 4'):
        jax.eval_shape(
            blocks.MultiHeadAttention(num_heads=3).init, jax.random.key(0), queries, features
        )
