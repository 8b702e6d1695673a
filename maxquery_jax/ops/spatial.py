"""Resizing of volumes without gathers, which are slow on CPU and hostile to sharding."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from maxquery_jax.ops.platform import traced_for
from maxquery_jax.typing import Array

Triple = tuple[int, int, int]


def resize_linear(x: Array, shape: Triple, *, first: int = 1) -> Array:
    """Trilinear resize with half-pixel centres and no antialiasing, an axis at a time.

    Equals `torch.nn.functional.interpolate(mode='trilinear', align_corners=False)`. Axes that grow
    by a whole factor blend shifted copies; other axes are multiplied by their weight matrix, and on
    TPUs the last two always: there shuffling neighbours costs more than a matrix product.

    Args:
        x: [B, d, h, w, C] floating point, or with other axes in place of B and C.
        shape: (D, H, W) of the result.
        first: axis of the depth.

    Returns:
        [B, D, H, W, C] in the dtype of `x`.
    """
    prefers_matmul = traced_for()[0] == 'tpu'
    for axis, size in enumerate(shape, start=first):
        old = x.shape[axis]
        if size == old:
            continue
        if size % old == 0 and not (prefers_matmul and axis > first):
            x = _upsample_axis(x, axis, size // old)
        else:
            weights = jnp.asarray(_linear_weights(old, size), x.dtype)
            exact = lax.Precision.HIGHEST
            x = jnp.moveaxis(jnp.tensordot(weights, x, (1, axis), precision=exact), 0, axis)
    return x


def _upsample_axis(x: Array, axis: int, factor: int) -> Array:
    """Linear upsampling of one axis by a whole factor.

    Output `factor * j + r` lies `offset` (within half a voxel) from the centre of voxel j, so each
    phase r blends x with one neighbour; the edges repeat.
    """
    size = x.shape[axis]
    before, after = _neighbour(x, axis, 1), _neighbour(x, axis, -1)
    phases = []
    for r in range(factor):
        offset = (r + 0.5) / factor - 0.5
        neighbour = before if offset < 0 else after
        phases.append(x * (1 - abs(offset)) + neighbour * abs(offset))
    shape = (*x.shape[:axis], size * factor, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis + 1).reshape(shape)


def _neighbour(x: Array, axis: int, shift: int) -> Array:
    """x moved by one along an axis (+1 or -1), the edge repeated.

    A padding by one and minus one is a halo exchange where the axis is sharded; a concatenation of
    slices would be sent around to all.
    """
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (shift, -shift, 0)
    moved = lax.pad(x, jnp.zeros((), x.dtype), padding)
    edge = 0 if shift > 0 else x.shape[axis] - 1
    place = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return jnp.where(place == edge, x, moved)


def _linear_weights(old: int, new: int) -> np.ndarray:
    """[new, old] weights of a linear resize; positions beyond the first or last centre clamp."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, old - 1)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new), low), 1 - (position - low))
    np.add.at(weights, (np.arange(new), high), position - low)
    return weights


def resize_nearest(label: Array, shape: Triple) -> Array:
    """Nearest-neighbour resize with half-pixel centres; ties take the higher index.

    Equals `torch.nn.functional.interpolate(mode='nearest-exact')`, nnU-Net's resize of targets.

    Args:
        label: [B, d, h, w], any dtype.
        shape: (D, H, W) of the result.

    Returns:
        [B, D, H, W] in the dtype of `label`.
    """
    for axis, size in enumerate(shape, start=1):
        old = label.shape[axis]
        if size == old:
            continue
        if size % old == 0:
            label = jnp.repeat(label, size // old, axis)
        elif old % size == 0:
            step = old // size
            index = (slice(None),) * axis + (slice(step // 2, None, step),)
            label = label[index]
        else:
            source = np.floor((np.arange(size) + 0.5) * old / size).astype(int)
            label = jnp.take(label, jnp.asarray(source), axis=axis)
    return label


def downsample_label(label: Array, stride: Triple) -> Array:
    """Target of a decoder stage: nearest resize by its cumulative stride (nnU-Net v2).

    Args:
        label: [B, D, H, W] integer.
        stride: (sd, sh, sw).

    Returns:
        [B, round(D/sd), round(H/sh), round(W/sw)] integer.
    """
    shape = tuple(max(1, round(n / s)) for n, s in zip(label.shape[1:], stride, strict=True))
    return resize_nearest(label, (shape[0], shape[1], shape[2]))
