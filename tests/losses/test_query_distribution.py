"""The QD loss against a loop written from Eq. 5 to 7."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.losses.query_distribution import knows_group, query_distribution_loss
from maxquery_jax.ops.assignment import assignment, merge_assignments

QUERIES = (2, 1, 3)
CLASSES = (0, 1, 2, 2)
SHAPE = (2, 3, 4)


@pytest.fixture
def response() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, (2, 6, *SHAPE)).astype(np.float32)


@pytest.fixture
def label() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 4, (2, *SHAPE)).astype(np.int32)


def loop_loss(response: np.ndarray, label: np.ndarray, known=None) -> np.ndarray:
    """[B] sums over voxels whose class is in `known[b]`, all by default."""
    members = [(0, 1), (2,), (3, 4, 5)]
    total = np.zeros(len(label))
    for b, z, y, x in np.ndindex(*label.shape):
        if known is not None and label[b, z, y, x] not in known[b]:
            continue
        exp = np.exp(response[b, :, z, y, x].astype(np.float64))
        mask = exp / exp.sum()
        merged = [sum(mask[n] for n in group) for group in members]
        truth = {0: 0, 1: 1, 2: 2, 3: 2}[int(label[b, z, y, x])]
        total[b] -= np.log(merged[truth])
    return total


def loss_fn(response, label, **kwargs):
    return query_distribution_loss(
        jnp.asarray(response), jnp.asarray(label), QUERIES, CLASSES, **kwargs
    )


def test_matches_loop(response, label):
    sums = loop_loss(response, label)
    np.testing.assert_allclose(loss_fn(response, label), sums.mean() / np.prod(SHAPE), rtol=1e-5)
    np.testing.assert_allclose(loss_fn(response, label, reduction='sum'), sums.mean(), rtol=1e-5)


def test_gradient_raises_the_right_group_and_lowers_the_others(response, label):
    grad = np.asarray(jax.jit(jax.grad(loss_fn))(jnp.asarray(response), jnp.asarray(label)))
    group = np.array([0, 0, 1, 2, 2, 2])
    truth = np.array(CLASSES)[label]
    own = group[None, :, None, None, None] == truth[:, None]
    assert (grad[own] < 0).all()
    assert (grad[~own] > 0).all()
    np.testing.assert_allclose(grad.sum(axis=1), 0, atol=1e-7)


def test_is_blind_to_the_order_of_queries_within_a_group(response, label):
    permuted = response[:, [1, 0, 2, 5, 3, 4]]
    np.testing.assert_allclose(loss_fn(permuted, label), loss_fn(response, label), rtol=1e-6)


def test_stays_finite_where_the_assignment_underflows(label):
    response = np.zeros((2, 6, *SHAPE), np.float32)
    response[:, 0] = 1e4
    value, grad = jax.jit(jax.value_and_grad(loss_fn))(jnp.asarray(response), jnp.asarray(label))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    assert float(value) > 1e3


def test_coarse_responses_are_resized(label):
    """A constant response resizes to itself; the loss then depends on the label alone."""
    values = np.random.default_rng(2).normal(size=6).astype(np.float32)
    coarse = np.broadcast_to(values[None, :, None, None, None], (2, 6, 1, 3, 2))
    full = np.broadcast_to(values[None, :, None, None, None], (2, 6, *SHAPE))
    np.testing.assert_allclose(loss_fn(coarse, label), loss_fn(full, label), rtol=1e-5)


def test_coarse_responses_interpolate_merged_logs():
    """Midway between two voxels the distribution is their normalised geometric mean."""
    rng = np.random.default_rng(3)
    coarse = rng.normal(0, 2, (1, 6, 1, 1, 2)).astype(np.float32)
    merged = np.asarray(merge_assignments(assignment(jnp.asarray(coarse)), QUERIES))[0, :, 0, 0]
    # Half-pixel centres from 2 to 4: the inner two lie at 1/4 and 3/4 between the coarse ones.
    logs = np.log(merged)
    fine = np.stack(
        [
            logs[:, 0],
            0.75 * logs[:, 0] + 0.25 * logs[:, 1],
            0.25 * logs[:, 0] + 0.75 * logs[:, 1],
            logs[:, 1],
        ],
        axis=1,
    )
    fine = fine - np.log(np.exp(fine).sum(axis=0))
    label = np.array([0, 1, 2, 3]).reshape(1, 1, 1, 4)
    expected = -np.mean([fine[g, i] for i, g in enumerate([0, 1, 2, 2])])
    np.testing.assert_allclose(loss_fn(coarse, label), expected, rtol=1e-4)


# Classes: background, liver, its tumour, another tumour.
PARTIAL = [
    ([1, 1, 1, 1], None, {0, 1, 2, 3}),
    ([1, 1, 1, 1], ((), (), (1,), ()), {0, 1, 2, 3}),
    # A tumour is missing: it may be anywhere in the background, and in the liver unless it is known
    # to grow elsewhere.
    ([1, 1, 1, 0], None, {2}),
    ([1, 1, 1, 0], ((), (), (1,), (4,)), {1, 2}),
    ([1, 1, 0, 1], ((), (), (4, 1), (4,)), {3}),
    # The liver is missing: its voxels are labelled background. Tumours say what they are.
    ([1, 0, 1, 1], None, {2, 3}),
    ([1, 0, 0, 0], None, set()),
    ([1, 1, 0, 0], ((), (), (1,), (1,)), set()),
]


@pytest.mark.parametrize(('mask', 'parents', 'known'), PARTIAL)
def test_groups_that_a_partial_sample_knows(mask, parents, known):
    got = knows_group(jnp.asarray([mask], bool), CLASSES, parents)
    assert {i for i in range(4) if got[0, i]} == known


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_voxels_of_unknown_group_do_not_count(response, label, reduction):
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    label[1][label[1] == 3] = 0  # what is not annotated is labelled background
    options = {'class_mask': mask, 'parents': ((), (), (1,), (4,)), 'reduction': reduction}
    value, grad = jax.value_and_grad(lambda r: loss_fn(r, label, **options))(jnp.asarray(response))
    sums = loop_loss(response, label, known=[{0, 1, 2, 3}, {1, 2}])
    scale = np.prod(SHAPE) if reduction == 'mean' else 1
    np.testing.assert_allclose(value, sums.mean() / scale, rtol=1e-5)
    background = label[1] == 0
    grad = np.moveaxis(np.asarray(grad), 1, -1)
    assert background.any() and (grad[1][background] == 0).all()
    assert (grad[1][~background] != 0).all() and (grad[0] != 0).all()


def test_a_mask_of_ones_changes_nothing(response, label):
    ones = np.ones((2, 4), bool)
    np.testing.assert_allclose(
        loss_fn(response, label, class_mask=ones), loss_fn(response, label), rtol=1e-6
    )


def test_names_bad_arguments(response, label):
    with pytest.raises(ValueError, match='median'):
        loss_fn(response, label, reduction='median')
    with pytest.raises(ValueError, match='6 queries'):
        query_distribution_loss(jnp.asarray(response), jnp.asarray(label), (2, 1, 2), CLASSES)
