"""Folders of binary masks as label maps."""

import nifti_helper
import numpy as np
import pytest

from maxquery_jax.data import masks as masks_lib
from maxquery_jax.data import nifti, volumes
from maxquery_jax.data.findings import FileError

SHAPE = (6, 5, 4)
AFFINE = nifti_helper.affine_of((2.0, 2.0, 3.0), 'LPS')


def write(folder, **boxes):
    for name, box in boxes.items():
        mask = np.zeros(SHAPE, np.uint8)
        mask[box] = 1
        nifti_helper.write(folder / f'{name}.nii.gz', mask, AFFINE)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, liver=np.s_[1:5, 1:4], tumour=np.s_[2:3, 2:3], spleen=np.s_[4:6, :2])
    (tmp_path / '.DS_Store').touch()
    (tmp_path / 'readme.txt').touch()
    return tmp_path


MASKS = {'liver': 2, 'spleen': 7, 'absent': 8, 'tumour': 1}


def test_later_masks_paint_over_earlier_ones(folder):
    volume = masks_lib.merge_masks(folder, MASKS)
    expected = np.zeros(SHAPE, int)
    expected[1:5, 1:4] = 2
    expected[4:6, :2] = 7
    expected[2:3, 2:3] = 1
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_allclose(volume.header.affine, AFFINE)
    assert volume.sha256 == masks_lib.hash_masks(folder) == volumes.hash_input(folder)
    (issue,) = volume.issues
    assert (issue.check, issue.severity) == ('mask_overlap', 'warning')
    assert 'spleen over liver (4 voxels)' in issue.value  # the tumour is meant to cover the liver
    again = volumes.read_label(folder, masks=MASKS)
    np.testing.assert_array_equal(again.array, expected)


def test_order_and_large_ids(folder):
    assert list(masks_lib.order_masks({'t': 1, 'b': 3, 'a': 2}, ['t'])) == ['a', 'b', 't']
    (folder / 'spleen.nii.gz').unlink()
    volume = masks_lib.merge_masks(folder, {'liver': 3, 'tumour': 300})
    assert set(np.unique(volume.array)) == {0, 3, 300}


def test_hash_follows_names_and_contents(folder, tmp_path):
    before = masks_lib.hash_masks(folder)
    (folder / 'spleen.nii.gz').rename(folder / 'colon.nii.gz')
    renamed = masks_lib.hash_masks(folder)
    write(folder, colon=np.s_[4:6, :1])
    assert len({before, renamed, masks_lib.hash_masks(folder)}) == 3


def test_unknown_mask_is_an_error_with_its_count(folder):
    known = {'liver': 2, 'tumour': 1}
    with pytest.raises(FileError, match=r'mask spleen \(16 voxels\)') as caught:
        masks_lib.merge_masks(folder, known)
    assert caught.value.issue.check == 'label_unknown'
    volume = masks_lib.merge_masks(folder, known, allow={'label_unknown'})
    assert set(np.unique(volume.array)) == {0, 1, 2}
    assert [issue.severity for issue in volume.issues] == ['warning']


def test_masks_must_share_a_grid(folder):
    nifti_helper.write(folder / 'spleen.nii.gz', np.zeros((6, 5, 5), np.uint8), AFFINE)
    with pytest.raises(FileError, match='mask spleen is') as caught:
        masks_lib.merge_masks(folder, MASKS)
    assert caught.value.issue.check == 'shape_mismatch'
    moved = AFFINE.copy()
    moved[0, 3] += 2
    nifti_helper.write(folder / 'spleen.nii.gz', np.zeros(SHAPE, np.uint8), moved)
    volume = masks_lib.merge_masks(folder, MASKS, strict=False)
    (issue,) = [issue for issue in volume.issues if issue.severity == 'error']
    assert issue.check == 'affine_mismatch' and 'mask spleen' in issue.value


def test_damaged_and_missing_masks(folder, tmp_path):
    path = folder / 'spleen.nii.gz'
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError, match='spleen.nii.gz'):
        masks_lib.merge_masks(folder, MASKS)
    path.unlink()
    with pytest.raises(FileError, match='no mask of a known name'):
        masks_lib.merge_masks(folder, {'heart': 1}, allow={'label_unknown'}, strict=False)
    with pytest.raises(FileError, match='unreadable'):
        masks_lib.merge_masks(tmp_path / 'none', MASKS)


def test_real_organs_as_masks(real_data, tmp_path):
    """A 117-class map taken apart into masks comes back as it was."""
    whole = nifti.read_label(real_data / 'totalsegmentator' / 'ts_abdomen3mm_seg117.nii.gz')
    present = [int(i) for i in np.unique(whole.array) if i]
    assert len(present) > 20
    for raw_id in present:
        nifti.write_like(tmp_path / f'part{raw_id}.nii.gz', whole.array == raw_id, whole, 'uint8')
    volume = masks_lib.merge_masks(tmp_path, {f'part{i}': i for i in range(1, 118)})
    np.testing.assert_array_equal(volume.array, whole.array)
    assert not [issue for issue in volume.issues if issue.check == 'mask_overlap']
