"""Every storage order goes to (z, y, x) RAS and back without touching a voxel."""

import itertools
import json

import nibabel as nib
import nifti_helper as helper
import numpy as np
import pytest

from maxquery_jax.data import nifti
from maxquery_jax.data import orientation as lib
from maxquery_jax.data.prepare import prepare
from maxquery_jax.data.scan import ReadOptions
from maxquery_jax.data.store import PatchStore
from maxquery_jax.inference.predict import predict
from tests.inference.threshold_model import expected_label, make_threshold_model, phantom_hu

ORDERS = list(itertools.permutations(range(3)))
FLIPS = list(itertools.product([False, True], repeat=3))
OBLIQUE = nib.eulerangles.euler2mat(0.2, -0.15, 0.1)  # up to 15 degrees off the axes


def stored(canonical, order, flips, affine):
    """A canonical array [x, y, z] and affine rewritten with other axes: known ground truth."""
    array, matrix = canonical, affine.copy()
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis)
            matrix[:3, 3] += matrix[:3, axis] * (canonical.shape[axis] - 1)
            matrix[:3, axis] *= -1
    return array.transpose(order), matrix[:, [*order, 3]]


def straight_affine(rotation, spacing=(0.7, 0.9, 2.5)):
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = [-30, 12, 400]
    return affine


@pytest.mark.parametrize('rotation', [np.eye(3), OBLIQUE], ids=['straight', 'oblique'])
@pytest.mark.parametrize('flips', FLIPS, ids=str)
@pytest.mark.parametrize('order', ORDERS, ids=str)
def test_all_48_orders_round_trip(order, flips, rotation, tmp_path):
    canonical = helper.hu_volume((5, 6, 7))
    affine = straight_affine(rotation)
    array, matrix = stored(canonical, order, flips, affine)
    path = helper.write(tmp_path / 'a.nii', array, matrix)
    volume = nifti.read_image(path)
    image, place = nifti.to_canonical(volume)
    np.testing.assert_array_equal(image, canonical.transpose(2, 1, 0))
    np.testing.assert_allclose(place.spacing_mm, [2.5, 0.9, 0.7], rtol=1e-6)
    assert place.shape == image.shape == (7, 6, 5)
    np.testing.assert_allclose(place.affine, affine[:, [2, 1, 0, 3]], atol=1e-4)
    np.testing.assert_array_equal(nifti.from_canonical(image, place), array)
    mask = (image > 0).astype(np.uint8)
    nifti.write_like(tmp_path / 'm.nii.gz', nifti.from_canonical(mask, place), volume, 'uint8')
    written = nib.load(tmp_path / 'm.nii.gz')
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), array > 0)
    np.testing.assert_array_equal(written.affine, nib.load(path).affine)


CODES = [(0, 1), (1, 0), (1, 1), (2, 4), (4, 3)]  # qform, sform


def save(path, array, affine, qform=1, sform=1):
    """A file as nibabel writes it."""
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine if qform else None, qform)
    image.set_sform(affine if sform else None, sform)
    image.header.set_xyzt_units('mm')
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


@pytest.mark.parametrize('rotation', [np.eye(3), OBLIQUE], ids=['straight', 'oblique'])
@pytest.mark.parametrize('flips', FLIPS, ids=str)
@pytest.mark.parametrize('order', ORDERS, ids=str)
def test_copied_masks_come_back_with_their_header(order, flips, rotation, tmp_path):
    """read, canonical, back, write, read: equal voxels, and the header's geometry bit by bit."""
    canonical = (helper.hu_volume((5, 6, 7)) > 100).astype(np.uint8)
    array, matrix = stored(canonical, order, flips, straight_affine(rotation))
    for qform, sform in CODES:
        path = save(tmp_path / 'a.nii.gz', array, matrix, qform, sform)
        volume = nifti.read_label(path)
        label, place = nifti.to_canonical(volume)
        np.testing.assert_array_equal(label, canonical.transpose(2, 1, 0))
        copy = tmp_path / 'copy.nii.gz'
        nifti.write_like(copy, nifti.from_canonical(label.copy(), place), volume, 'uint8')
        again = nifti.read_label(copy)
        np.testing.assert_array_equal(again.array, array)
        assert not again.issues
        before, after = volume.header.raw, again.header.raw
        for field in ('qform_code', 'sform_code', 'quatern_b', 'quatern_c', 'quatern_d', 'srow_x',
                      'qoffset_x', 'qoffset_y', 'qoffset_z', 'srow_y', 'srow_z',
                      'xyzt_units', 'dim'):  # fmt: skip
            np.testing.assert_array_equal(before[field], after[field], field)
        np.testing.assert_array_equal(before['pixdim'][:4], after['pixdim'][:4])
        assert (before['qform_code'], before['sform_code']) == (qform, sform)


@pytest.mark.parametrize('rotation', [np.eye(3), OBLIQUE], ids=['straight', 'oblique'])
def test_all_48_orders_through_the_store_and_a_prediction(rotation, tmp_path):
    """48 files of one patient: one volume in the store, and each file's own voxels after it."""
    canonical, label = phantom_hu((7, 6, 5)), np.zeros((7, 6, 5), np.uint8)
    label[2:5, 1:4, 3:5] = 1
    affine, raw = straight_affine(rotation), tmp_path / 'raw'
    cases = {f'c{n:02d}': pair for n, pair in enumerate(itertools.product(ORDERS, FLIPS))}
    for n, (case, pair) in enumerate(cases.items()):
        codes = CODES[n % len(CODES)]
        save(raw / 'imagesTr' / f'{case}.nii.gz', *stored(canonical, *pair, affine), *codes)
        save(raw / 'labelsTr' / f'{case}.nii.gz', *stored(label, *pair, affine), *codes)
    training = [{'image': f'imagesTr/{i}.nii.gz', 'label': f'labelsTr/{i}.nii.gz'} for i in cases]
    listing = {'labels': {'0': 'background', '1': 'liver'}, 'training': training}
    (raw / 'dataset.json').write_text(json.dumps(listing))
    read = ReadOptions(frozenset({'duplicate'}))
    prepare('decathlon', raw, tmp_path / 'store', read=read, workers=0, log=lambda _: None)
    store = PatchStore(tmp_path / 'store')
    for case, pair in cases.items():
        np.testing.assert_array_equal(store.read_image(case)[..., 0], canonical.transpose(2, 1, 0))
        np.testing.assert_array_equal(store.read_label(case), label.transpose(2, 1, 0))
        header = nifti.read_header(raw / 'labelsTr' / f'{case}.nii.gz')
        place = lib.find_orientation(header.affine, header.shape)
        nifti.write_like(
            tmp_path / 'back.nii.gz',
            nifti.from_canonical(store.read_label(case), place),
            header,
            'uint8',
        )
        back = nifti.read_label(tmp_path / 'back.nii.gz').array
        np.testing.assert_array_equal(back, stored(label, *pair, affine)[0])
    model = make_threshold_model(spacing_mm=store.manifest.spacing_mm)
    chosen = list(cases)[::7]
    predict(model, [raw / 'imagesTr' / f'{case}.nii.gz' for case in chosen], tmp_path / 'out')
    for case in chosen:
        found = nib.load(tmp_path / 'out' / f'{case}_seg.nii.gz')
        source = nib.load(raw / 'imagesTr' / f'{case}.nii.gz')
        hu, _ = stored(canonical, *cases[case], affine)
        np.testing.assert_array_equal(np.asanyarray(found.dataobj), expected_label(hu))
        np.testing.assert_array_equal(found.affine, source.affine)
        for code in ('qform_code', 'sform_code'):
            assert found.header[code] == source.header[code]


def test_views_are_not_copies():
    array = helper.hu_volume()
    place = lib.find_orientation(helper.affine_of(codes='PIL'), array.shape)
    image = lib.apply(array, place)
    assert np.shares_memory(image, array)
    assert np.shares_memory(lib.from_canonical(image, place), array)


def test_wrong_shapes_are_refused():
    place = lib.find_orientation(helper.affine_of(codes='PIL'), (9, 8, 7))
    with pytest.raises(ValueError, match='shape'):
        lib.apply(np.zeros((7, 8, 9)), place)
    with pytest.raises(ValueError, match='shape'):
        lib.from_canonical(np.zeros((9, 8, 7)), place)


def test_real_files_agree_with_nibabel(real_data):
    for path in sorted(real_data.glob('*/*.nii.gz'))[1::9]:
        image, _ = nifti.to_canonical(nifti.read_image(path))
        reference = nib.as_closest_canonical(nib.load(path))
        np.testing.assert_array_equal(image.transpose(2, 1, 0), reference.dataobj)


@pytest.mark.parametrize('case', ['case_00004', 'case_00010', 'case_00021'])
def test_native_and_resampled_labels_lie_at_the_same_place(case, real_data):
    """KiTS files stored IPL and their 2 mm LPS versions: same centre of mass in world mm."""
    centres = []
    for name, axes in [('native', 'IPL'), ('2mm', 'LPS')]:
        path = real_data / 'kits23_labels' / f'{case}_{name}_seg.nii.gz'
        volume = nifti.read_label(path)
        assert volume.header.axes == axes
        label, place = nifti.to_canonical(volume)
        index = np.argwhere(label == 1).mean(0)
        centres.append((place.affine @ [*index, 1])[:3])
        if name == 'native':
            assert place.spacing_mm[0] == volume.header.spacing_mm[0] > 2  # slices come first
    # The 2 mm files share the outer corner up to one native slice.
    assert np.abs(centres[0] - centres[1]).max() < 3


# Sheared grids.

SHEAR = np.array([[1.0, 0, 0.3, -20], [0, 1.2, 0, 5], [0, 0.1, 2.0, 30], [0, 0, 0, 1]])


def linear_field(place):
    """A function of world coordinates sampled on a canonical grid: linear, so exact."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in place.shape), indexing='ij'), -1)
    world = index @ place.affine[:3, :3].T + place.affine[:3, 3]
    return (world @ [3.0, -2.0, 5.0]).astype(np.float32)


def test_sheared_volume_is_rectified_through_its_affine():
    place = lib.find_orientation(SHEAR, (30, 28, 26))
    assert place.is_sheared
    field = linear_field(place)
    shape, affine = lib.rectified_grid(place)
    image = lib.rectify(field, place, order=1, fill=-9999)
    assert image.shape == shape
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), place.spacing_mm)
    straight = lib.Orientation((0, 1, 2), (False,) * 3, shape, affine)
    inside = lib.rectify(np.ones_like(field), place, order=1, fill=0) > 0.9999
    assert inside.mean() > 0.5
    np.testing.assert_allclose(image[inside], linear_field(straight)[inside], atol=0.05)
    back = lib.unrectify(image, place, order=1, fill=-9999)
    assert back.shape == field.shape
    core = (slice(3, -3),) * 3
    np.testing.assert_allclose(back[core], field[core], atol=0.05)


def test_sheared_labels_come_back():
    place = lib.find_orientation(SHEAR, (40, 36, 34))
    label = np.zeros(place.shape, np.uint8)
    label[8:26, 10:28, 9:30] = 7
    straight = lib.rectify(label, place, order=0, fill=0)
    assert straight.dtype == np.uint8 and set(np.unique(straight)) == {0, 7}
    back = lib.unrectify(straight, place, order=0, fill=0)
    overlap = ((back == 7) & (label == 7)).sum() / ((back == 7) | (label == 7)).sum()
    assert overlap > 0.9


def test_right_angles_are_not_sheared():
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE * [0.7, 0.7, 5]
    assert not lib.find_orientation(affine.astype(np.float32), (4, 4, 4)).is_sheared
