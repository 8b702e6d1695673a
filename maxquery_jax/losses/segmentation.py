"""Cross-entropy and soft Dice as in nnU-Net, with partial labels.

A data set that annotates only some classes says so by `class_mask`. An unannotated class leaves
the softmax of its samples: voxels that may belong to it are then shared out among the annotated
classes, and its own logits get a gradient of exactly zero. Losses are means over samples, so that a
batch in micro-batches gives the mean of the whole.

`CrossEntropySums` and `DiceSums` are what the losses need of the voxels; they add up over parts of
a volume (`losses.slices`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxquery_jax.typing import Array

_VOXELS = (1, 2, 3)
_MASKED = -1e30  # finite, so that no gradient is inf * 0; its exponential is exactly zero


def cross_entropy(seg_logits: Array, label: Array, class_mask: Array | None = None) -> Array:
    """Mean cross-entropy over the voxels of a sample, then over samples.

    Args:
        seg_logits: [B, D, H, W, K].
        label: [B, D, H, W] integer class, 0 to K - 1.
        class_mask: [B, K] bool, True for annotated classes; all by default. Voxels labelled with
            a class that is not annotated do not count.

    Returns:
        Float32 scalar.
    """
    return cross_entropy_sums(seg_logits, label, class_mask).loss()


class CrossEntropySums(NamedTuple):
    """Per sample: cross-entropy summed over the voxels that count, and their number; [B]."""

    total: Array
    counted: Array

    def loss(self) -> Array:
        """The mean over voxels, then over samples."""
        return jnp.mean(self.total / jnp.maximum(self.counted, 1.0))


def cross_entropy_sums(
    seg_logits: Array, label: Array, class_mask: Array | None = None, *, class_axis: int = -1
) -> CrossEntropySums:
    """The sums of `cross_entropy`, with its arguments; classes are axis -1 or 1 of the logits."""
    logits = _annotated_logits(seg_logits, class_mask, class_axis)
    truth = _one_hot(label, logits.shape[class_axis], class_axis)
    own = jnp.sum(jnp.where(truth, logits, 0.0), axis=class_axis)
    loss = jax.nn.logsumexp(logits, axis=class_axis) - own
    if class_mask is None:
        return CrossEntropySums(
            jnp.sum(loss, axis=_VOXELS), jnp.full(label.shape[:1], float(label[0].size))
        )
    counted = jnp.any(truth & _expand(class_mask, class_axis), axis=class_axis)
    total = jnp.sum(jnp.where(counted, loss, 0.0), axis=_VOXELS)
    return CrossEntropySums(total, jnp.sum(counted, axis=_VOXELS, dtype=jnp.float32))


def soft_dice_loss(
    seg_logits: Array,
    label: Array,
    class_mask: Array | None = None,
    *,
    batch_dice: bool = False,
    include_background: bool = False,
    smooth: float = 1e-5,
) -> Array:
    """One minus the soft Dice of the softmax, mean over a sample's classes, then over samples.

    Dice is (2 tp + smooth) / (2 tp + fp + fn + smooth), summed over voxels. nnU-Net reports minus
    the mean; the constant one changes no gradient.

    Args:
        seg_logits: [B, D, H, W, K].
        label: [B, D, H, W] integer class, 0 to K - 1.
        class_mask: [B, K] bool, True for annotated classes; all by default. The others leave
            their sample's mean; a sample that annotates none of the counted classes adds zero.
        batch_dice: sum over the batch's voxels before the ratio, instead of per sample.
        include_background: whether class 0 counts.
        smooth: keeps the ratio defined; a class absent from both label and prediction has Dice 1.

    Returns:
        Float32 scalar in [0, 1].
    """
    return dice_sums(seg_logits, label, class_mask).loss(
        class_mask, batch_dice=batch_dice, include_background=include_background, smooth=smooth
    )


class DiceSums(NamedTuple):
    """Per sample and class: probability inside the label, and probability plus label; [B, K]."""

    overlap: Array
    total: Array

    def loss(
        self,
        class_mask: Array | None = None,
        *,
        batch_dice: bool = False,
        include_background: bool = False,
        smooth: float = 1e-5,
    ) -> Array:
        """The loss of `soft_dice_loss`, with its arguments."""
        overlap, total = self.overlap, self.total
        if batch_dice:
            overlap, total = overlap.sum(0, keepdims=True), total.sum(0, keepdims=True)
        first = 0 if include_background else 1
        loss = 1.0 - ((2.0 * overlap + smooth) / (total + smooth))[:, first:]
        if class_mask is None:
            return jnp.mean(loss)
        valid = class_mask[:, first:].astype(jnp.float32)
        if batch_dice:
            valid = valid.max(0, keepdims=True)
        counted = jnp.maximum(jnp.sum(valid, axis=-1), 1.0)
        return jnp.mean(jnp.sum(loss * valid, axis=-1) / counted)


def dice_sums(
    seg_logits: Array, label: Array, class_mask: Array | None = None, *, class_axis: int = -1
) -> DiceSums:
    """The sums of `soft_dice_loss`, with its arguments; classes are axis -1 or 1 of the logits."""
    logits = _annotated_logits(seg_logits, class_mask, class_axis)
    probability = jax.nn.softmax(logits, axis=class_axis)
    truth = _one_hot(label, probability.shape[class_axis], class_axis)
    if class_mask is not None:
        truth &= _expand(class_mask, class_axis)
    voxels = (2, 3, 4) if class_axis == 1 else _VOXELS
    overlap = jnp.sum(jnp.where(truth, probability, 0.0), axis=voxels)
    total = jnp.sum(probability, axis=voxels) + jnp.sum(truth, axis=voxels, dtype=jnp.float32)
    return DiceSums(overlap, total)


def _annotated_logits(seg_logits: Array, class_mask: Array | None, class_axis: int) -> Array:
    logits = seg_logits.astype(jnp.float32)
    if class_mask is None:
        return logits
    return jnp.where(_expand(class_mask, class_axis), logits, _MASKED)


def _expand(class_mask: Array, class_axis: int) -> Array:
    """[B, K] with axes of size one for the voxels."""
    voxels = (2, 3, 4) if class_axis == 1 else _VOXELS
    return jnp.expand_dims(class_mask.astype(bool), voxels)


def _one_hot(label: Array, num_classes: int, class_axis: int) -> Array:
    """Bool [B, D, H, W, K], or [B, K, D, H, W] for `class_axis` 1."""
    classes = jnp.expand_dims(
        jnp.arange(num_classes, dtype=jnp.int32), (0, 2, 3, 4) if class_axis == 1 else (0, 1, 2, 3)
    )
    return jnp.expand_dims(label.astype(jnp.int32), class_axis) == classes
