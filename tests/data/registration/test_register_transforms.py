"""Transform files: conventions against ITK's own reader, and files that are cut off."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import register_helper as helper

from maxquery_jax.data.orientation import find_orientation
from maxquery_jax.data.registration import transforms
from maxquery_jax.data.registration.grids import Grid, displacement_of
from maxquery_jax.errors import UserError

sitk = pytest.importorskip('SimpleITK')
AFFINE = helper.centred((6, 5, 4), (3, 4, 5), 'RAS', helper.turn((5, -8, 30)), (7, -3, 2))
GRID = Grid.of(find_orientation(AFFINE, (6, 5, 4)))
FIELD = np.random.default_rng(0).normal(0, 3, (4, 5, 6, 3)).astype(np.float32)


def write_itk(path, affine=AFFINE, intent=1007, shape=(6, 5, 4, 1, 3), array=None, dtype='float32'):
    array = FIELD.transpose(2, 1, 0, 3).reshape(shape) if array is None else array
    image = nib.Nifti1Image(array.astype(dtype), affine)
    image.header['intent_code'] = intent
    nib.save(image, path)
    return path


def test_field_round_trip_and_equal_bytes(tmp_path):
    paths = [tmp_path / 'a.nii.gz', tmp_path / 'b.nii.gz']
    for path in paths:
        transforms.write_field(path, FIELD, GRID)
    field, grid = transforms.read_field(paths[0])
    np.testing.assert_array_equal(field, FIELD)
    np.testing.assert_allclose(grid.affine, GRID.affine, atol=1e-5)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize('codes', ['RAS', 'LPS', 'SRP'])
@pytest.mark.parametrize('intent', [1006, 1007])
def test_vectors_mean_what_itk_takes_them_for(tmp_path, intent, codes):
    """The same file, read here and by SimpleITK, moves points to the same place."""
    shape = (6, 5, 4)
    affine = helper.centred(shape, (3, 4, 5), codes, helper.turn((5, -8, 30)))
    array = np.random.default_rng(1).normal(0, 3, (*shape, 1, 3))
    path = write_itk(tmp_path / 'f.nii.gz', affine, intent, array=array)
    ours = transforms.read_transforms([path])
    image = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    theirs = sitk.DisplacementFieldTransform(sitk.Image(image))
    for index in ((0, 0, 0), (5, 4, 3), (2, 1, 3)):
        point = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(
            ours.TransformPoint(point), theirs.TransformPoint(point), atol=1e-4
        )
        assert not np.allclose(ours.TransformPoint(point), point, atol=1e-3)


def test_the_first_file_acts_first(tmp_path):
    shift = sitk.TranslationTransform(3, (10, 0, 0))
    turn = sitk.Euler3DTransform((0, 0, 0), 0, 0, np.pi / 2)
    for name, transform in (('shift', shift), ('turn', turn)):
        sitk.WriteTransform(transform, str(tmp_path / f'{name}.tfm'))
    chain = transforms.read_transforms([tmp_path / 'shift.tfm', tmp_path / 'turn.tfm'])
    np.testing.assert_allclose(chain.TransformPoint((1, 0, 0)), (0, 11, 0), atol=1e-9)


@pytest.mark.parametrize('ending', ['tfm', 'txt', 'h5', 'mat'])
def test_itk_files_of_every_kind(tmp_path, ending):
    affine = sitk.AffineTransform((1.1, 0.1, 0, 0, 0.9, 0, 0.05, 0, 1), (3, -2, 5))
    path = tmp_path / f't.{ending}'
    sitk.WriteTransform(affine, str(path))
    chain = transforms.read_transforms([path])
    np.testing.assert_allclose(
        chain.TransformPoint((10, 20, 30)), affine.TransformPoint((10, 20, 30)), atol=1e-9
    )


def test_our_file_equals_the_transform(tmp_path):
    rigid = sitk.Euler3DTransform((1.5, 2, 3), 0.1, 0.2, 1 / 3, (4, 5, 1 / 7))
    transforms.write_transform(tmp_path / 't.tfm', rigid)
    read = transforms.read_transforms([tmp_path / 't.tfm'])
    np.testing.assert_array_equal(displacement_of(read, GRID), displacement_of(rigid, GRID))
    assert [path.name for path in tmp_path.iterdir()] == ['t.tfm']


def composite(path):
    parts = [sitk.Euler3DTransform((1, 2, 3), 0.1, 0.2, 0.3), sitk.AffineTransform(3)]
    sitk.WriteTransform(sitk.CompositeTransform(parts), str(path))


def spline(path):
    sitk.WriteTransform(sitk.BSplineTransform(3, 3), str(path))


@pytest.mark.parametrize('write', [composite, spline])
def test_a_text_file_cut_anywhere_is_refused_or_whole_lines_short(tmp_path, write):
    """SimpleITK takes most of these; only a cut after a whole transform cannot be seen."""
    path = tmp_path / 't.tfm'
    write(path)
    text = path.read_text()
    whole = {text.index('#Transform 2')} if '#Transform 2' in text else set()
    rng = np.random.default_rng(0)
    cuts = {0, 3, 40, *rng.integers(1, len(text.rstrip()), 60).tolist()} - whole
    for cut in cuts:
        path.write_text(text[:cut])
        with pytest.raises(UserError) as caught:
            transforms.read_transforms([path])
        assert 't.tfm' in str(caught.value) and '\n' not in str(caught.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def cut_inside(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-40]))


def with_nan(path):
    array = FIELD.transpose(2, 1, 0, 3)[:, :, :, None].copy()
    array[1, 1, 1, 0, 0] = np.nan
    write_itk(path, array=array)


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (cut, 'truncated'),
        (cut_inside, 'truncated'),
        (with_nan, 'nonfinite'),
        (lambda path: write_itk(path, intent=0), 'set intent 1006'),
        (lambda path: write_itk(path, shape=(6, 5, 4, 3)), 'stored as [i, j, k, 1, 3]'),
        (lambda path: write_itk(path, dtype='int16'), 'store float32'),
        (lambda path: path.write_bytes(b'<html>'), 'format'),
        (lambda path: path.unlink(), 'no such file'),
    ],
)
def test_a_bad_field_is_refused_in_one_line(tmp_path, damage, words):
    path = write_itk(tmp_path / 'f.nii.gz')
    damage(path)
    with pytest.raises(UserError) as caught:
        transforms.read_transforms([path])
    assert words in str(caught.value) and 'f.nii.gz' in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['t.h5', 't.mat', 't.tfm'])
def test_rubbish_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b'\x01\x02rubbish\n')
    with pytest.raises(UserError, match=name):
        transforms.read_transforms([tmp_path / name])


def test_a_plane_transform_is_refused(tmp_path):
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / 't.h5'))
    with pytest.raises(UserError, match='3D'):
        transforms.read_transforms([tmp_path / 't.h5'])
