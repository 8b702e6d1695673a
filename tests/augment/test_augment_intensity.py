"""Intensity transforms against NumPy and scipy written from their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from maxquery_jax.augment import intensity as tone

SHAPE = (10, 12, 14, 2)


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return (rng.normal(size=SHAPE) * [1.0, 3.0] + [0.5, -2.0]).astype(np.float32)


def test_normalise_clips_shifts_and_scales_per_channel():
    image = np.array([[-2000, -2000], [0, 10], [250, 90], [3000, 3000]], np.int16)
    values = {'lower': [-100, 0], 'upper': [200, 80], 'shift': [50, 40], 'scale': [100, 10]}
    got = tone.normalise_intensity(jnp.asarray(image), values)
    want = [[-1.5, -4.0], [-0.5, -3.0], [1.5, 4.0], [1.5, 4.0]]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-6)
    with pytest.raises(ValueError, match='3 channels, intensity has 2'):
        tone.normalise_intensity(jnp.zeros((4, 3)), values)


def test_noise_has_the_given_standard_deviation(image):
    noise = tone.add_noise(jnp.asarray(image), jax.random.key(0), jnp.float32(0.07)) - image
    assert abs(float(noise.std()) - 0.07) < 0.003
    assert abs(float(noise.mean())) < 0.005


@pytest.mark.parametrize('shape', [SHAPE, (2, 12, 14, 2)])
def test_blur_equals_scipy(shape):
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    sigma = np.array([[0.5, 1.0], [0.7, 0.9], [1.0, 0.6]], np.float32)
    got = tone.blur(jnp.asarray(image), jnp.asarray(sigma), 1.0)
    for p in range(2):
        want = scipy.ndimage.gaussian_filter(
            image[..., p].astype(np.float64), sigma[:, p], mode='mirror', radius=4
        )
        np.testing.assert_allclose(got[..., p], want, atol=1e-5)


def test_brightness_is_per_channel(image):
    np.testing.assert_allclose(
        tone.scale_brightness(jnp.asarray(image), jnp.array([1.2, 0.8])), image * [1.2, 0.8], 1e-6
    )
    np.testing.assert_allclose(
        tone.shift_brightness(jnp.asarray(image), jnp.array([0.1, -0.3])), image + [0.1, -0.3], 1e-5
    )


@pytest.mark.parametrize('factor', [0.75, 1.25])
def test_contrast_about_the_mean_within_the_old_range(image, factor):
    got = np.asarray(tone.scale_contrast(jnp.asarray(image), jnp.array([factor, 1.0])))
    channel = image[..., 0].astype(np.float64)
    want = np.clip(
        (channel - channel.mean()) * factor + channel.mean(), channel.min(), channel.max()
    )
    np.testing.assert_allclose(got[..., 0], want, atol=1e-5)
    np.testing.assert_allclose(got[..., 1], image[..., 1], atol=1e-5)
    if factor > 1:
        np.testing.assert_allclose(
            [got[..., 0].min(), got[..., 0].max()],
            [image[..., 0].min(), image[..., 0].max()],
            rtol=1e-5,
        )


def gamma_curve(channel, gamma):
    low, extent = channel.min(), np.ptp(channel)
    curved = ((channel - low) / extent) ** gamma * extent + low
    return (curved - curved.mean()) / curved.std() * channel.std() + channel.mean()


@pytest.mark.parametrize('invert', [False, True])
def test_gamma_equals_its_definition_and_keeps_statistics(image, invert):
    gamma = [0.7, 1.5]
    got = np.asarray(tone.apply_gamma(jnp.asarray(image), jnp.array(gamma), invert=invert))
    for p in range(2):
        channel = image[..., p].astype(np.float64)
        want = -gamma_curve(-channel, gamma[p]) if invert else gamma_curve(channel, gamma[p])
        np.testing.assert_allclose(got[..., p], want, atol=2e-4)
        np.testing.assert_allclose(got[..., p].mean(), channel.mean(), atol=1e-4)
        np.testing.assert_allclose(got[..., p].std(), channel.std(), rtol=1e-4)
    assert np.abs(got - image).max() > 0.1


def test_gamma_of_a_constant_image_is_finite():
    image = jnp.full((4, 4, 4, 1), -2.0)
    np.testing.assert_allclose(tone.apply_gamma(image, jnp.array([0.7])), image, atol=1e-5)


def nearest_then_linear(line, coarse):
    """One axis of the low-resolution simulation, voxel by voxel."""
    size = len(line)
    small = [line[int((j + 0.5) * size / coarse)] for j in range(coarse)]
    out = []
    for i in range(size):
        center = min(max((i + 0.5) * coarse / size - 0.5, 0), coarse - 1)
        j = int(center)
        k = min(j + 1, coarse - 1)
        out.append(small[j] * (1 - (center - j)) + small[k] * (center - j))
    return out


@pytest.mark.parametrize('axes', [(0, 1, 2), (1, 2)])
def test_lower_resolution_equals_loops(image, axes):
    zoom = (0.5, 0.83)
    got = tone.lower_resolution(jnp.asarray(image), jnp.array(zoom), axes)
    for p in range(2):
        want = image[..., p].astype(np.float64)
        for axis in axes:
            coarse = round(want.shape[axis] * zoom[p])
            want = np.apply_along_axis(nearest_then_linear, axis, want, coarse)
        np.testing.assert_allclose(got[..., p], want, atol=1e-5)


def test_lower_resolution_at_full_zoom_is_the_identity(image):
    np.testing.assert_allclose(tone.lower_resolution(jnp.asarray(image), jnp.ones(2)), image, 1e-6)
