"""Initialisers that draw on the host with NumPy.

Compiling a normal generator for every kernel shape would cost more than the rest of a start (15 s
for a small U-Net), and values drawn on the host are the same on every backend and mesh. Keys only
seed the generator, so they stay functions of (seed, parameter path) as Flax derives them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from maxquery_jax.typing import Array

Initializer = Callable[..., Array]

# Standard deviation of a standard normal truncated at two standard deviations.
_TRUNCATED_STD = 0.87962566103423978


def normal(std: float) -> Initializer:
    """Normal distribution with standard deviation `std`."""

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return _draw(key, shape, dtype, std, truncated=False)

    return init


def truncated_normal(std: float) -> Initializer:
    """Normal distribution cut at two standard deviations and rescaled to `std`."""

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        return _draw(key, shape, dtype, std / _TRUNCATED_STD, truncated=True)

    return init


def variance_scaling(scale: float, fan_axis: int = -2, truncated: bool = True) -> Initializer:
    """Normal distribution of variance scale / fan; fan is an axis' size times the kernel's taps.

    Args:
        scale: numerator of the variance.
        fan_axis: channel axis counted in the fan beside the spatial extent: -2 is the input of
            [kd, kh, kw, Cin, Cout] and [Cin, Cout].
        truncated: whether to cut at two standard deviations.
    """

    def init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        std = math.sqrt(scale / (shape[fan_axis] * math.prod(shape[:-2])))
        return (truncated_normal if truncated else normal)(std)(key, shape, dtype)

    return init


def lecun_normal() -> Initializer:
    """Truncated normal of variance 1 / fan-in."""
    return variance_scaling(1.0)


def _draw(key: Array, shape: tuple[int, ...], dtype, std: float, *, truncated: bool) -> Array:
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key

    def host(words) -> np.ndarray:
        rng = np.random.default_rng(np.asarray(words).ravel().tolist())
        values = rng.standard_normal(shape, np.float32)
        while truncated and (outside := np.abs(values) > 2.0).any():
            values[outside] = rng.standard_normal(int(outside.sum()), np.float32)
        return values * np.float32(std)

    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.pure_callback(host, result, words, vmap_method='sequential').astype(dtype)
