"""Instance norm with its activation, few passes over memory in both directions."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from maxquery_jax.typing import Array

EPSILON = 1e-5


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def instance_norm(
    x: Array, scale: Array, bias: Array, negative_slope: float = 1.0, fold: int = 1
) -> Array:
    """Normalises each channel of each sample over its voxels; scale, bias, leaky ReLU.

    Statistics are float32 and the variance is computed in a second pass: the mean of squares minus
    the squared mean loses all digits where the mean is large. The gradient is written out so that
    only `x` and per-channel numbers are kept for it; differentiating the forward code keeps a
    second array of the size of `x`.

    Args:
        x: [B, ..., C], any number of axes between B and C.
        scale: [C] float32.
        bias: [C] float32.
        negative_slope: slope of the activation below zero; 1 for none.
        fold: neighbours folded into the channels of `x`, [B, ..., fold * C], see `ops.fold`.

    Returns:
        [B, ..., C] in the dtype of `x`.
    """
    return _forward(x, scale, bias, negative_slope, fold)[0]


def _per_channel(vector: Array, rank: int, fold: int) -> Array:
    """[C] with leading axes of size one, once per folded neighbour."""
    vector = jnp.tile(vector, fold)
    return vector.reshape((1,) * (rank - 1) + vector.shape)


def _mean(x: Array, fold: int) -> Array:
    """Mean of each channel of each sample, [B, 1, ..., fold * C]: equal for all neighbours."""
    mean = jnp.mean(x, tuple(range(1, x.ndim - 1)), keepdims=True)
    if fold == 1:
        return mean
    apart = mean.reshape(*mean.shape[:-1], fold, -1)
    return jnp.broadcast_to(apart.mean(-2, keepdims=True), apart.shape).reshape(mean.shape)


def _forward(
    x: Array, scale: Array, bias: Array, negative_slope: float, fold: int
) -> tuple[Array, tuple]:
    wide = x.astype(jnp.float32)
    mean = _mean(wide, fold)
    inverse_std = lax.rsqrt(_mean(jnp.square(wide - mean), fold) + EPSILON)
    gain, offset = _per_channel(scale, x.ndim, fold), _per_channel(bias, x.ndim, fold)
    y = (wide - mean) * (inverse_std * gain) + offset
    y = jnp.where(y >= 0, y, negative_slope * y)
    return y.astype(x.dtype), (x, mean, inverse_std, scale, bias)


def _backward(
    negative_slope: float, fold: int, residuals: tuple, g: Array
) -> tuple[Array, Array, Array]:
    x, mean, inverse_std, scale, bias = residuals
    gain = _per_channel(scale, x.ndim, fold)
    normal = (x.astype(jnp.float32) - mean) * inverse_std
    y = normal * gain + _per_channel(bias, x.ndim, fold)
    g = g.astype(jnp.float32)
    g = jnp.where(y >= 0, g, negative_slope * g)
    g_mean, g_normal_mean = _mean(g, fold), _mean(g * normal, fold)
    dx = (g - g_mean - normal * g_normal_mean) * (inverse_std * gain)
    voxels = x.size // (x.shape[0] * scale.size)

    def over_samples(mean: Array) -> Array:
        return voxels * jnp.sum(mean.reshape(x.shape[0], -1)[:, : scale.size], 0)

    return dx.astype(x.dtype), over_samples(g_normal_mean), over_samples(g_mean)


instance_norm.defvjp(_forward, _backward)
