"""Eq. 2 to 6 against loops written from the equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.ops import assignment as ops

GROUPS = (2, 1, 3)
SHAPE = (2, 3, 4)


@pytest.fixture
def response() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, (2, 6, *SHAPE)).astype(np.float32)


def loop_softmax(response: np.ndarray) -> np.ndarray:
    out = np.zeros(response.shape)
    for b in range(response.shape[0]):
        for index in np.ndindex(*response.shape[2:]):
            exp = [np.exp(float(response[(b, n, *index)])) for n in range(response.shape[1])]
            for n, value in enumerate(exp):
                out[(b, n, *index)] = value / sum(exp)
    return out


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
def test_kmeans_update_matches_loop(reduction):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 5, 20)).astype(np.float32)
    logits[:, 3] = -100  # a query that wins nothing
    values = rng.normal(size=(2, 20, 7)).astype(np.float32)
    expected = np.zeros((2, 5, 7))
    for b in range(2):
        counts = np.zeros(5)
        for voxel in range(20):
            winner = max(range(5), key=lambda n: logits[b, n, voxel])  # noqa: B023
            expected[b, winner] += values[b, voxel]
            counts[winner] += 1
        if reduction == 'mean':
            expected[b] /= np.maximum(counts, 1)[:, None]
    update = ops.kmeans_update(jnp.asarray(logits), jnp.asarray(values), reduction=reduction)
    np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6)
    assert (np.asarray(update[:, 3]) == 0).all()


def test_kmeans_update_is_float32_and_ties_go_to_the_lower_query():
    values = jnp.full((1, 3000, 1), 1.0, jnp.bfloat16)
    update = ops.kmeans_update(jnp.zeros((1, 4, 3000), jnp.bfloat16), values)
    assert update.dtype == jnp.float32
    np.testing.assert_array_equal(update[0, :, 0], [3000.0, 0, 0, 0])  # bfloat16 has no 3000


def test_no_gradient_through_argmax():
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(size=(1, 4, 9)), jnp.float32)
    values = jnp.asarray(rng.normal(size=(1, 9, 3)), jnp.float32)
    grads = jax.grad(lambda q, v: jnp.sum(ops.kmeans_update(q, v) ** 2), (0, 1))(logits, values)
    assert (np.asarray(grads[0]) == 0).all()
    assert (np.asarray(grads[1]) != 0).all()


def test_kmeans_update_names_a_bad_reduction():
    with pytest.raises(ValueError, match='median'):
        ops.kmeans_update(jnp.zeros((1, 2, 3)), jnp.zeros((1, 3, 1)), reduction='median')


def test_assignment_matches_loop_and_sums_to_one(response):
    result = ops.assignment(jnp.asarray(response))
    np.testing.assert_allclose(result, loop_softmax(response), rtol=1e-5)
    np.testing.assert_allclose(result.sum(axis=1), 1.0, rtol=1e-6)


def test_assignment_is_float32_and_survives_large_responses(response):
    result = ops.assignment(jnp.asarray(response * 1e4, jnp.bfloat16))
    assert result.dtype == jnp.float32
    assert np.isfinite(result).all()


def test_aggregate_matches_loop(response):
    classes = np.random.default_rng(3).normal(size=(2, 6, 4)).astype(np.float32)
    mask = loop_softmax(response)
    expected = np.zeros((2, *SHAPE, 4))
    for b, z, y, x, k in np.ndindex(*expected.shape):
        expected[b, z, y, x, k] = sum(classes[b, n, k] * mask[b, n, z, y, x] for n in range(6))
    result = ops.aggregate(jnp.asarray(classes), jnp.asarray(mask, jnp.float32))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


def test_aggregate_does_not_depend_on_the_order_of_queries(response):
    classes = np.random.default_rng(3).normal(size=(2, 6, 4)).astype(np.float32)
    order = np.array([4, 2, 0, 5, 1, 3])
    one = ops.aggregate(jnp.asarray(classes), ops.assignment(jnp.asarray(response)))
    permuted = ops.assignment(jnp.asarray(response[:, order]))
    two = ops.aggregate(jnp.asarray(classes[:, order]), permuted)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_merge_assignments_matches_loop_and_stays_a_distribution(response):
    mask = loop_softmax(response).astype(np.float32)
    merged = np.asarray(ops.merge_assignments(jnp.asarray(mask), GROUPS))
    expected = np.zeros((2, 3, *SHAPE))
    for n, group in enumerate([0, 0, 1, 2, 2, 2]):
        expected[:, group] += mask[:, n]
    np.testing.assert_allclose(merged, expected, rtol=1e-6)
    np.testing.assert_allclose(merged.sum(axis=1), 1.0, rtol=1e-5)


def test_merge_responses_is_the_log_of_the_merged_assignment(response):
    merged = ops.merge_responses(jnp.asarray(response), GROUPS)
    expected = ops.merge_assignments(ops.assignment(jnp.asarray(response)), GROUPS)
    np.testing.assert_allclose(jnp.exp(jax.nn.log_softmax(merged, axis=1)), expected, rtol=1e-5)


def test_merge_responses_where_the_assignment_underflows():
    response = jnp.zeros((1, 3, 1, 1, 1)).at[0, 0].set(500.0)
    assert ops.merge_assignments(ops.assignment(response), (1, 1, 1))[0, 2, 0, 0, 0] == 0
    logs = jax.nn.log_softmax(ops.merge_responses(response, (1, 1, 1)), axis=1)
    np.testing.assert_allclose(logs[0, :, 0, 0, 0], [0, -500, -500])


@pytest.mark.parametrize('groups', [(2, 1, 2), (3, 3), (2, 1, 2, 1)])
def test_groups_that_do_not_add_up(groups, response):
    with pytest.raises(ValueError, match='6 queries'):
        ops.merge_assignments(jnp.asarray(response), groups)
    with pytest.raises(ValueError, match='6 queries'):
        ops.merge_responses(jnp.asarray(response), groups)


def test_merge_labels_matches_eq6():
    label = np.random.default_rng(4).integers(0, 5, (2, *SHAPE)).astype(np.uint8)
    merged = np.asarray(ops.merge_labels(jnp.asarray(label), (0, 1, 1, 2, 2)))
    assert merged.shape == (2, 3, *SHAPE)
    np.testing.assert_array_equal(merged[:, 0], label == 0)
    np.testing.assert_array_equal(merged[:, 1], (label == 1) | (label == 2))
    np.testing.assert_array_equal(merged[:, 2], label >= 3)
