"""Losses on binary mask proposals with fixed query-to-class assignment (ZePT Sec. 3.1, Tab. 8).

Masks overlap (an organ holds its tumours), so every query is a binary problem of its own: a class
that a sample does not annotate is left out, and its query gets a gradient of exactly zero from
that sample. Losses are means over samples, so that micro-batches give the mean of the whole.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maxquery_jax.losses.alignment import masked_cross_entropy
from maxquery_jax.ops.targets import Parents, target_masks
from maxquery_jax.typing import Array

_VOXELS = (2, 3, 4)
UNSEEN = -1  # class of a query that no training label shows


def query_targets(label: Array, parents: Parents, query_classes: Sequence[int]) -> Array:
    """Binary truth of every query; an organ's holds its tumours.

    Args:
        label: [B, D, H, W] integer class, 0 to K - 1.
        parents: of the K classes, see `ops.targets.class_targets`.
        query_classes: class of each of the N queries, `UNSEEN` for none.

    Returns:
        [B, N, D, H, W] bool; empty for an unseen class.
    """
    return target_masks(label, parents, query_classes)


def supervised_queries(class_mask: Array, query_classes: Sequence[int]) -> Array:
    """Queries that a sample's annotation says something about.

    Args:
        class_mask: [B, K] bool, True for annotated classes.
        query_classes: see `query_targets`.

    Returns:
        [B, N] bool.
    """
    classes = np.asarray(query_classes)
    return class_mask.astype(bool)[:, np.maximum(classes, 0)] & jnp.asarray(classes >= 0)[None]


def mask_losses(
    mask_logits: Array, targets: Array, query_mask: Array | None = None, *, smooth: float = 1e-5
) -> tuple[Array, Array]:
    """Soft Dice loss and binary cross-entropy of sigmoid masks, per query.

    Dice is (2 tp + smooth) / (2 tp + fp + fn + smooth), summed over the voxels of a sample.
    Deviation: the released code averages the Dice of single slices, so that every empty slice of
    an empty prediction costs one.

    Args:
        mask_logits: [B, N, D, H, W] before the sigmoid.
        targets: [B, N, D, H, W] bool.
        query_mask: [B, N] bool, queries that count; all by default.
        smooth: keeps the ratio defined; absent from truth and prediction is a Dice of one.

    Returns:
        Dice loss in [0, 1] and mean cross-entropy, float32 scalars: mean over a sample's queries
        that count, then over samples. A sample without any adds zero.
    """
    overlap, total, entropy = _mask_sums(mask_logits, targets)
    dice = 1.0 - (2.0 * overlap + smooth) / (total + smooth)
    return _mean(dice, query_mask), _mean(entropy, query_mask)


@jax.checkpoint
def _mask_sums(mask_logits: Array, targets: Array) -> tuple[Array, Array, Array]:
    """[B, N] probability inside the truth, probability plus truth, and mean cross-entropy."""
    logits = mask_logits.astype(jnp.float32)
    probability = jax.nn.sigmoid(logits)
    overlap = jnp.sum(jnp.where(targets, probability, 0.0), axis=_VOXELS)
    total = jnp.sum(probability, axis=_VOXELS) + jnp.sum(targets, axis=_VOXELS, dtype=jnp.float32)
    entropy = jnp.mean(jax.nn.softplus(jnp.where(targets, -logits, logits)), axis=_VOXELS)
    return overlap, total, entropy


def _mean(values: Array, query_mask: Array | None) -> Array:
    if query_mask is None:
        return jnp.mean(values)
    counted = query_mask.astype(bool)
    total = jnp.sum(jnp.where(counted, values, 0.0), axis=1)
    return jnp.mean(total / jnp.maximum(jnp.sum(counted, axis=1), 1))


def class_embedding_loss(class_logits: Array, query_mask: Array | None = None) -> Array:
    """Cross-entropy of the class embeddings, query i being organ i (ZePT Sec. 3.1).

    Unspecified in the paper: there is no class "no object". A query stands for its organ whether
    or not the patch shows it; a caller who wants only organs that are shown says so by the mask.

    Args:
        class_logits: [B, N, N].
        query_mask: [B, N] bool, queries that count; all by default.

    Returns:
        Float32 scalar.
    """
    counted = jnp.ones(class_logits.shape[:2], bool) if query_mask is None else query_mask
    targets = np.arange(class_logits.shape[1])
    return masked_cross_entropy(class_logits.astype(jnp.float32), targets, counted.astype(bool))
