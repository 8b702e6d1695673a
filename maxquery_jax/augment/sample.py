"""One sample's augmentation: draws its parameters, then applies what was drawn.

All parameters of a sample come from one array of uniform numbers, a row per transform. That is one
random-number kernel instead of dozens, which dominated compile time; it also keeps the draws of
one transform independent of the settings of the others.
"""

from __future__ import annotations

import math
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
    image: Array,
    label: Array,
    index: Array,
    key: Array,
    deformed: Array | None = None,
) -> tuple[Array, Array]:
    """Augments one sample of a batch; see `policy.make_augment`.

    Mirroring comes last in nnU-Net. Here it is part of cutting the patch out, where it costs
    nothing; every other transform is the same for a mirrored patch.

    Args:
        policy: what to do.
        patch_size: (D, H, W) of the output.
        intensity: the manifest's `intensity`.
        in_plane: deform within slices only.
        image: [B, *crop, P] HU, the whole batch, of which only what is needed is copied.
        label: [B, *crop].
        index: of the sample in the batch.
        key: of the sample.
        deformed: bool scalar; False forbids to deform, True demands at least one of rotation,
            scaling and elastic deformation, drawn at their rates given that; None leaves it open.

    Returns:
        Image [*patch, P] float32 normalised and label [*patch].
    """
    width = 1 + 5 * image.shape[-1] + 3
    uniforms = jax.random.uniform(jax.random.fold_in(key, _UNIFORMS), (len(_ROWS), width))
    draws = dict(zip(_ROWS, uniforms, strict=True))
    rotates, scales, bends = _draw_deformations(policy, draws, deformed)
    mirrors = jnp.stack(
        [
            (draws['mirror'][axis] < policy.mirror_rate) & (axis in policy.mirror_axes)
            for axis in range(3)
        ]
    )

    def crop():
        pair = spatial.mirrored_crop(image, label, index, patch_size, mirrors, policy.mirror_axes)
        return tone.normalise_intensity(pair[0], intensity), pair[1]

    def warp():
        chosen = rotates, scales, bends, mirrors
        sample = image[index], label[index]
        return _warp(policy, patch_size, intensity, in_plane, *sample, chosen, draws, key)

    if deform_rate(policy) == 0:
        image, label = crop()
    else:
        image, label = jax.lax.cond(rotates | scales | bends, warp, crop)
    return _retone(policy, in_plane, image, draws, key), label


def deform_rate(policy: AugmentPolicy) -> float:
    """Share of the samples that draw a rotation, a scaling or an elastic deformation."""
    return 1 - math.prod(1 - rate for rate in _deformation_rates(policy))


def _deformation_rates(policy):
    return policy.rotation_rate, policy.scaling_rate, policy.elastic_rate


def _draw_deformations(policy, draws, deformed):
    """Which of rotation, scaling and elastic deformation a sample draws."""
    rotation, scaling, elastic = _deformation_rates(policy)
    uniform = [draws[name][0] for name in ('rotation', 'scaling', 'elastic')]
    if deformed is None:
        return uniform[0] < rotation, uniform[1] < scaling, uniform[2] < elastic
    # One after the other, each given that at least one of those that are left must come.
    any_of_three, any_of_two = deform_rate(policy), 1 - (1 - scaling) * (1 - elastic)
    rotates = uniform[0] < rotation / (any_of_three or 1.0)
    scales = uniform[1] < jnp.where(rotates, scaling, scaling / (any_of_two or 1.0))
    bends = uniform[2] < jnp.where(rotates | scales, elastic, 1.0)
    return deformed & rotates, deformed & scales, deformed & bends


def _warp(policy, patch_size, intensity, in_plane, image, label, chosen, draws, key):
    """Crop [*crop] HU to a deformed patch [*patch], normalised."""
    rotates, scales, bends, mirrors = chosen

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

    degrees = policy.rotation_degrees_2d if in_plane else policy.rotation_degrees
    limits = jnp.radians(jnp.array([degrees, 0.0, 0.0] if in_plane else [degrees] * 3))
    angles = jnp.where(rotates, (2 * draws['rotation'][1:4] - 1) * limits, 0.0)
    side, value = draws['scaling'][1], draws['scaling'][2]
    factor = jnp.where(scales, _balanced(side, value, policy.scaling_range), 1.0)
    factors = jnp.stack([jnp.ones(()) if in_plane else factor, factor, factor])
    matrix = spatial.rotation_matrix(angles) * factors[:, None]
    matrix = matrix * jnp.where(mirrors, -1.0, 1.0)[None, :]  # mirrors the patch, not the crop
    displacement = None
    if policy.elastic_rate > 0:
        still = jnp.zeros((3, 1, *patch_size[1:]) if in_plane else (3, *patch_size))
        displacement = jax.lax.cond(bends, displace, lambda: still)
    coordinates = spatial.patch_coordinates(image.shape[:3], patch_size, matrix, displacement)
    bounds = tone.intensity_bounds(intensity)
    if in_plane:  # the same y and x in every slice, and a slice of the crop is one of the patch
        places = [c[0] for c in coordinates[1:]]
        first = spatial.crop_start(image.shape[:3], patch_size)[0]
        slices = (x[first : first + patch_size[0]] for x in (image, label))
        image, label = (jnp.where(mirrors[0], x[::-1], x) for x in slices)
        warped = spatial.sample_planes(image, places, *bounds)
        return tone.normalise_intensity(warped, intensity), spatial.nearest_planes(label, places)
    warped = spatial.sample_linear(image, coordinates, *bounds)
    warped = tone.normalise_intensity(warped, intensity)
    return warped, spatial.sample_nearest(label, coordinates)


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


def _between(uniform, bounds):
    """Maps [0, 1) to a range."""
    return bounds[0] + uniform * (bounds[1] - bounds[0])


def _balanced(side, value, bounds):
    """Half of the draws uniform below 1, half above, so that neither side dominates."""
    low, high = bounds
    if low >= 1 or high <= 1:
        return _between(value, bounds)
    return jnp.where(side < 0.5, _between(value, (low, 1.0)), _between(value, (1.0, high)))
