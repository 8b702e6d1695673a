"""Which files of a folder make the scan, and that messages hold no tag of the patient."""

import re

import numpy as np
import pytest

from maxquery_jax.data.dicom.reader import hash_series, read_header, read_image
from maxquery_jax.data.findings import FileError
from maxquery_jax.errors import UserError
from tests.data.dicom.dicom_helper import (
    SECRETS,
    Place,
    hu_volume,
    pydicom,
    series_bytes,
    slice_dataset,
    to_bytes,
    write_files,
    write_series,
)

SECONDARY_CAPTURE, RTSTRUCT = '1.2.840.10008.5.1.4.1.1.7', '1.2.840.10008.5.1.4.1.1.481.3'
CORONAL = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]).T


def _two(folder, **kwargs):
    first, second = hu_volume(), hu_volume((4, 3, 6), seed=1)
    write_series(folder / 'a', first, uid='1.2.55')
    write_series(folder / 'b', second, uid='1.2.66', **kwargs)
    return first, second


def _error(folder, **kwargs):
    with pytest.raises(FileError) as caught:
        read_image(folder, **kwargs)
    line = str(caught.value)
    assert '\n' not in line and not any(secret in line for secret in SECRETS)
    return line


def test_several_series_are_listed_without_free_text(tmp_path):
    _two(tmp_path)
    line = _error(tmp_path)
    assert re.search(
        r'dicom_series: 2 series: \[1\] 6 slices of 4 x 3, 0.8 x 0.9 x 2.5 mm, LPS', line
    )
    assert re.search(r'\[2\] 5 slices of 7 x 6, .*original, id [0-9a-f]{12}; name one with', line)
    assert '1.2.55' not in line and '1.2.66' not in line


def test_the_wanted_series_is_read(tmp_path):
    first, second = _two(tmp_path)
    listed = re.findall(r'id ([0-9a-f]{12})', _error(tmp_path))
    for wanted, expected in (
        ('1', second), ('2', first), ('1.2.6', second), ('1.2.55', first), (listed[1][:8], first),
    ):  # fmt: skip
        volume = read_image(tmp_path, series=wanted)
        np.testing.assert_array_equal(volume.array, expected)
        assert hash_series(tmp_path, series=wanted) == volume.sha256
        assert read_header(tmp_path, series=wanted).series_id in listed
    assert 'fits 0 of 2 series: [1]' in _error(tmp_path, series='3')
    assert 'fits 2 of 2 series' in _error(tmp_path, series='1.2.')


@pytest.mark.parametrize(
    'kwargs',
    [
        {'ImageType': ['DERIVED', 'SECONDARY', 'MPR']},
        {'ImageType': ['DERIVED', 'PRIMARY', 'AXIAL']},
        {'place': Place(CORONAL)},
    ],
    ids=['reformatted', 'derived', 'coronal'],
)
def test_the_only_original_axial_series_is_the_scan(tmp_path, kwargs):
    first, second = _two(tmp_path, **kwargs)
    volume = read_image(tmp_path)
    np.testing.assert_array_equal(volume.array, first)
    (issue,) = volume.issues
    assert issue.check == 'dicom_series' and 'the only original axial series of 2' in issue.value
    again = read_image(tmp_path, series='1')
    assert sorted(again.array.shape) == sorted(second.shape)


def test_other_objects_beside_the_scan_are_left_out(tmp_path):
    hu = hu_volume()
    write_series(tmp_path, hu)
    others = {
        'scout.dcm': slice_dataset(hu, 0, Place(CORONAL), ImageType=['ORIGINAL', 'P', 'LOCALIZER']),
        'dose.dcm': slice_dataset(
            hu, 0, Place(), uid='1.2.9', SOPClassUID=SECONDARY_CAPTURE, ImagePositionPatient=None
        ),
        'page.dcm': slice_dataset(hu, 0, Place(), uid='1.2.8', SamplesPerPixel=3),
        'contours.dcm': slice_dataset(
            hu, 0, Place(), uid='1.2.7', SOPClassUID=RTSTRUCT, Modality='RTSTRUCT', Rows=None,
            Columns=None, PixelData=None,
        ),
        'pet.dcm': slice_dataset(hu, 0, Place(), uid='1.2.6', Modality='PT'),
    }  # fmt: skip
    write_files(tmp_path / 'deep' / 'er', {name: to_bytes(d) for name, d in others.items()})
    write_files(tmp_path, {'README.txt': b'notes', '.hidden.dcm': b'x', '__MACOSX/a.dcm': b''})
    volume = read_image(tmp_path)
    np.testing.assert_array_equal(volume.array, hu)
    assert volume.issues == ()


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({}, r'dicom_series: no image series \(no files\)'),
        ({'a.txt': b'text'}, r'no image series \(1 x other file\)'),
        ({'a.dcm': b'version https://git-lfs'}, 'format: a.dcm is not a DICOM file'),
        ({'IM0001': b''}, 'format: IM0001 is not a DICOM file'),
    ],
)
def test_folders_without_a_series(tmp_path, files, message):
    write_files(tmp_path, files)
    assert re.search(message, _error(tmp_path))


def test_other_modalities_need_permission(tmp_path):
    hu = hu_volume()
    write_series(tmp_path, hu, Modality='MR', RescaleIntercept=None, RescaleSlope=None)
    assert 'dicom_modality: no CT: [1] 5 slices of 7 x 6' in _error(tmp_path)
    assert "modality 'MR'" in _error(tmp_path, series='1')
    volume = read_image(tmp_path, allow=['dicom_modality', 'scaling'])
    np.testing.assert_array_equal(volume.array, hu.astype(int) + 1024)
    assert {issue.severity for issue in volume.issues} == {'warning'}


def test_blank_uids_still_make_a_series(tmp_path):
    """The real test series is anonymised so."""
    hu = hu_volume()
    blank = dict.fromkeys(('StudyInstanceUID', 'SeriesInstanceUID', 'SOPInstanceUID'), '')
    write_series(tmp_path, hu, **blank)
    np.testing.assert_array_equal(read_image(tmp_path).array, hu)


def test_damaged_files_never_pass_unnoticed(tmp_path):
    """Every cut through the last slice must be an error: without it the scan would be shorter."""
    hu = hu_volume()
    data = write_series(tmp_path, hu).joinpath('004.dcm').read_bytes()
    checks = '(truncated|corrupt|format|dicom_geometry|scaling|spacing|dicom_series)'
    for size in [*range(0, len(data) - 1, 13), len(data) - 2]:
        (tmp_path / '004.dcm').write_bytes(data[:size])
        line = _error(tmp_path)
        assert re.search(checks, line), (size, line)


def test_flipped_bytes_never_end_in_a_traceback(tmp_path):
    hu = hu_volume((4, 3, 3))
    original = write_series(tmp_path, hu).joinpath('001.dcm').read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(original)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        (tmp_path / '001.dcm').write_bytes(data)
        try:
            volume = read_image(tmp_path, strict=False)
        except UserError as error:
            assert not any(secret in str(error) for secret in SECRETS)
        else:
            assert volume.array.shape[2] >= 2 and np.isfinite(volume.header.affine).all()


def test_deflated_files_are_not_unpacked(tmp_path):
    bomb = slice_dataset(hu_volume(), 0, Place(), syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    write_files(tmp_path, {'a.dcm': to_bytes(bomb)})
    assert 'dicom_syntax: a.dcm: deflated as a whole' in _error(tmp_path)


def test_missing_package_is_named(tmp_path, monkeypatch):
    write_series(tmp_path, hu_volume())
    monkeypatch.setitem(__import__('sys').modules, 'pydicom', None)
    with pytest.raises(UserError, match="needs pydicom: install the extra 'dicom'"):
        read_image(tmp_path)


def test_series_bytes_are_private_enough_to_test_with():
    assert all(
        any(str(secret).encode() in data for data in series_bytes(hu_volume()).values())
        for secret in SECRETS
    )
