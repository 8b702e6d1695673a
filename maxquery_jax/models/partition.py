"""Where an activation lives: sharding constraints by logical axis names.

Parameters carry their names from the start; activations get them here, after every convolution,
dense layer and norm. Without them the compiler may follow a sharded kernel and split the channels
of an activation instead of gathering the kernel, or replicate a volume.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

from maxquery_jax import axes
from maxquery_jax.ops.conv_planes import DepthSplit
from maxquery_jax.typing import Array

ANY = PartitionSpec.UNCONSTRAINED
"""In place of a name: the compiler decides."""


def constrain(x: Array, names: Sequence[Any]) -> Array:
    """Constrains an activation to the mesh axes of its logical names.

    A dimension that its mesh axes do not divide stays whole on every device: the few slices of the
    coarsest features are not worth an uneven split.

    Args:
        x: one dimension per name.
        names: of `axes`, or `ANY`.

    Returns:
        `x`; untouched where no mesh or no rules are active, or the mesh is one device.
    """
    if not _is_sharded():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    spec = nn.logical_to_mesh_axes(tuple(None if name is ANY else name for name in names))
    assert spec is not None
    kept = []
    for size, name, mesh_axes in zip(x.shape, names, spec, strict=True):
        if name is ANY:
            kept.append(ANY)
            continue
        several = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
        divides = size % math.prod(mesh.shape[name] for name in several) == 0
        kept.append(mesh_axes if divides else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*kept))


def gather(parameter: Any) -> Array:
    """A parameter, whole on every device for the operation that reads it.

    Said of each parameter where it is used, so that one layer's are gathered at a time. Left to the
    compiler, it may split an activation's channels after the kernel's instead; with batch and depth
    split as well, jax 0.10.2 on CPUs then computed wrong gradients of patch merging (by 3 %).
    """
    return (
        jax.lax.with_sharding_constraint(parameter, PartitionSpec()) if _is_sharded() else parameter
    )


def depth_split() -> DepthSplit | None:
    """How volumes lie on the active mesh, if their depth is split."""
    if not _is_sharded():
        return None
    spec = nn.logical_to_mesh_axes((axes.BATCH, axes.DEPTH))
    assert spec is not None
    rows, depth = spec
    count = jax.sharding.get_abstract_mesh().shape[depth] if depth else 1
    return DepthSplit(tuple(rows), depth, count) if count > 1 else None


def _is_sharded() -> bool:
    """Whether the code being traced is for several devices whose rules are known."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and bool(nn.get_logical_axis_rules())


def constrain_features(x: Array) -> Array:
    """Constrains features [B, ..., C]: rows over the batch, channels whole, depth of a volume.

    Between batch and channels of other than five axes (queries, voxels of all kinds of windows)
    the compiler decides.
    """
    if x.ndim == 5:
        return constrain(x, axes.VOLUME)
    return constrain(x, (axes.BATCH, *[ANY] * (x.ndim - 2), axes.CHANNEL)) if x.ndim > 2 else x
