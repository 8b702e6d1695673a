"""Cross-entropy and soft Dice against loops, and the treatment of unannotated classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxquery_jax.losses.segmentation import cross_entropy, soft_dice_loss

K = 4
SHAPE = (2, 3, 4)
MASK = np.array([[True, True, True, True], [True, False, True, False]])


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, (2, *SHAPE, K)).astype(np.float32)


@pytest.fixture
def label() -> np.ndarray:
    """All classes in sample 0, only the annotated ones of MASK in sample 1; class 3 not in 1."""
    rng = np.random.default_rng(1)
    return np.stack([rng.integers(0, K, SHAPE), 2 * rng.integers(0, 2, SHAPE)]).astype(np.uint8)


def loop_softmax(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Softmax over the annotated classes only."""
    out = np.zeros(logits.shape)
    for b, z, y, x in np.ndindex(*logits.shape[:-1]):
        kept = [k for k in range(K) if mask[b, k]]
        exp = {k: np.exp(float(logits[b, z, y, x, k])) for k in kept}
        for k in kept:
            out[b, z, y, x, k] = exp[k] / sum(exp.values())
    return out


def loop_ce(logits, label, mask) -> float:
    probability = loop_softmax(logits, mask)
    terms = [[] for _ in label]
    for b, z, y, x in np.ndindex(*label.shape):
        k = label[b, z, y, x]
        if mask[b, k]:
            terms[b].append(-np.log(probability[b, z, y, x, k]))
    return np.mean([np.mean(t) for t in terms])


def loop_dice(logits, label, mask, batch_dice=False, first=1, smooth=1e-5) -> float:
    probability = loop_softmax(logits, mask)
    losses = []
    groups = [[0, 1]] if batch_dice else [[0], [1]]
    for samples in groups:
        scores = []
        for k in range(first, K):
            rows = [b for b in samples if mask[b, k]]
            if not rows:
                continue
            tp = sum(probability[b][label[b] == k, k].sum() for b in rows)
            fp = sum(probability[b][label[b] != k, k].sum() for b in rows)
            fn = sum((1 - probability[b][label[b] == k, k]).sum() for b in rows)
            scores.append((2 * tp + smooth) / (2 * tp + fp + fn + smooth))
        losses.append(1 - np.mean(scores))
    return np.mean(losses)


@pytest.mark.parametrize('mask', [None, MASK])
def test_cross_entropy_matches_loop(mask, logits, label):
    expected = loop_ce(logits, label, np.ones_like(MASK) if mask is None else mask)
    result = jax.jit(cross_entropy)(jnp.asarray(logits), jnp.asarray(label), mask)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize('batch_dice', [False, True])
@pytest.mark.parametrize('background', [False, True])
@pytest.mark.parametrize('mask', [None, MASK])
def test_soft_dice_matches_loop(mask, background, batch_dice, logits, label):
    every = np.ones_like(MASK) if mask is None else mask
    expected = loop_dice(logits, label, every, batch_dice, first=0 if background else 1)
    result = soft_dice_loss(
        jnp.asarray(logits),
        jnp.asarray(label),
        mask,
        batch_dice=batch_dice,
        include_background=background,
    )
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize('loss', [cross_entropy, soft_dice_loss])
def test_unannotated_classes_get_no_gradient(loss, logits, label):
    grad = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(logits), jnp.asarray(label), MASK))
    assert np.isfinite(grad).all()
    assert (grad[1][..., [1, 3]] == 0).all()
    assert (grad[1][..., [0, 2]] != 0).all()
    assert (grad[0] != 0).all()


@pytest.mark.parametrize('loss', [cross_entropy, soft_dice_loss])
def test_unannotated_classes_do_not_enter_the_value(loss, logits, label):
    changed = logits.copy()
    changed[1][..., [1, 3]] += 50.0
    before, after = (loss(jnp.asarray(x), jnp.asarray(label), MASK) for x in (logits, changed))
    assert float(before) == float(after)


def test_voxels_labelled_with_an_unannotated_class_do_not_count(logits, label):
    changed = label.copy()
    changed[1, 0, 0] = 3  # not annotated in sample 1
    np.testing.assert_allclose(
        cross_entropy(jnp.asarray(logits), jnp.asarray(changed), MASK),
        loop_ce(logits, changed, MASK),
        rtol=1e-5,
    )


@pytest.mark.parametrize('loss', [cross_entropy, soft_dice_loss])
def test_the_loss_of_a_batch_is_the_mean_of_its_samples(loss, logits, label):
    whole = loss(jnp.asarray(logits), jnp.asarray(label), MASK)
    parts = [
        loss(jnp.asarray(logits[i : i + 1]), jnp.asarray(label[i : i + 1]), MASK[i : i + 1])
        for i in range(2)
    ]
    np.testing.assert_allclose(whole, np.mean(parts), rtol=1e-6)


def test_a_sample_without_annotated_foreground_adds_no_dice(logits, label):
    mask = np.array([[True] * K, [True, False, False, False]])
    alone = soft_dice_loss(jnp.asarray(logits[:1]), jnp.asarray(label[:1]))
    both = soft_dice_loss(jnp.asarray(logits), jnp.asarray(label), mask)
    np.testing.assert_allclose(both, alone / 2, rtol=1e-6)


def test_losses_at_the_extremes(label):
    perfect = 100.0 * jax.nn.one_hot(jnp.asarray(label), K)
    assert float(cross_entropy(perfect, jnp.asarray(label))) == 0
    assert float(soft_dice_loss(perfect, jnp.asarray(label))) < 1e-6  # absent class 1, 3 are right
    wrong = 100.0 * jax.nn.one_hot((jnp.asarray(label) + 1) % K, K)
    np.testing.assert_allclose(cross_entropy(wrong, jnp.asarray(label)), 100.0)
    assert float(soft_dice_loss(wrong, jnp.asarray(label))) > 0.999


def test_losses_are_float32_for_bfloat16_logits(logits, label):
    for loss in (cross_entropy, soft_dice_loss):
        low = jnp.asarray(logits, jnp.bfloat16)
        result = loss(low, jnp.asarray(label))
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, loss(low.astype(jnp.float32), jnp.asarray(label)))
