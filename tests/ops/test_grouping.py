"""ZePT Eq. 3 to 6 against loops over voxels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.ops import grouping

B, N, L, C = 2, 4, 11, 3


@pytest.fixture
def similarity() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(B, N, L)).astype(np.float32)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(B, L, C)).astype(np.float32)


def loop_assignment(similarity, tau, noise):
    """S, voxel by voxel."""
    result = np.zeros((B, N, L))
    for b, j in np.ndindex(B, L):
        weights = [np.exp((similarity[b, i, j] + noise[b, i, j]) / tau) for i in range(N)]
        result[b, :, j] = np.array(weights) / sum(weights)
    return result


@pytest.mark.parametrize('with_noise', [False, True])
def test_soft_assignment_matches_loop(similarity, with_noise):
    noise = np.random.default_rng(2).gumbel(size=(B, N, L)).astype(np.float32)
    expected = loop_assignment(similarity, 0.7, noise * with_noise)
    result = grouping.soft_assignment(similarity, 0.7, jnp.asarray(noise) if with_noise else None)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_straight_through_is_exactly_one_hot_and_has_the_soft_gradient(similarity, values):
    weight = jnp.asarray(np.random.default_rng(3).normal(size=(B, N, L)), jnp.float32)
    soft = grouping.soft_assignment(similarity, 0.5)
    hard = np.asarray(grouping.straight_through(soft))
    for b, j in np.ndindex(B, L):
        winner = max(range(N), key=lambda i: similarity[b, i, j])  # noqa: B023
        np.testing.assert_array_equal(hard[b, :, j], np.arange(N) == winner)

    def objective(s, hard):
        return jnp.sum(weight * grouping.assign(s, temperature=0.5, hard=hard))

    gradient = np.asarray(jax.grad(objective)(jnp.asarray(similarity), True))
    step = 1e-2
    for index in [(0, 0, 0), (1, 3, 5), (0, 2, 10)]:
        moved = np.zeros_like(similarity)
        moved[index] = step
        # The surrogate of the straight-through gradient is the soft assignment.
        slope = (objective(similarity + moved, False) - objective(similarity - moved, False)) / (
            2 * step
        )
        np.testing.assert_allclose(gradient[index], slope, rtol=2e-2, atol=1e-3)


def test_group_features_matches_loop(similarity, values):
    assignment = np.asarray(grouping.assign(jnp.asarray(similarity)))
    expected = np.zeros((B, N, C))
    for b, i in np.ndindex(B, N):
        own = [j for j in range(L) if assignment[b, i, j] == 1]
        expected[b, i] = sum((values[b, j] for j in own), np.zeros(C)) / (len(own) + 1)
    result = grouping.group_features(jnp.asarray(assignment), jnp.asarray(values))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_a_query_without_voxels_gathers_zero(similarity, values):
    similarity[:, 2] = -50
    result = grouping.group_features(grouping.assign(jnp.asarray(similarity)), values)
    assert (np.asarray(result[:, 2]) == 0).all()
    assert (np.asarray(result[:, 0]) != 0).all()


def test_evaluation_is_the_argmax_at_any_temperature(similarity):
    one = grouping.assign(jnp.asarray(similarity), temperature=0.1)
    np.testing.assert_array_equal(one, grouping.assign(jnp.asarray(similarity), temperature=3.0))
    np.testing.assert_array_equal(jnp.argmax(one, axis=1), similarity.argmax(axis=1))


def test_noise_changes_choices_as_often_as_the_softmax_says():
    logits = np.log(np.array([0.7, 0.2, 0.1], np.float32))
    similarity = jnp.broadcast_to(jnp.asarray(logits)[None, :, None], (1, 3, 20000))
    chosen = grouping.assign(similarity, key=jax.random.key(0))
    np.testing.assert_allclose(chosen.mean(axis=(0, 2)), [0.7, 0.2, 0.1], atol=0.015)


def test_gradient_reaches_the_temperature(similarity, values):
    def objective(tau):
        assignment = grouping.assign(similarity, temperature=tau, key=jax.random.key(1))
        return jnp.sum(grouping.group_features(assignment, values) ** 2)

    assert abs(float(jax.grad(objective)(1.0))) > 1e-4


def test_float32_from_bfloat16(similarity, values):
    assignment = grouping.assign(jnp.asarray(similarity, jnp.bfloat16))
    assert assignment.dtype == jnp.float32
    update = grouping.group_features(assignment, jnp.asarray(values, jnp.bfloat16))
    assert update.dtype == jnp.float32
