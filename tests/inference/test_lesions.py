"""Lesions against a flood fill, whatever the slabs."""

import numpy as np
import pytest

from maxquery_jax.inference import lesions

AFFINE = np.array([[0, 0, 0.8, -10], [0, 0.7, 0.1, 5], [2.5, 0, 0, 100], [0, 0, 0, 1.0]])
TUMOURS = (2, 4)


def _flood(label):
    """Components by explicit flood fill over the 26 neighbours; lists of voxels."""
    left = {tuple(v) for v in np.argwhere(np.isin(label, TUMOURS))}
    found = []
    while left:
        stack = [left.pop()]
        members = []
        while stack:
            z, y, x = stack.pop()
            members.append((z, y, x))
            for dz in (-1, 0, 1):
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        near = (z + dz, y + dy, x + dx)
                        if near in left:
                            left.remove(near)
                            stack.append(near)
        found.append(members)
    return found


@pytest.mark.parametrize('slab_depth', [1, 3, 16])
@pytest.mark.parametrize('density', [0.03, 0.12])
def test_equals_flood_fill(slab_depth, density):
    rng = np.random.default_rng(int(density * 100))
    label = np.where(rng.random((11, 9, 12)) < density, rng.integers(1, 5, (11, 9, 12)), 0)
    label = label.astype(np.uint8)
    score = rng.normal(-5, 2, label.shape).astype(np.float16)
    expected = []
    for members in _flood(label):
        where = tuple(np.array(members).T)
        classes, counts = np.unique(label[where], return_counts=True)
        centre = AFFINE @ [*np.mean(members, axis=0), 1]
        expected.append(
            (
                len(members),
                tuple(np.round(centre[:3], 6)),
                int(classes[counts.argmax()]),
                {int(c): n * 0.5 for c, n in zip(classes, counts, strict=True)},
                score[where].astype(float).mean(),
                float(score[where].max()),
            )
        )
    expected.sort(key=lambda row: (-row[0], row[1]))
    found = lesions.find_lesions(label, score, TUMOURS, AFFINE, 0.5, slab_depth=slab_depth)
    assert [lesion.voxels for lesion in found] == [row[0] for row in expected]
    for lesion, (voxels, centre, class_id, volumes, mean, high) in zip(
        found, expected, strict=True
    ):
        np.testing.assert_allclose(lesion.centre_mm, centre, atol=1e-5)
        assert lesion.class_id == class_id and lesion.class_volumes_ml == volumes
        assert lesion.volume_ml == voxels * 0.5
        assert lesion.mean_score == pytest.approx(mean) and lesion.max_score == high


def test_arms_that_meet_in_a_later_slab_are_one_lesion():
    label = np.zeros((6, 5, 9), np.uint8)
    label[0:5, 2, 1] = label[0:5, 2, 7] = 2
    label[5, 2, 1:8] = 4
    (lesion,) = lesions.find_lesions(
        label, np.zeros(label.shape), TUMOURS, AFFINE, 1.0, slab_depth=2
    )
    assert lesion.voxels == 17 and lesion.class_id == 2
    assert lesion.class_volumes_ml == {2: 10.0, 4: 7.0}


def test_minimum_size_and_no_tumour():
    label = np.zeros((4, 6, 6), np.uint8)
    label[0, 0, 0] = 2
    label[2:, 3:, 3:] = 4
    score = np.zeros(label.shape)
    kept = lesions.find_lesions(label, score, TUMOURS, AFFINE, 0.1, min_volume_ml=0.2)
    assert [lesion.voxels for lesion in kept] == [18]
    assert lesions.find_lesions(label * 0, score, TUMOURS, AFFINE, 0.1) == []
    assert lesions.find_lesions(label, score, (), AFFINE, 0.1) == []
