"""The query-distribution loss (MaxQuery Sec. 3.2)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maxquery_jax.ops.assignment import merge_labels, merge_responses
from maxquery_jax.ops.spatial import resize_linear
from maxquery_jax.typing import Array


def query_distribution_loss(
    query_response: Array,
    label: Array,
    query_groups: Sequence[int],
    class_groups: Sequence[int],
    *,
    class_mask: Array | None = None,
    parents: Sequence[Sequence[int]] | None = None,
    reduction: str = 'mean',
) -> Array:
    """Negative log-likelihood of the merged labels under the merged assignments (MaxQuery Eq. 7).

    log M~ is taken from the responses, as a log-sum-exp per group less one over all queries:
    M~ itself underflows once the responses of two groups differ by a hundred.

    Unspecified in the paper: Eq. 7 is a sum over voxels. Beside a cross-entropy that is a mean,
    its weight of 0.1 makes sense for a mean only, which is the default.

    Args:
        query_response: [B, N, d, h, w] R. Where it is coarser than the label, the three merged
            log-responses are resized trilinearly and normalised afterwards: three channels
            instead of N, still a distribution at every voxel, and no logarithm of zero.
        label: [B, D, H, W] integer class, 0 to K - 1.
        query_groups: (N1, N2, N3), queries for background, organ and tumour.
        class_groups: group of each of the K classes: 0 background, 1 organ, 2 tumour.
        class_mask: [B, K] bool, True for annotated classes; all by default. A voxel adds nothing
            where its group is not known, see `knows_group`.
        parents: for each class the organ classes it lies in; a tumour that has none may lie in any
            organ, as all do by default.
        reduction: 'mean' over voxels, or their 'sum' (Eq. 7), then the mean over samples. Voxels
            that add nothing stay in the denominator, so that every voxel that counts weighs the
            same, whatever else is in its sample.

    Returns:
        Float32 scalar.

    Raises:
        ValueError: if `reduction` is unknown or the groups do not add up to N.
    """
    if reduction not in ('mean', 'sum'):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    total = query_distribution_sums(
        query_response,
        label,
        query_groups,
        class_groups,
        class_mask=class_mask,
        parents=parents,
    )
    return jnp.mean(total) / (label[0].size if reduction == 'mean' else 1)


def query_distribution_sums(
    query_response: Array,
    label: Array,
    query_groups: Sequence[int],
    class_groups: Sequence[int],
    *,
    class_mask: Array | None = None,
    parents: Sequence[Sequence[int]] | None = None,
) -> Array:
    """[B] the negative log-likelihood summed over voxels, which adds up over parts of a volume.

    Arguments are those of `query_distribution_loss`.
    """
    merged = merge_responses(query_response, query_groups)  # [B, 3, d, h, w]
    if merged.shape[2:] != label.shape[1:]:
        depth, height, width = label.shape[1:]
        merged = resize_linear(merged, (depth, height, width), first=2)
    truth = merge_labels(label, class_groups)
    loss = -jnp.sum(truth * jax.nn.log_softmax(merged, axis=1), axis=1)  # [B, D, H, W]
    if class_mask is not None:
        known = knows_group(class_mask, class_groups, parents)
        counted = jax.vmap(lambda row, ids: row[ids])(known, label.astype(jnp.int32))
        loss = jnp.where(counted, loss, 0.0)
    return jnp.sum(loss, axis=(1, 2, 3))


def knows_group(
    class_mask: Array,
    class_groups: Sequence[int],
    parents: Sequence[Sequence[int]] | None = None,
) -> Array:
    """Whether a voxel labelled c in sample b is known to belong to the group of c.

    It is not if c itself is not annotated, or if a class of another group that is not annotated
    may hide there: any class under background, and under an organ the tumours that lie in it or in
    no stated organ. A tumour hides nothing. So a sample that does not annotate all foreground
    classes says nothing about its background voxels.

    Args:
        class_mask: [B, K] bool, True for annotated classes.
        class_groups: group of each of the K classes: 0 background, 1 organ, 2 tumour.
        parents: see `query_distribution_loss`.

    Returns:
        [B, K] bool.
    """
    groups = np.asarray(class_groups)
    hosts = parents or [()] * len(groups)
    possible = np.array([[not found or c in found for found in hosts] for c in range(len(groups))])
    in_background = (groups[:, None] == 0) & (groups[None, :] > 0)
    in_organ = (groups[:, None] == 1) & (groups[None, :] == 2) & possible
    hides = jnp.asarray(in_background | in_organ)  # [K label, K hidden]
    mask = class_mask.astype(bool)
    return mask & ~jnp.any(hides[None] & ~mask[:, None, :], axis=-1)
