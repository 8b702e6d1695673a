"""NSD and HD95 against a slow loop over corners, the library's own distances, and by hand."""

import itertools
import tracemalloc
import warnings

import numpy as np
import pytest
import surface_distance
from surface_distance import lookup_tables

from maxquery_jax.metrics import surface


def _measure(prediction, truth, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=2.0):
    """NSD and HD95 of two binary masks."""
    masks = np.asarray(prediction, np.uint8), np.asarray(truth, np.uint8)
    result = surface.measure_surfaces(*masks, (1,), spacing_mm, tolerance_mm)
    return result.nsd[0], result.hd95_mm[0]


def _slow_surface(mask, spacing_mm):
    """Positions in mm and areas of mixed 2 x 2 x 2 neighbourhoods, by a loop over corners."""
    areas = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    padded = np.pad(mask, 1)
    positions, weights = [], []
    for corner in itertools.product(*(range(size + 1) for size in mask.shape)):
        z, y, x = corner
        bits = [
            int(padded[z + dz, y + dy, x + dx])
            for dz, dy, dx in itertools.product((0, 1), repeat=3)
        ]
        if 0 < sum(bits) < 8:
            code = int(''.join(map(str, bits)), 2)  # the first neighbour is the highest bit
            positions.append(np.array(corner) * spacing_mm)
            weights.append(areas[code])
    return np.array(positions), np.array(weights)


def _slow(prediction, truth, spacing_mm, tolerance_mm):
    """NSD and HD95 from all pairs of corners."""
    surfaces = [_slow_surface(mask, spacing_mm) for mask in (prediction, truth)]
    within, total, hd95 = 0.0, 0.0, 0.0
    for (points, areas), (others, _) in (surfaces, surfaces[::-1]):
        distances = np.sqrt(((points[:, None] - others[None]) ** 2).sum(-1)).min(axis=1)
        within += areas[distances <= tolerance_mm + 1e-9].sum()
        total += areas.sum()
        for limit in np.unique(distances):  # the smallest that holds 95% of the area
            if areas[distances <= limit].sum() >= 0.95 * areas.sum() - 1e-9:
                hd95 = max(hd95, limit)
                break
    return within / total, hd95


def _library(prediction, truth, spacing_mm, tolerance_mm):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # it uses scipy's old namespaces
        distances = surface_distance.compute_surface_distances(truth, prediction, spacing_mm)
    return (
        surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm),
        surface_distance.compute_robust_hausdorff(distances, 95),
    )


def _random_pair(seed, shape=(7, 8, 6), rate=0.3):
    rng = np.random.default_rng(seed)
    return rng.random((2, *shape)) < rate


SPACINGS = [(1.0, 1.0, 1.0), (2.5, 0.7, 0.7), (0.6, 3.0, 1.1)]


@pytest.mark.parametrize('spacing_mm', SPACINGS)
@pytest.mark.parametrize('seed', [0, 1])
def test_equals_a_loop_over_corners(seed, spacing_mm):
    prediction, truth = _random_pair(seed, rate=0.02)
    for tolerance_mm in (0.0, 1.3, 4.0):
        np.testing.assert_allclose(
            _measure(prediction, truth, spacing_mm, tolerance_mm),
            _slow(prediction, truth, spacing_mm, tolerance_mm),
            rtol=1e-9,
        )


@pytest.mark.parametrize('spacing_mm', SPACINGS)
@pytest.mark.parametrize('rate', [0.003, 0.3, 0.97])
def test_equals_the_library(rate, spacing_mm):
    """Random masks fill the volume, so they touch all of its borders."""
    for seed in range(4):
        prediction, truth = _random_pair(seed, (11, 9, 13), rate)
        assert prediction.any() and truth.any()
        np.testing.assert_allclose(
            _measure(prediction, truth, spacing_mm),
            _library(prediction, truth, spacing_mm, 2.0),
            rtol=1e-12,
        )


def test_equals_the_library_on_lumps_of_several_slabs(monkeypatch):
    monkeypatch.setattr(surface, '_BLOCK_CORNERS', 700)
    z, y, x = np.ogrid[:30, :32, :28]
    truth = (z - 12) ** 2 * 4 + (y - 15) ** 2 + (x - 13) ** 2 < 90
    prediction = (z - 14) ** 2 * 3 + (y - 14) ** 2 + (x - 16) ** 2 < 110
    np.testing.assert_allclose(
        _measure(prediction, truth, (2.0, 0.8, 0.9)),
        _library(prediction, truth, (2.0, 0.8, 0.9), 2.0),
        rtol=1e-12,
    )


def test_one_voxel_three_steps_from_another_by_hand():
    truth, prediction = np.zeros((2, 4, 4, 9), bool)
    truth[1, 1, 2] = True
    prediction[1, 1, 5] = True
    # Eight corners each, all of one area. The truth's at x = 2 and 3, the prediction's at 5 and 6,
    # the same z and y: half of the corners are 2 steps from the other voxel, half are 3.
    assert _measure(prediction, truth, (1, 1, 1), 1.9) == (0.0, 3.0)
    assert _measure(prediction, truth, (1, 1, 1), 2.0) == (0.5, 3.0)
    assert _measure(prediction, truth, (1, 1, 1), 3.0) == (1.0, 3.0)
    nsd, hd95 = _measure(prediction, truth, (5.0, 4.0, 0.5), 1.0)  # x is the last axis
    assert (nsd, hd95) == (0.5, 1.5)


def test_a_shifted_plate_by_hand():
    truth, prediction = np.zeros((2, 12, 40, 40), bool)
    truth[2:4], prediction[3:5] = True, True
    # Both faces moved by one step of 2 mm; only the rims (4 x 40 mm long, 4 mm high, against two
    # faces of 40 x 40 mm2: 640 of 3840) still touch, most of them.
    nsd, hd95 = _measure(prediction, truth, (2.0, 1.0, 1.0), 2.0)
    assert (nsd, hd95) == (1.0, 2.0)
    nsd = _measure(prediction, truth, (2.0, 1.0, 1.0), 1.9)[0]
    assert nsd == pytest.approx(640 / 3840, abs=0.02)


def test_identical_masks_are_perfect():
    mask, _ = _random_pair(5)
    assert _measure(mask, mask, (2.0, 0.5, 1.5), 0.0) == (1.0, 0.0)


def test_policy_for_empty_masks():
    empty, single = np.zeros((2, 3, 3, 3), bool)
    single[0, 0, 0] = True
    assert np.isnan(_measure(empty, empty)).all()
    assert _measure(empty, single) == (0.0, np.inf)
    assert _measure(single, empty) == (0.0, np.inf)
    assert _measure(single, single) == (1.0, 0.0)


def test_each_class_is_its_own_mask():
    rng = np.random.default_rng(6)
    prediction, truth = rng.integers(0, 4, (2, 9, 8, 7)).astype(np.uint8)
    prediction[prediction == 3] = 0
    result = surface.measure_surfaces(prediction, truth, (2, 1, 3, 7), (1.0, 2.0, 3.0))
    for row, class_id in enumerate((2, 1)):
        expected = _library(prediction == class_id, truth == class_id, (1.0, 2.0, 3.0), 2.0)
        np.testing.assert_allclose([result.nsd[row], result.hd95_mm[row]], expected)
    np.testing.assert_array_equal(result.nsd[2:], [0.0, np.nan])
    np.testing.assert_array_equal(result.hd95_mm[2:], [np.inf, np.nan])
    with pytest.raises(ValueError, match='shapes differ'):
        surface.measure_surfaces(prediction, truth[1:], (1,), (1.0, 1.0, 1.0))
    assert surface.measure_surfaces(prediction, truth, (), (1.0, 1.0, 1.0)).nsd.shape == (0,)


def test_place_in_the_volume_does_not_matter():
    prediction, truth = _random_pair(7, (6, 5, 4))
    expected = _measure(prediction, truth, (2.0, 1.0, 0.5))
    pads = ((3, 0), (0, 8), (20, 1))
    moved = np.pad(prediction, pads), np.pad(truth, pads)
    assert _measure(*moved, (2.0, 1.0, 0.5)) == expected


def test_memory_follows_the_surface_not_the_volume():
    prediction, truth = np.zeros((2, 256, 256, 256), np.uint8)
    truth[8:-8, 100:110, 100:110] = 1
    truth[250, 250, 250] = truth[0, 0, 0] = 1  # the box is the whole volume
    prediction[8:-8, 101:111, 100:110] = 1
    tracemalloc.start()
    surface.measure_surfaces(prediction, truth, (1,), (1.0, 1.0, 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # one mask alone is 17 MB, distances of every voxel 134 MB
