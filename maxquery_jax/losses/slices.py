"""Sums over the voxels of a volume, slice by slice on a CPU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from maxquery_jax.ops.conv import resolve_form
from maxquery_jax.typing import Array, PyTree


def sum_over_depth(
    sums: Callable[[Array, Array], PyTree],
    query_response: Array,
    label: Array,
    *,
    form: str = 'auto',
) -> PyTree:
    """Evaluates additive sums of a prediction, whole or one depth slice after the other.

    Between the response and a loss lie some thirty passes over arrays of N queries or K classes a
    voxel. Accelerators fuse them; XLA for CPU writes most of them to memory, where a slice of them
    stays in the cache: measured 7 times faster at 2 x 24 x 48 x 48 voxels and 32 queries.

    Args:
        sums: response [B, N, d, H, W] and label [B, d, H, W] of some slices to arrays that add up
            over slices; recomputed in the backward pass.
        query_response: [B, N, D, H, W].
        label: [B, D, H, W].
        form: 'plain', 'scan' or 'auto' for scan on one CPU device, as in `ops.conv`.

    Returns:
        The sums of the whole volume.
    """
    sums = jax.checkpoint(sums)
    if resolve_form(form) != 'scan':
        return sums(query_response, label)
    # Depth first, as a scan slices its leading axis; the response's gradient is then stacked, and
    # not added up in an array of its whole size for every slice.
    slices = (
        jnp.moveaxis(query_response, 2, 0)[:, :, :, None],
        jnp.moveaxis(label, 1, 0)[:, :, None],
    )
    first = jax.tree.map(lambda x: x[0], slices)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums, *first))

    def add(total: PyTree, part: tuple[Array, Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, sums(*part)), None

    return jax.lax.scan(add, zeros, slices)[0]
