"""Foreground oversampling and crop placement."""

import numpy as np
import pytest
from store_helper import build_store

from maxquery_jax.data.sampling import (
    draw_foreground,
    is_forced_foreground,
    oversampled_classes,
    sample_box,
)
from maxquery_jax.data.store import PatchStore
from maxquery_jax.errors import UserError


@pytest.mark.parametrize(
    ('batch_size', 'rate', 'forced'),
    [
        (2, 0.33, [1]),
        (2, 1 / 3, [1]),
        (4, 1 / 3, [3]),
        (6, 1 / 3, [4, 5]),
        (8, 1 / 3, [5, 6, 7]),
        (3, 0.0, []),
        (3, 1.0, [0, 1, 2]),
    ],
)
def test_forced_rows_follow_nnunets_rule(batch_size, rate, forced):
    rng = np.random.default_rng(0)
    rows = [i for i in range(batch_size) if is_forced_foreground(i, batch_size, rate, rng)]
    assert rows == forced


def test_batch_of_one_is_forced_at_the_rate():
    rng = np.random.default_rng(0)
    drawn = [is_forced_foreground(0, 1, 0.33, rng) for _ in range(4000)]
    assert abs(np.mean(drawn) - 0.33) < 0.03


def test_uniform_boxes_cover_every_position_and_stay_inside():
    rng = np.random.default_rng(0)
    starts = np.array([sample_box((5, 8, 6), (3, 8, 5), rng) for _ in range(400)])
    assert {tuple(s) for s in starts} == {(z, 0, x) for z in range(3) for x in range(2)}
    counts = np.bincount(starts[:, 0])
    assert counts.min() > 90  # of 133 expected


def test_forced_boxes_contain_the_voxel_centred_where_possible():
    rng = np.random.default_rng(0)
    shape, crop = (20, 30, 40), (8, 10, 12)
    for _ in range(200):
        voxel = rng.integers(0, shape)
        start = np.array(sample_box(shape, crop, rng, voxel[None]))
        assert (start >= 0).all() and (start + crop <= shape).all()
        assert (start <= voxel).all() and (voxel < start + crop).all()
        free = (voxel - 6 >= 0) & (voxel + 6 <= np.array(shape))
        np.testing.assert_array_equal(start[free], (voxel - np.array(crop) // 2)[free])


def test_every_coordinate_is_used():
    rng = np.random.default_rng(0)
    coords = np.array([[5, 5, 5], [9, 9, 9], [12, 12, 12]])
    starts = {sample_box((20, 20, 20), (4, 4, 4), rng, coords) for _ in range(100)}
    assert starts == {(3, 3, 3), (7, 7, 7), (10, 10, 10)}


def test_small_volumes_are_centred_in_the_crop():
    rng = np.random.default_rng(0)
    coords = np.array([[1, 1, 1]])
    for forced in (None, coords):
        z, y, x = sample_box((4, 5, 30), (8, 8, 8), rng, forced)
        assert (z, y) == (-2, -1)
        assert 0 <= x <= 22


def test_the_patch_not_the_crop_stays_inside():
    rng = np.random.default_rng(0)
    shape, crop, patch = (20, 20, 20), (14, 14, 14), (8, 8, 8)
    starts = np.array([sample_box(shape, crop, rng, patch_size=patch) for _ in range(600)])
    assert starts.min() == -3  # the patch at index 0
    assert starts.max() == 20 - 8 - 3  # the patch ends at the border
    border = np.array([[0, 0, 19]])
    assert sample_box(shape, crop, rng, border, patch_size=patch) == (-3, -3, 9)


def test_classes_are_drawn_uniformly_among_those_present(tmp_path):
    store = PatchStore(build_store(tmp_path / 'store', 2))
    rng = np.random.default_rng(0)
    both = oversampled_classes(store, ('organ', 'tumour'))
    assert both == (1, 2)
    sizes = [len(draw_foreground(store, 'c0', both, rng)) for _ in range(400)]
    organ, tumour = (len(store.foreground('c0', c)) for c in both)
    assert organ != tumour and set(sizes) == {organ, tumour}
    assert abs(sizes.count(organ) - 200) < 50  # not in proportion to their voxels
    only = oversampled_classes(store, ('tumour',))
    assert all(len(draw_foreground(store, 'c0', only, rng)) == tumour for _ in range(20))
    assert draw_foreground(store, 'c0', (3,), rng) is None
    with pytest.raises(UserError, match="'ood'"):
        oversampled_classes(store, ('ood',))
