"""A 3D convolution as a sum of 2D ones over the planes of a volume, for TPUs.

With one patch a device, XLA for TPU has no batch to fill its rows with, and cuts the volume into
overlapping strips to make one. Given the depth as the batch of 2D convolutions it need not, and the
gradient of a 3D kernel, its worst operation, becomes three of 2D kernels. Measured as the cycles
that its compiler expects for 3x3x3, 128 to 128 channels, 28 x 48 x 80, bfloat16, on v5e: forward
5.6 ms as one, 2.9 ms by planes; both gradients 43.6 ms and 4.9 ms.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from maxquery_jax.ops.conv_scan import Triple
from maxquery_jax.typing import Array


class DepthSplit(NamedTuple):
    """How volumes lie on the devices of the active mesh.

    Attributes:
        rows: mesh axes of the batch.
        depth: mesh axis of the depth.
        count: its size.
    """

    rows: tuple[str, ...]
    depth: str
    count: int


def conv3d_planes(
    x: Array,
    kernel: Array,
    stride: Triple,
    padding_w: tuple[int, int] | None = None,
    split: DepthSplit | None = None,
) -> Array:
    """`ops.conv.conv3d`, one 2D convolution per depth tap; their sum is float32.

    Batch and depth are one axis inside, which the compiler could not shard by both: it would gather
    the volume, all rows of the batch with it. Where the depth is split, each device exchanges halos
    with its neighbours itself; if the devices do not divide it, each gathers the depth of its rows.

    Args:
        x: [B, D, H, W, Cin].
        kernel: [kd, kh, kw, Cin, Cout], odd kd and kh.
        stride: (sd, sh, sw).
        padding_w: zeros before and after along W; (kw // 2, kw // 2) by default.
        split: of `x`, if its depth may be split over devices.

    Returns:
        [B, ceil(D/sd), ceil(H/sh), W', Cout] in the dtype of `x`.
    """
    reach = kernel.shape[0] // 2
    local = functools.partial(_sum_of_planes, stride=stride, padding_w=padding_w)
    ends = [(0, 0), (reach, reach), (0, 0), (0, 0), (0, 0)]
    if split is None:
        return local(jnp.pad(x, ends), kernel)
    if x.shape[1] % (split.count * stride[0]):
        volumes, pad = PartitionSpec(split.rows), lambda x: jnp.pad(x, ends)
    else:
        volumes = PartitionSpec(split.rows, split.depth)
        pad = functools.partial(_with_halo, reach=reach, split=split)
    return jax.shard_map(
        lambda x, kernel: local(pad(x), kernel),
        in_specs=(volumes, PartitionSpec()),
        out_specs=volumes,
    )(x, kernel)


def _with_halo(x: Array, reach: int, split: DepthSplit) -> Array:
    """A device's slices between its neighbours' nearest ones; zeros beyond the volume."""
    if not reach:
        return x
    upwards = [(i, i + 1) for i in range(split.count - 1)]
    before = lax.ppermute(x[:, -reach:], split.depth, upwards)
    after = lax.ppermute(x[:, :reach], split.depth, [(b, a) for a, b in upwards])
    return jnp.concatenate([before, x, after], axis=1)


def _sum_of_planes(
    padded: Array, kernel: Array, *, stride: Triple, padding_w: tuple[int, int] | None
) -> Array:
    """The convolution of volumes that are padded along the depth already."""
    kd, kh, kw = kernel.shape[:3]
    batch, depth, *plane = padded.shape
    out_depth = -(-(depth - kd + 1) // stride[0])
    last = stride[0] * (out_depth - 1) + 1
    total = jnp.zeros((), jnp.float32)
    for tap in range(kd):
        planes = padded[:, tap : tap + last : stride[0]]
        total += lax.conv_general_dilated(
            planes.reshape(batch * out_depth, *plane),
            kernel[tap],
            window_strides=stride[1:],
            padding=[(kh // 2, kh // 2), padding_w or (kw // 2, kw // 2)],
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            preferred_element_type=jnp.float32,
        )
    return total.reshape(batch, out_depth, *total.shape[1:]).astype(padded.dtype)
