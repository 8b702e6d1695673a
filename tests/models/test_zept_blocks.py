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
    expected = loop_self_attention(params['self'], x)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


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


def loop_grouping(params, queries, features):
    """Every voxel to the query it is most similar to, then the feed-forward part."""
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
    return x + linear(params['mlp']['layer1'], hidden)


def loop_self_attention(p, x):
    everyone = np.ones((B, N), bool)
    x = norm(p['attention_norm'], x + loop_attention(p['attention'], x, x, everyone))
    hidden = np.maximum(linear(p['mlp']['layer0'], x), 0)
    return norm(p['mlp_norm'], x + linear(p['mlp']['layer1'], hidden))


def test_grouping_block_matches_loop(queries, features):
    params, result = run(blocks.GroupingBlock(), queries, features)
    expected = loop_grouping(params, queries, features)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


def test_groupvit_block_matches_loop(queries, features):
    """Tokens see one another, never a voxel that is not assigned to them."""
    params, result = run(blocks.GroupViTBlock(num_heads=HEADS), queries, features)
    tokens = loop_self_attention(params['self'], queries)
    expected = loop_grouping(params['grouping'], tokens, features)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)


def test_groupvit_tokens_ignore_the_voxels_of_others(queries, features):
    """What OFG's soft attention would change: the voxels of one token move no other token."""
    module = blocks.GroupViTBlock(num_heads=HEADS)
    params, before = run(module, queries, features)
    tokens = loop_self_attention(params['self'], queries)
    grouping = params['grouping']
    key = linear(grouping['key'], features)
    winner = np.einsum('bnc,blc->bnl', linear(grouping['query'], tokens), key).argmax(axis=1)
    changed = features.copy()
    changed[0, 0] += 1e-3 * np.arange(5)  # too little to change the winner
    after = np.asarray(module.apply({'params': params}, queries, changed))
    moved = np.abs(after - before).max(axis=-1) > 1e-6
    np.testing.assert_array_equal(moved[0], np.arange(N) == winner[0, 0])
    assert not moved[1].any()


@pytest.mark.parametrize('module', [blocks.GroupingBlock(), blocks.GroupViTBlock(num_heads=HEADS)])
def test_grouping_trains_every_parameter_through_its_hard_choice(module, queries, features):
    params = draw(jax.eval_shape(lambda k: module.init(k, queries, features), jax.random.key(0)))

    @jax.jit
    @jax.grad
    def grad(p):
        rngs = {'dropout': jax.random.key(1)}
        update: Any = module.apply(p, queries, features, train=True, rngs=rngs)
        return jnp.sum(update**3)

    leaves = jax.tree_util.tree_leaves_with_path(grad(params))
    sizes = {jax.tree_util.keystr(path): float(np.abs(leaf).max()) for path, leaf in leaves}
    dead = {name for name, size in sizes.items() if size < 1e-6 * max(sizes.values())}
    # A bias of the keys moves the similarities of all voxels to a query alike, which counts; one
    # of the queries moves those of all queries at a voxel alike, which a softmax over them ignores.
    # In the self-attention before it, one of the keys moves all logits of a token alike.
    prefix = "['params']" if isinstance(module, blocks.GroupingBlock) else "['params']['grouping']"
    ignored = {f"{prefix}['query']['bias']", "['params']['self']['attention']['key']['bias']"}
    assert dead <= ignored
    assert len(dead) == (1 if isinstance(module, blocks.GroupingBlock) else 2)


def test_heads_that_do_not_divide_the_width(queries, features):
    with pytest.raises(ValueError, match='3 heads do not divide the query width 4'):
        jax.eval_shape(
            blocks.MultiHeadAttention(num_heads=3).init, jax.random.key(0), queries, features
        )
