"""Volumes of few channels with neighbours along W folded into the channels, for TPUs.

A TPU stores the last axis in rows of 128 lanes and multiplies 128 by 128: features of 32 channels
fill a quarter of every row that is read and a sixteenth of the multiplier. Folded by 4,
[B, D, H, W, 32] is [B, D, H, W / 4, 128], the same bytes in the same order. A convolution of it is
one with a larger kernel, half of it zeros: four times the multiplications, on a multiplier that is
full. Values are those of the unfolded convolution up to the order of its sums.
"""

import jax.numpy as jnp
import numpy as np

from maxquery_jax.ops.conv import resolve_form
from maxquery_jax.ops.conv_planes import DepthSplit, conv3d_planes
from maxquery_jax.ops.conv_scan import Triple
from maxquery_jax.typing import Array

LANES = 128


def fold_factor(channels: int, width: int) -> int:
    """Largest power of two that divides `width` and keeps the folded channels within the lanes."""
    factor = 1
    while 2 * factor * channels <= LANES and width % (2 * factor) == 0:
        factor *= 2
    return factor


def fold_of(form: str, channels: int, width: int) -> int:
    """Fold of a volume under a form of `ops.conv.FORMS`: 1 but for 'planes', alone or by 'auto'."""
    return fold_factor(channels, width) if resolve_form(form) == 'planes' else 1


def refold(x: Array, before: int, after: int) -> Array:
    """[B, D, H, W / before, before * C] to [B, D, H, W / after, after * C]; 1 is not folded."""
    if before == after:
        return x
    *rows, blocks, width = x.shape
    return x.reshape(*rows, blocks * before // after, width * after // before)


def conv3d_folded(
    x: Array, kernel: Array, stride: Triple, fold: int, split: DepthSplit | None = None
) -> Array:
    """`ops.conv.conv3d` of folded volumes.

    Args:
        x: [B, D, H, W / (sw * fold), sw * fold * Cin].
        kernel: [kd, kh, kw, Cin, Cout], odd sides, as for the unfolded convolution.
        stride: (sd, sh, sw).
        fold: of the result.
        split: how the depth is split over devices.

    Returns:
        [B, ceil(D/sd), ceil(H/sh), W / (sw * fold), fold * Cout].
    """
    kd, kh, kw, cin, cout = kernel.shape
    fold_in = stride[2] * fold
    taps, first = _tap_table(kw, stride[2], fold)
    blocks = taps.shape[0]
    wide = jnp.einsum('brtq,dhtio->dhbriqo', jnp.asarray(taps, kernel.dtype), kernel)
    wide = wide.reshape(kd, kh, blocks, fold_in * cin, fold * cout)
    across = (-first, blocks - 1 + first)
    return conv3d_planes(x, wide, (stride[0], stride[1], 1), across, split)


def _tap_table(taps: int, stride: int, fold: int) -> tuple[np.ndarray, int]:
    """Which tap joins which positions: [blocks, fold_in, taps, fold] of 0 and 1, and first block.

    Output q of a block reads inputs stride * q + t - taps // 2, counted from the start of the input
    block of the same number; the table holds every neighbouring block that is read.
    """
    fold_in = stride * fold
    reach = [
        (*divmod(stride * q + t - taps // 2, fold_in), t, q)
        for q in range(fold)
        for t in range(taps)
    ]
    first = min(block for block, *_ in reach)
    last = max(block for block, *_ in reach)
    table = np.zeros((last - first + 1, fold_in, taps, fold), np.float32)
    for block, position, t, q in reach:
        table[block - first, position, t, q] = 1
    return table, first


def conv_transpose3d_folded(x: Array, kernel: Array, stride: Triple, fold: int) -> Array:
    """`ops.conv.conv_transpose3d` of folded volumes.

    Args:
        x: [B, D, H, W / fold, fold * Cin].
        kernel: [sd, sh, sw, Cin, Cout], not flipped.
        stride: (sd, sh, sw), the kernel's extent.
        fold: of `x`; the result has sw * fold.

    Returns:
        [B, sd * D, sh * H, W / fold, sw * fold * Cout].
    """
    sd, sh, sw, cin, cout = kernel.shape
    own = jnp.eye(fold, dtype=kernel.dtype)
    wide = jnp.einsum('rs,dhtio->ridhsto', own, kernel)
    wide = wide.reshape(fold * cin, sd * sh * sw * fold * cout)
    b, d, h, w, _ = x.shape
    y = jnp.dot(x, wide).reshape(b, d, h, w, sd, sh, sw * fold * cout)
    return y.transpose(0, 1, 4, 2, 5, 3, 6).reshape(b, d * sd, h * sh, w, sw * fold * cout)
