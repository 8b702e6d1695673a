"""Cross-entropy and soft Dice as in nnU-Net, with partial labels.

A data set that annotates only some classes says so by `class_mask`. An unannotated class leaves
the softmax of its samples: voxels that may belong to it are then shared out among the annotated
classes, and its own logits get a gradient of exactly zero.
"""

import jax
import jax.numpy as jnp

from maxquery_jax.typing import Array

_MASKED = -1e30  # finite, so that no gradient is inf * 0; its exponential is exactly zero


def cross_entropy(seg_logits: Array, label: Array, class_mask: Array | None = None) -> Array:
    """Mean cross-entropy over voxels.

    Args:
        seg_logits: [B, D, H, W, K].
        label: [B, D, H, W] integer class, 0 to K - 1.
        class_mask: [B, K] bool, True for annotated classes; all by default. Voxels labelled with
            a class that is not annotated do not count.

    Returns:
        Float32 scalar.
    """
    logits = _annotated_logits(seg_logits, class_mask)
    truth = _one_hot(label, logits.shape[-1])
    own = jnp.sum(jnp.where(truth, logits, 0.0), axis=-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - own
    if class_mask is None:
        return jnp.mean(loss)
    counted = jnp.any(truth & _expand(class_mask), axis=-1)
    return jnp.sum(jnp.where(counted, loss, 0.0)) / jnp.maximum(jnp.sum(counted), 1)


def soft_dice_loss(
    seg_logits: Array,
    label: Array,
    class_mask: Array | None = None,
    *,
    batch_dice: bool = False,
    include_background: bool = False,
    smooth: float = 1e-5,
) -> Array:
    """One minus the mean over samples and classes of the soft Dice of the softmax.

    Dice is (2 tp + smooth) / (2 tp + fp + fn + smooth), summed over voxels. nnU-Net reports minus
    the mean; the constant one changes no gradient.

    Args:
        seg_logits: [B, D, H, W, K].
        label: [B, D, H, W] integer class, 0 to K - 1.
        class_mask: [B, K] bool, True for annotated classes; all by default. The others leave the
            mean.
        batch_dice: sum over the batch's voxels before the ratio, instead of per sample.
        include_background: whether class 0 counts.
        smooth: keeps the ratio defined; a class absent from both label and prediction has Dice 1.

    Returns:
        Float32 scalar in [0, 1].
    """
    probability = jax.nn.softmax(_annotated_logits(seg_logits, class_mask), axis=-1)
    truth = _one_hot(label, probability.shape[-1])
    if class_mask is None:
        valid = jnp.ones((seg_logits.shape[0], seg_logits.shape[-1]), jnp.float32)
    else:
        valid = class_mask.astype(jnp.float32)
        truth &= _expand(class_mask)
    voxels = (1, 2, 3)
    overlap = jnp.sum(jnp.where(truth, probability, 0.0), axis=voxels)  # [B, K]
    total = jnp.sum(probability, axis=voxels) + jnp.sum(truth, axis=voxels, dtype=jnp.float32)
    if batch_dice:
        overlap, total = overlap.sum(0, keepdims=True), total.sum(0, keepdims=True)
        valid = valid.max(0, keepdims=True)
    first = 0 if include_background else 1
    dice = (2.0 * overlap + smooth) / (total + smooth)
    dice, valid = dice[:, first:], valid[:, first:]
    return 1.0 - jnp.sum(dice * valid) / jnp.maximum(jnp.sum(valid), 1.0)


def _annotated_logits(seg_logits: Array, class_mask: Array | None) -> Array:
    logits = seg_logits.astype(jnp.float32)
    return logits if class_mask is None else jnp.where(_expand(class_mask), logits, _MASKED)


def _expand(class_mask: Array) -> Array:
    return class_mask.astype(bool)[:, None, None, None, :]


def _one_hot(label: Array, num_classes: int) -> Array:
    classes = jnp.arange(num_classes, dtype=jnp.int32)
    return label.astype(jnp.int32)[..., None] == classes[None, None, None, None]
