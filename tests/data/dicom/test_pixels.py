"""Stored values to HU: rescaling, padding, types, encodings, multi-frame files."""

import tracemalloc
import types

import numpy as np
import pytest

from maxquery_jax.data.dicom.reader import read_header, read_image
from maxquery_jax.data.findings import FileError
from tests.data.dicom.dicom_helper import (
    Place,
    assert_same_place,
    bare_bytes,
    enhanced_bytes,
    hu_volume,
    pydicom,
    slice_dataset,
    to_bytes,
    write_files,
    write_series,
)


def _stored(folder, planes, **kwargs):
    """Writes stored values [k][rows, columns] of any type."""
    planes = np.asarray(planes)
    per_slice = {k: {'PixelData': plane.tobytes()} for k, plane in enumerate(planes)}
    for k, extra in kwargs.pop('per_slice', {}).items():
        per_slice[k] |= extra
    hu = np.zeros((planes.shape[2], planes.shape[1], planes.shape[0]), np.int16)
    return write_series(folder, hu, per_slice=per_slice, **kwargs)


def test_each_slice_has_its_own_rescaling(tmp_path):
    planes = np.arange(2 * 3 * 4, dtype='<u2').reshape(2, 3, 4)
    scale = {
        0: {'RescaleSlope': 2, 'RescaleIntercept': -1000},
        1: {'RescaleSlope': 1, 'RescaleIntercept': -24},
    }
    volume = read_image(_stored(tmp_path, planes, per_slice=scale))
    assert volume.array.dtype == np.int16 and not volume.is_fractional
    np.testing.assert_array_equal(volume.array[..., 0], planes[0].T.astype(int) * 2 - 1000)
    np.testing.assert_array_equal(volume.array[..., 1], planes[1].T.astype(int) - 24)
    assert (volume.minimum, volume.maximum) == (-1000, -1)


def test_fractional_slope_gives_float32(tmp_path):
    planes = np.arange(24, dtype='<u2').reshape(2, 3, 4)
    _stored(tmp_path, planes, RescaleSlope='0.5', RescaleIntercept='-3.25')
    volume = read_image(tmp_path)
    assert volume.array.dtype == read_header(tmp_path).dtype == np.float32
    assert volume.is_fractional
    np.testing.assert_array_equal(volume.array, (planes * 0.5 - 3.25).transpose(2, 1, 0))


def test_signed_and_large_values(tmp_path):
    signed = np.array([[[-2000, -1], [0, 3000]]] * 2, '<i2')
    common = {'RescaleIntercept': 0, 'PixelRepresentation': 1}
    volume = read_image(_stored(tmp_path / 'a', signed, **common))
    np.testing.assert_array_equal(volume.array, signed.transpose(2, 1, 0))
    large = np.array([[[0, 65535], [1, 2]]] * 2, '<u2')
    volume = read_image(_stored(tmp_path / 'b', large))
    assert volume.array.dtype == np.int32 and volume.maximum == 65535 - 1024


@pytest.mark.parametrize(
    ('tags', 'marked', 'expected', 'num_issues'),
    [
        ({'PixelPaddingValue': 0, 'RescaleIntercept': -3024}, 0, -1024, 0),
        ({'PixelPaddingValue': 63536}, 63536, -1024, 0),
        ({'PixelPaddingValue': 63536, 'PixelPaddingRangeLimit': 63540}, 63538, -1024, 0),
        ({'PixelPaddingValue': 1064}, 1064, 40, 1),
    ],
    ids=['below air', 'above bone', 'range', 'tissue'],
)
def test_padding_is_air_unless_tissue_may_be_so(tmp_path, tags, marked, expected, num_issues):
    planes = np.full((2, 3, 4), 2500, '<u2')
    planes[:, 1, 2] = marked
    volume = read_image(_stored(tmp_path, planes, **tags))
    assert (volume.array[2, 1] == expected).all()
    assert np.unique(volume.array).size == 2
    assert [issue.check for issue in volume.issues] == ['hu_suspicious'] * num_issues


def test_missing_rescaling_needs_permission(tmp_path):
    write_series(tmp_path, hu_volume(), RescaleSlope=None, RescaleIntercept=None)
    with pytest.raises(FileError, match='scaling: 000.dcm: no usable RescaleSlope'):
        read_image(tmp_path)
    volume = read_image(tmp_path, allow=['scaling'])
    np.testing.assert_array_equal(volume.array, hu_volume().astype(int) + 1024)


@pytest.mark.parametrize('tags', [{'RescaleSlope': 0}, {'RescaleIntercept': '1e9'}])
def test_impossible_rescaling(tmp_path, tags):
    with pytest.raises(FileError, match='scaling: 000.dcm: slope'):
        read_header(write_series(tmp_path, hu_volume(), **tags), allow=['scaling'])


def test_run_length_encoding_is_read_without_plugins(tmp_path):
    hu = hu_volume((12, 10, 4))
    for k in range(4):
        dataset = pydicom.dcmread(
            pydicom.filebase.DicomBytesIO(to_bytes(slice_dataset(hu, k, Place())))
        )
        dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        write_files(tmp_path, {f'{k}.dcm': to_bytes(dataset)})
    np.testing.assert_array_equal(read_image(tmp_path).array, hu)


def test_an_encoding_without_decoder_names_what_to_install(tmp_path, monkeypatch):
    missing = types.SimpleNamespace(is_available=False)
    monkeypatch.setattr(pydicom.pixels, 'get_decoder', lambda syntax: missing)
    pixels = pydicom.encaps.encapsulate([b'\xff\xd8\xff\xd9'])
    write_series(tmp_path, hu_volume(), syntax=pydicom.uid.JPEGLosslessSV1, PixelData=pixels)
    message = "encoded as 'JPEG Lossless.*pip install pylibjpeg pylibjpeg-libjpeg, or convert"
    with pytest.raises(FileError, match='dicom_syntax: ' + message):
        read_image(tmp_path)


def test_an_unknown_encoding_is_refused(tmp_path):
    write_series(tmp_path, hu_volume())
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        path.write_bytes(data.replace(b'1.2.840.10008.1.2.1\0', b'1.2.840.10008.9.9.9\0'))
    with pytest.raises(FileError, match="dicom_syntax: encoded as '1.2.840.10008.9.9.9'"):
        read_image(tmp_path)


def test_enhanced_multi_frame_file(tmp_path):
    hu, place = hu_volume(), Place(tilt=0.3)
    write_files(tmp_path, {'one.dcm': enhanced_bytes(hu, place, [2, 0, 4, 1, 3])})
    volume = read_image(tmp_path)
    assert_same_place(volume, hu, place)
    assert volume.array.dtype == np.int16


def test_multi_frame_files_that_are_incomplete(tmp_path):
    hu, place = hu_volume(), Place()
    data = enhanced_bytes(hu, place, range(5), NumberOfFrames=7)
    write_files(tmp_path / 'a', {'one.dcm': data})
    with pytest.raises(FileError, match='5 of 7 frames described'):
        read_image(tmp_path / 'a')
    data = enhanced_bytes(hu, place, range(5), PerFrameFunctionalGroupsSequence=[])
    write_files(tmp_path / 'b', {'one.dcm': data})
    with pytest.raises(FileError, match='5 frames without a place of their own'):
        read_image(tmp_path / 'b')
    pixels = hu_volume().tobytes()[:-60]
    data = enhanced_bytes(hu, place, range(5), PixelData=pixels)
    write_files(tmp_path / 'c', {'one.dcm': data})
    with pytest.raises(FileError, match='truncated: one.dcm: 360 of 420 voxel bytes'):
        read_image(tmp_path / 'c')


def test_files_without_preamble(tmp_path):
    hu = hu_volume()
    files = {f'{k}': bare_bytes(slice_dataset(hu, k, Place())) for k in range(5)}
    np.testing.assert_array_equal(read_image(write_files(tmp_path, files)).array, hu)


def test_volume_that_does_not_fit_is_refused_before_memory_is_asked_for(tmp_path):
    write_series(tmp_path, hu_volume())
    with pytest.raises(FileError, match='too_large'):
        read_image(tmp_path, max_bytes=419)
    read_image(tmp_path, max_bytes=420)


def test_reading_takes_one_copy_of_the_voxels(tmp_path):
    hu = hu_volume((256, 256, 40))
    write_series(tmp_path, hu)
    read_header(tmp_path)  # imports pydicom
    tracemalloc.start()
    volume = read_image(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.4 * volume.array.nbytes
