"""The query-distribution loss (MaxQuery Sec. 3.2)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from maxquery_jax.ops.assignment import merge_labels, merge_responses
from maxquery_jax.ops.spatial import resize_linear
from maxquery_jax.typing import Array


def query_distribution_loss(
    query_response: Array,
    label: Array,
    query_groups: Sequence[int],
    class_groups: Sequence[int],
    *,
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
        reduction: 'mean' over voxels, or their 'sum' (Eq. 7), then the mean over samples.

    Returns:
        Float32 scalar.

    Raises:
        ValueError: if `reduction` is unknown or the groups do not add up to N.
    """
    if reduction not in ('mean', 'sum'):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    merged = merge_responses(query_response, query_groups)  # [B, 3, d, h, w]
    if merged.shape[2:] != label.shape[1:]:
        depth, height, width = label.shape[1:]
        merged = resize_linear(jnp.moveaxis(merged, 1, -1), (depth, height, width))
        merged = jnp.moveaxis(merged, -1, 1)
    truth = merge_labels(label, class_groups)
    loss = -jnp.sum(truth * jax.nn.log_softmax(merged, axis=1), axis=1)  # [B, D, H, W]
    return jnp.mean(loss if reduction == 'mean' else jnp.sum(loss, axis=(1, 2, 3)))
