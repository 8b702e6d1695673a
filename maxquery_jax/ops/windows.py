"""Shifted windows of the Swin Transformer in 3D: cutting, masking, attention within a window."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maxquery_jax.typing import Array

Triple = tuple[int, int, int]

# Similarities held at a time, 64 MB. The paper's 96^3 patch has 121 million in the first stage.
_MAX_SIMILARITIES = 2**24
# What MONAI adds to the similarity of tokens that the roll brought together; not an infinity, so
# that weights give the same outputs here and there.
_APART = -100.0


def fit_window(grid: Triple, window: int, shift: int) -> tuple[Triple, Triple]:
    """Window and shift for a grid; an axis no longer than the window is one window, unshifted.

    Args:
        grid: tokens (z, y, x).
        window: largest side of a window.
        shift: displacement of the windows, 0 for none.

    Returns:
        Sides and shifts (z, y, x).
    """
    sides = tuple(min(n, window) for n in grid)
    shifts = tuple(0 if n <= window else shift for n in grid)
    return (sides[0], sides[1], sides[2]), (shifts[0], shifts[1], shifts[2])


def partition(x: Array, window: Triple) -> Array:
    """Cuts [B, D, H, W, C] into windows [B, windows, tokens, C]; sides must divide."""
    batch, *grid, features = x.shape
    blocks = [size for n, side in zip(grid, window, strict=True) for size in (n // side, side)]
    x = x.reshape(batch, *blocks, features).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(batch, -1, math.prod(window), features)


def unpartition(windows: Array, window: Triple, grid: Triple) -> Array:
    """The inverse of `partition`: [B, windows, tokens, C] to [B, D, H, W, C]."""
    batch, features = windows.shape[0], windows.shape[-1]
    counts = [n // side for n, side in zip(grid, window, strict=True)]
    x = windows.reshape(batch, *counts, *window, features)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *grid, features)


def region_ids(grid: Triple, window: Triple, shift: Triple) -> np.ndarray:
    """Which tokens of a window were neighbours before the roll: those of equal id.

    Args:
        grid: tokens (z, y, x) after padding, divisible by the window.
        window: sides.
        shift: how far the grid was rolled towards its start; 0 along unshifted axes.

    Returns:
        [windows, tokens] int32; a window's mask is where two ids differ. The mask itself is
        `tokens` times larger and is not built outside the softmax that uses it.
    """
    ids = np.zeros((1, *grid, 1), np.int32)
    for axis, (n, side, roll) in enumerate(zip(grid, window, shift, strict=True), start=1):
        place = np.arange(n)
        along = np.where(place >= n - side, 1, 0) + np.where(place >= n - roll, 1, 0)
        shape = [1] * 5
        shape[axis] = n
        ids = 3 * ids + (along if roll else np.zeros(n, int)).reshape(shape).astype(np.int32)
    blocks = [size for n, side in zip(grid, window, strict=True) for size in (n // side, side)]
    return ids.reshape(blocks).transpose(0, 2, 4, 1, 3, 5).reshape(-1, math.prod(window))


def relative_bias(table: Array, side: int, num_tokens: int) -> Array:
    """Bias of each pair of tokens from a table over their offsets.

    As in MONAI: a window that a small grid has shrunk takes the first entries of the full window's
    index, whose offsets are not its own. Weights stay exchangeable, and each such grid learns a
    bias for each of its pairs all the same.

    Args:
        table: [(2 * side - 1)^3, heads], row (z * (2 * side - 1) + y) * (2 * side - 1) + x for the
            offset (z, y, x) counted from 1 - side.
        side: of the full window.
        num_tokens: T, of the window in use.

    Returns:
        [heads, T, T] in the dtype of `table`.
    """
    place = np.indices((side,) * 3).reshape(3, -1)
    row = (place[0] * (2 * side - 1) + place[1]) * (2 * side - 1) + place[2]
    first = jnp.asarray(row[:num_tokens], jnp.int32)
    index = first[:, None] - first[None, :] + int(row[-1])
    return jnp.take(table, index, axis=0).transpose(2, 0, 1)


def window_attention(
    query: Array, key: Array, value: Array, bias: Array, regions: np.ndarray | None = None
) -> Array:
    """Attention within each window, some windows at a time.

    The similarities, `tokens` values for every token and head, are the largest array of a Swin
    Transformer by far. Where those of all windows would take much memory, both passes hold a
    group's at a time, and the backward pass computes them again.

    Args:
        query: [B, windows, T, heads, c].
        key: the same shape.
        value: the same shape.
        bias: [heads, T, T] added to the similarities.
        regions: [windows, T] of `region_ids`; None where the windows are not shifted.

    Returns:
        [B, windows, T, heads, c] in the dtype of `value`.
    """
    batch, windows, tokens, heads, _ = query.shape
    query, key, value = (jnp.swapaxes(x, 2, 3) for x in (query, key, value))  # tokens inside
    ids = None if regions is None else jnp.asarray(regions)
    groups = _num_groups(windows, batch * heads * tokens**2)
    if groups == 1:
        return jnp.swapaxes(_attend(query, key, value, bias, ids), 2, 3)

    def split(x: Array) -> Array:  # groups first
        x = x.reshape(batch, groups, windows // groups, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    if ids is not None:
        ids = ids.reshape(groups, windows // groups, tokens)
    attend = jax.checkpoint(_attend, prevent_cse=False)  # a loop's body is not merged with another
    parts = (split(query), split(key), split(value), ids)
    outputs = lax.map(lambda part: attend(*part[:3], bias, part[3]), parts)
    return jnp.swapaxes(jnp.moveaxis(outputs, 0, 1).reshape(value.shape), 2, 3)


def _num_groups(windows: int, similarities: int) -> int:
    """Least number of equal groups in which the similarities of a group fit the limit.

    Args:
        windows: to be divided.
        similarities: of one window, over the batch and heads.
    """
    for groups in range(1, windows):
        if windows % groups == 0 and windows // groups * similarities <= _MAX_SIMILARITIES:
            return groups
    return windows


def _attend(query: Array, key: Array, value: Array, bias: Array, ids: Array | None) -> Array:
    """`window_attention` on [B, windows, heads, T, c]."""
    query = query * query.shape[-1] ** -0.5
    similarity = jnp.einsum('bwhqc,bwhkc->bwhqk', query, key, preferred_element_type=jnp.float32)
    similarity += bias.astype(jnp.float32)[None, None]
    if ids is not None:
        apart = jnp.where(ids[:, :, None] == ids[:, None, :], 0.0, _APART)
        similarity += apart[None, :, None]
    weights = jax.nn.softmax(similarity, axis=-1).astype(value.dtype)
    return jnp.einsum('bwhqk,bwhkc->bwhqc', weights, value)
