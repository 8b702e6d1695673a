"""ZePT Eq. 11 against loops, and what masked queries and texts may not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.losses.alignment import alignment_logits, alignment_loss

N, T = 4, 6
MASK = np.array([[True, True, True, True], [True, False, True, False]])


@pytest.fixture
def queries() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, N, T)).astype(np.float32)


@pytest.fixture
def knowledge() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N, T)).astype(np.float32)


def loop_loss(queries, knowledge, tau, mask, candidates, similarity):
    samples = []
    for b in range(2):
        terms = []
        for i in range(N):
            if not (mask[b, i] and candidates[i]):
                continue
            scores = {}
            for c in range(N):
                if candidates[c]:
                    q, t = queries[b, i].astype(float), knowledge[c].astype(float)
                    size = np.linalg.norm(q) * np.linalg.norm(t) if similarity == 'cosine' else 1
                    scores[c] = q @ t / size / tau
            terms.append(-np.log(np.exp(scores[i]) / sum(map(np.exp, scores.values()))))
        samples.append(np.mean(terms))
    return np.mean(samples)


@pytest.mark.parametrize('similarity', ['cosine', 'dot'])
@pytest.mark.parametrize('candidates', [[True] * 4, [True, True, True, False]])
def test_matches_loop(queries, knowledge, similarity, candidates):
    logits = alignment_logits(queries, knowledge, 0.2, similarity=similarity)
    loss = alignment_loss(logits, jnp.asarray(MASK), jnp.asarray(candidates))
    expected = loop_loss(queries, knowledge, 0.2, MASK, candidates, similarity)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_cosine_does_not_depend_on_length(queries, knowledge):
    one = alignment_logits(queries, knowledge, 0.07)
    two = alignment_logits(queries * 9, knowledge * 0.2, 0.07)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    assert (np.abs(np.asarray(one)) <= 1 / 0.07 + 1e-4).all()


def test_unannotated_queries_get_no_gradient_and_temperature_does(queries, knowledge):
    def objective(q, tau):
        return alignment_loss(alignment_logits(q, knowledge, tau), jnp.asarray(MASK))

    grad, by_tau = jax.grad(objective, (0, 1))(jnp.asarray(queries), 0.07)
    np.testing.assert_array_equal(np.asarray(grad).any(axis=-1), MASK)
    assert float(by_tau) != 0


def test_nothing_annotated_and_zero_queries_are_finite(queries, knowledge):
    def objective(q):
        logits = alignment_logits(q, knowledge, 0.07)
        return alignment_loss(logits, jnp.zeros((2, N), bool)) + alignment_loss(logits)

    value, grad = jax.value_and_grad(objective)(jnp.zeros((2, N, T)))
    np.testing.assert_allclose(value, np.log(N), rtol=1e-5)
    assert np.isfinite(grad).all()


def test_bad_arguments(queries, knowledge):
    with pytest.raises(ValueError, match='euclid'):
        alignment_logits(queries, knowledge, 1.0, similarity='euclid')
    with pytest.raises(ValueError, match='4 queries and 3 texts'):
        alignment_loss(alignment_logits(queries, knowledge[:3], 1.0))
