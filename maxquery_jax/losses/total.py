"""What a stage minimises: model outputs and labels to one scalar and its parts.

Everything between an output and its losses is recomputed in the backward pass
(`jax.checkpoint`): at the paper's patch every array of K classes or N queries is 60 to 220 MB a
sample, and with deep supervision there would be a dozen of them.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from maxquery_jax.losses.query_distribution import query_distribution_sums
from maxquery_jax.losses.segmentation import (
    cross_entropy,
    cross_entropy_sums,
    dice_sums,
    soft_dice_loss,
)
from maxquery_jax.losses.slices import sum_over_depth
from maxquery_jax.ops.assignment import aggregate, assignment
from maxquery_jax.ops.spatial import resize_linear, resize_nearest
from maxquery_jax.typing import Array, MaxQueryOutputs, QueryPrediction, SegmentationOutputs

Metrics = dict[str, Array]


def deep_supervision_weights(num_outputs: int) -> tuple[float, ...]:
    """nnU-Net's weights, fine to coarse: halving, the coarsest 0, normalised to a sum of one."""
    if num_outputs == 1:
        return (1.0,)
    weights = [0.5**i for i in range(num_outputs - 1)]
    return (*(w / sum(weights) for w in weights), 0.0)


def segmentation_objective(
    outputs: SegmentationOutputs,
    label: Array,
    *,
    class_mask: Array | None = None,
    ce_weight: float = 1.0,
    dice_weight: float = 1.0,
    batch_dice: bool = False,
) -> tuple[Array, Metrics]:
    """Cross-entropy plus soft Dice at every resolution (nnU-Net).

    Args:
        outputs: logits at full and coarser resolutions.
        label: [B, D, H, W] integer class, 0 to K - 1; resized to the nearest voxel for the
            coarser outputs.
        class_mask: [B, K] annotated classes, see `losses.segmentation`.
        ce_weight: of the cross-entropy.
        dice_weight: of the Dice loss.
        batch_dice: see `soft_dice_loss`.

    Returns:
        The loss, and float32 scalars: 'loss', 'ce' and 'dice' at full resolution, and 'aux', the
        coarser outputs' weighted share of the loss.
    """

    @jax.checkpoint
    def terms(seg_logits: Array, target: Array) -> tuple[Array, Array]:
        ce = cross_entropy(seg_logits, target, class_mask)
        return ce, soft_dice_loss(seg_logits, target, class_mask, batch_dice=batch_dice)

    weights = deep_supervision_weights(1 + len(outputs.aux_outputs))
    ce, dice = terms(outputs.seg_logits, label)
    loss = weights[0] * (ce_weight * ce + dice_weight * dice)
    aux = jnp.zeros((), jnp.float32)
    for weight, logits in zip(weights[1:], outputs.aux_outputs, strict=True):
        if weight:
            aux_ce, aux_dice = terms(logits, resize_nearest(label, _size(logits, 1)))
            aux += weight * (ce_weight * aux_ce + dice_weight * aux_dice)
    loss += aux
    return loss, {'loss': loss, 'ce': ce, 'dice': dice, 'aux': aux}


def maxquery_objective(
    outputs: MaxQueryOutputs,
    label: Array,
    *,
    query_groups: Sequence[int],
    class_groups: Sequence[int],
    class_mask: Array | None = None,
    parents: Sequence[Sequence[int]] | None = None,
    qd_weight: float = 0.1,
    aux_weight: float = 1.0,
    ce_weight: float = 1.0,
    dice_weight: float = 1.0,
    batch_dice: bool = False,
    qd_reduction: str = 'mean',
    aux_resize: str = 'prediction',
    form: str = 'plain',
) -> tuple[Array, Metrics]:
    """Segmentation loss plus weighted QD loss (MaxQuery Eq. 8), with deep supervision.

    Unspecified in the paper: "deep supervision on the attention map of (k-means) cross attention"
    is read as the same losses on what each block predicts with its assignment, weight one,
    without matching, as the groups already tie queries to classes.

    With `aux_resize='prediction'` a block's Z_l is resized to the label's size, which equals
    resizing its assignment, since Eq. 4 is linear: the softmax over queries comes first, then the
    interpolation, then the softmax over classes.

    Args:
        outputs: of MaxQuery in training.
        label: [B, D, H, W] integer class, 0 to K - 1.
        query_groups: (N1, N2, N3), queries for background, organ and tumour.
        class_groups: group of each of the K classes: 0 background, 1 organ, 2 tumour.
        class_mask: [B, K] annotated classes, see `losses.segmentation` and `knows_group`.
        parents: see `query_distribution_loss`.
        qd_weight: lambda.
        aux_weight: of the blocks' losses.
        ce_weight: of the cross-entropy.
        dice_weight: of the Dice loss.
        batch_dice: see `soft_dice_loss`.
        qd_reduction: see `query_distribution_loss`.
        aux_resize: 'prediction' resizes block predictions to the label's size; 'label' the label
            to theirs, to the nearest voxel, which is cheaper and loses small lesions.
        form: 'plain', 'scan' or 'auto', see `sum_over_depth`.

    Returns:
        The loss, and float32 scalars: 'loss'; 'ce', 'dice' and 'qd' of the final prediction; and
        'aux', the sum of the blocks' losses before `aux_weight`.

    Raises:
        ValueError: if `aux_resize` or `qd_reduction` is unknown or the groups do not add up to N.
    """
    if qd_reduction not in ('mean', 'sum'):
        raise ValueError(f"qd_reduction must be 'mean' or 'sum', got {qd_reduction!r}")
    if aux_resize not in ('prediction', 'label'):
        raise ValueError(f"aux_resize must be 'prediction' or 'label', got {aux_resize!r}")

    terms = functools.partial(
        _prediction_terms,
        query_groups=tuple(query_groups),
        class_groups=tuple(class_groups),
        class_mask=class_mask,
        parents=parents,
        batch_dice=batch_dice,
        qd_reduction=qd_reduction,
        form=form,
    )

    def total(ce: Array, dice: Array, qd: Array) -> Array:
        return ce_weight * ce + dice_weight * dice + qd_weight * qd

    ce, dice, qd = terms(outputs.final, label)
    aux = jnp.zeros((), jnp.float32)
    for prediction in outputs.aux_outputs:
        target = label
        if aux_resize == 'label':
            target = resize_nearest(label, _size(prediction.query_response, 2))
        aux += total(*terms(prediction, target))
    loss = total(ce, dice, qd) + aux_weight * aux
    return loss, {'loss': loss, 'ce': ce, 'dice': dice, 'qd': qd, 'aux': aux}


def _prediction_terms(
    prediction: QueryPrediction,
    label: Array,
    *,
    query_groups: tuple[int, ...],
    class_groups: tuple[int, ...],
    class_mask: Array | None,
    parents: Sequence[Sequence[int]] | None,
    batch_dice: bool,
    qd_reduction: str,
    form: str,
) -> tuple[Array, Array, Array]:
    """Cross-entropy, Dice and QD loss of one prediction."""
    size = _size(label, 1)
    is_coarse = _size(prediction.query_response, 2) != size

    def sums(response: Array, label: Array):
        # [B, K, D, H, W]: a few classes along the last axis would leave most of a vector unused.
        seg_logits = aggregate(prediction.class_logits, assignment(response), class_axis=1)
        if is_coarse:
            seg_logits = resize_linear(seg_logits, size, first=2)
        return (
            cross_entropy_sums(seg_logits, label, class_mask, class_axis=1),
            dice_sums(seg_logits, label, class_mask, class_axis=1),
            query_distribution_sums(
                response,
                label,
                query_groups,
                class_groups,
                class_mask=class_mask,
                parents=parents,
            ),
        )

    ce, dice, qd = sum_over_depth(
        sums, prediction.query_response, label, form='plain' if is_coarse else form
    )
    num_voxels = math.prod(size) if qd_reduction == 'mean' else 1
    return (
        ce.loss(),
        dice.loss(class_mask, batch_dice=batch_dice),
        jnp.mean(qd) / num_voxels,
    )


def _size(x: Array, first: int) -> tuple[int, int, int]:
    """Spatial size of an array whose depth is axis `first`."""
    depth, height, width = x.shape[first : first + 3]
    return depth, height, width
