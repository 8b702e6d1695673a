"""Resampling of image and label against scipy, rotations, and the elastic field's statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from maxquery_jax.augment import spatial

LOW, HIGH = jnp.array([-1000.0]), jnp.array([1000.0])


@functools.partial(jax.jit, static_argnames=('patch_size',))
def warp(image, label, matrix, patch_size):
    coordinates = spatial.patch_coordinates(label.shape, patch_size, matrix)
    return (
        spatial.sample_linear(image, coordinates, LOW, HIGH),
        spatial.sample_nearest(label, coordinates),
    )


def blobs(shape, seed=0):
    """A label of smooth regions 0 to 3 and an image that shows it."""
    field = np.random.default_rng(seed).normal(size=shape)
    field = scipy.ndimage.gaussian_filter(field, 2)
    label = np.digitize(field / field.std(), [-0.7, 0, 0.7]).astype(np.uint8)
    return (label.astype(np.int16) * 100)[..., None], label


def test_center_crop_and_its_start():
    volume = jnp.arange(5 * 6 * 7).reshape(5, 6, 7)
    np.testing.assert_array_equal(
        spatial.center_crop(volume, (3, 2, 7)), np.asarray(volume)[1:4, 2:4, :]
    )
    with pytest.raises(ValueError, match='does not contain'):
        spatial.crop_start((4, 4, 4), (5, 4, 4))


def test_identity_is_the_center_crop():
    image, label = blobs((12, 14, 16))
    got_image, got_label = warp(image, label, jnp.eye(3), (8, 8, 10))
    np.testing.assert_allclose(got_image, image[2:10, 3:11, 3:13], atol=1e-3)
    np.testing.assert_array_equal(got_label, label[2:10, 3:11, 3:13])


@pytest.mark.parametrize(('axis', 'plane'), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_quarter_turns_equal_rot90(axis, plane):
    image, label = blobs((16, 16, 16))
    angles = jnp.zeros(3).at[axis].set(jnp.pi / 2)
    got_image, got_label = warp(image, label, spatial.rotation_matrix(angles), (16, 16, 16))
    turns = [np.rot90(label, k, plane) for k in (1, 3)]
    inner = (slice(1, 15),) * 3  # rounding decides the outermost voxels
    agree = [np.array_equal(got_label[inner], turn[inner]) for turn in turns]
    assert agree in ([True, False], [False, True])
    want = np.rot90(image, (1, 3)[agree.index(True)], plane)
    np.testing.assert_allclose(got_image[inner], want[inner], atol=0.1)


def test_rotation_matrices_are_rotations():
    matrix = np.asarray(spatial.rotation_matrix(jnp.array([0.3, -0.5, 1.1])), np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-6)
    about_z = np.asarray(spatial.rotation_matrix(jnp.array([0.3, 0.0, 0.0])))
    np.testing.assert_allclose(about_z[0], [1, 0, 0], atol=1e-7)


@pytest.mark.parametrize('channels', [1, 2])
def test_warp_equals_scipy_with_a_constant_border(channels):
    rng = np.random.default_rng(0)
    image = rng.integers(-1500, 1500, (14, 15, 16, channels)).astype(np.int16)
    label = rng.integers(0, 4, (14, 15, 16)).astype(np.uint8)
    patch = (12, 13, 10)
    matrix = np.asarray(spatial.rotation_matrix(jnp.array([0.3, 0.2, -0.1]))) * 1.3
    displacement = rng.normal(size=(3, *patch)).astype(np.float32)
    lower, upper = [-1000.0, -500.0][:channels], [900.0, 700.0][:channels]

    coordinates = spatial.patch_coordinates((14, 15, 16), patch, jnp.asarray(matrix), displacement)
    got = spatial.sample_linear(jnp.asarray(image), coordinates, jnp.array(lower), jnp.array(upper))

    # The same grid in float64: offsets from the patch's centre, displaced, turned, re-centred.
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in patch), indexing='ij')).astype(float)
    center = (np.array(patch) - 1).reshape(3, 1, 1, 1) / 2
    start = np.array([1, 1, 3]).reshape(3, 1, 1, 1)
    grid = np.tensordot(matrix.astype(float), grid - center + displacement, 1) + center + start
    for axis in range(3):
        np.testing.assert_allclose(coordinates[axis], grid[axis], atol=1e-4)
    for p in range(channels):
        want = scipy.ndimage.map_coordinates(
            np.clip(image[..., p], lower[p], upper[p]).astype(float),
            grid, order=1, mode='grid-constant', cval=lower[p],
        )  # fmt: skip
        np.testing.assert_allclose(got[..., p], want, atol=0.5)  # of a range of 2000
    want = scipy.ndimage.map_coordinates(label, grid, order=0, mode='grid-constant', cval=0)
    outside = np.any((grid < -0.5) | (grid > np.array([13, 14, 15]).reshape(3, 1, 1, 1) + 0.5), 0)
    assert 0.05 < outside.mean() < 0.9
    got_label = np.asarray(spatial.sample_nearest(jnp.asarray(label), coordinates))
    assert got_label.dtype == np.uint8
    assert (got_label != want).mean() < 1e-3  # ties of rounding


@pytest.mark.parametrize('channels', [1, 2])
def test_planes_equal_the_volume_they_are_slices_of(channels):
    image, label = blobs((6, 20, 20))
    image = jnp.concatenate([image, image[::-1]], -1)[..., :channels]
    bounds = [jnp.repeat(b, channels) for b in (LOW, HIGH)]
    matrix = spatial.rotation_matrix(jnp.array([0.4, 0.0, 0.0]))
    coordinates = spatial.patch_coordinates(label.shape, (6, 12, 14), matrix)
    places = [c[0] for c in coordinates[1:]]
    volume = spatial.sample_linear(image, coordinates, *bounds)
    np.testing.assert_allclose(spatial.sample_planes(image, places, *bounds), volume, atol=1e-3)
    np.testing.assert_array_equal(
        spatial.nearest_planes(jnp.asarray(label), places),
        spatial.sample_nearest(jnp.asarray(label), coordinates),
    )


def test_deformed_label_is_integral_and_matches_the_image():
    image, label = blobs((30, 30, 30), seed=3)
    matrix = spatial.rotation_matrix(jnp.array([0.3, 0.2, 0.1])) * 0.8
    got_image, got_label = warp(image, label, matrix, (20, 20, 20))
    # Away from region borders the linear image is 100 x the label exactly.
    flat = np.isclose(np.asarray(got_image)[..., 0] % 100, 0, atol=0.05)
    assert flat.mean() > 0.2
    got_image, got_label = np.asarray(got_image)[..., 0][flat], np.asarray(got_label)[flat]
    assert (np.round(got_image / 100) == got_label).mean() > 0.99


def test_scale_above_one_makes_objects_smaller():
    label = np.zeros((24, 24, 24), np.uint8)
    label[6:18, 6:18, 6:18] = 1
    image = label.astype(np.int16)[..., None]
    counts = [int(warp(image, label, jnp.eye(3) * s, (16, 16, 16))[1].sum()) for s in (1.0, 1.5)]
    assert counts == [12**3, 8**3]


@pytest.mark.parametrize(
    ('shape', 'alpha', 'sigma'), [((48, 40, 44), 600.0, 4.0), ((128, 120), 150.0, 5.0)]
)
def test_elastic_field_has_the_statistics_of_filtered_noise(shape, alpha, sigma):
    dims = len(shape)
    draw = jax.jit(
        lambda key: spatial.elastic_displacement(
            key, shape, jnp.float32(alpha), jnp.float32(sigma), (4.0, 6.0)
        )
    )
    fields = np.concatenate([draw(jax.random.key(i)) for i in range(4)])
    assert fields.shape == (4 * dims, *shape)

    rng = np.random.default_rng(0)
    margin = int(4 * sigma)
    filtered = []
    for _ in range(4 * dims):
        noise = rng.uniform(-1, 1, [n + 2 * margin for n in shape])
        smooth = scipy.ndimage.gaussian_filter(noise, sigma) * alpha
        filtered.append(smooth[(slice(margin, -margin),) * dims])
    filtered = np.stack(filtered)

    np.testing.assert_allclose(fields.std(), filtered.std(), rtol=0.12)
    assert 1 < fields.std() < 9  # voxels
    lag = int(sigma)
    for axis in range(1, dims + 1):
        got, want = (
            np.mean(np.take(f, range(lag, f.shape[axis]), axis) *
                    np.take(f, range(f.shape[axis] - lag), axis)) / f.var()
            for f in (fields, filtered)
        )  # fmt: skip
        assert abs(got - want) < 0.12
        assert abs(got - np.exp(-(lag**2) / (4 * sigma**2))) < 0.12
    edge = fields[:, 0].std() / fields.std()
    assert 0.7 < edge < 1.3  # not damped at the border
