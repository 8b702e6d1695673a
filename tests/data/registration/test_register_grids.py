"""Grids: blocks, exchange with SimpleITK, resampling by the headers alone."""

import itertools

import numpy as np
import pytest
import register_helper as helper
from scipy import ndimage

from maxquery_jax.data.orientation import find_orientation
from maxquery_jax.data.registration import grids
from maxquery_jax.errors import UserError

pytest.importorskip('SimpleITK')
OBLIQUE = helper.centred((9, 8, 7), (2.0, 3.0, 4.0), 'LPS', helper.turn((12, -7, 20)))


def canonical(shape, affine):
    return grids.Grid.of(find_orientation(affine, shape))


def test_missing_package_names_the_extra(monkeypatch):
    grids.simpleitk.cache_clear()
    monkeypatch.setattr(
        grids.importlib, 'import_module', lambda _: (_ for _ in ()).throw(ImportError)
    )
    with pytest.raises(UserError, match="the extra 'registration'"):
        grids.simpleitk()
    grids.simpleitk.cache_clear()


def test_block_mean_is_the_mean_of_each_block_at_its_centre():
    array = np.random.default_rng(0).integers(-1000, 1000, (7, 9, 8)).astype(np.int16)
    factors = (2, 3, 1)
    coarse = grids.block_mean(array, factors)
    grid = canonical((8, 9, 7), OBLIQUE)
    low = grid.coarser(factors)
    assert coarse.shape == low.shape == (3, 3, 8)
    for z, y, x in itertools.product(range(3), range(3), range(8)):
        block = array[2 * z : 2 * z + 2, 3 * y : 3 * y + 3, x : x + 1]
        assert coarse[z, y, x] == pytest.approx(block.astype(float).mean(), abs=1e-3)
        points = grid.points()[2 * z : 2 * z + 2, 3 * y : 3 * y + 3, x : x + 1].reshape(-1, 3)
        np.testing.assert_allclose(low.points()[z, y, x], points.mean(0), atol=1e-9)


def test_factors_reach_the_spacing_but_leave_eight_voxels():
    grid = canonical((100, 64, 12), helper.centred((100, 64, 12), (0.8, 1.0, 5.0)))
    assert grid.factors(4.0) == (1, 4, 5)
    assert grid.factors(16.0) == (1, 8, 12)


def test_points_are_the_same_in_simpleitk_with_x_and_y_reversed():
    grid = canonical((9, 8, 7), OBLIQUE)
    image = grids.to_image(np.zeros(grid.shape, np.int16), grid)
    for index in ((0, 0, 0), (6, 7, 8), (3, 1, 5)):
        point = np.array(image.TransformIndexToPhysicalPoint(index[::-1]))
        np.testing.assert_allclose(point, grid.points()[index] * [-1, -1, 1], atol=1e-9)


@pytest.mark.parametrize(
    ('codes', 'degrees', 'shear'),
    [
        ('RAS', (0, 0, 0), 0),
        ('LPS', (0, 0, 0), 0),
        ('PIR', (10, 5, -15), 0),
        ('RAS', (0, 0, 0), 0.2),
    ],
)
def test_resampling_by_the_headers_equals_scipy(codes, degrees, shear):
    """Other spacing, storage order, angles and a gantry tilt."""
    affine = helper.centred((20, 18, 16), (3.0, 4.0, 5.0), codes, helper.turn(degrees), (4, -3, 2))
    affine[1, 2] += shear * 5
    moving = np.random.default_rng(1).normal(0, 100, (20, 18, 16)).astype(np.float32)
    place = find_orientation(affine, moving.shape)
    array = moving.transpose(place.axes)[tuple(np.s_[:: -1 if f else 1] for f in place.flips)]
    target = canonical((14, 16, 12), helper.centred((14, 16, 12), (2.0, 3.0, 3.5), 'LAS'))
    ours = grids.resample(grids.to_image(array, grids.Grid.of(place)), target, None, fill=-1024)
    index = (
        np.linalg.inv(affine)
        @ np.append(target.points(), np.ones((*target.shape, 1)), -1)[..., None]
    )
    index = np.moveaxis(index[..., :3, 0], -1, 0)
    inside = np.all((index > 0) & (index < np.array(moving.shape)[:, None, None, None] - 1), 0)
    expected = ndimage.map_coordinates(moving, index, order=1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(ours[inside], expected[inside], atol=0.05)
    far = np.any((index < -0.6) | (index > np.array(moving.shape)[:, None, None, None] - 0.4), 0)
    assert (ours[far] == -1024).all()


def test_the_same_grid_comes_back_exactly():
    array = np.random.default_rng(2).integers(-1024, 3000, (7, 8, 9)).astype(np.int16)
    grid = canonical((9, 8, 7), OBLIQUE)
    out = grids.resample(grids.to_image(array, grid), grid, None, fill=-1024)
    assert out.dtype == np.int16
    np.testing.assert_array_equal(out, array)


def test_a_field_moves_points_by_its_vectors():
    grid = canonical((9, 8, 7), OBLIQUE)
    field = np.random.default_rng(3).normal(0, 2, (*grid.shape, 3)).astype(np.float32)
    transform = grids.field_transform(field, grid)
    np.testing.assert_allclose(grids.displacement_of(transform, grid), field, atol=1e-5)
