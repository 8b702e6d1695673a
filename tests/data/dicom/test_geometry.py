"""Series in space: every orientation, sorting, gaps, duplicates, tilt; the real series' twin."""

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from maxquery_jax.data import nifti
from maxquery_jax.data.dicom.reader import read_header, read_image
from maxquery_jax.data.findings import FileError
from tests.data.dicom.dicom_helper import (
    Place,
    assert_same_place,
    hu_volume,
    series_bytes,
    write_files,
    write_series,
)


def _turns():
    """All 48 ways in which rows, columns and slices may run along the body axes."""
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            name = ''.join('LPS'[a] + '-+'[s > 0] for a, s in zip(axes, signs, strict=True))
            yield pytest.param(np.eye(3)[:, axes] * signs, id=name)


@pytest.mark.parametrize('turn', list(_turns()))
def test_every_sign_of_the_direction_cosines(tmp_path, turn):
    hu, place = hu_volume((4, 3, 3)), Place(turn)
    volume = read_image(write_series(tmp_path, hu, place))
    assert volume.array.dtype == np.int16 and volume.issues == ()
    assert_same_place(volume, hu, place)
    canonical, orientation = nifti.to_canonical(volume)
    assert (np.diag(orientation.affine[:3, :3][:, ::-1]) > 0).all()
    np.testing.assert_array_equal(nifti.from_canonical(canonical, orientation), volume.array)


@pytest.mark.parametrize('seed', range(6))
def test_oblique_series(tmp_path, seed):
    turn = Rotation.random(random_state=seed).as_matrix() * [1, 1, (-1) ** seed]
    hu, place = hu_volume(seed=seed), Place(turn)
    volume = read_image(write_series(tmp_path, hu, place))
    assert_same_place(volume, hu, place)
    np.testing.assert_allclose(volume.header.spacing_mm, (0.8, 0.9, 2.5), rtol=1e-5)


def test_names_and_instance_numbers_play_no_part(tmp_path):
    hu, place = hu_volume(), Place()
    files = list(series_bytes(hu, place, per_slice={0: {'InstanceNumber': 40}}).values())
    shuffled = {f'{name}.dcm': files[k] for name, k in zip('abcde', (3, 0, 4, 2, 1), strict=True)}
    volume = read_image(write_files(tmp_path, shuffled))
    np.testing.assert_array_equal(volume.array, hu)
    np.testing.assert_allclose(volume.header.affine, place.ras, atol=1e-9)
    again = read_image(write_files(tmp_path / 'other', dict(zip('vwxyz', files, strict=True))))
    assert again.sha256 == volume.sha256


def test_header_alone_tells_the_same(tmp_path):
    hu, place = hu_volume(), Place(tilt=0.4)
    volume, header = read_image(write_series(tmp_path, hu, place)), read_header(tmp_path)
    assert header.shape == hu.shape and header.dtype == volume.array.dtype
    np.testing.assert_array_equal(header.affine, volume.header.affine)
    np.testing.assert_allclose(header.raw.get_sform(), header.affine, atol=1e-4)
    assert header.raw['sform_code'] == header.raw['qform_code'] == 1


def test_gantry_tilt_becomes_shear(tmp_path):
    hu, place = hu_volume(), Place(tilt=0.6)
    volume = read_image(write_series(tmp_path, hu, place))
    assert_same_place(volume, hu, place)
    (issue,) = volume.issues
    degrees = np.degrees(np.arctan(0.6 / 2.5))
    assert issue.check == 'affine_sheared' and f'{degrees:.2f} degrees' in issue.value
    assert nifti.to_canonical(volume)[1].is_sheared


def test_positions_rounded_in_the_header_are_no_gap(tmp_path):
    hu, place = hu_volume((4, 4, 9)), Place(spacing=(0.7, 0.7, 0.625))
    rounded = {
        k: {'ImagePositionPatient': [-31.5, 12.25, round(700 + 0.625 * k, 1)]} for k in range(9)
    }
    volume = read_image(write_series(tmp_path, hu, place, per_slice=rounded))
    np.testing.assert_array_equal(volume.array, hu)
    assert abs(volume.header.spacing_mm[2] - 0.625) < 0.02


@pytest.mark.parametrize(
    ('drop', 'message'),
    [
        ([3], r'dicom_gap: about 1 slices are missing: 5 mm instead of 2.5 between slices 3 and 4'),
        ([3, 4, 5], r'about 3 slices are missing: 10 mm instead of 2.5 .*002.dcm and 006.dcm'),
    ],
)
def test_missing_slices_are_named(tmp_path, drop, message):
    files = list(series_bytes(hu_volume((4, 4, 12))).items())
    kept = dict(file for k, file in enumerate(files) if k not in drop)
    with pytest.raises(FileError, match=message):
        read_image(write_files(tmp_path, kept), allow=['dicom_gap'])


def test_uneven_spacing_is_a_gap(tmp_path):
    moved = {5: {'ImagePositionPatient': [-31.5, 12.25, 700 + 5 * 2.5 + 0.9]}}
    with pytest.raises(FileError, match='dicom_gap: the slices are unevenly spaced'):
        read_header(write_series(tmp_path, hu_volume((4, 4, 9)), per_slice=moved))


def test_equal_duplicates_are_dropped_with_a_warning(tmp_path):
    hu = hu_volume()
    write_series(tmp_path, hu)
    for number, k in enumerate((1, 1, 4)):
        twin = series_bytes(hu, SOPInstanceUID=f'1.9.{number}')[f'00{k}.dcm']
        (tmp_path / f'copy{number}.dcm').write_bytes(twin)
    volume = read_image(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    (issue,) = volume.issues
    assert issue.check == 'dicom_duplicate' and '3 slices' in issue.value


def test_different_slices_at_one_place_are_refused(tmp_path):
    hu = hu_volume()
    write_series(tmp_path, hu)
    other = series_bytes(hu + 1, uid='1.2.3', SOPInstanceUID='1.9.9')['002.dcm']
    (tmp_path / 'z.dcm').write_bytes(other)
    with pytest.raises(FileError, match='dicom_duplicate: 002.dcm and z.dcm lie at one place'):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'ImagePositionPatient': None}, 'dicom_geometry: 002.dcm: no usable ImagePositionPatient'),
        ({'ImageOrientationPatient': None}, 'no usable ImageOrientationPatient .1 of 5 slices'),
        ({'PixelSpacing': None}, 'no usable PixelSpacing'),
        ({'PixelSpacing': [0.8]}, 'no usable PixelSpacing'),
        ({'ImagePositionPatient': ['nan', 0, 0]}, 'no usable ImagePositionPatient'),
        ({'ImagePositionPatient': [0.0, 12.25, 705.0]}, r'002.dcm lies 31.5 mm aside'),
        ({'PixelSpacing': [0.9, 0.9]}, '1 of 5 slices differ in pixel spacing, such as 002.dcm'),
        ({'PixelSpacing': [0.0, 0.9]}, r'spacing: 002.dcm: PixelSpacing is \[0.0, 0.9\]'),
        ({'ImageOrientationPatient': [1, 0, 0, 0, 0, 1]}, '1 of 5 slices differ in orientation'),
        ({'ImageOrientationPatient': [1, 0, 0, 1, 0, 0]}, 'is no rotation'),
        ({'ImageOrientationPatient': [0] * 6}, 'is no rotation'),
        ({'Rows': 3}, '4 of 7 x 6, 1 of 7 x 3, such as 002.dcm'),
        ({'RescaleSlope': None}, 'differ in rescaling'),
    ],
)
def test_slices_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(FileError, match=message):
        read_image(write_series(tmp_path, hu_volume(), per_slice={2: changes}))


def test_one_slice_takes_its_thickness(tmp_path):
    volume = read_image(write_series(tmp_path, hu_volume((4, 3, 1))))
    assert volume.header.spacing_mm == pytest.approx((0.8, 0.9, 2.5))
    write_series(tmp_path, hu_volume((4, 3, 1)), SliceThickness=None)
    with pytest.raises(FileError, match='one slice without SliceThickness'):
        read_image(tmp_path)


def test_real_series_equals_its_nifti_twin(real_data):
    volume = read_image(real_data / 'dicom' / 'ts_dicom_ct')
    twin = nifti.read_image(real_data / 'totalsegmentator' / 'ts_dicom_ct.nii.gz')
    array, place = nifti.to_canonical(volume)
    expected, expected_place = nifti.to_canonical(twin)
    assert volume.header.axes == 'LPS' and twin.header.axes == 'LAS'
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_allclose(place.affine, expected_place.affine, atol=1e-6)
    assert (volume.minimum, volume.maximum) == (twin.minimum, twin.maximum)
