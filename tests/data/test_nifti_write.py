"""The NIfTI writer: the input's geometry, whole files, no value that is silently changed."""

import gzip

import nibabel as nib
import nifti_helper as helper
import numpy as np
import pytest

from maxquery_jax.data import nifti
from maxquery_jax.errors import UserError

RNG = np.random.default_rng(0)


def read_raw(path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.name.endswith('.gz') else data


@pytest.mark.parametrize('suffix', ['nii', 'nii.gz'])
@pytest.mark.parametrize('order', ['<', '>'])
def test_output_has_the_inputs_geometry(suffix, order, tmp_path):
    affine = helper.affine_of((0.7, 0.8, 2.5), 'LPS', (120, 90, -700))
    source = helper.write(
        tmp_path / 'in.nii', helper.hu_volume(), affine, order=order, scl_slope=2, scl_inter=-5,
        qform_code=2, quatern=(0, 0, 1), qoffset=tuple(affine[:3, 3]), xyzt_units=10,
        sform_code=3, descrip=b'Name of a Patient', pixdim=(1, 0.7, 0.8, 2.5, 9, 9, 9, 9),
    )  # fmt: skip
    volume = nifti.read_image(source)
    mask = (RNG.random((9, 8, 7)) > 0.5).astype(np.uint8)
    target = tmp_path / 'new' / f'out.{suffix}'
    nifti.write_like(target, mask, volume, 'uint8')
    written, reference = nib.load(target), nib.load(source)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), mask)
    np.testing.assert_array_equal(written.affine, reference.affine)
    for field in ('qform_code', 'sform_code', 'quatern_b', 'quatern_c', 'quatern_d', 'qoffset_x',
                  'srow_x', 'srow_y', 'srow_z', 'xyzt_units'):  # fmt: skip
        np.testing.assert_array_equal(written.header[field], reference.header[field])
    np.testing.assert_array_equal(written.header['pixdim'][:4], reference.header['pixdim'][:4])
    assert written.dataobj.slope == 1 and written.dataobj.inter == 0
    assert b'Patient' not in read_raw(target)
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    again = nifti.read_label(target)
    np.testing.assert_array_equal(again.array, mask)
    assert not again.issues


def test_equal_arrays_give_equal_bytes(tmp_path, monkeypatch):
    volume = nifti.read_image(helper.write(tmp_path / 'in.nii', helper.hu_volume()))
    nifti.write_like(tmp_path / 'a.nii.gz', volume.array, volume, 'int16')
    monkeypatch.setattr('time.time', lambda: 1e9)
    nifti.write_like(tmp_path / 'b.nii.gz', volume.array, volume, 'int16')
    assert (tmp_path / 'a.nii.gz').read_bytes() == (tmp_path / 'b.nii.gz').read_bytes()


def test_half_precision_maps_are_float32_files(tmp_path):
    volume = nifti.read_image(helper.write(tmp_path / 'in.nii', helper.hu_volume()))
    scores = RNG.normal(0, 300, (9, 8, 7)).astype(np.float32)
    scores[0, 0, 0] = 70000  # beyond half precision: the largest, not Inf
    nifti.write_like(tmp_path / 'a.nii.gz', scores, volume, 'float16')
    stored = nifti.read_image(tmp_path / 'a.nii.gz').array
    assert stored.dtype == np.float32 and stored[0, 0, 0] == 65504
    np.testing.assert_array_equal(stored, stored.astype(np.float16))
    np.testing.assert_allclose(stored.ravel(order='F')[1:], scores.ravel(order='F')[1:], rtol=1e-3)


@pytest.mark.parametrize(
    ('value', 'dtype'), [(300, 'uint8'), (-1, 'uint8'), (np.nan, 'float32'), (40000, 'int16')]
)
def test_values_that_do_not_fit_leave_nothing_behind(value, dtype, tmp_path):
    volume = nifti.read_image(helper.write(tmp_path / 'in.nii', helper.hu_volume()))
    array = np.zeros((9, 8, 7), np.float32)
    array[3, 3, 3] = value
    with pytest.raises(ValueError, match='fit into|NaN'):
        nifti.write_like(tmp_path / 'out.nii.gz', array, volume, dtype)
    assert [p.name for p in tmp_path.iterdir()] == ['in.nii']
    with pytest.raises(ValueError, match='shape'):
        nifti.write_like(tmp_path / 'out.nii.gz', array[1:], volume, 'float32')
    with pytest.raises(UserError, match='.nii.gz'):
        nifti.write_like(tmp_path / 'out.png', array, volume, 'float32')


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    volume = nifti.read_image(helper.write(tmp_path / 'in.nii', helper.hu_volume()))
    target = tmp_path / 'out.nii.gz'
    target.write_bytes(b'old')

    def full(*_):
        yield volume.array[:, :, :1]
        raise OSError('No space left on device')

    monkeypatch.setattr('maxquery_jax.data.nifti_write._check_values', lambda *_: None)
    monkeypatch.setattr('maxquery_jax.data.nifti_write._slabs', full)
    with pytest.raises(UserError, match=r'out\.nii\.gz: cannot be written \(No space'):
        nifti.write_like(target, volume.array, volume, 'int16')
    assert target.read_bytes() == b'old'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in.nii', 'out.nii.gz']


def test_new_file(tmp_path):
    affine = helper.affine_of((0.7, 0.8, 2.5), 'LPS')
    nifti.write_new(tmp_path / 'a.nii.gz', helper.hu_volume(), affine)
    volume = nifti.read_image(tmp_path / 'a.nii.gz')
    np.testing.assert_array_equal(volume.array, helper.hu_volume())
    np.testing.assert_allclose(volume.header.affine, affine, rtol=1e-6)
    assert not volume.issues
