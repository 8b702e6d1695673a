"""One sample's augmentation: draws its parameters, then applies what was drawn.

All parameters of a sample come from one array of uniform numbers, a row per transform. That is one
random-number kernel instead of dozens, which dominated compile time; it also keeps the draws of
one transform independent of the settings of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from maxquery_jax.augment import intensity as tone
from maxquery_jax.augment import spatial
from maxquery_jax.typing import Array

if TYPE_CHECKING:
    from maxquery_jax.augment.policy import AugmentPolicy

# Rows of the uniform draws; append, do not reorder: they are part of what a seed means.
_ROWS = (
    'rotation', 'scaling', 'elastic', 'noise', 'blur', 'multiplicative', 'additive', 'contrast',
    'low_resolution', 'gamma_inverted', 'gamma', 'mirror',
)  # fmt: skip
_UNIFORMS, _ELASTIC, _NOISE, _ADDITIVE = range(4)  # streams of a sample's key


def augment_sample(
    policy: AugmentPolicy,
    patch_size: Sequence[int],
    intensity: Mapping[str, Any],
    in_plane: bool,
    sample: tuple[Array, Array, Array],
) -> tuple[Array, Array]:
    """Augments one sample; see `policy.make_augment`.

    Args:
        policy: what to do.
        patch_size: (D, H, W) of the output.
        intensity: the manifest's `intensity`.
        in_plane: deform within slices only.
        sample: image [*crop, P] HU, label [*crop] and the sample's key.

    Returns:
        Image [*patch, P] float32 normalised and label [*patch].
    """
    image, label, key = sample
    width = 1 + 5 * image.shape[-1] + 3
    uniforms = jax.random.uniform(jax.random.fold_in(key, _UNIFORMS), (len(_ROWS), width))
    draws = dict(zip(_ROWS, uniforms, strict=True))
    image, label = _deform(policy, patch_size, intensity, in_plane, image, label, draws, key)
    image = _retone(policy, in_plane, image, draws, key)
    return _mirror(policy, image, label, draws['mirror'])


def _deform(policy, patch_size, intensity, in_plane, image, label, draws, key):
    """Crop [*crop] HU to patch [*patch] normalised, deformed where the sample draws it."""
    rotates = draws['rotation'][0] < policy.rotation_rate
    scales = draws['scaling'][0] < policy.scaling_rate
    bends = draws['elastic'][0] < policy.elastic_rate

    def crop():
        cut = spatial.center_crop(image, patch_size).astype(jnp.float32)
        return cut, spatial.center_crop(label, patch_size)

    def displace():
        strength, smoothness = draws['elastic'][1], draws['elastic'][2]
        alpha = policy.elastic_alpha_2d if in_plane else policy.elastic_alpha
        field = spatial.elastic_displacement(
            jax.random.fold_in(key, _ELASTIC),
            patch_size[1:] if in_plane else patch_size,
            _between(strength, alpha),
            _between(smoothness, policy.elastic_sigma),
            policy.elastic_sigma,
        )
        return jnp.pad(field[:, None], ((1, 0), (0, 0), (0, 0), (0, 0))) if in_plane else field

    def warp():
        degrees = policy.rotation_degrees_2d if in_plane else policy.rotation_degrees
        limits = jnp.radians(jnp.array([degrees, 0.0, 0.0] if in_plane else [degrees] * 3))
        angles = jnp.where(rotates, (2 * draws['rotation'][1:4] - 1) * limits, 0.0)
        side, value = draws['scaling'][1], draws['scaling'][2]
        factor = jnp.where(scales, _balanced(side, value, policy.scaling_range), 1.0)
        factors = jnp.stack([jnp.ones(()) if in_plane else factor, factor, factor])
        matrix = spatial.rotation_matrix(angles) * factors[:, None]
        displacement = None
        if policy.elastic_rate > 0:
            still = jnp.zeros((3, 1, *patch_size[1:]) if in_plane else (3, *patch_size))
            displacement = jax.lax.cond(bends, displace, lambda: still)
        coordinates = spatial.patch_coordinates(image.shape[:3], patch_size, matrix, displacement)
        bounds = tone.intensity_bounds(intensity)
        warped = spatial.sample_linear(image, coordinates, *bounds, in_plane=in_plane)
        return warped, spatial.sample_nearest(label, coordinates)

    if max(policy.rotation_rate, policy.scaling_rate, policy.elastic_rate) == 0:
        image, label = crop()
    else:
        image, label = jax.lax.cond(rotates | scales | bends, warp, crop)
    return tone.normalise_intensity(image, intensity), label


def _retone(policy, in_plane, image, draws, key):
    """Intensity transforms in nnU-Net's order."""
    channels = image.shape[-1]

    def split(name):
        """Per-channel columns of a row: the choice of the channel, then four parameters."""
        return draws[name][1 : 1 + 5 * channels].reshape(5, channels)

    def noise(x):
        level = _between(draws['noise'][1], policy.noise_std)
        return tone.add_noise(x, jax.random.fold_in(key, _NOISE), level)

    def blur(x):
        sigma = _between(split('blur')[1:4], policy.blur_sigma)
        return tone.blur(x, sigma, policy.blur_sigma[1])

    def multiply(x):
        _, side, value, *_ = split('multiplicative')
        return tone.scale_brightness(x, _balanced(side, value, policy.multiplicative_range))

    def add(x):
        offset = jax.random.normal(jax.random.fold_in(key, _ADDITIVE), (channels,))
        return tone.shift_brightness(x, policy.additive_std * offset)

    def contrast(x):
        _, side, value, *_ = split('contrast')
        return tone.scale_contrast(x, _balanced(side, value, policy.contrast_range))

    def coarsen(x):
        zoom = _between(split('low_resolution')[1], policy.low_resolution_zoom)
        return tone.lower_resolution(x, zoom, (1, 2) if in_plane else (0, 1, 2))

    def gamma(x):
        _, side, value, *_ = split('gamma')
        return tone.apply_gamma(x, _balanced(side, value, policy.gamma_range))

    def gamma_inverted(x):
        _, side, value, *_ = split('gamma_inverted')
        return tone.apply_gamma(x, _balanced(side, value, policy.gamma_range), invert=True)

    steps = (
        ('noise', policy.noise_rate, 1.0, noise),
        ('blur', policy.blur_rate, policy.channel_rate, blur),
        ('multiplicative', policy.multiplicative_rate, 1.0, multiply),
        ('additive', policy.additive_rate, policy.channel_rate, add),
        ('contrast', policy.contrast_rate, 1.0, contrast),
        ('low_resolution', policy.low_resolution_rate, policy.channel_rate, coarsen),
        ('gamma_inverted', policy.gamma_inverted_rate, 1.0, gamma_inverted),
        ('gamma', policy.gamma_rate, 1.0, gamma),
    )
    for name, rate, channel_rate, transform in steps:
        if rate == 0:
            continue
        chosen = (split(name)[0] < channel_rate) & (draws[name][0] < rate)

        def apply(x, transform=transform, chosen=chosen):
            return jnp.where(chosen.reshape(1, 1, 1, -1), transform(x), x)

        image = jax.lax.cond(chosen.any(), apply, lambda x: x, image)
    return image


def _mirror(policy, image, label, draws):
    for axis in policy.mirror_axes if policy.mirror_rate else ():
        image, label = jax.lax.cond(
            draws[axis] < policy.mirror_rate,
            lambda pair, axis=axis: (jnp.flip(pair[0], axis), jnp.flip(pair[1], axis)),
            lambda pair: pair,
            (image, label),
        )
    return image, label


def _between(uniform, bounds):
    """Maps [0, 1) to a range."""
    return bounds[0] + uniform * (bounds[1] - bounds[0])


def _balanced(side, value, bounds):
    """Half of the draws uniform below 1, half above, so that neither side dominates."""
    low, high = bounds
    if low >= 1 or high <= 1:
        return _between(value, bounds)
    return jnp.where(side < 0.5, _between(value, (low, 1.0)), _between(value, (1.0, high)))
