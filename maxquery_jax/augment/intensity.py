"""Intensity transforms of one sample [D, H, W, P] float32, with their parameters as arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxquery_jax.typing import Array

_EPSILON = 1e-7
_ALONG_AXIS = ('oz,zyx->oyx', 'oy,zyx->zox', 'ox,zyx->zyo')  # matrix times volume


def intensity_bounds(intensity: Mapping[str, Any]) -> tuple[Array, Array]:
    """`lower` and `upper` of a manifest's `intensity` as [P] float32, HU."""
    return _vector(intensity, 'lower'), _vector(intensity, 'upper')


def normalise_intensity(image: Array, intensity: Mapping[str, Any]) -> Array:
    """(clip(image, lower, upper) - shift) / scale, per channel (nnU-Net's CT scheme).

    Args:
        image: [..., P] HU, any real dtype.
        intensity: `lower`, `upper`, `shift`, `scale`, each P numbers, as in a store's manifest.

    Returns:
        [..., P] float32.

    Raises:
        ValueError: if the image has another number of channels.
    """
    lower, upper, shift, scale = (
        _vector(intensity, name) for name in ('lower', 'upper', 'shift', 'scale')
    )
    if image.shape[-1] != lower.shape[0]:
        raise ValueError(f'image has {image.shape[-1]} channels, intensity has {lower.shape[0]}')
    shape = (1,) * (image.ndim - 1) + (-1,)
    lower, upper, shift, scale = (v.reshape(shape) for v in (lower, upper, shift, scale))
    return (jnp.clip(image.astype(jnp.float32), lower, upper) - shift) / scale


def add_noise(image: Array, key: Array, std: Array) -> Array:
    """Adds Gaussian noise of a scalar standard deviation."""
    return image + std * jax.random.normal(key, image.shape)


def blur(image: Array, sigma: Array, max_sigma: float) -> Array:
    """Separable Gaussian filter, mirrored about the border voxels.

    Args:
        image: [D, H, W, P].
        sigma: [3, P] standard deviation in voxels per axis and channel.
        max_sigma: static bound of sigma; the filter reaches 4 * max_sigma.
    """
    radius = int(np.ceil(4 * max_sigma))
    taps = jnp.arange(-radius, radius + 1, dtype=jnp.float32)[:, None]
    for axis in range(3):
        weight = jnp.exp(-0.5 * jnp.square(taps / sigma[axis][None, :]))  # [taps, P]
        weight = weight / weight.sum(axis=0, keepdims=True)
        padding = [(radius, radius) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(image, padding, mode='reflect')
        size = image.shape[axis]
        image = jnp.zeros_like(image)
        for i in range(2 * radius + 1):
            shifted = jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            image = image + weight[i].reshape(1, 1, 1, -1) * shifted
    return image


def scale_brightness(image: Array, factor: Array) -> Array:
    """Multiplies each channel by its factor [P]."""
    return image * _per_channel(factor)


def shift_brightness(image: Array, offset: Array) -> Array:
    """Adds its offset [P] to each channel."""
    return image + _per_channel(offset)


def scale_contrast(image: Array, factor: Array) -> Array:
    """Scales each channel about its mean by its factor [P], within the channel's old range."""
    mean = image.mean(axis=(0, 1, 2), keepdims=True)
    # Bounds relative to the mean: XLA's CPU backend is 20 times slower with the plain ones.
    low = image.min(axis=(0, 1, 2), keepdims=True) - mean
    high = image.max(axis=(0, 1, 2), keepdims=True) - mean
    return jnp.clip((image - mean) * _per_channel(factor), low, high) + mean


def apply_gamma(image: Array, gamma: Array, *, invert: bool = False) -> Array:
    """Gamma curve over each channel's range; mean and standard deviation are kept.

    Args:
        image: [D, H, W, P].
        gamma: [P] exponents.
        invert: applies the curve to the negative image.
    """
    if invert:
        return -apply_gamma(-image, gamma)
    axes = (0, 1, 2)
    low = image.min(axis=axes, keepdims=True)
    extent = image.max(axis=axes, keepdims=True) - low
    mean = image.mean(axis=axes, keepdims=True)
    std = image.std(axis=axes, keepdims=True)
    # exp(g log x) vectorises on CPU where a power does not; log 0 = -inf gives 0 as it should.
    unit = (image - low) / (extent + _EPSILON)
    curved = jnp.exp(_per_channel(gamma) * jnp.log(unit)) * extent + low
    curved_mean = curved.mean(axis=axes, keepdims=True)
    curved_std = curved.std(axis=axes, keepdims=True)
    return (curved - curved_mean) * (std / (curved_std + _EPSILON)) + mean


def lower_resolution(image: Array, zoom: Array, axes: Sequence[int] = (0, 1, 2)) -> Array:
    """Simulates a coarser scan: nearest sampling to round(size * zoom), then linear back.

    Both steps use half-pixel centres (torch's `nearest-exact` and `linear`). They are linear and
    separable, hence one matrix per axis, whose shape does not depend on the traced zoom.

    Args:
        image: [D, H, W, P].
        zoom: [P] fraction of the resolution that is left, 0 to 1.
        axes: axes to coarsen.
    """
    channels = []
    for p in range(image.shape[-1]):
        volume = image[..., p]
        for axis in axes:
            matrix = _coarsening_matrix(volume.shape[axis], zoom[p])
            volume = jnp.einsum(_ALONG_AXIS[axis], matrix, volume, precision='highest')
        channels.append(volume)
    return jnp.stack(channels, axis=-1)


def _coarsening_matrix(size: int, zoom: Array) -> Array:
    """[size, size] matrix of nearest sampling to round(size * zoom) and linear back."""
    coarse = jnp.maximum(jnp.round(size * zoom), 1.0)
    center = (jnp.arange(size) + 0.5) * (coarse / size) - 0.5
    center = jnp.clip(center, 0.0, coarse - 1)
    low = jnp.floor(center)
    fraction = (center - low)[:, None]
    taps = []
    for neighbour in (low, jnp.minimum(low + 1, coarse - 1)):
        # The small offset keeps exact hits, such as zoom 1, from rounding down.
        source = jnp.floor((neighbour + 0.5) * (size / coarse) + 1e-4)
        taps.append(jax.nn.one_hot(source.astype(jnp.int32), size))
    return taps[0] * (1 - fraction) + taps[1] * fraction


def _per_channel(values: Array) -> Array:
    return values.reshape(1, 1, 1, -1)


def _vector(intensity: Mapping[str, Any], name: str) -> Array:
    return jnp.asarray(intensity[name], jnp.float32)
