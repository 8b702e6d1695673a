"""Instance norm with its activation, few passes over memory in both directions."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from maxquery_jax.typing import Array

EPSILON = 1e-5


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def instance_norm(x: Array, scale: Array, bias: Array, negative_slope: float = 1.0) -> Array:
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

    Returns:
        [B, ..., C] in the dtype of `x`.
    """
    return _forward(x, scale, bias, negative_slope)[0]


def _per_channel(vector: Array, rank: int) -> Array:
    """[C] with leading axes of size one."""
    return vector.reshape((1,) * (rank - 1) + vector.shape)


def _forward(x: Array, scale: Array, bias: Array, negative_slope: float) -> tuple[Array, tuple]:
    over = tuple(range(1, x.ndim - 1))
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, over, keepdims=True)
    variance = jnp.mean(jnp.square(wide - mean), over, keepdims=True)
    inverse_std = lax.rsqrt(variance + EPSILON)
    y = (wide - mean) * (inverse_std * _per_channel(scale, x.ndim)) + _per_channel(bias, x.ndim)
    y = jnp.where(y >= 0, y, negative_slope * y)
    return y.astype(x.dtype), (x, mean, inverse_std, scale, bias)


def _backward(negative_slope: float, residuals: tuple, g: Array) -> tuple[Array, Array, Array]:
    x, mean, inverse_std, scale, bias = residuals
    over = tuple(range(1, x.ndim - 1))
    gain = _per_channel(scale, x.ndim)
    normal = (x.astype(jnp.float32) - mean) * inverse_std
    y = normal * gain + _per_channel(bias, x.ndim)
    g = g.astype(jnp.float32)
    g = jnp.where(y >= 0, g, negative_slope * g)
    g_sum = jnp.sum(g, over, keepdims=True)
    g_normal_sum = jnp.sum(g * normal, over, keepdims=True)
    voxels = x.size // (x.shape[0] * x.shape[-1])
    dx = (g - g_sum / voxels - normal * (g_normal_sum / voxels)) * (inverse_std * gain)
    per_sample = (x.shape[0], x.shape[-1])
    dscale = jnp.sum(g_normal_sum.reshape(per_sample), 0)
    return dx.astype(x.dtype), dscale, jnp.sum(g_sum.reshape(per_sample), 0)


instance_norm.defvjp(_forward, _backward)
