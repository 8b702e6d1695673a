"""Anomaly scores against loops written from Eq. 9 and Tab. 4."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.ops import anomaly

SHAPE = (2, 3, 4)


@pytest.fixture
def logits() -> np.ndarray:
    """[B, N, D, H, W]."""
    return np.random.default_rng(0).normal(0, 3, (2, 5, *SHAPE)).astype(np.float32)


def loop_scores(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pre- and post-softmax scores [B, D, H, W] of logits [B, N, D, H, W]."""
    pre, post = np.zeros((2, *SHAPE)), np.zeros((2, *SHAPE))
    for b, z, y, x in np.ndindex(2, *SHAPE):
        values = [float(v) for v in logits[b, :, z, y, x]]
        pre[b, z, y, x] = -max(values)
        post[b, z, y, x] = 1 - max(np.exp(v) / sum(np.exp(values)) for v in values)
    return pre, post


def test_scores_match_loops(logits):
    pre, post = loop_scores(logits)
    queries, classes = jnp.asarray(logits), jnp.moveaxis(jnp.asarray(logits), 1, -1)
    np.testing.assert_allclose(anomaly.query_logit_score(queries), pre, rtol=1e-6)
    np.testing.assert_allclose(anomaly.query_softmax_score(queries), post, rtol=1e-5)
    np.testing.assert_allclose(anomaly.category_logit_score(classes), pre, rtol=1e-6)
    np.testing.assert_allclose(anomaly.category_softmax_score(classes), post, rtol=1e-5)


@pytest.mark.parametrize('name', anomaly.SCORES)
def test_scores_do_not_depend_on_the_order_of_channels(name, logits):
    source, function = anomaly.SCORES[name]
    axis = {'query': 1, 'category': -1}[source]
    x = jnp.moveaxis(jnp.asarray(logits), 1, axis)
    permuted = jnp.take(x, jnp.array([3, 0, 4, 1, 2]), axis=axis)
    np.testing.assert_allclose(function(x), function(permuted), rtol=1e-5)


@pytest.mark.parametrize('name', anomaly.SCORES)
def test_scores_are_float32_maps(name, logits):
    source, function = anomaly.SCORES[name]
    x = jnp.moveaxis(jnp.asarray(logits, jnp.bfloat16), 1, {'query': 1, 'category': -1}[source])
    score = jax.jit(function)(x)
    assert score.shape == (2, *SHAPE)
    assert score.dtype == jnp.float32


def test_an_inlier_between_two_clusters_is_no_anomaly_before_the_softmax():
    """The paper's argument for Eq. 9 over A': two close centres share an inlier's assignment."""
    inlier, outlier = [5.0, 5.0, 0.0], [-1.0, -4.0, -4.0]
    response = jnp.asarray([inlier, outlier]).T.reshape(1, 3, 1, 1, 2)
    before = anomaly.query_logit_score(response)[0, 0, 0]
    after = anomaly.query_softmax_score(response)[0, 0, 0]
    assert before[0] < before[1]
    assert after[0] > after[1]
