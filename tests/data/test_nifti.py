"""The NIfTI reader and writer: every bad file is named, every good one is read exactly."""

import gzip
import hashlib
import os
import tracemalloc

import nibabel as nib
import nifti_helper as helper
import numpy as np
import pytest

from maxquery_jax.data import nifti
from maxquery_jax.data.findings import FileError
from maxquery_jax.errors import UserError

SHEARED = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
SINGULAR = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
QFORM = {'qform_code': 1, 'quatern': (0, 0, 0), 'qoffset': (0, 0, 0)}
RNG = np.random.default_rng(0)


def with_value(value, dtype='float32'):
    array = helper.hu_volume().astype(dtype)
    array[1, 2, 3] = value
    return array


def compressed(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def good() -> bytes:
    return helper.nifti_bytes(helper.hu_volume())


def bad_crc() -> bytes:
    data = bytearray(compressed(good()))
    data[-6] ^= 1
    return bytes(data)


BAD_FILES = {
    # name: (file name, bytes, check, words of the message)
    'truncated_gz': ('a.nii.gz', lambda: compressed(good())[:-200], 'truncated', ['decompressed']),
    'short_inside_gz': (
        'a.nii.gz', lambda: compressed(good()[:-10]), 'truncated', ['998 of 1,008']),
    'truncated_nii': ('a.nii', lambda: good()[:-8], 'truncated', ['1,008', '1,352 bytes']),
    'truncated_header': ('a.nii', lambda: good()[:100], 'truncated', ['100 of 348']),
    'bad_crc': ('a.nii.gz', bad_crc, 'corrupt', ['incorrect data check']),
    'html': ('a.nii.gz', lambda: b'<!DOCTYPE html>', 'format',
             ['not a gzip file', "starts with '<!DOCTYPE html>'"]),
    'empty': ('a.nii.gz', lambda: b'', 'format', ['not a gzip file', '0 bytes']),
    'empty_nii': ('a.nii', lambda: b'', 'format', ['not a NIfTI', '0 bytes']),
    'html_in_gz': ('a.nii.gz', lambda: compressed(b'<html>' * 200), 'format', ['not a NIfTI']),
    'git_lfs': ('a.nii.gz', lambda: b'version https://git-lfs.github.com/spec', 'format',
                ['git lfs pull']),
    'nii_named_gz': ('a.nii.gz', good, 'format', ['not a gzip file', 'rename']),
    'gz_named_nii': ('a.nii', lambda: compressed(good()), 'format', ['rename it to .nii.gz']),
    'extension': ('a.mha', good, 'format', ['.mha', '.nii.gz']),
    'analyze': ('a.nii', lambda: helper.nifti_bytes(helper.hu_volume(), magic=b'\0' * 4),
                'format', ['n+1']),
    'pair': ('a.nii', lambda: helper.nifti_bytes(helper.hu_volume(), magic=b'ni1\0'), 'format',
             ['.hdr/.img']),
    'huge_header': ('a.nii.gz', lambda: compressed(helper.nifti_bytes(
        helper.hu_volume(), dim=(3, 30000, 30000, 30000, 1, 1, 1, 1))), 'truncated',
        ['30000', 'cannot hold']),
    'offset': ('a.nii', lambda: helper.nifti_bytes(helper.hu_volume(), vox_offset=100), 'format',
               ['vox_offset']),
    'offset_far': ('a.nii.gz', lambda: compressed(helper.nifti_bytes(
        helper.hu_volume(), vox_offset=5000)), 'truncated', ['5,000']),
    'four_d': ('a.nii', lambda: helper.nifti_bytes(
        helper.hu_volume((9, 8, 14)), dim=(4, 9, 8, 7, 2, 1, 1, 1)), 'dimensions',
        ['axis 3 has length 2']),
    'two_d': ('a.nii', lambda: helper.nifti_bytes(
        helper.hu_volume(), dim=(2, 9, 8, 1, 1, 1, 1, 1)), 'dimensions', ['2D']),
    'zero_dim': ('a.nii', lambda: helper.nifti_bytes(
        helper.hu_volume(), dim=(3, 9, 0, 7, 1, 1, 1, 1)), 'dimensions', ['0']),
    'zero_spacing': ('a.nii', lambda: helper.nifti_bytes(
        helper.hu_volume(), pixdim=(1, 1, 0, 1, 0, 0, 0, 0)), 'spacing', ['1 x 0 x 1']),
    'negative_spacing': ('a.nii', lambda: helper.nifti_bytes(
        helper.hu_volume(), pixdim=(1, 1, -2, 1, 0, 0, 0, 0)), 'spacing', ['-2']),
    'nan_spacing': ('a.nii', lambda: helper.nifti_bytes(
        helper.hu_volume(), pixdim=(1, 1, np.nan, 1, 0, 0, 0, 0)), 'spacing', ['nan']),
    'singular': ('a.nii', lambda: helper.nifti_bytes(helper.hu_volume(), SINGULAR),
                 'affine_singular', ['sform']),
    'nan_affine': ('a.nii', lambda: helper.nifti_bytes(
        helper.hu_volume(), srow=(np.nan,) * 12), 'affine_singular', ['sform']),
    'bad_quaternion': ('a.nii', lambda: helper.nifti_bytes(
        helper.hu_volume(), sform_code=0, qform_code=1, quatern=(1, 1, 0)), 'affine_singular',
        ['quaternion']),
    'qform_sform': ('a.nii', lambda: helper.nifti_bytes(
        helper.hu_volume(), helper.affine_of(codes='LPS'), **QFORM), 'qform_sform',
        ['LPS', 'RAS', '--allow=qform_sform']),
    'qform_moved': ('a.nii', lambda: helper.nifti_bytes(
        helper.hu_volume(), **{**QFORM, 'qoffset': (0, 0.002, 0)}), 'qform_sform', ['0.002 mm']),
    'no_affine': ('a.nii', lambda: helper.nifti_bytes(helper.hu_volume(), sform_code=0),
                  'orientation_unknown', ['--assume_orientation']),
    'nan': ('a.nii', lambda: helper.nifti_bytes(with_value(np.nan)), 'nonfinite',
            ['1 NaN and 0 Inf of 504', '--nan_policy=fill']),
    'inf': ('a.nii', lambda: helper.nifti_bytes(with_value(-np.inf)), 'nonfinite', ['1 Inf']),
    'float64_overflow': ('a.nii', lambda: helper.nifti_bytes(with_value(1e300, 'float64')),
                         'nonfinite', ['1 Inf']),
    'int64_overflow': ('a.nii', lambda: helper.nifti_bytes(with_value(2**40, 'int64')),
                       'value_range', ['1 voxels']),
    'complex': ('a.nii', lambda: helper.nifti_bytes(helper.hu_volume(), datatype=32, bitpix=64),
                'dtype', ['complex64']),
    'rgb': ('a.nii', lambda: helper.nifti_bytes(helper.hu_volume(), datatype=128, bitpix=24),
            'dtype', ['RGB']),
    'bitpix': ('a.nii', lambda: helper.nifti_bytes(helper.hu_volume(), bitpix=8), 'dtype',
               ['int16', '8 bits']),
    'slope': ('a.nii', lambda: helper.nifti_bytes(helper.hu_volume(), scl_slope=np.inf),
              'scaling', ['inf']),
    'tiny_slope': ('a.nii', lambda: helper.nifti_bytes(helper.hu_volume(), scl_slope=1e-40),
                   'scaling', ['e-41']),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD_FILES)
def test_bad_files_are_refused_by_name(name, tmp_path):
    file_name, content, check, words = BAD_FILES[name]
    path = tmp_path / file_name
    path.write_bytes(content())
    with pytest.raises(UserError) as caught:
        nifti.read_image(path)
    message = str(caught.value)
    assert caught.value.issue.check == check, message
    assert str(path) in message and '\n' not in message
    for word in words:
        assert word in message, message


def test_files_that_cannot_be_opened(tmp_path):
    loop = tmp_path / 'loop.nii.gz'
    loop.symlink_to(loop)
    folder = tmp_path / 'folder.nii'
    folder.mkdir()
    pipe = tmp_path / 'pipe.nii.gz'
    os.mkfifo(pipe)  # opening it would wait for ever
    for path, check in [(tmp_path / 'none.nii', 'missing_file'), (loop, 'unreadable'),
                        (folder, 'unreadable'), (pipe, 'unreadable')]:  # fmt: skip
        with pytest.raises(FileError) as caught:
            nifti.read_image(path)
        assert caught.value.issue.check == check


def test_memory_limit_is_asked_before_allocating(tmp_path):
    path = helper.write(tmp_path / 'a.nii.gz', np.zeros((200, 200, 200), np.uint8))
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match='too_large.*0.01 GiB, the limit is 0.00 GiB'):
            nifti.read_image(path, max_bytes=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_reading_needs_one_array(tmp_path):
    path = helper.write(tmp_path / 'a.nii.gz', np.zeros((256, 256, 300), np.int16))
    size = 2 * 256 * 256 * 300
    tracemalloc.start()
    try:
        volume = nifti.read_image(path)
        assert volume.array.nbytes == size
        assert tracemalloc.get_traced_memory()[1] < size + (16 << 20)
    finally:
        tracemalloc.stop()


DTYPES = {
    # stored: read as an image, read as a label
    'uint8': ('uint8', 'uint8'), 'int8': ('int8', 'int8'), 'int16': ('int16', 'int16'),
    'uint16': ('uint16', 'uint16'), 'int32': ('int32', 'int32'), 'uint32': ('int32', 'int32'),
    'int64': ('int32', 'int32'), 'uint64': ('int32', 'int32'), 'float32': ('float32', 'int32'),
    'float64': ('float32', 'int32'),
}  # fmt: skip


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('suffix', ['nii', 'nii.gz'])
@pytest.mark.parametrize('dtype', DTYPES)
def test_values_of_every_type(dtype, suffix, order, tmp_path):
    expected = RNG.integers(0, 120, (5, 6, 7))
    path = helper.write(tmp_path / f'a.{suffix}', expected, dtype=dtype, order=order)
    image, label = nifti.read_image(path), nifti.read_label(path)
    assert (image.array.dtype.name, label.array.dtype.name) == DTYPES[dtype]
    np.testing.assert_array_equal(image.array, expected)
    np.testing.assert_array_equal(label.array, expected)
    assert (image.minimum, image.maximum) == (expected.min(), expected.max())
    assert image.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not image.issues and not label.issues


def test_more_than_one_chunk_and_many_gzip_members(tmp_path):
    array = RNG.integers(-1000, 1000, (130, 120, 100)).astype(np.int16)
    data = helper.nifti_bytes(array)
    parts = [compressed(data[i : i + 700_001]) for i in range(0, len(data), 700_001)]
    path = tmp_path / 'a.nii.gz'
    path.write_bytes(b''.join(parts) + b'\0' * 512)
    np.testing.assert_array_equal(nifti.read_image(path).array, array)


def test_scaling_gives_float32(tmp_path):
    stored = RNG.integers(0, 255, (4, 5, 6)).astype(np.uint8)
    path = helper.write(tmp_path / 'a.nii', stored, scl_slope=0.5, scl_inter=-1024)
    volume = nifti.read_image(path)
    assert volume.array.dtype == np.float32 and volume.is_fractional
    np.testing.assert_allclose(volume.array, stored * 0.5 - 1024, rtol=1e-6)
    np.testing.assert_allclose(volume.array, nib.load(path).get_fdata(), rtol=1e-6)
    identity = helper.write(tmp_path / 'b.nii', stored, scl_slope=1)
    assert nifti.read_image(identity).array.dtype == np.uint8


def test_nifti2_and_header_extension(tmp_path):
    array = helper.hu_volume()
    affine = helper.affine_of((2, 1, 3), 'LAS')
    image = nib.Nifti2Image(array, affine)
    image.header.extensions.append(nib.nifti1.Nifti1Extension('comment', b'patient name'))
    nib.save(image, tmp_path / 'a.nii.gz')
    volume = nifti.read_image(tmp_path / 'a.nii.gz')
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.header.affine, affine)
    nifti.write_like(tmp_path / 'b.nii.gz', array, volume, 'int16')
    np.testing.assert_array_equal(nib.load(tmp_path / 'b.nii.gz').dataobj, array)
    assert b'patient' not in gzip.decompress((tmp_path / 'b.nii.gz').read_bytes())


def test_trailing_singleton_axis_is_dropped_with_a_note(tmp_path):
    array = helper.hu_volume()
    path = helper.write(tmp_path / 'a.nii', array, dim=(4, 9, 8, 7, 1, 1, 1, 1))
    volume = nifti.read_image(path)
    np.testing.assert_array_equal(volume.array, array)
    assert [issue.check for issue in volume.issues] == ['squeezed']
    assert 'squeezed' in volume.warnings[0] and str(path) in volume.warnings[0]


def test_bytes_after_the_voxels_are_noted(tmp_path):
    path = tmp_path / 'a.nii.gz'
    path.write_bytes(compressed(good() + b'\0' * 77))
    (issue,) = nifti.read_image(path).issues
    assert (issue.check, issue.severity) == ('trailing_bytes', 'warning') and '77' in issue.value


@pytest.mark.parametrize('rest', [b'x' * 77, b'\0' * 76 + b'\1', b'\0' * 20_000])
def test_voxels_of_another_shape_may_follow(rest, tmp_path):
    path = tmp_path / 'a.nii.gz'
    path.write_bytes(compressed(good() + rest))
    with pytest.raises(FileError, match=r'trailing_bytes: [\d,]+ bytes follow.*\(9, 8, 7\)'):
        nifti.read_image(path)
    volume = nifti.read_image(path, allow=['trailing_bytes'])
    np.testing.assert_array_equal(volume.array, helper.hu_volume())
    assert [issue.severity for issue in volume.issues] == ['warning']


def test_endless_bytes_after_the_voxels_are_not_read(tmp_path):
    path = tmp_path / 'a.nii.gz'
    path.write_bytes(compressed(good()) + compressed(bytes(2**26)) * 40)  # 2.5 GiB
    with pytest.raises(FileError, match='over 67,108,864 bytes follow'):
        nifti.read_image(path, allow=['trailing_bytes'])


@pytest.mark.parametrize('policy', [{'nan_policy': 'fill'}, {'allow': ['nonfinite']}])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_nan_fill(policy, dtype, tmp_path):
    array = with_value(np.nan, dtype)
    array[0, 0, 0] = np.inf
    volume = nifti.read_image(helper.write(tmp_path / 'a.nii', array), **policy)
    expected = np.nan_to_num(array, nan=-1024, posinf=-1024)
    np.testing.assert_array_equal(volume.array, expected)
    assert '1 NaN and 1 Inf' in volume.warnings[0]


def test_sheared_sform_is_accepted_with_a_warning(tmp_path):
    volume = nifti.read_image(helper.write(tmp_path / 'a.nii', helper.hu_volume(), SHEARED))
    np.testing.assert_allclose(volume.header.affine, SHEARED, atol=1e-6)
    np.testing.assert_allclose(volume.header.spacing_mm, [1, np.hypot(0.3, 1), 1], rtol=1e-6)
    assert [issue.check for issue in volume.issues] == ['affine_sheared']
    assert '16.7' in volume.issues[0].value  # arcsin(0.3 / 1.044) in degrees


def test_spacing_comes_from_the_affine_columns(tmp_path):
    angle = np.deg2rad(30)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] *= [0.7, 0.8, 5]
    volume = nifti.read_image(helper.write(tmp_path / 'a.nii', helper.hu_volume(), affine))
    np.testing.assert_allclose(volume.header.spacing_mm, [0.7, 0.8, 5], rtol=1e-6)
    _, place = nifti.to_canonical(volume)
    np.testing.assert_allclose(place.spacing_mm, [5, 0.8, 0.7], rtol=1e-6)


@pytest.mark.parametrize('codes', ['RAS', 'LPS', 'LAI', 'PSR'])
def test_qform_and_sform_from_the_same_matrix_agree(codes, tmp_path):
    rng = np.random.default_rng(3)
    for _ in range(20):
        rotation = nib.eulerangles.euler2mat(*rng.normal(0, 0.02, 3))
        affine = helper.affine_of((0.8, 0.8, 2.5), codes, (-250, 180, -900))
        affine[:3, :3] = rotation @ affine[:3, :3]
        image = nib.Nifti1Image(np.zeros((512, 4, 4), np.uint8), affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        nib.save(image, tmp_path / 'a.nii')
        assert not nifti.read_image(tmp_path / 'a.nii').issues


def test_disagreeing_qform_can_be_allowed(tmp_path):
    affine = helper.affine_of(codes='LPS')
    path = helper.write(tmp_path / 'a.nii', helper.hu_volume(), affine, **QFORM)
    volume = nifti.read_image(path, allow=['qform_sform'])
    np.testing.assert_allclose(volume.header.affine, affine)
    assert [issue.severity for issue in volume.issues] == ['warning']
    with pytest.raises(UserError, match="no check is called 'qform'"):
        nifti.read_image(path, allow=['qform'])


@pytest.mark.parametrize('codes', ['LPS', 'SAR'])
def test_orientation_can_be_assumed(codes, tmp_path):
    spacing = (1, 2, 3)
    path = helper.write(
        tmp_path / 'a.nii', helper.hu_volume(), helper.affine_of(spacing), sform_code=0
    )
    volume = nifti.read_image(path, assume_orientation=codes)
    np.testing.assert_array_equal(volume.header.affine, helper.affine_of(spacing, codes, (0, 0, 0)))
    assert volume.header.axes == codes and volume.issues[0].severity == 'warning'
    for wrong in ('LPX', 'LRS', 'LP'):
        with pytest.raises(UserError, match='LPS'):
            nifti.read_image(path, assume_orientation=wrong)


@pytest.mark.parametrize('changes', [{'xyzt_units': 1}, {'xyzt_units': 3}])
def test_odd_units_are_noted(changes, tmp_path):
    path = helper.write(tmp_path / 'a.nii', helper.hu_volume(), **changes)
    assert [issue.check for issue in nifti.read_image(path).issues] == ['spacing_units']


@pytest.mark.parametrize(
    ('value', 'words'),
    [(1.5, '1 fractions'), (np.nan, '1 NaN'), (np.inf, '1 Inf'), (1e-4, '1 fractions')],
)
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_float_labels_must_hold_whole_numbers(value, words, dtype, tmp_path):
    array = np.ones((4, 5, 6), dtype)
    array[1, 1, 1] = value
    with pytest.raises(FileError, match='label_not_integer') as caught:
        nifti.read_label(helper.write(tmp_path / 'a.nii', array))
    assert words in str(caught.value)


def test_labels_keep_ids_beyond_uint8(tmp_path):
    array = np.zeros((4, 5, 6), np.float64)
    array[0, 0, 0], array[1, 1, 1] = 300, -2
    label = nifti.read_label(helper.write(tmp_path / 'a.nii', array)).array
    assert label[0, 0, 0] == 300 and label[1, 1, 1] == -2
    array[0, 0, 0] = 1e12
    with pytest.raises(FileError, match='value_range'):
        nifti.read_label(helper.write(tmp_path / 'b.nii', array))


def test_lenient_reading_collects_every_error(tmp_path):
    path = helper.write(
        tmp_path / 'a.nii', with_value(np.nan), helper.affine_of(codes='LPS'), **QFORM
    )
    volume = nifti.read_image(path, strict=False)
    found = {issue.check: issue.severity for issue in volume.issues}
    assert found == {'qform_sform': 'error', 'nonfinite': 'error'}


def test_header_alone(tmp_path):
    path = helper.write(tmp_path / 'a.nii.gz', helper.hu_volume(), helper.affine_of((1, 2, 3)))
    header = nifti.read_header(path)
    assert header.shape == (9, 8, 7) and header.dtype == np.int16
    np.testing.assert_allclose(header.spacing_mm, (1, 2, 3))
