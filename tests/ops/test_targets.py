"""Overlapping targets against loops over voxels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.losses.segmentation import cross_entropy, soft_dice_loss
from maxquery_jax.ops.targets import class_targets

PARENTS = (-1, -1, -1, -1, (1, 2), 3)  # background, right, left, liver, kidney tumour, liver tumour


def loop_targets(label: np.ndarray) -> np.ndarray:
    out = np.zeros((*label.shape, 6), bool)
    for b in range(len(label)):
        centres = {k: np.argwhere(label[b] == k).mean(0) for k in (1, 2) if (label[b] == k).any()}
        for index in np.ndindex(*label.shape[1:]):
            k = int(label[(b, *index)])
            if k >= 6:
                continue
            out[(b, *index, k)] = True
            if k == 5:
                out[(b, *index, 3)] = True
            if k == 4 and centres:
                nearest = min(centres, key=lambda s: ((centres[s] - index) ** 2).sum())  # noqa: B023
                out[(b, *index, nearest)] = True
    return out


def test_matches_loop():
    label = np.random.default_rng(0).integers(0, 8, (5, 4, 5, 6))
    label[1][label[1] == 1] = 0  # one side only
    label[2][(label[2] == 1) | (label[2] == 2)] = 0  # a tumour without its organ
    got = jax.jit(class_targets, static_argnums=1)(jnp.asarray(label), PARENTS)
    np.testing.assert_array_equal(got, loop_targets(label))
    assert not (np.asarray(got)[2][..., 1:3]).any() and (label[2] == 4).any()


def test_no_relations_is_one_hot():
    label = np.random.default_rng(1).integers(0, 3, (2, 3, 4, 5))
    got = class_targets(jnp.asarray(label), (-1, (), -1))
    np.testing.assert_array_equal(got, label[..., None] == np.arange(3))


@pytest.mark.parametrize('parents', [(-1, 2), (-1, 1), (-1, (0, 5))])
def test_mistakes_are_named(parents):
    with pytest.raises(ValueError, match='class 1 has parents'):
        class_targets(jnp.zeros((1, 2, 2, 2), jnp.int32), parents)


def test_classes_that_are_not_annotated_get_no_gradient():
    """Partial labels: a loss over K binary masks and the losses of the package."""
    label = jnp.asarray(np.random.default_rng(2).integers(0, 6, (2, 4, 4, 4)))
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 4, 4, 6)), jnp.float32)
    mask = jnp.asarray([[1, 1, 0, 1, 0, 1], [1, 0, 1, 0, 0, 0]], bool)
    targets = class_targets(label, PARENTS)

    def masked_bce(z):
        bce = jnp.logaddexp(0.0, z) - z * targets
        return jnp.sum(bce * mask[:, None, None, None, :])

    def softmax_losses(z):
        return cross_entropy(z, label, mask) + soft_dice_loss(z, label, mask)

    for loss in (masked_bce, softmax_losses):
        grad = np.abs(np.asarray(jax.grad(loss)(logits))).sum((1, 2, 3))
        assert (grad[~np.asarray(mask)] == 0).all()
        assert (grad[np.asarray(mask)] > 0).all()
