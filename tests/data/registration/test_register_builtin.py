"""The built-in methods find known motions, and the same input gives the same numbers."""

import numpy as np
import pytest
import register_helper as helper

from maxquery_jax.data.orientation import apply, find_orientation
from maxquery_jax.data.registration import builtin, quality
from maxquery_jax.data.registration.grids import (
    Grid,
    Pyramid,
    displacement_of,
    field_transform,
    resample,
    to_image,
)

pytest.importorskip('SimpleITK')


def pyramid(array, affine=helper.AFFINE):
    place = find_orientation(affine, array.shape)
    return Pyramid(apply(array, place), Grid.of(place))


def errors_mm(transform, truth, grid):
    """Distance between found and true place of the body's points; `truth` maps points."""
    points = grid.points()
    body = (((points - helper.ORGANS[0][0]) / helper.ORGANS[0][1]) ** 2).sum(-1) < 1
    found = points + displacement_of(transform, grid)
    return np.linalg.norm(found - truth(points), axis=-1)[body]


FIXED = pyramid(helper.scan(seed=1))


@pytest.mark.parametrize(
    ('codes', 'shape', 'spacing', 'degrees', 'shift'),
    [
        ('RAS', helper.SHAPE, helper.SPACING, (0, 0, 0), (11, -7, 13)),
        ('LPS', (60, 52, 40), (3, 3.5, 5), (4, -3, 8), (-6, 5, 9)),
    ],
)
def test_rigid_motion_is_found(codes, shape, spacing, degrees, shift):
    """In spite of contrast agent, other noise, spacing, storage order and angle of the scan."""
    rotation, shift = helper.turn(degrees), np.array(shift)
    affine = helper.centred(shape, spacing, codes, helper.turn((3, 2, -4)))
    moving = helper.scan(
        shape, affine, lambda p: (p - shift) @ rotation, blood=80, seed=2
    )  # the patient's x is shown at y = R x + shift
    transform, start = builtin.register_rigid(FIXED, pyramid(moving, affine))
    errors = errors_mm(transform, lambda x: x @ rotation.T + shift, FIXED.grid)
    assert start == 'headers'
    assert errors.max() < min(helper.SPACING)  # one voxel


def test_scans_without_a_common_frame_start_from_centres():
    far = np.array((900.0, -400, 1200))
    affine = helper.centred(helper.SHAPE, helper.SPACING, 'LPS', shift=far + (6, -4, 8))
    moving = helper.scan(affine=affine, to_patient=lambda p: p - far, blood=40, seed=2)
    transform, start = builtin.register_rigid(FIXED, pyramid(moving, affine))
    assert start == 'centres'
    assert errors_mm(transform, lambda x: x + far, FIXED.grid).max() < min(helper.SPACING)


def bend(points):
    """A smooth invertible motion of up to 9 mm."""
    wave = np.sin(points[..., ::-1] / 35) * np.array((5.0, 6.0, 7.0))
    return points + wave * np.exp(-((points / 90) ** 2).sum(-1, keepdims=True))


def unbend(points):
    guess = points
    for _ in range(60):
        guess = guess - (bend(guess) - points)
    return guess


def test_smooth_motion_is_found_twice_the_same():
    moving = pyramid(helper.scan(to_patient=bend, blood=80, seed=2))
    rigid, _ = builtin.register_rigid(FIXED, moving)
    results = [builtin.register_deformable(FIXED, moving, rigid) for _ in range(2)]
    field, grid = results[0]
    np.testing.assert_array_equal(field, results[1][0])
    warp = field_transform(field, grid)
    before = errors_mm(rigid, unbend, FIXED.grid)
    after = errors_mm(warp, unbend, FIXED.grid)
    assert after.mean() < 0.6 * before.mean()
    assert after.mean() < min(helper.SPACING)  # inside an even organ nothing shows it
    low, low_grid = FIXED.level(4.0)
    image = to_image(*moving.level(4.0))
    scores = [
        quality.correlation(
            np.clip(low, -250, 350).ravel(),
            np.clip(resample(image, low_grid, t, fill=-1024), -250, 350).ravel(),
        )
        for t in (None, rigid, warp)
    ]
    assert max(scores[:2]) < scores[2]
    found = quality.measure_folding(lambda part: displacement_of(warp, part), low_grid)
    assert found.share == 0 and found.minimum > 0.3


def test_rigid_is_the_same_twice():
    moving = pyramid(helper.scan(to_patient=lambda p: p + 4.0, seed=3))
    first, second, third = (builtin.register_rigid(FIXED, moving)[0] for _ in range(3))
    assert first.GetParameters() == second.GetParameters() == third.GetParameters()


def test_parts_the_phase_does_not_show_are_not_pulled():
    """A phase of the upper half only: the lower half keeps the rigid transform."""
    shape = (48, 48, 12)
    affine = helper.centred(shape, helper.SPACING, shift=(0, 0, 48))
    moving = pyramid(helper.scan(shape, affine, seed=2), affine)
    rigid = builtin.simpleitk().Euler3DTransform()
    field, grid = builtin.register_deformable(FIXED, moving, rigid)
    far = grid.points()[..., 2] < -30
    assert np.linalg.norm(field, axis=-1)[far].max() < 1.0


def test_nothing_to_align_is_reported():
    empty = pyramid(np.full(helper.SHAPE, -1000, np.int16))
    with pytest.raises(builtin.RegistrationFailedError):
        builtin.register_rigid(empty, empty)
