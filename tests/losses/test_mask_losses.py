"""Mask losses against loops over voxels; unannotated classes have no say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.losses import masks

SHAPE = (2, 3, 4)
# Classes: background, liver, liver tumour, spleen. Queries: liver, spleen, tumour, unseen tumour.
PARENTS = (-1, -1, 1, -1)
QUERIES = (1, 3, 2, masks.UNSEEN)
CLASS_MASK = np.array([[True, True, True, True], [True, True, False, False]])


@pytest.fixture
def label() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, (2, *SHAPE)).astype(np.uint8)


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 2, (2, 4, *SHAPE)).astype(np.float32)


def test_an_organ_holds_its_tumours_and_unseen_classes_are_empty(label):
    targets = np.asarray(masks.query_targets(jnp.asarray(label), PARENTS, QUERIES))
    np.testing.assert_array_equal(targets[:, 0], (label == 1) | (label == 2))
    np.testing.assert_array_equal(targets[:, 1], label == 3)
    np.testing.assert_array_equal(targets[:, 2], label == 2)
    assert not targets[:, 3].any()


def test_supervised_queries():
    found = masks.supervised_queries(jnp.asarray(CLASS_MASK), QUERIES)
    np.testing.assert_array_equal(found, [[True, True, True, False], [True, False, False, False]])


def loop_losses(logits, targets, mask, smooth=1e-5):
    dice, entropy = [], []
    for b in range(2):
        own_dice, own_entropy = [], []
        for n in range(4):
            if not mask[b, n]:
                continue
            p = 1 / (1 + np.exp(-logits[b, n].astype(float)))
            t = targets[b, n].astype(float)
            own_dice.append(1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth))
            own_entropy.append(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())
        dice.append(np.mean(own_dice))
        entropy.append(np.mean(own_entropy))
    return np.mean(dice), np.mean(entropy)


@pytest.mark.parametrize('masked', [False, True])
def test_mask_losses_match_loop(label, logits, masked):
    targets = masks.query_targets(jnp.asarray(label), PARENTS, QUERIES)
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 1]], bool) if masked else np.ones((2, 4), bool)
    result = masks.mask_losses(logits, targets, jnp.asarray(mask) if masked else None)
    np.testing.assert_allclose(result, loop_losses(logits, np.asarray(targets), mask), rtol=1e-4)


def test_unannotated_classes_get_no_gradient(label, logits):
    counted = masks.supervised_queries(jnp.asarray(CLASS_MASK), QUERIES)

    def objective(x, classes):
        targets = masks.query_targets(jnp.asarray(label), PARENTS, QUERIES)
        return sum(masks.mask_losses(x, targets, counted)) + masks.class_embedding_loss(
            classes, counted
        )

    classes = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 4)), jnp.float32)
    by_mask, by_class = jax.grad(objective, (0, 1))(jnp.asarray(logits), classes)
    np.testing.assert_array_equal(np.asarray(by_mask).any(axis=(2, 3, 4)), counted)
    np.testing.assert_array_equal(np.asarray(by_class).any(axis=2), counted)


def test_what_an_unannotated_class_looks_like_changes_nothing(label, logits):
    counted = masks.supervised_queries(jnp.asarray(CLASS_MASK), QUERIES)
    targets = masks.query_targets(jnp.asarray(label), PARENTS, QUERIES)
    one = masks.mask_losses(logits, targets, counted)
    two = masks.mask_losses(
        jnp.where(counted[:, :, None, None, None], logits, 7.0),
        targets ^ ~counted[..., None, None, None],
        counted,
    )
    np.testing.assert_array_equal(one, two)


def test_extremes_are_finite(label):
    targets = masks.query_targets(jnp.asarray(label), PARENTS, QUERIES)
    perfect = jnp.where(targets, 200.0, -200.0)
    np.testing.assert_allclose(masks.mask_losses(perfect, targets), [0, 0], atol=1e-5)
    dice, entropy = masks.mask_losses(-perfect, targets)
    np.testing.assert_allclose([dice, entropy], [1.0, 200.0], rtol=1e-5)
    nothing = masks.mask_losses(perfect, targets, jnp.zeros((2, 4), bool))
    np.testing.assert_array_equal(nothing, [0, 0])


def test_class_embedding_loss_matches_loop():
    logits = np.random.default_rng(3).normal(size=(2, 4, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1], [0, 1, 0, 0]], bool)
    samples = []
    for b in range(2):
        terms = [
            -np.log(np.exp(logits[b, i, i]) / np.exp(logits[b, i]).sum())
            for i in range(4)
            if mask[b, i]
        ]
        samples.append(np.mean(terms))
    result = masks.class_embedding_loss(jnp.asarray(logits), jnp.asarray(mask))
    np.testing.assert_allclose(result, np.mean(samples), rtol=1e-5)
